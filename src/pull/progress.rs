//! How far a pull is: a bar a blob on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use oras_csi_core::digest::Digest;
use oras_csi_store::pull::{Planned, Progress};

/// More bars than fit on a screen help nobody: the rest is counted in the total alone.
const MOST_BARS: usize = 12;

/// Shows a pull on standard error.
#[derive(Debug)]
pub(super) struct Shown {
    bars: MultiProgress,
    blobs: Mutex<HashMap<Digest, Blob>>,
}

#[derive(Debug)]
struct Blob {
    bar: Option<ProgressBar>,
    name: String,
    size: u64,
}

impl Shown {
    pub(super) fn new() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self { bars, blobs: Mutex::default() }
    }

    fn bar(&self, planned: &Planned) -> ProgressBar {
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

impl Progress for Shown {
    fn planned(&self, planned: &[Planned]) {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        for blob in planned {
            let shown = !self.bars.is_hidden() && blobs.len() < MOST_BARS;
            let bar = shown.then(|| self.bar(blob));
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
            None if self.bars.is_hidden() => eprintln!("fetched {} ({})", blob.name, HumanBytes(blob.size)),
            None => {}
        }
    }
}
