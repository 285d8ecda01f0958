//! One lock for each thing that a pull makes.
//!
//! A lock is in a hurry once somebody who is asks for it: whoever holds it fetches as fast as those who wait for it would.
//!
//! Only those wait for a lock who would ask the same registry. Whoever has the same bytes from elsewhere goes its own
//! way: what one registry gives is no proof that the other has it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use oras_csi_core::digest::Digest;
use oras_csi_core::reference::{PinnedReference, RegistryHost};
use tokio::sync::OwnedMutexGuard;

use super::priority::{Priority, PriorityBoost};
use crate::layout::{Item, TreeKey};

/// What a lock is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum LockKey {
    /// A tree, pulled from these references.
    Tree(TreeKey, Vec<PinnedReference>),
    /// A blob or a layer, from this registry.
    Item(Item, RegistryHost),
    /// The bytes of a blob from this registry, whatever becomes of them.
    Bytes(Digest, RegistryHost),
}

/// Locks by key. A key that nothing holds or waits for takes no memory for long.
#[derive(Debug, Default)]
pub(super) struct KeyedLocks(Mutex<HashMap<LockKey, Weak<Lock>>>);

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
    /// Waits until no other task holds `key`.
    pub(super) async fn lock(&self, key: LockKey, priority: &Priority) -> Held {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            if let Some(lock) = locks.get(&key).and_then(Weak::upgrade) {
                lock
            } else {
                let lock: Arc<Lock> = Arc::default();
                locks.insert(key, Arc::downgrade(&lock));
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

    fn key(bytes: &[u8]) -> LockKey {
        LockKey::Bytes(Digest::sha256_of(bytes), "ghcr.io".parse().unwrap())
    }

    #[tokio::test]
    async fn whoever_is_in_a_hurry_hurries_those_whom_he_waits_for() {
        let (locks, boost) = (Arc::new(KeyedLocks::default()), PriorityBoost::default());
        let held = locks.lock(key(b"a"), &Priority::until(&PriorityBoost::default())).await;
        let other = locks.lock(key(b"b"), &Priority::until(&PriorityBoost::default())).await;
        let waits = tokio::spawn({
            let (locks, priority) = (locks.clone(), Priority::until(&boost));
            async move { locks.lock(key(b"a"), &priority).await.priority().is_urgent() }
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
