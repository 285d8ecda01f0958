//! The memory of the reviews in progress, in bytes: their bodies while they are received, then what was decoded, then the
//! answers until they are written.
//!
//! When the limit is reached, the largest review is given up, and of several of that size the oldest. So a flood of large
//! or slow reviews gives up its own: an ordinary review is small, and is received at once.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// What a review takes besides its text: its task, its connection to a registry, its place in queues.
const REVIEW_BYTES: usize = 16 << 10;
/// Reviews whose sizes differ by less than this count as equally large.
const SIZE_CLASS: usize = 64 << 10;

/// The limit for all reviews together.
pub(super) struct Memory {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: usize,
    next: u64,
    shares: HashMap<u64, Entry>,
    /// The first is given up next.
    order: BTreeSet<Order>,
}

type Order = (Reverse<usize>, u64);

struct Entry {
    bytes: usize,
    given_up: CancellationToken,
    /// Cancelled as well.
    connection: Option<CancellationToken>,
}

/// The memory of one review; dropping it frees the memory.
pub(super) struct Share {
    memory: Arc<Memory>,
    number: u64,
    given_up: CancellationToken,
}

/// The review was given up, because the memory for reviews is used up.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory for reviews is used up")]
pub(super) struct GivenUp;

impl Memory {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    /// Starts a review.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Share, GivenUp> {
        let given_up = CancellationToken::new();
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.shares.insert(number, Entry { bytes: 0, given_up: given_up.clone(), connection: None });
        state.order.insert(order(0, number));
        drop(state);
        let share = Share { memory: Arc::clone(self), number, given_up };
        share.resize(0)?;
        Ok(share)
    }

    /// Returns the memory that is in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.lock().used
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn order(bytes: usize, number: u64) -> Order {
    (Reverse(bytes / SIZE_CLASS), number)
}

impl State {
    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.shares.remove(&number)?;
        self.order.remove(&order(entry.bytes, number));
        self.used -= entry.bytes;
        Some(entry)
    }

    /// Sets the size of a share; `false` if it was given up earlier.
    fn set(&mut self, number: u64, bytes: usize) -> bool {
        let Some(entry) = self.shares.get_mut(&number) else { return false };
        self.order.remove(&order(entry.bytes, number));
        self.order.insert(order(bytes, number));
        self.used = self.used - entry.bytes + bytes;
        entry.bytes = bytes;
        true
    }
}

impl Entry {
    fn give_up(self) {
        self.given_up.cancel();
        if let Some(connection) = self.connection {
            connection.cancel();
        }
    }
}

impl Share {
    /// Cancels `connection` as well if the review is given up from now on.
    pub(super) fn close_when_given_up(&self, connection: CancellationToken) -> Result<(), GivenUp> {
        let mut state = self.memory.lock();
        let entry = state.shares.get_mut(&self.number).ok_or(GivenUp)?;
        entry.connection = Some(connection);
        Ok(())
    }

    /// Sets how many bytes the review takes now. May give up reviews, and this one too.
    pub(super) fn resize(&self, bytes: usize) -> Result<(), GivenUp> {
        let mut state = self.memory.lock();
        if !state.set(self.number, REVIEW_BYTES + bytes) {
            return Err(GivenUp);
        }
        while state.used > self.memory.limit
            && let Some((_, number)) = state.order.first().copied()
        {
            if let Some(entry) = state.remove(number) {
                entry.give_up();
            }
        }
        if self.given_up.is_cancelled() { Err(GivenUp) } else { Ok(()) }
    }

    /// Returns the token that is cancelled when the review is given up.
    pub(super) fn given_up(&self) -> &CancellationToken {
        &self.given_up
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.lock().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_given_up(share: &Share) -> bool {
        share.given_up().is_cancelled()
    }

    #[test]
    fn a_share_frees_its_memory() {
        let memory = Memory::new(1 << 20);
        let share = memory.enter().unwrap();
        share.resize(100).unwrap();
        share.resize(50).unwrap();
        assert_eq!(memory.used(), REVIEW_BYTES + 50);
        drop(share);
        assert_eq!(memory.used(), 0);
        assert!(memory.lock().order.is_empty());
        assert!(memory.lock().shares.is_empty());
    }

    #[test]
    fn the_largest_is_given_up_and_of_equals_the_oldest() {
        let memory = Memory::new(950 << 10);
        let shares: Vec<Share> = (0..4).map(|_| memory.enter().unwrap()).collect();
        for (share, size) in shares.iter().zip([100 << 10, 290 << 10, 300 << 10, 10]) {
            share.resize(size).unwrap();
        }
        let new = memory.enter().unwrap();
        new.resize(200 << 10).unwrap();
        assert!(!is_given_up(&shares[0]) && is_given_up(&shares[1]) && !is_given_up(&shares[2]));
        new.resize(400 << 10).unwrap();
        assert_eq!(new.resize(900 << 10), Err(GivenUp));
        assert!(is_given_up(&new));
        assert_eq!(shares[1].resize(0), Err(GivenUp), "it stays given up");
        assert_eq!(shares[2].resize(10), Ok(()));
        drop((shares, new));
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn a_review_that_is_given_up_closes_its_connection_once_it_has_one() {
        let memory = Memory::new(1 << 20);
        let (share, connection) = (memory.enter().unwrap(), CancellationToken::new());
        share.close_when_given_up(connection.clone()).unwrap();
        share.resize(500 << 10).unwrap();
        assert!(!connection.is_cancelled());
        let _larger = memory.enter().map(|share| share.resize(400 << 10).map(|()| share)).unwrap();
        assert!(!connection.is_cancelled());
        assert_eq!(share.resize(2 << 20), Err(GivenUp));
        assert!(connection.is_cancelled());
        assert_eq!(share.close_when_given_up(connection), Err(GivenUp));
    }

    #[test]
    fn a_flood_of_small_reviews_gives_up_its_oldest() {
        let memory = Memory::new(1 << 20);
        let mut flood: Vec<Share> = (0..1_000).map(|_| memory.enter().unwrap()).collect();
        assert!(memory.used() <= 1 << 20);
        let new = memory.enter().unwrap();
        assert!(!is_given_up(&new) && is_given_up(&flood[0]) && !is_given_up(flood.last().unwrap()));
        flood.clear();
        assert_eq!(memory.used(), REVIEW_BYTES);
    }

    proptest::proptest! {
        #[test]
        fn the_limit_is_never_exceeded(sizes in proptest::collection::vec((0_usize..12, 0_usize..2 << 20), 1..200)) {
            let memory = Memory::new(4 << 20);
            let mut shares: Vec<Option<Share>> = (0..12).map(|_| None).collect();
            for (at, size) in sizes {
                let share = shares[at].take().filter(|share| !is_given_up(share));
                let share = share.or_else(|| memory.enter().ok());
                shares[at] = share.filter(|share| share.resize(size).is_ok());
                let live = shares.iter().flatten().filter(|share| !is_given_up(share)).count();
                assert!(memory.used() <= 4 << 20);
                assert_eq!(memory.lock().shares.len(), live);
                assert_eq!(memory.lock().order.len(), live);
            }
        }
    }
}
