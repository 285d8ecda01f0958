//! Assigns the download slots of a node, and fails downloads that are too slow.
//!
//! A node downloads a few blobs at a time, and the registry decides how long each takes. Therefore:
//!
//! - One host has at most half of the slots.
//! - A slow download gives its slot back and continues outside of the slots, if one of the places for slow downloads
//!   is free. Otherwise it fails after other downloads have waited for a minute.
//! - A download that is so slow that it would take days always fails.
//!
//! Preloads use only slots that no pod needs: at most half of the node's slots and all but one of a host's, and only
//! while no pod waits. A preload gives its slot back, also in the middle of a blob, when a pod waits for it. While
//! pods download, preloads also leave them the bandwidth and run only for a few seconds now and then.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use oras_csi_core::reference::RegistryHost;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::priority::Priority;
use crate::limits::Limits;

/// A download below this rate (bytes a second) must not keep others waiting.
const SLOW_RATE: u64 = 64 << 10;
/// A download below this rate (bytes a second) fails: 1 GiB would take three days.
const MIN_RATE: u64 = 4 << 10;
/// How often a preload checks whether a pod needs its slot, or whether a slot is free.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// While pods download, all preloads pause for the first time and run for the second one. So a pod with a very slow
/// registry does not block preloads permanently, and registries do not close the connections that pause.
const PRELOAD_PAUSE: Duration = Duration::from_secs(30);
const PRELOAD_RUN: Duration = Duration::from_secs(5);

/// The download slots of a node.
pub(super) struct Scheduler {
    node: Arc<Semaphore>,
    slow_downloads: Arc<Semaphore>,
    /// The slots of the node that preloads may have.
    preload: Arc<Semaphore>,
    /// Notified when a slot becomes free.
    freed: Notify,
    hosts: Mutex<HashMap<String, Weak<HostSlots>>>,
    share: usize,
    waiting: AtomicUsize,
    pod_activity: Mutex<PodActivity>,
}

/// How many slots pods have (without slow downloads), and since when they have any.
struct PodActivity {
    slots: usize,
    since: Instant,
}

/// The slots of one host.
struct HostSlots {
    slots: Arc<Semaphore>,
    preload: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The right to download one blob or a range of it.
pub(super) struct DownloadSlot {
    scheduler: Arc<Scheduler>,
    share: Arc<HostSlots>,
    priority: Priority,
    /// Kept while the slot is given back, so that no other preload starts in the meantime.
    preload: Option<PreloadPermits>,
    /// Absent only while the slot is given back.
    permits: Option<SlotPermits>,
    is_outside_slots: bool,
    is_counted: bool,
}

/// One slot of the node and one of a host.
struct SlotPermits {
    of_node: OwnedSemaphorePermit,
    _of_host: OwnedSemaphorePermit,
}

/// The permits of a preload: one of the host and one of the node.
type PreloadPermits = [OwnedSemaphorePermit; 2];

impl Scheduler {
    /// Creates a scheduler with this number of slots.
    pub(super) fn new(streams: usize) -> Self {
        let share = (streams / 2).max(1);
        Self {
            node: Arc::new(Semaphore::new(streams)),
            slow_downloads: Arc::new(Semaphore::new(streams)),
            preload: Arc::new(Semaphore::new(share)),
            freed: Notify::new(),
            hosts: Mutex::default(),
            share,
            waiting: AtomicUsize::new(0),
            pod_activity: Mutex::new(PodActivity { slots: 0, since: Instant::now() }),
        }
    }

    /// Waits for a slot. The permit of the host is acquired first, so that a task that waits for its host blocks no
    /// other host.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        host: &RegistryHost,
        priority: &Priority,
    ) -> Option<DownloadSlot> {
        let (share, mut preload) = (self.host_slots(host), None);
        let permits = self.acquire_permits(&share, priority, &mut preload).await?;
        Some(self.slot(share, priority, preload, permits))
    }

    /// Returns a slot if one is free and no task waits for it.
    pub(super) fn try_acquire_spare(
        self: &Arc<Self>,
        host: &RegistryHost,
        priority: &Priority,
    ) -> Option<DownloadSlot> {
        let share = self.host_slots(host);
        let preload = match priority.is_urgent() {
            true => None,
            false if self.can_preload_now() => Some(self.try_preload_permits(&share)?),
            false => return None,
        };
        let permits = self.try_spare_permits(&share)?;
        Some(self.slot(share, priority, preload, permits))
    }

