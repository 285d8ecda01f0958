//! Whose turn it is to read from a registry, and how slow a registry may be.
//!
//! A node reads a few blobs at a time, and a registry decides how long each takes. So no host has more than half of
//! the turns, and a stream that is slow gives its turn back and goes on aside, where there is room for a few. Where
//! there is none, it fails once others have waited for long; and so does one so slow that it will never be done.
//!
//! Who fetches ahead, for nobody who waits, has what is left: at most half of the node's turns and all but one of a
//! host's, while nobody is in want of one; and gives the turn back between two pieces of a blob when somebody is.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use oras_csi_core::reference::RegistryHost;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::urgency::Urgency;
use crate::settings::Limits;

/// A stream with fewer bytes a second does not keep others waiting.
const SLOW: u64 = 64 << 10;
/// A stream with fewer bytes a second is given up: 1 GiB would take three days.
const LEAST: u64 = 4 << 10;
/// How often one who fetches ahead looks whether others want its turn, or whether there is one for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The turns of a node.
pub(super) struct Slots {
    node: Arc<Semaphore>,
    aside: Arc<Semaphore>,
    /// Those of the node's turns that fetching ahead may have.
    ahead: Arc<Semaphore>,
    /// Somebody gave a turn back.
    freed: Notify,
    hosts: Mutex<HashMap<String, Weak<Share>>>,
    share: usize,
    waiting: AtomicUsize,
}

