//! Whose turn it is to read from a registry, and how slow a registry may be.
//!
//! A node reads a few blobs at a time, and a registry decides how long each takes. So no host has more than half of
//! the turns, and a stream that is slow gives its turn back and goes on aside, where there is room for a few. Where
//! there is none, it fails once others have waited for long; and so does one so slow that it will never be done.
//!
//! Who fetches ahead, for nobody who waits, has what is left: at most half of the node's turns and all but one of a
//! host's, while nobody is in want of one; and gives the turn back between two pieces of a blob when somebody is. While
//! pods have theirs, it leaves them the line as well, but for a few seconds now and then.

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

/// A stream with fewer bytes a second does not keep others waiting.
const SLOW: u64 = 64 << 10;
/// A stream with fewer bytes a second is given up: 1 GiB would take three days.
const LEAST: u64 = 4 << 10;
/// How often one who fetches ahead looks whether others want its turn, or whether there is one for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// While pods read, those who fetch ahead rest for so long and read for so long, all at once: so a pod whose registry
/// takes for ever does not keep a node empty, and no registry gives up a connection that rests.
const RESTS: Duration = Duration::from_secs(30);
const READS: Duration = Duration::from_secs(5);

/// The turns of a node.
pub(super) struct Scheduler {
    node: Arc<Semaphore>,
    aside: Arc<Semaphore>,
    /// Those of the node's turns that fetching ahead may have.
    ahead: Arc<Semaphore>,
    /// Somebody gave a turn back.
    freed: Notify,
    hosts: Mutex<HashMap<String, Weak<Share>>>,
    share: usize,
    waiting: AtomicUsize,
    busy: Mutex<Busy>,
}

/// How many turns pods have, but for those aside, and since when there are any.
struct Busy {
    turns: usize,
    since: Instant,
}

/// What one host has of the turns.
struct Share {
    turns: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The right to read one blob, or a part of one.
pub(super) struct DownloadSlot {
    scheduler: Arc<Scheduler>,
    share: Arc<Share>,
    priority: Priority,
    /// Kept while it makes way: no other begins meanwhile.
    ahead: Option<Ahead>,
    /// Not there only while it makes way.
    turn: Option<Turn>,
    is_aside: bool,
    is_counted: bool,
}

/// One of the node's turns, and of a host's.
struct Turn {
    of_node: OwnedSemaphorePermit,
    _of_host: OwnedSemaphorePermit,
}

/// The right to be among those who fetch ahead: of the host's, and of the node's.
type Ahead = [OwnedSemaphorePermit; 2];

impl Scheduler {
    /// So many turns at once.
    pub(super) fn new(streams: usize) -> Self {
        let share = (streams / 2).max(1);
        Self {
            node: Arc::new(Semaphore::new(streams)),
            aside: Arc::new(Semaphore::new(streams)),
            ahead: Arc::new(Semaphore::new(share)),
            freed: Notify::new(),
            hosts: Mutex::default(),
            share,
            waiting: AtomicUsize::new(0),
            busy: Mutex::new(Busy { turns: 0, since: Instant::now() }),
        }
    }

    /// Waits for a turn: the host's share first, so that whoever waits for that keeps nobody else out.
    pub(super) async fn take(
        self: &Arc<Self>,
        host: &RegistryHost,
        priority: &Priority,
    ) -> Option<DownloadSlot> {
        let (share, mut ahead) = (self.share(host), None);
        let turn = self.turn(&share, priority, &mut ahead).await?;
        Some(self.slot(share, priority, ahead, turn))
    }

    /// A turn that nobody else waits for, if there is one.
    pub(super) fn spare(self: &Arc<Self>, host: &RegistryHost, priority: &Priority) -> Option<DownloadSlot> {
        let share = self.share(host);
        let ahead = match priority.is_urgent() {
            true => None,
            false if self.may_read_ahead() => Some(self.spare_ahead(&share)?),
            false => return None,
        };
        let turn = self.spare_turn(&share)?;
        Some(self.slot(share, priority, ahead, turn))
    }

