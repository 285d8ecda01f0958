//! Locks by name, so that the same content is not pulled twice at a time.
//!
//! A lock passes on urgency: when an urgent task waits for a lock, the task that has it becomes urgent as well.
//!
//! The name contains the registry. A pull of the same content from another registry does not wait, because content
//! from one registry is no proof that another registry has it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use super::priority::{Priority, PriorityBoost};

/// Locks by name. Names that are not in use are removed.
#[derive(Debug, Default)]
pub(crate) struct KeyedLocks(Mutex<HashMap<String, Weak<Lock>>>);

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
    /// Waits for the lock `name`.
    pub(super) async fn lock(&self, name: &str, priority: &Priority) -> KeyedLockGuard {
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

    #[tokio::test]
    async fn an_urgent_waiter_raises_the_priority_of_the_lock_owner() {
        let (locks, boost) = (Arc::new(KeyedLocks::default()), PriorityBoost::default());
        let first = locks.lock("a", &Priority::raised_by(&PriorityBoost::default())).await;
        let other = locks.lock("b", &Priority::raised_by(&PriorityBoost::default())).await;
        let waits = tokio::spawn({
            let (locks, priority) = (locks.clone(), Priority::raised_by(&boost));
            async move { locks.lock("a", &priority).await.priority().is_urgent() }
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
