//! Who waits for a pull, and since when no pod does.
//!
//! Publish calls come and go: kubelet's call ends after a time, and kubelet calls again after a pause that doubles up to
//! two minutes. So a volume waits from its first call until [`RETRY_WAIT`] after its last one. When kubelet unpublishes
//! the volume, its pod was deleted, and it waits for [`WITHDRAWN_WAIT`] only: the same pod may have been created again.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::priority::{Waiters, Waiting};
use super::tenant::Waiter;

/// For how long a volume waits after its last call. Kubelet's longest pause between two calls is 2 min 2 s
/// (`goroutinemap/exponentialbackoff`).
const RETRY_WAIT: Duration = Duration::from_secs(150);
/// For how long a pull continues for a volume that was unpublished.
const WITHDRAWN_WAIT: Duration = Duration::from_mins(1);

/// The volumes and preloads that wait for a pull.
#[derive(Debug, Default)]
pub(super) struct Presence {
    state: Mutex<State>,
    changed: Notify,
    /// The namespaces of the volumes.
    waiters: Waiters,
}

#[derive(Debug, Default)]
struct State {
    preloads: usize,
    volumes: HashMap<String, Volume>,
}

#[derive(Debug)]
struct Volume {
    /// How many calls wait now.
    calls: usize,
    /// When it stops to wait, if no call waits.
    until: Instant,
    /// The name for reports; empty if there is none.
    id: String,
    _waiting: Waiting,
}

/// A call that waits for a pull. Dropping it says that the call has ended.
pub(super) struct Call {
    presence: Arc<Presence>,
    volume: String,
}

impl Presence {
    /// Returns the namespaces of the volumes that wait.
    pub(super) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Adds a call for a volume.
    pub(super) fn enter(self: &Arc<Self>, waiter: &Waiter) -> Call {
        let volume = waiter.volume().to_owned();
        let mut state = self.state();
        let entry = state.volumes.entry(volume.clone()).or_insert_with(|| {
            let waiting = self.waiters.add(vec![waiter.tenant().clone()]);
            Volume { calls: 0, until: Instant::now(), id: waiter.id().to_owned(), _waiting: waiting }
        });
        entry.calls += 1;
        drop(state);
        self.changed.notify_waiters();
        Call { presence: self.clone(), volume }
    }

    /// Returns the names of the volumes that wait, each once.
    pub(super) fn ids(&self) -> BTreeSet<String> {
        let state = self.state();
        let named = state.volumes.values().filter(|volume| !volume.id.is_empty());
        named.map(|volume| volume.id.clone()).collect()
    }

    /// Records that the pod of a volume was deleted.
    pub(super) fn withdraw(&self, volume: &str) {
        if let Some(volume) = self.state().volumes.get_mut(volume) {
            volume.until = volume.until.min(Instant::now() + WITHDRAWN_WAIT);
        }
        self.changed.notify_waiters();
    }

    /// Adds a preload.
    pub(super) fn enter_preload(&self) {
        self.state().preloads += 1;
    }

    /// Removes a preload. Returns whether nothing waits any more.
    pub(super) fn leave_preload(&self) -> bool {
        let mut state = self.state();
        state.preloads = state.preloads.saturating_sub(1);
        let is_empty = state.is_empty();
        drop(state);
        self.changed.notify_waiters();
        is_empty
    }

    /// Waits until nothing waits for the pull any more. Something may begin to wait at the same moment.
    pub(super) async fn wait_until_abandoned(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_abandoned() {
                return;
            }
            let next = self.state().next_end();
            tokio::select! {
                () = changed => {}
                () = async { sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {}
            }
        }
    }

    /// Forgets the volumes that do not wait any more, and reports whether nothing waits.
    pub(super) fn is_abandoned(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        let ended = state.volumes.extract_if(|_, volume| volume.calls == 0 && volume.until <= now);
        let ended: Vec<_> = ended.collect();
        let is_empty = state.is_empty();
        drop(state);
        // Wakes the tasks that work for the namespace.
        drop(ended);
        is_empty
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.preloads == 0 && self.volumes.is_empty()
    }

    /// Returns when the next volume stops to wait.
    fn next_end(&self) -> Option<Instant> {
        self.volumes.values().filter(|volume| volume.calls == 0).map(|volume| volume.until).min()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(volume) = self.presence.state().volumes.get_mut(&self.volume) {
            volume.calls = volume.calls.saturating_sub(1);
            volume.until = Instant::now() + RETRY_WAIT;
        }
        self.presence.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::super::priority::Priority;
    use super::super::tenant::Tenant;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn waiter(namespace: &str, volume: &str) -> Waiter {
        Waiter::new(Tenant::of_namespace(namespace), volume)
    }

    /// Returns after how many seconds the pull is abandoned.
    async fn seconds_until_abandoned(presence: &Presence) -> u64 {
        let began = Instant::now();
        presence.wait_until_abandoned().await;
        began.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_waits_through_the_longest_pause_of_kubelet() {
        let presence = Arc::new(Presence::default());
        let call = presence.enter(&waiter("team", "a"));
        let waits = tokio::time::timeout(3_600 * SECOND, presence.wait_until_abandoned());
        assert!(waits.await.is_err(), "a call waits");
        drop(call);
        let waits = tokio::time::timeout(122 * SECOND, presence.wait_until_abandoned());
        assert!(waits.await.is_err(), "kubelet calls again");
        let call = presence.enter(&waiter("team", "a"));
        tokio::time::sleep(110 * SECOND).await;
        drop(call);
        assert_eq!(seconds_until_abandoned(&presence).await, 150);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_for_a_deleted_pod_is_abandoned_after_a_minute() {
        let presence = Arc::new(Presence::default());
        drop(presence.enter(&waiter("team", "a")));
        tokio::time::sleep(10 * SECOND).await;
        presence.withdraw("b");
        presence.withdraw("a");
        tokio::time::sleep(10 * SECOND).await;
        presence.withdraw("a");
        assert_eq!(seconds_until_abandoned(&presence).await, 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_counts_only_while_one_of_its_volumes_waits() {
        let presence = Arc::new(Presence::default());
        let mut watch = Priority::of(presence.waiters()).watch();
        let (first, second) = (presence.enter(&waiter("one", "a")), presence.enter(&waiter("two", "b")));
        assert_eq!(watch.tenants(), ["one", "two"].map(Tenant::of_namespace));
        drop(first);
        presence.withdraw("a");
        let waits = tokio::time::timeout(61 * SECOND, presence.wait_until_abandoned());
        assert!(waits.await.is_err());
        assert_eq!(watch.tenants(), [Tenant::of_namespace("two")]);
        presence.enter_preload();
        drop(second);
        let waits = tokio::time::timeout(3_600 * SECOND, presence.wait_until_abandoned());
        assert!(waits.await.is_err(), "the preload continues");
        assert_eq!(watch.tenants(), [], "without a pod");
        assert!(presence.leave_preload() && presence.is_abandoned());
    }
}
