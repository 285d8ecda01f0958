//! The scrub: everything at rest is read again, slowly, and compared with what it was when it was verified.
//!
//! ```text
//! blobs ── digest ──┐           good ─► the next one
//! layers ── sums ───┼─► verdict ┤
//! trees ── count, ──┘           damaged ─► set aside, with the trees made of it ─► fetched again: at once what is
//!          own sums                        recorded in state.json, counted, logged   mounted, else when asked for
//! ```
//!
//! One thread, at the lowest priority, at most so many bytes a second, past the page cache. It ends where it is when
//! the driver stops; each begins at another place, so that with a driver that restarts often everything has its turn.
//!
//! What is damaged is never mounted again. Pods that have it mounted keep it: to take a mount away would be worse
//! than what a bit may do, and whoever is on call is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::content::checksums::{self, Which};
use crate::content::inventory::Inventory;
use crate::content::verify::{Verdict, verify_blob, verify_layer, verify_tree};
use crate::disk::DiskError;
use crate::disk::reader::{Pace, Reader};
use crate::layout::{CHECKSUMS, FILES, Item, LayerKey};
use crate::state::node_record::{ScrubReport, now};
use crate::store::Store;

/// When the scrub runs, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    every: Option<Duration>,
    bytes_per_second: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { every: Some(Duration::from_hours(7 * 24)), bytes_per_second: 20 << 20 }
    }
}

impl Schedule {
    /// This often, from end to end; never, with zero. A week, unless told otherwise.
    #[must_use]
    pub fn with_every(self, every: Duration) -> Self {
        Self { every: Some(every).filter(|every| !every.is_zero()), ..self }
    }

    /// At most so many bytes a second: 20 MiB.
    #[must_use]
    pub fn with_bytes_per_second(self, bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), ..self }
    }

    /// How often.
    pub fn every(&self) -> Option<Duration> {
        self.every
    }
}

/// Reads no faster than it may.
struct Slowly {
    bytes_per_second: u64,
    began: Instant,
    read: u64,
    stop: CancellationToken,
}

impl Slowly {
    fn new(schedule: &Schedule, stop: CancellationToken) -> Self {
        Self { bytes_per_second: schedule.bytes_per_second, began: Instant::now(), read: 0, stop }
    }
}

impl Pace for Slowly {
    fn spend(&mut self, bytes: u64) -> bool {
        const SLICE: Duration = Duration::from_millis(100);
        self.read = self.read.saturating_add(bytes);
        let millis = u128::from(self.read) * 1_000 / u128::from(self.bytes_per_second);
        let due = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        while !self.stop.is_cancelled() {
            let ahead = due.saturating_sub(self.began.elapsed());
            if ahead.is_zero() {
                return true;
            }
            std::thread::sleep(ahead.min(SLICE));
        }
        false
    }
}

