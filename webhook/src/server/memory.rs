//! The memory of the reviews in progress, in bytes: their bodies while they are received, then what was decoded, then the
//! answers until they are written.
//!
//! When the limit is reached, the answer that has waited longest is given up: only a client that does not read keeps an
//! answer waiting. If there is none, the largest review is given up, and of several of that size the oldest. So a flood
//! gives up its own: an ordinary review is small, is received at once, and its answer is read at once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
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
    /// The numbers of the shares. The first is given up next.
    order: BTreeMap<Order, u64>,
}

/// The first is given up next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    /// An answer that is being written, by the order in which answers were ready.
    Answer(u64),
    /// A review in progress, by its size class and the order of arrival.
    Review(Reverse<usize>, u64),
}

struct Entry {
    bytes: usize,
    order: Order,
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
        let number = state.number();
        let order = review(0, number);
        state.shares.insert(number, Entry { bytes: 0, order, given_up: given_up.clone(), connection: None });
        state.order.insert(order, number);
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

fn review(bytes: usize, number: u64) -> Order {
    Order::Review(Reverse(bytes / SIZE_CLASS), number)
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.shares.remove(&number)?;
        self.order.remove(&entry.order);
        self.used -= entry.bytes;
        Some(entry)
    }

    /// Sets the size of a share; `false` if it was given up earlier. `answer` is the number of an answer that is ready.
    fn set(&mut self, number: u64, bytes: usize, answer: Option<u64>) -> bool {
        let Some(entry) = self.shares.get_mut(&number) else { return false };
        self.order.remove(&entry.order);
        entry.order = match (answer, entry.order) {
            (Some(answer), _) => Order::Answer(answer),
            (None, Order::Review(..)) => review(bytes, number),
            (None, order) => order,
        };
        self.order.insert(entry.order, number);
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
        let is_held = state.set(self.number, REVIEW_BYTES + bytes, None);
        self.make_room(is_held, state)
    }

    /// Records that the answer is ready, and how many bytes it has. May give up answers and reviews.
    pub(super) fn answer(&self, bytes: usize) -> Result<(), GivenUp> {
        let mut state = self.memory.lock();
        let number = state.number();
        let is_held = state.set(self.number, REVIEW_BYTES + bytes, Some(number));
        self.make_room(is_held, state)
    }

    fn make_room(&self, is_held: bool, mut state: MutexGuard<'_, State>) -> Result<(), GivenUp> {
        if !is_held {
            return Err(GivenUp);
        }
        while state.used > self.memory.limit
            && let Some(number) = state.order.values().next().copied()
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

    /// However large a review is, and however long it waits for a registry: answers that are not read give way first.
    #[test]
    fn answers_that_are_not_read_are_given_up_before_reviews() {
        let memory = Memory::new(1 << 20);
        let review = memory.enter().unwrap();
        review.resize(300 << 10).unwrap();
        let unread: Vec<Share> = (0..1_000)
            .map(|_| {
                let share = memory.enter().unwrap();
                share.answer(3).unwrap();
                share
            })
            .collect();
        assert!(!is_given_up(&review) && is_given_up(&unread[0]) && !is_given_up(unread.last().unwrap()));
        // Its answer is newer than those.
        assert_eq!(review.answer(100 << 10), Ok(()));
        let next = memory.enter().unwrap();
        next.resize(300 << 10).unwrap();
        assert!(!is_given_up(&review) && !is_given_up(&next));
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
