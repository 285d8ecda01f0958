//! Locks by key, so that the same content is not pulled twice at a time.
//!
//! A lock passes on urgency: when an urgent task waits for a lock, the task that has it becomes urgent as well.
//!
//! The key contains the registry. A pull of the same content from another registry does not wait, because content
//! from one registry is no proof that another registry has it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use oras_csi_core::digest::Digest;
use oras_csi_core::reference::{PinnedReference, RegistryHost};
use tokio::sync::OwnedMutexGuard;

use super::priority::{Priority, PriorityBoost};
use crate::layout::{Item, TreeKey};

/// The content that a lock protects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum LockKey {
    /// A tree, pulled from these references.
    Tree(TreeKey, Vec<PinnedReference>),
    /// A blob or a layer, from this registry.
    Item(Item, RegistryHost),
    /// The bytes of a blob from this registry, whatever is made of them.
    Bytes(Digest, RegistryHost),
}

/// Locks by key. Keys that are not in use are removed.
#[derive(Debug, Default)]
pub(super) struct KeyedLocks(Mutex<HashMap<LockKey, Weak<Lock>>>);

#[derive(Debug, Default)]
struct Lock {
    mutex: Arc<tokio::sync::Mutex<()>>,
    boost: PriorityBoost,
}

/// A lock that this task has. Dropping it releases the lock.
#[derive(Debug)]
pub(super) struct KeyedLockGuard {
    priority: Priority,
    _guard: OwnedMutexGuard<()>,
    // Keeps the entry in the map, so that other tasks find the same lock.
    _lock: Arc<Lock>,
}

impl KeyedLockGuard {
    /// Returns the priority of the task, raised by the tasks that wait for the lock.
    pub(super) fn priority(&self) -> &Priority {
        &self.priority
    }
}

impl KeyedLocks {
    /// Waits for the lock of `key`.
    pub(super) async fn lock(&self, key: LockKey, priority: &Priority) -> KeyedLockGuard {
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
        let guard = Arc::clone(&lock.mutex).lock_owned();
        tokio::pin!(guard);
        let guard = tokio::select! {
            biased;
            () = priority.wait_until_urgent() => {
                lock.boost.raise();
                guard.await
            }
            guard = &mut guard => guard,
        };
        KeyedLockGuard { priority: priority.or_raised_by(&lock.boost), _guard: guard, _lock: lock }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: &[u8]) -> LockKey {
        LockKey::Bytes(Digest::sha256_of(bytes), "ghcr.io".parse().unwrap())
    }

    #[tokio::test]
    async fn an_urgent_waiter_raises_the_priority_of_the_lock_owner() {
        let (locks, boost) = (Arc::new(KeyedLocks::default()), PriorityBoost::default());
        let first = locks.lock(key(b"a"), &Priority::raised_by(&PriorityBoost::default())).await;
        let other = locks.lock(key(b"b"), &Priority::raised_by(&PriorityBoost::default())).await;
        let waits = tokio::spawn({
            let (locks, priority) = (locks.clone(), Priority::raised_by(&boost));
            async move { locks.lock(key(b"a"), &priority).await.priority().is_urgent() }
        });
        tokio::task::yield_now().await;
        assert!(!first.priority().is_urgent());
        boost.raise();
        first.priority().wait_until_urgent().await;
        assert!(!other.priority().is_urgent());
        drop(first);
        assert!(waits.await.unwrap());
    }
}