    fn slot(
        self: &Arc<Self>,
        share: Arc<Share>,
        priority: &Priority,
        ahead: Option<Ahead>,
        turn: Turn,
    ) -> DownloadSlot {
        let (scheduler, priority) = (Arc::clone(self), priority.clone());
        let is_counted = priority.is_urgent();
        if is_counted {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            if busy.turns == 0 {
                busy.since = Instant::now();
            }
            busy.turns += 1;
        }
        DownloadSlot { scheduler, share, priority, ahead, turn: Some(turn), is_aside: false, is_counted }
    }

    /// Whether those who fetch ahead may read now: while no pod does, and a little between.
    fn may_read_ahead(&self) -> bool {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let round = (RESTS + READS).as_secs();
        busy.turns == 0 || busy.since.elapsed().as_secs() % round >= RESTS.as_secs()
    }

    async fn turn(&self, share: &Share, priority: &Priority, ahead: &mut Option<Ahead>) -> Option<Turn> {
        while !priority.is_urgent() {
            let freed = self.freed.notified();
            if ahead.is_none() {
                *ahead = self.spare_ahead(share);
            }
            if ahead.is_some()
                && self.may_read_ahead()
                && let Some(turn) = self.spare_turn(share)
            {
                return Some(turn);
            }
            tokio::select! {
                () = priority.urgent() => {}
                () = freed => {}
                // Nobody says that he waits no more.
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        let of_host = {
            let _waits = Waits::new(&share.waiting);
            Arc::clone(&share.turns).acquire_owned().await.ok()?
        };
        let _waits = Waits::new(&self.waiting);
        let of_node = Arc::clone(&self.node).acquire_owned().await.ok()?;
        Some(Turn { of_node, _of_host: of_host })
    }

    fn spare_ahead(&self, share: &Share) -> Option<Ahead> {
        Some([one_of(&share.ahead)?, one_of(&self.ahead)?])
    }

    fn spare_turn(&self, share: &Share) -> Option<Turn> {
        if share.waiting.load(Ordering::Relaxed) > 0 || self.waiting.load(Ordering::Relaxed) > 0 {
            return None;
        }
        Some(Turn { _of_host: one_of(&share.turns)?, of_node: one_of(&self.node)? })
    }

    fn share(&self, host: &RegistryHost) -> Arc<Share> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|_, share| share.strong_count() > 0);
        if let Some(share) = hosts.get(host.host()).and_then(Weak::upgrade) {
            return share;
        }
        let turns = Arc::new(Semaphore::new(self.share));
        let ahead = Arc::new(Semaphore::new((self.share - 1).max(1)));
        let share = Arc::new(Share { turns, ahead, waiting: AtomicUsize::new(0) });
        hosts.insert(host.host().to_owned(), Arc::downgrade(&share));
        share
    }
}

fn one_of(turns: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(turns).try_acquire_owned().ok()
}

/// Counts who waits, as long as they do.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DownloadSlot {
    /// Leaves its turn to others and goes on, if there is room aside.
    fn step_aside(&mut self) -> bool {
        if self.is_aside {
            return true;
        }
        let Some(turn) = &mut self.turn else { return false };
        let Ok(room) = Arc::clone(&self.scheduler.aside).try_acquire_owned() else { return false };
        turn.of_node = room;
        self.is_aside = true;
        self.counts_no_more();
        self.scheduler.freed.notify_waiters();
        true
    }

    /// Gives its turn to whoever waits, and waits for another one, if nobody waits for what is read with it.
    async fn make_way(&mut self) {
        if self.turn.is_some() && (self.priority.is_urgent() || !self.has_to_make_way()) {
            return;
        }
        (self.turn, self.is_aside) = (None, false);
        self.turn = self.scheduler.turn(&self.share, &self.priority, &mut self.ahead).await;
    }

    fn has_to_make_way(&self) -> bool {
        self.is_wanted() || !self.scheduler.may_read_ahead()
    }