    fn slot(
        self: &Arc<Self>,
        share: Arc<HostSlots>,
        priority: &Priority,
        preload: Option<PreloadPermits>,
        permits: SlotPermits,
    ) -> DownloadSlot {
        let (scheduler, priority) = (Arc::clone(self), priority.clone());
        let is_counted = priority.is_urgent();
        if is_counted {
            let mut pod_activity = self.pod_activity.lock().unwrap_or_else(PoisonError::into_inner);
            if pod_activity.slots == 0 {
                pod_activity.since = Instant::now();
            }
            pod_activity.slots += 1;
        }
        DownloadSlot {
            scheduler,
            share,
            priority,
            preload,
            permits: Some(permits),
            is_outside_slots: false,
            is_counted,
        }
    }

    /// Reports whether preloads may download now: while no pod does, or in the short intervals in between.
    fn can_preload_now(&self) -> bool {
        let pod_activity = self.pod_activity.lock().unwrap_or_else(PoisonError::into_inner);
        let period = (PRELOAD_PAUSE + PRELOAD_RUN).as_secs();
        pod_activity.slots == 0 || pod_activity.since.elapsed().as_secs() % period >= PRELOAD_PAUSE.as_secs()
    }

    async fn acquire_permits(
        &self,
        share: &HostSlots,
        priority: &Priority,
        preload: &mut Option<PreloadPermits>,
    ) -> Option<SlotPermits> {
        while !priority.is_urgent() {
            let freed = self.freed.notified();
            if preload.is_none() {
                *preload = self.try_preload_permits(share);
            }
            if preload.is_some()
                && self.can_preload_now()
                && let Some(permits) = self.try_spare_permits(share)
            {
                return Some(permits);
            }
            tokio::select! {
                () = priority.wait_until_urgent() => {}
                () = freed => {}
                // A waiting task can be dropped, which sends no notification.
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
        }
        let of_host = {
            let _waiting = WaitingCount::new(&share.waiting);
            Arc::clone(&share.slots).acquire_owned().await.ok()?
        };
        let _waiting = WaitingCount::new(&self.waiting);
        let of_node = Arc::clone(&self.node).acquire_owned().await.ok()?;
        Some(SlotPermits { of_node, _of_host: of_host })
    }

    fn try_preload_permits(&self, share: &HostSlots) -> Option<PreloadPermits> {
        Some([try_permit(&share.preload)?, try_permit(&self.preload)?])
    }

    fn try_spare_permits(&self, share: &HostSlots) -> Option<SlotPermits> {
        if share.waiting.load(Ordering::Relaxed) > 0 || self.waiting.load(Ordering::Relaxed) > 0 {
            return None;
        }
        Some(SlotPermits { _of_host: try_permit(&share.slots)?, of_node: try_permit(&self.node)? })
    }

    fn host_slots(&self, host: &RegistryHost) -> Arc<HostSlots> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|_, share| share.strong_count() > 0);
        if let Some(share) = hosts.get(host.host()).and_then(Weak::upgrade) {
            return share;
        }
        let slots = Arc::new(Semaphore::new(self.share));
        let preload = Arc::new(Semaphore::new((self.share - 1).max(1)));
        let share = Arc::new(HostSlots { slots, preload, waiting: AtomicUsize::new(0) });
        hosts.insert(host.host().to_owned(), Arc::downgrade(&share));
        share
    }
}

fn try_permit(slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(slots).try_acquire_owned().ok()
}

/// Counts a waiting task until it is dropped.
struct WaitingCount<'a>(&'a AtomicUsize);

impl<'a> WaitingCount<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for WaitingCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DownloadSlot {
    /// Continues outside of the slots, if one of the places for slow downloads is free. Returns whether it does.
    fn continue_outside_slots(&mut self) -> bool {
        if self.is_outside_slots {
            return true;
        }
        let Some(permits) = &mut self.permits else { return false };
        let Ok(permit) = Arc::clone(&self.scheduler.slow_downloads).try_acquire_owned() else { return false };
        permits.of_node = permit;
        self.is_outside_slots = true;
        self.stop_counting();
        self.scheduler.freed.notify_waiters();
        true
    }

    /// For a preload: gives the slot back if a pod needs it, and waits for another one.
    async fn yield_to_pods(&mut self) {
        if self.permits.is_some() && (self.priority.is_urgent() || !self.must_yield()) {
            return;
        }
        (self.permits, self.is_outside_slots) = (None, false);
        self.permits = self.scheduler.acquire_permits(&self.share, &self.priority, &mut self.preload).await;
    }

    fn must_yield(&self) -> bool {
        self.has_waiters() || !self.scheduler.can_preload_now()
    }

    fn stop_counting(&mut self) {
        if std::mem::take(&mut self.is_counted) {
            self.scheduler.pod_activity.lock().unwrap_or_else(PoisonError::into_inner).slots -= 1;
        }
    }

    /// Reports whether a task waits for the slot: for one of the node or for one of the host.
    pub(super) fn has_waiters(&self) -> bool {
        self.others_wait() || self.share.waiting.load(Ordering::Relaxed) > 0
    }

    fn others_wait(&self) -> bool {
        self.scheduler.waiting.load(Ordering::Relaxed) > 0
    }
}