/// Scrubs the store until `stop`, as often as `schedule` says; `heal` is called after damage was set aside.
pub async fn run(
    store: Arc<Store>,
    schedule: Schedule,
    heal: impl Fn() + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let Some(every) = schedule.every else { return stop.cancelled().await };
    let heal = Arc::new(heal);
    loop {
        // The first one is due when it would be had there been one when the store was made.
        let ended = store.node_record().scrub.map_or_else(|| store.since(), |scrub| scrub.ended);
        let since = Duration::from_secs(now().saturating_sub(ended));
        tokio::select! {
            () = tokio::time::sleep(every.saturating_sub(since)) => {}
            () = stop.cancelled() => return,
        }
        let (done, ends) = tokio::sync::oneshot::channel();
        let (scrubbed, stopped, heal) = (store.clone(), stop.clone(), heal.clone());
        // A thread of its own: one of the pool would keep its low priority.
        let thread = std::thread::Builder::new().name("scrub".to_owned()).spawn(move || {
            let _ = rustix::process::setpriority_process(None, 19);
            let report = scrub(&scrubbed, &schedule, stopped, &|| heal());
            drop((scrubbed, heal));
            let _ = done.send(report);
        });
        let result = match thread {
            Ok(_) => ends.await,
            Err(error) => {
                tracing::warn!(%error, "no thread for the scrub");
                return stop.cancelled().await;
            }
        };
        match result {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the scrub broke off; it is tried again later"),
            Err(_) => tracing::error!("the scrub ended without a word; it is tried again later"),
        }
        // What broke off or has nothing to do is not tried at once again.
        tokio::select! {
            () = tokio::time::sleep(every.min(Duration::from_mins(1))) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Compares all that is in the store once; sets aside what is damaged.
pub fn scrub(
    store: &Store,
    schedule: &Schedule,
    stop: CancellationToken,
    heal: &dyn Fn(),
) -> Result<ScrubReport, DiskError> {
    let mut pace = Slowly::new(schedule, stop);
    let mut report = ScrubReport { began: now(), ..ScrubReport::default() };
    let mut inventory = Inventory::read(store.layout())?;
    inventory.begin_at(report.began);
    for found in inventory.blobs() {
        let item = Item::Blob(found.digest().clone());
        // While it is compared nobody takes it away, or puts another in its place.
        let mut lease = store.lease();
        lease.add_blocking([item.clone()]);
        let verdict = verify_blob(store.layout(), found.digest(), &mut pace);
        report.blobs += 1;
        if !apply_verdict(store, &item, verdict, &mut report)? {
            return Ok(report);
        }
    }
    for found in inventory.layers() {
        let item = Item::Layer(found.key().clone());
        let mut lease = store.lease();
        lease.add_blocking([item.clone()]);
        let verdict = match verify_layer(store.layout(), found.key(), &mut pace)? {
            Verdict::NoChecksums => record_checksums(store, found.key())?,
            verdict => verdict,
        };
        report.layers += 1;
        if !apply_verdict(store, &item, verdict, &mut report)? {
            return Ok(report);
        }
    }
    // Read again: those that are made of something damaged are aside by now.
    for found in Inventory::read(store.layout())?.trees() {
        let item = Item::Tree(found.key().clone());
        let mut lease = store.lease();
        lease.add_blocking([item.clone()]);
        let verdict = verify_tree(store.layout(), found, &mut pace)?;
        report.trees += 1;
        if !apply_verdict(store, &item, verdict, &mut report)? {
            return Ok(report);
        }
    }
    (report.ended, report.bytes) = (now(), pace.read);
    tracing::info!(
        blobs = report.blobs,
        layers = report.layers,
        trees = report.trees,
        bytes = report.bytes,
        damaged = report.damaged,
        "the store was scrubbed"
    );
    let noted = report.clone();
    store.update_node_record(|record| record.scrub = Some(noted));
    if report.damaged > 0 {
        heal();
    }
    Ok(report)
}

/// Acts on a verdict; `false` where the scrub shall end.
fn apply_verdict(
    store: &Store,
    item: &Item,
    verdict: Verdict,
    report: &mut ScrubReport,
) -> Result<bool, DiskError> {
    store.observer().scrubbed(item, &verdict);
    match verdict {
        Verdict::Stopped => return Ok(false),
        Verdict::Damaged(found) => {
            store.quarantine(item, &found)?;
            report.damaged += 1;
        }
        Verdict::Good | Verdict::Gone | Verdict::NoChecksums => {}
    }
    Ok(true)
}

/// Takes the checksums of a layer that an earlier version made: what is there now is what the next scrub expects.
fn record_checksums(store: &Store, key: &LayerKey) -> Result<Verdict, DiskError> {
    let folder = store.layout().layer(key);
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(folder.join(FILES), flags, rustix::fs::Mode::empty()) else {
        return Ok(if folder.exists() {
            Verdict::Damaged("its files are missing".to_owned())
        } else {
            Verdict::Gone
        });
    };
    let unfinished = store.tmp_path();
    let written = checksums::write(&root, &unfinished, Which::All, &mut Reader::from_disk(), |_| {})
        .and_then(|()| {
            std::fs::rename(&unfinished, folder.join(CHECKSUMS))
                .map_err(|error| DiskError::new("keep", folder.join(CHECKSUMS), error))
        });
    if let Err(error) = written {
        let _ = std::fs::remove_file(&unfinished);
        // It may have been collected meanwhile.
        return if folder.exists() { Err(error) } else { Ok(Verdict::Gone) };
    }
    tracing::info!(layer = %key, "a layer of an earlier version has checksums from now on");
    Ok(Verdict::NoChecksums)
}
