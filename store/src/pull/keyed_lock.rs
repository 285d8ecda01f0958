//! Locks by key, so that the same content is not pulled twice at a time.
//!
//! A lock passes on priority: the task that has a lock also works for the namespaces of the tasks that wait for it. So a
//! namespace whose downloads wait for their turn cannot delay another one that needs the same blob.
//!
//! The key contains the repository. A pull of the same content from another repository does not wait: content from one
//! repository is no proof that another one has it, and a repository that stalls must not delay the pods of another.

use std::sync::Arc;

use oras_csi_core::digest::Digest;
use oras_csi_core::reference::PinnedReference;
use tokio::sync::OwnedMutexGuard;

use super::priority::{Priority, Waiters};
use super::shared_map::SharedMap;
use crate::layout::{Item, TreeKey};

/// The content that a lock protects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum LockKey {
    /// A tree, pulled from these references.
    Tree(TreeKey, Vec<PinnedReference>),
    /// A blob or a layer, from the repository of this name.
    Item(Item, String),
    /// The bytes of a blob from the repository of this name, whatever is made of them.
    Bytes(Digest, String),
}

/// Locks by key.
#[derive(Debug, Default)]
pub(super) struct KeyedLocks(SharedMap<LockKey, Lock>);

#[derive(Debug, Default)]
struct Lock {
    mutex: Arc<tokio::sync::Mutex<()>>,
    waiters: Waiters,
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
    /// Returns the priority of the task and of the tasks that wait for the lock.
    pub(super) fn priority(&self) -> &Priority {
        &self.priority
    }
}

impl KeyedLocks {
    /// Waits for the lock of `key`.
    pub(super) async fn lock(&self, key: LockKey, priority: &Priority) -> KeyedLockGuard {
        let lock = self.0.get_or_create(key, Lock::default);
        let guard = match Arc::clone(&lock.mutex).try_lock_owned() {
            Ok(guard) => guard,
            Err(_) => lock.wait(priority).await,
        };
        KeyedLockGuard { priority: priority.and(&lock.waiters), _guard: guard, _lock: lock }
    }
}

impl Lock {
    /// Waits for the lock. Meanwhile its owner also works for the namespaces of this task.
    async fn wait(&self, priority: &Priority) -> OwnedMutexGuard<()> {
        let mut watch = priority.watch();
        let mut waiting = self.waiters.add(watch.tenants());
        let guard = Arc::clone(&self.mutex).lock_owned();
        tokio::pin!(guard);
        loop {
            tokio::select! {
                biased;
                guard = &mut guard => {
                    drop(waiting);
                    return guard;
                }
                // Added before the earlier ones are dropped, so that a namespace in both stays.
                () = watch.changed() => waiting = self.waiters.add(watch.tenants()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tenant::Tenant;
    use super::*;

    fn key(bytes: &[u8]) -> LockKey {
        LockKey::Bytes(Digest::sha256_of(bytes), "ghcr.io/app".to_owned())
    }

    #[tokio::test]
    async fn the_owner_of_a_lock_works_for_the_namespaces_that_wait_for_it() {
        let (locks, late) = (Arc::new(KeyedLocks::default()), Waiters::default());
        let first = locks.lock(key(b"a"), &Priority::of(&Waiters::default())).await;
        let other = locks.lock(key(b"b"), &Priority::of(&Waiters::default())).await;
        let mut watch = first.priority().watch();
        let waits = tokio::spawn({
            let (locks, priority) = (locks.clone(), Priority::of(&late));
            async move { locks.lock(key(b"a"), &priority).await.priority().watch().tenants() }
        });
        tokio::task::yield_now().await;
        assert_eq!(watch.tenants(), []);
        // The task that waits is a preload, which a pod joins.
        let team = vec![Tenant::of_namespace("team")];
        let joined = late.add(team.clone());
        watch.changed().await;
        assert_eq!(watch.tenants(), team);
        assert_eq!(other.priority().watch().tenants(), []);
        drop(first);
        assert_eq!(waits.await.unwrap(), team);
        assert_eq!(watch.tenants(), [], "no task waits for the lock any more");
        drop(joined);
    }
}