/// What one host has of the turns.
struct Share {
    turns: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The right to read one blob, or a part of one.
pub(super) struct Slot {
    slots: Arc<Slots>,
    share: Arc<Share>,
    urgency: Urgency,
    /// Not there only while it makes way.
    turn: Option<Turn>,
    is_aside: bool,
}

/// One of the node's turns, and of a host's.
struct Turn {
    of_node: OwnedSemaphorePermit,
    _of_host: OwnedSemaphorePermit,
    _ahead: Option<[OwnedSemaphorePermit; 2]>,
}

impl Slots {
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
        }
    }

    /// Waits for a turn: the host's share first, so that whoever waits for that keeps nobody else out.
    pub(super) async fn take(self: &Arc<Self>, host: &RegistryHost, urgency: &Urgency) -> Option<Slot> {
        let share = self.share(host);
        let turn = self.turn(&share, urgency).await?;
        Some(self.slot(share, urgency, turn))
    }

    /// A turn that nobody else waits for, if there is one.
    pub(super) fn spare(self: &Arc<Self>, host: &RegistryHost, urgency: &Urgency) -> Option<Slot> {
        let share = self.share(host);
        let turn = self.spare_turn(&share, urgency)?;
        Some(self.slot(share, urgency, turn))
    }

    fn slot(self: &Arc<Self>, share: Arc<Share>, urgency: &Urgency, turn: Turn) -> Slot {
        let (slots, urgency) = (Arc::clone(self), urgency.clone());
        Slot { slots, share, urgency, turn: Some(turn), is_aside: false }
    }

    async fn turn(&self, share: &Share, urgency: &Urgency) -> Option<Turn> {
        while !urgency.is_urgent() {
            let freed = self.freed.notified();
            if let Some(turn) = self.spare_turn(share, urgency) {
                return Some(turn);
            }
            tokio::select! {
                () = urgency.urgent() => {}
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
        Some(Turn { of_node, _of_host: of_host, _ahead: None })
    }

    fn spare_turn(&self, share: &Share, urgency: &Urgency) -> Option<Turn> {
        if share.waiting.load(Ordering::Relaxed) > 0 || self.waiting.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let one_of = |turns: &Arc<Semaphore>| Arc::clone(turns).try_acquire_owned().ok();
        let ahead =
            if urgency.is_urgent() { None } else { Some([one_of(&share.ahead)?, one_of(&self.ahead)?]) };
        Some(Turn { _of_host: one_of(&share.turns)?, of_node: one_of(&self.node)?, _ahead: ahead })
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

impl Slot {
    /// Leaves its turn to others and goes on, if there is room aside.
    fn step_aside(&mut self) -> bool {
        if self.is_aside {
            return true;
        }
        let Some(turn) = &mut self.turn else { return false };
        let Ok(room) = Arc::clone(&self.slots.aside).try_acquire_owned() else { return false };
        turn.of_node = room;
        self.is_aside = true;
        self.slots.freed.notify_waiters();
        true
    }

    /// Gives its turn to whoever waits, and waits for another one, if nobody waits for what is read with it.
    async fn make_way(&mut self) {
        if self.turn.is_some() && (self.urgency.is_urgent() || !self.is_wanted()) {
            return;
        }
        (self.turn, self.is_aside) = (None, false);
        self.turn = self.slots.turn(&self.share, &self.urgency).await;
    }

    /// Whether somebody waits for a turn that this one keeps from them: the node's, or their host's.
    pub(super) fn is_wanted(&self) -> bool {
        self.others_wait() || self.share.waiting.load(Ordering::Relaxed) > 0
    }

    fn others_wait(&self) -> bool {
        self.slots.waiting.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.turn = None;
        self.slots.freed.notify_waiters();
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
    least_after: Duration,
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
        let (slow_after, least_after) = (limits.slow_after(), limits.least_after());
        Self {
            slow_after,
            least_after,
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
        slot: &mut Slot,
        what: impl Future<Output = T>,
    ) -> Result<T, TooSlow> {
        let mut what = pin!(what);
        loop {
            slot.make_way().await;
            self.judge(slot)?;
            let left = self.slow_after.saturating_sub(self.slow.waited);
            let mut left = left.min(self.least_after.saturating_sub(self.least.waited));
            if !slot.urgency.is_urgent() {
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

    fn judge(&mut self, slot: &mut Slot) -> Result<(), TooSlow> {
        if self.least.waited >= self.least_after {
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
            if !stays && self.slow_for >= self.least_after / 2 {
                return Err(TooSlow { least: SLOW, rate, after: self.slow_for, others_wait: true });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::urgency::Rush;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn host(name: &str) -> RegistryHost {
        name.parse().unwrap()
    }

    async fn is_there(slots: &Arc<Slots>, name: &str) -> Option<Slot> {
        timeout(SECOND, slots.take(&host(name), &Urgency::default())).await.ok().flatten()
    }

    /// Waits for an hour for `rate` bytes a second.
    async fn read(slot: &mut Slot, rate: u64) -> Result<(), TooSlow> {
        let mut pace = Pace::new(&Limits::default());
        for _ in 0..3_600 {
            pace.wait(slot, tokio::time::sleep(SECOND)).await?;
            pace.came(rate);
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_has_half_of_the_turns_and_its_ports_are_one() {
        let slots = Arc::new(Slots::new(8));
        let mut held = Vec::new();
        for name in ["a:1", "a:2", "a:3", "a:4"] {
            held.push(is_there(&slots, name).await.unwrap());
        }
        assert!(is_there(&slots, "a:5").await.is_none());
        assert!(is_there(&slots, "b").await.is_some());
        held.pop();
        assert!(is_there(&slots, "a:5").await.is_some());
        drop(held);
        let one = Arc::new(Slots::new(1));
        assert!(is_there(&one, "a").await.is_some());
        assert!(is_there(&one, "b").await.is_some());
    }

    async fn ahead(slots: &Arc<Slots>, name: &str, rush: &Rush) -> Option<Slot> {
        timeout(SECOND, slots.take(&host(name), &Urgency::until(rush))).await.ok().flatten()
    }

    #[tokio::test(start_paused = true)]
    async fn who_fetches_ahead_leaves_turns_to_those_who_wait() {
        let (slots, rush) = (Arc::new(Slots::new(8)), Rush::default());
        let mut held = Vec::new();
        for name in ["a", "a", "a", "b"] {
            held.push(ahead(&slots, name, &rush).await.unwrap());
        }
        assert!(ahead(&slots, "c", &rush).await.is_none(), "half of the node's");
        held.pop();
        assert!(ahead(&slots, "a", &rush).await.is_none(), "all but one of a host's");
        assert!(is_there(&slots, "a").await.is_some());
        let mut pods = Vec::new();
        for name in ["a", "b", "b", "b", "b"] {
            pods.push(is_there(&slots, name).await.unwrap());
        }
        assert!(ahead(&slots, "c", &rush).await.is_none(), "no turn is left");
        // Somebody waits for what is fetched ahead: it waits as others do.
        rush.call();
        pods.pop();
        assert!(ahead(&slots, "c", &rush).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_fetches_ahead_makes_way_in_the_middle_of_a_blob() {
        let (slots, rush) = (Arc::new(Slots::new(1)), Rush::default());
        let mut slow = ahead(&slots, "a", &rush).await.unwrap();
        let reads = tokio::spawn(async move { read(&mut slow, 2 * SLOW).await });
        tokio::time::sleep(10 * SECOND).await;
        let pod = timeout(3 * SECOND, slots.take(&host("a"), &Urgency::default())).await.unwrap().unwrap();
        tokio::time::sleep(300 * SECOND).await;
        assert!(!reads.is_finished());
        assert!(is_there(&slots, "b").await.is_none(), "the pod has the one turn");
        drop(pod);
        assert_eq!(reads.await.unwrap(), Ok(()), "it goes on, and its pause was no slowness");
    }

    #[tokio::test(start_paused = true)]
    async fn a_spare_turn_is_one_that_nobody_waits_for() {
        let slots = Arc::new(Slots::new(4));
        let first = is_there(&slots, "a").await.unwrap();
        let spare = slots.spare(&host("a"), &Urgency::default()).unwrap();
        assert!(slots.spare(&host("a"), &Urgency::default()).is_none(), "a host has its share and no more");
        assert!(!spare.is_wanted());
        let waits = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take(&host("a"), &Urgency::default()).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(spare.is_wanted() && slots.spare(&host("a"), &Urgency::default()).is_none());
        drop(spare);
        assert!(waits.await.unwrap());
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_slow_goes_on_aside_and_what_is_fast_keeps_its_turn() {
        let slots = Arc::new(Slots::new(2));
        let (mut slow, mut fast) =
            (is_there(&slots, "a").await.unwrap(), is_there(&slots, "b").await.unwrap());
        assert!(is_there(&slots, "c").await.is_none());
        assert_eq!(read(&mut fast, 2 * SLOW).await, Ok(()));
        assert!(!fast.is_aside);
        assert_eq!(read(&mut slow, LEAST).await, Ok(()));
        assert!(slow.is_aside);
        assert!(is_there(&slots, "c").await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn without_room_aside_it_fails_only_while_others_wait() {
        let slots = Arc::new(Slots::new(1));
        let mut first = is_there(&slots, "a").await.unwrap();
        assert_eq!(read(&mut first, LEAST).await, Ok(()));
        let mut second = is_there(&slots, "b").await.unwrap();
        assert_eq!(read(&mut second, LEAST).await, Ok(()));
        assert!(first.is_aside && !second.is_aside);
        let waits = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take(&host("c"), &Urgency::default()).await.is_some() }
        });
        let error = read(&mut second, LEAST).await.unwrap_err();
        assert_eq!((error.least, error.others_wait), (SLOW, true));
        assert!(error.after <= Duration::from_secs(70), "{error:?}");
        drop(second);
        assert!(waits.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_never_be_done_fails() {
        let slots = Arc::new(Slots::new(8));
        for rate in [0, 850, LEAST - 100] {
            let mut slot = is_there(&slots, "a").await.unwrap();
            let error = read(&mut slot, rate).await.unwrap_err();
            assert_eq!((error.least, error.others_wait), (LEAST, false));
            assert!(error.rate <= rate && error.after <= Duration::from_secs(130), "{error:?}");
        }
    }
}
