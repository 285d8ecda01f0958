//! Who makes what: one lock a name.
//!
//! A lock is in a hurry once somebody who is asks for it: whoever holds it fetches as fast as those who wait for it would.
//!
//! Only those wait for a lock who would ask the same registry. Whoever has the same bytes from elsewhere goes its own
//! way: what one registry gives is no proof that the other has it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use super::urgency::{Rush, Urgency};

/// Locks by name. A name that nobody holds or waits for takes no memory for long.
#[derive(Debug, Default)]
pub(crate) struct Locks(Mutex<HashMap<String, Weak<Lock>>>);

#[derive(Debug, Default)]
struct Lock {
    turn: Arc<tokio::sync::Mutex<()>>,
    rush: Rush,
}

/// A lock that is held.
#[derive(Debug)]
pub(super) struct Held {
    urgency: Urgency,
    _turn: OwnedMutexGuard<()>,
    // As long as this is there, whoever asks finds the same lock.
    _lock: Arc<Lock>,
}

impl Held {
    /// How urgent it is: as whoever holds it, and as those who wait.
    pub(super) fn urgency(&self) -> &Urgency {
        &self.urgency
    }
}

impl Locks {
    /// Waits until nobody else holds `name`.
    pub(super) async fn hold(&self, name: &str, urgency: &Urgency) -> Held {
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
            () = urgency.urgent() => {
                lock.rush.call();
                turn.await
            }
            turn = &mut turn => turn,
        };
        Held { urgency: urgency.or(&lock.rush), _turn: turn, _lock: lock }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_is_in_a_hurry_hurries_those_whom_he_waits_for() {
        let (locks, rush) = (Arc::new(Locks::default()), Rush::default());
        let held = locks.hold("a", &Urgency::until(&Rush::default())).await;
        let other = locks.hold("b", &Urgency::until(&Rush::default())).await;
        let waits = tokio::spawn({
            let (locks, urgency) = (locks.clone(), Urgency::until(&rush));
            async move { locks.hold("a", &urgency).await.urgency().is_urgent() }
        });
        tokio::task::yield_now().await;
        assert!(!held.urgency().is_urgent());
        rush.call();
        held.urgency().urgent().await;
        assert!(!other.urgency().is_urgent());
        drop(held);
        assert!(waits.await.unwrap());
    }
}
