//! Who makes what: one lock a name.
//!
//! A lock is in a hurry once somebody who is asks for it: whoever holds it fetches as fast as those who wait for it would.
//!
//! Only those wait for a lock who would ask the same registry. Whoever has the same bytes from elsewhere goes its own
//! way: what one registry gives is no proof that the other has it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use super::priority::{Priority, PriorityBoost};

/// KeyedLocks by name. A name that nobody holds or waits for takes no memory for long.
#[derive(Debug, Default)]
pub(crate) struct KeyedLocks(Mutex<HashMap<String, Weak<Lock>>>);

#[derive(Debug, Default)]
struct Lock {
    turn: Arc<tokio::sync::Mutex<()>>,
    boost: PriorityBoost,
}

/// A lock that is held.
#[derive(Debug)]
pub(super) struct Held {
    priority: Priority,
    _turn: OwnedMutexGuard<()>,
    // As long as this is there, whoever asks finds the same lock.
    _lock: Arc<Lock>,
}

impl Held {
    /// How urgent it is: as whoever holds it, and as those who wait.
    pub(super) fn priority(&self) -> &Priority {
        &self.priority
    }
}

impl KeyedLocks {
    /// Waits until nobody else holds `name`.
    pub(super) async fn hold(&self, name: &str, priority: &Priority) -> Held {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            if let Some(lock) = locks.get(name).and_then(Weak::upgrade) {
                lock
            } else {
                let lock: Arc<Lock> = Arc::default();
                locks.insert(name.to_owned(), Arc::downgrade(&lock));
                lock
            }
        };
        let turn = Arc::clone(&lock.turn).lock_owned();
        tokio::pin!(turn);
        let turn = tokio::select! {
            biased;
            () = priority.urgent() => {
                lock.boost.raise();
                turn.await
            }
            turn = &mut turn => turn,
        };
        Held { priority: priority.or(&lock.boost), _turn: turn, _lock: lock }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_is_in_a_hurry_hurries_those_whom_he_waits_for() {
        let (locks, boost) = (Arc::new(KeyedLocks::default()), PriorityBoost::default());
        let held = locks.hold("a", &Priority::until(&PriorityBoost::default())).await;
        let other = locks.hold("b", &Priority::until(&PriorityBoost::default())).await;
        let waits = tokio::spawn({
            let (locks, priority) = (locks.clone(), Priority::until(&boost));
            async move { locks.hold("a", &priority).await.priority().is_urgent() }
        });
        tokio::task::yield_now().await;
        assert!(!held.priority().is_urgent());
        boost.raise();
        held.priority().urgent().await;
        assert!(!other.priority().is_urgent());
        drop(held);
        assert!(waits.await.unwrap());
    }
}
