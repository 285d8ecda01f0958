//! Limits how many pulls of one namespace work on the disk at a time.
//!
//! Verifying stored content and assembling a tree can take minutes of disk and processor time, and each needs a blocking
//! thread. Without a limit, the pulls of one namespace could occupy all threads of the process, and every other
//! namespace would wait for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::future::{FutureExt as _, select_all};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::priority::Priority;
use super::tenant::Tenant;

/// How many pulls of one namespace, and how many preloads, work on the disk at a time.
const PULLS_PER_TENANT: usize = 4;

/// The disk turns of a node. Namespaces without a pull that works or waits are removed.
#[derive(Debug, Default)]
pub(super) struct DiskTurns(Mutex<HashMap<Option<Tenant>, Weak<Semaphore>>>);

impl DiskTurns {
    /// Waits until one of the namespaces that wait for a pull has a turn. Returns `None` only if a semaphore is closed,
    /// which never happens.
    pub(super) async fn acquire(&self, priority: &Priority) -> Option<OwnedSemaphorePermit> {
        let mut watch = priority.watch();
        loop {
            let tenants = watch.tenants();
            let keys = if tenants.is_empty() { vec![None] } else { tenants.into_iter().map(Some).collect() };
            let turns = keys.into_iter().map(|key| self.of(key).acquire_owned().boxed());
            tokio::select! {
                biased;
                (turn, ..) = select_all(turns) => return turn.ok(),
                () = watch.changed() => {}
            }
        }
    }

    fn of(&self, key: Option<Tenant>) -> Arc<Semaphore> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, semaphore| semaphore.strong_count() > 0);
        if let Some(semaphore) = all.get(&key).and_then(Weak::upgrade) {
            return semaphore;
        }
        let semaphore = Arc::new(Semaphore::new(PULLS_PER_TENANT));
        all.insert(key, Arc::downgrade(&semaphore));
        semaphore
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::priority::Waiters;
    use super::*;

    #[tokio::test]
    async fn a_namespace_waits_only_for_its_own_pulls() {
        let (turns, waiters) = (DiskTurns::default(), Waiters::default());
        let tenant = |name| vec![Tenant::of_namespace(name)];
        let flood = Waiters::default();
        let _flood = flood.add(tenant("flood"));
        let mut held = Vec::new();
        for _ in 0..PULLS_PER_TENANT {
            held.push(turns.acquire(&Priority::of(&flood)).await);
        }
        assert!(turns.acquire(&Priority::of(&flood)).now_or_never().is_none());
        let _team = waiters.add(tenant("team"));
        assert!(turns.acquire(&Priority::of(&waiters)).now_or_never().is_some());
        // A pull that both namespaces wait for has a turn as soon as one of them has.
        assert!(turns.acquire(&Priority::of(&flood).and(&waiters)).now_or_never().is_some());
        held.pop();
        assert!(turns.acquire(&Priority::of(&flood)).now_or_never().is_some());
    }
}
