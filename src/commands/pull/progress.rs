//! The progress of a pull on standard error: one bar per blob on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;
use oras_csi_core::reference::PinnedReference;
use oras_csi_store::pull::{Planned, Progress};

/// The number of bars that fit on a usual terminal. Blobs beyond it are downloaded without a bar.
const MAX_BARS: usize = 12;

/// Reports the progress of a pull.
#[derive(Debug)]
pub(super) struct ProgressBars {
    bars: MultiProgress,
    blobs: Mutex<HashMap<Digest, Blob>>,
}

#[derive(Debug)]
struct Blob {
    bar: Option<ProgressBar>,
    name: String,
    size: u64,
}

impl ProgressBars {
    pub(super) fn new() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self { bars, blobs: Mutex::default() }
    }

    fn add_bar(&self, planned: &Planned) -> ProgressBar {
        let style = ProgressStyle::with_template(
            "{bar:24} {bytes:>10}/{total_bytes:<10} {bytes_per_sec:>12} {eta:>5} {msg}",
        );
        let bar = self.bars.add(ProgressBar::new(planned.descriptor().size()));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(planned.name().to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

impl Progress for ProgressBars {
    fn left_out(&self, reference: &PinnedReference, media_types: &[String]) {
        let types = media_types.iter().map(|one| Shown::new(one).to_string()).collect::<Vec<_>>().join(", ");
        eprintln!(
            "Warning: {reference} has layers that are not written, because they have no file name \
             (org.opencontainers.image.title): {types}. In a recipe (-f), mediaTypes and as give one layer a name."
        );
    }

    fn planned(&self, planned: &[Planned]) {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        for blob in planned {
            let has_bar = !self.bars.is_hidden() && blobs.len() < MAX_BARS;
            let bar = has_bar.then(|| self.add_bar(blob));
            let (name, size) = (blob.name().to_owned(), blob.descriptor().size());
            blobs.entry(blob.descriptor().digest().clone()).or_insert(Blob { bar, name, size });
        }
    }

    fn received(&self, digest: &Digest, bytes: u64) {
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = blobs.get(digest).and_then(|blob| blob.bar.as_ref()) {
            bar.inc(bytes);
        }
    }

    fn finished(&self, digest: &Digest) {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(blob) = blobs.remove(digest) else { return };
        match blob.bar {
            Some(bar) => bar.finish_and_clear(),
            None if self.bars.is_hidden() => {
                eprintln!("downloaded {} ({})", blob.name, HumanBytes(blob.size));
            }
            None => {}
        }
    }
}
