//! The scrubber reads all stored items again, slowly, and compares them with their digests and recorded
//! checksums.
//!
//! ```text
//! blobs ── digest ─────┐           good ─► next item
//! layers ─ checksums ──┼─► verdict ┤
//! trees ── size, own ──┘           damaged ─► quarantined, with the trees ─► downloaded again: at once if it is
//!          checksums                          that use it; recorded in          mounted, else when a pod
//!                                             state.json, counted, logged       requests it
//! ```
//!
//! The scrubber is one thread with the lowest priority. It has a limit on bytes per second and bypasses the
//! page cache. It stops at any point when the driver stops. Each scrub starts at another item, so that a
//! driver that restarts often still verifies all items.
//!
//! A damaged item is never mounted again. Pods that have it mounted keep it, because removing a mount from a
//! running pod is worse than a wrong bit. Logs, metrics and the node record report the damage. See
//! docs/design.md, "Garbage collection".

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

/// Defines when the scrubber runs, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    interval: Option<Duration>,
    bytes_per_second: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { interval: Some(Duration::from_hours(7 * 24)), bytes_per_second: 20 << 20 }
    }
}

impl Schedule {
    /// Sets the interval from the end of one scrub to the next. Zero disables scrubbing. The default is a
    /// week.
    #[must_use]
    pub fn with_interval(self, interval: Duration) -> Self {
        Self { interval: Some(interval).filter(|interval| !interval.is_zero()), ..self }
    }

    /// Sets the maximum number of bytes per second. The default is 20 MiB.
    #[must_use]
    pub fn with_bytes_per_second(self, bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), ..self }
    }

    /// Returns the interval; `None` if scrubbing is disabled.
    pub fn interval(&self) -> Option<Duration> {
        self.interval
    }
}

/// Limits the read rate.
struct RateLimit {
    bytes_per_second: u64,
    began: Instant,
    read: u64,
    stop: CancellationToken,
}

impl RateLimit {
    fn new(schedule: &Schedule, stop: CancellationToken) -> Self {
        Self { bytes_per_second: schedule.bytes_per_second, began: Instant::now(), read: 0, stop }
    }
}

impl Pace for RateLimit {
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

/// Scrubs the store at the intervals of `schedule` until `stop`. Calls `heal` after damaged items were
/// quarantined.
pub async fn run(
    store: Arc<Store>,
    schedule: Schedule,
    heal: impl Fn() + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let Some(interval) = schedule.interval else { return stop.cancelled().await };
    let heal = Arc::new(heal);
    loop {
        // The first scrub is due one interval after the store was created.
        let ended = store.node_record().scrub.map_or_else(|| store.created_at(), |scrub| scrub.ended);
        let since = Duration::from_secs(now().saturating_sub(ended));
        tokio::select! {
            () = tokio::time::sleep(interval.saturating_sub(since)) => {}
            () = stop.cancelled() => return,
        }
        let (done, ends) = tokio::sync::oneshot::channel();
        let (scrubbed, stopped, heal) = (store.clone(), stop.clone(), heal.clone());
        // Uses its own thread, because a thread of the pool would keep the low priority.
        let thread = std::thread::Builder::new().name("scrub".to_owned()).spawn(move || {
            let _ = rustix::process::setpriority_process(None, 19);
            let report = scrub(&scrubbed, &schedule, stopped, &|| heal());
            drop((scrubbed, heal));
            let _ = done.send(report);
        });
        let result = match thread {
            Ok(_) => ends.await,
            Err(error) => {
                tracing::warn!(%error, "cannot start the scrubber thread; stored items are not scrubbed until the driver restarts");
                return stop.cancelled().await;
            }
        };
        match result {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the scrub failed; it is retried later"),
            Err(_) => tracing::error!("the scrubber thread panicked; the scrub is retried later"),
        }
        // Waits before a retry, also after a scrub that failed or had nothing to do.
        tokio::select! {
            () = tokio::time::sleep(interval.min(Duration::from_mins(1))) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Verifies all items in the store once, and quarantines damaged ones.
pub fn scrub(
    store: &Store,
    schedule: &Schedule,
    stop: CancellationToken,
    heal: &dyn Fn(),
) -> Result<ScrubReport, DiskError> {
    let mut pace = RateLimit::new(schedule, stop);
    let mut report = ScrubReport { began: now(), ..ScrubReport::default() };
    let mut inventory = Inventory::read(store.layout())?;
    inventory.rotate(report.began);
    for found in inventory.blobs() {
        let item = Item::Blob(found.digest().clone());
        // The lease prevents garbage collection from deleting the item while it is read.
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
    // Reads the inventory again, because trees that use a damaged item are quarantined by now.
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
        "scrubbed the store"
    );
    let noted = report.clone();
    store.update_node_record(|record| record.scrub = Some(noted));
    if report.damaged > 0 {
        heal();
    }
    Ok(report)
}

/// Handles a verdict. Returns `false` if the scrub must stop.
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

/// Records the checksums of a layer that an earlier version created. Later scrubs compare with this state.
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
                .map_err(|error| DiskError::new("commit", folder.join(CHECKSUMS), error))
        });
    if let Err(error) = written {
        let _ = std::fs::remove_file(&unfinished);
        // The layer may have been garbage-collected meanwhile.
        return if folder.exists() { Err(error) } else { Ok(Verdict::Gone) };
    }
    tracing::info!(layer = %key, "recorded checksums for a layer that an earlier version of the driver created");
    Ok(Verdict::NoChecksums)
}