impl Drop for DownloadSlot {
    fn drop(&mut self) {
        (self.permits, self.preload) = (None, None);
        self.stop_counting();
        self.scheduler.freed.notify_waiters();
    }
}

/// A download that was too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooSlow {
    /// The minimum rate that was not reached, in bytes a second.
    pub(super) minimum: u64,
    /// The measured rate, in bytes a second.
    pub(super) rate: u64,
    /// How long it was measured.
    pub(super) after: Duration,
    /// Whether it failed only because other downloads wait.
    pub(super) others_wait: bool,
}

/// Measures the rate of a download while it waits for the registry. Time that the disk takes does not count.
pub(super) struct RateMonitor {
    slow_after: Duration,
    minimum_after: Duration,
    /// What was measured since the last check against each of the two rates.
    slow: Span,
    minimum: Span,
    /// For how long the download has been slow without interruption.
    slow_for: Duration,
}

#[derive(Clone, Copy, Default)]
struct Span {
    waited: Duration,
    bytes: u64,
}

impl Span {
    /// Returns the rate in bytes a second.
    fn rate(self) -> u64 {
        let milliseconds = u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX).max(1);
        self.bytes.saturating_mul(1_000) / milliseconds
    }
}

impl RateMonitor {
    pub(super) fn new(limits: &Limits) -> Self {
        let (slow_after, minimum_after) = (limits.slow_after(), limits.stalled_after());
        Self {
            slow_after,
            minimum_after,
            slow: Span::default(),
            minimum: Span::default(),
            slow_for: Duration::ZERO,
        }
    }

    /// Counts received bytes.
    pub(super) fn received(&mut self, bytes: u64) {
        self.slow.bytes += bytes;
        self.minimum.bytes += bytes;
    }

    /// Waits for the registry. Meanwhile it gives the slot back, or fails, when the download is too slow.
    pub(super) async fn wait<T>(
        &mut self,
        slot: &mut DownloadSlot,
        future: impl Future<Output = T>,
    ) -> Result<T, TooSlow> {
        let mut future = pin!(future);
        loop {
            slot.yield_to_pods().await;
            self.check_rate(slot)?;
            let left = self.slow_after.saturating_sub(self.slow.waited);
            let mut left = left.min(self.minimum_after.saturating_sub(self.minimum.waited));
            if !slot.priority.is_urgent() {
                left = left.min(CHECK_INTERVAL);
            }
            let started = Instant::now();
            let output = timeout(left.max(Duration::from_millis(1)), future.as_mut()).await;
            let waited = started.elapsed();
            self.slow.waited += waited;
            self.minimum.waited += waited;
            if let Ok(output) = output {
                return Ok(output);
            }
        }
    }

    fn check_rate(&mut self, slot: &mut DownloadSlot) -> Result<(), TooSlow> {
        if self.minimum.waited >= self.minimum_after {
            let (rate, after) = (self.minimum.rate(), self.minimum.waited);
            self.minimum = Span::default();
            if rate < MIN_RATE {
                return Err(TooSlow { minimum: MIN_RATE, rate, after, others_wait: false });
            }
        }
        if self.slow.waited >= self.slow_after {
            let Span { waited, .. } = self.slow;
            let rate = self.slow.rate();
            self.slow = Span::default();
            self.slow_for = if rate < SLOW_RATE { self.slow_for + waited } else { Duration::ZERO };
            let can_continue = rate >= SLOW_RATE || slot.continue_outside_slots() || !slot.others_wait();
            if !can_continue && self.slow_for >= self.minimum_after / 2 {
                return Err(TooSlow { minimum: SLOW_RATE, rate, after: self.slow_for, others_wait: true });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
