//! Who makes what: one lock a name, and the news that something is there.
//!
//! A lock is in a hurry once somebody who is asks for it: whoever holds it fetches as fast as those who wait for it would.
//!
//! Only those wait for a lock who would ask the same registry. Whoever has the same bytes from elsewhere goes its own
//! way, and the first that has them tells the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

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

/// What is being made, by name, by whomever.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(Mutex<HashMap<String, Weak<CancellationToken>>>);

/// Hears when one of those who make a thing has it.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    all: &'a Arrivals,
    name: &'a str,
    token: Arc<CancellationToken>,
}

impl Arrivals {
    /// Waits for `name` from now on: look whether it is there after this, not before.
    pub(crate) fn expect<'a>(&'a self, name: &'a str) -> Expected<'a> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, token| token.strong_count() > 0);
        let token = all.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let token = Arc::default();
            all.insert(name.to_owned(), Arc::downgrade(&token));
            token
        });
        Expected { all: self, name, token }
    }
}

impl Expected<'_> {
    /// Until somebody has it.
    pub(crate) async fn has_come(&self) {
        self.token.cancelled().await;
    }

    /// It is there now; whoever expects it later hears of the next time.
    pub(crate) fn tell(&self) {
        self.token.cancel();
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(self.name).is_some_and(|token| token.as_ptr() == Arc::as_ptr(&self.token)) {
            all.remove(self.name);
        }
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

    #[tokio::test]
    async fn all_who_expect_a_thing_hear_of_it_once() {
        let arrivals = Arrivals::default();
        let (first, second) = (arrivals.expect("a"), arrivals.expect("a"));
        let other = arrivals.expect("b");
        first.tell();
        second.has_come().await;
        assert!(!other.token.is_cancelled());
        let later = arrivals.expect("a");
        assert!(!later.token.is_cancelled());
        drop((first, second, other, later));
        arrivals.expect("c");
        assert_eq!(arrivals.0.lock().unwrap().len(), 1, "what nobody expects takes no memory for long");
    }
}