    fn counts_no_more(&mut self) {
        if std::mem::take(&mut self.is_counted) {
            self.scheduler.busy.lock().unwrap_or_else(PoisonError::into_inner).turns -= 1;
        }
    }

    /// Whether somebody waits for a turn that this one keeps from them: the node's, or their host's.
    pub(super) fn is_wanted(&self) -> bool {
        self.others_wait() || self.share.waiting.load(Ordering::Relaxed) > 0
    }

    fn others_wait(&self) -> bool {
        self.scheduler.waiting.load(Ordering::Relaxed) > 0
    }
}

impl Drop for DownloadSlot {
    fn drop(&mut self) {
        (self.turn, self.ahead) = (None, None);
        self.counts_no_more();
        self.scheduler.freed.notify_waiters();
    }
}

/// Why a stream was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooSlow {
    /// What did not come.
    pub(super) least: u64,
    /// What came instead, in bytes a second.
    pub(super) rate: u64,
    /// For how long.
    pub(super) after: Duration,
    /// Whether it would have gone on if nobody waited.
    pub(super) others_wait: bool,
}

/// How fast a blob comes while we wait for it; what the disk takes does not count.
pub(super) struct Pace {
    slow_after: Duration,
    stalled_after: Duration,
    /// Since it was last judged whether it is slow, and whether it is too slow.
    slow: Span,
    least: Span,
    /// For how long it has been slow without a pause.
    slow_for: Duration,
}

#[derive(Clone, Copy, Default)]
struct Span {
    waited: Duration,
    came: u64,
}

impl Span {
    /// Bytes a second.
    fn rate(self) -> u64 {
        let milliseconds = u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX).max(1);
        self.came.saturating_mul(1_000) / milliseconds
    }
}

impl Pace {
    pub(super) fn new(limits: &Limits) -> Self {
        let (slow_after, stalled_after) = (limits.slow_after(), limits.stalled_after());
        Self {
            slow_after,
            stalled_after,
            slow: Span::default(),
            least: Span::default(),
            slow_for: Duration::ZERO,
        }
    }

    /// Counts bytes that came.
    pub(super) fn came(&mut self, bytes: u64) {
        self.slow.came += bytes;
        self.least.came += bytes;
    }

    /// Waits for a registry, and gives the turn back or up where that takes too long.
    pub(super) async fn wait<T>(
        &mut self,
        slot: &mut DownloadSlot,
        what: impl Future<Output = T>,
    ) -> Result<T, TooSlow> {
        let mut what = pin!(what);
        loop {
            slot.make_way().await;
            self.judge(slot)?;
            let left = self.slow_after.saturating_sub(self.slow.waited);
            let mut left = left.min(self.stalled_after.saturating_sub(self.least.waited));
            if !slot.priority.is_urgent() {
                left = left.min(LOOK_EVERY);
            }
            let asked = Instant::now();
            let done = timeout(left.max(Duration::from_millis(1)), what.as_mut()).await;
            let waited = asked.elapsed();
            self.slow.waited += waited;
            self.least.waited += waited;
            if let Ok(done) = done {
                return Ok(done);
            }
        }
    }

    fn judge(&mut self, slot: &mut DownloadSlot) -> Result<(), TooSlow> {
        if self.least.waited >= self.stalled_after {
            let (rate, after) = (self.least.rate(), self.least.waited);
            self.least = Span::default();
            if rate < LEAST {
                return Err(TooSlow { least: LEAST, rate, after, others_wait: false });
            }
        }
        if self.slow.waited >= self.slow_after {
            let Span { waited, .. } = self.slow;
            let rate = self.slow.rate();
            self.slow = Span::default();
            self.slow_for = if rate < SLOW { self.slow_for + waited } else { Duration::ZERO };
            let stays = rate >= SLOW || slot.step_aside() || !slot.others_wait();
            if !stays && self.slow_for >= self.stalled_after / 2 {
                return Err(TooSlow { least: SLOW, rate, after: self.slow_for, others_wait: true });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
