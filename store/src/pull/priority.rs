//! For which namespaces a piece of work is done.
//!
//! A pull for a pod is done for the namespace of that pod. Other namespaces join it when their pods request the same
//! recipe, or one of the blobs that it downloads, and they leave it when their pods do not wait any more. Work for no
//! namespace is a preload, which uses only what no pod needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::{FutureExt as _, select_all};
use tokio::sync::watch;

use super::tenant::Tenant;

/// The namespaces that wait for one thing, each with the number of its waiting tasks.
type Counts = BTreeMap<Tenant, usize>;

/// The namespaces that wait for one thing: a pull, or a lock.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiters(Arc<watch::Sender<Counts>>);

/// Counts namespaces among [`Waiters`] until it is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    waiters: Waiters,
    tenants: Vec<Tenant>,
}

/// For which namespaces a task works: those of all its [`Waiters`].
#[derive(Clone, Debug)]
pub(super) struct Priority(Vec<Waiters>);

/// Follows the namespaces of a [`Priority`].
#[derive(Debug)]
pub(super) struct PriorityWatch {
    receivers: Vec<watch::Receiver<Counts>>,
    /// Keeps the senders, so that no receiver reports that its sender is gone.
    _priority: Priority,
}

impl Waiters {
    /// Adds namespaces until the result is dropped.
    pub(super) fn add(&self, tenants: Vec<Tenant>) -> Waiting {
        self.0.send_if_modified(|counts| {
            let before = counts.len();
            for tenant in &tenants {
                *counts.entry(tenant.clone()).or_default() += 1;
            }
            counts.len() > before
        });
        Waiting { waiters: self.clone(), tenants }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.waiters.0.send_if_modified(|counts| {
            let before = counts.len();
            for tenant in &self.tenants {
                if let Some(count) = counts.get_mut(tenant) {
                    *count -= 1;
                }
            }
            counts.retain(|_, count| *count > 0);
            counts.len() < before
        });
    }
}

/// The priority of work for the node itself, such as a pull of the command line.
impl Default for Priority {
    fn default() -> Self {
        Self::of_tenant(&Tenant::node())
    }
}

impl Priority {
    /// Returns the priority of a task that works for one tenant.
    pub(super) fn of_tenant(tenant: &Tenant) -> Self {
        Self(vec![Waiters(Arc::new(watch::Sender::new(Counts::from([(tenant.clone(), 1)]))))])
    }

    /// Returns the priority of a task that works for these waiters.
    pub(super) fn of(waiters: &Waiters) -> Self {
        Self(vec![waiters.clone()])
    }

    /// Adds more waiters.
    #[must_use]
    pub(super) fn and(&self, waiters: &Waiters) -> Self {
        Self(self.0.iter().chain([waiters]).cloned().collect())
    }

    /// Returns a view that follows the namespaces.
    pub(super) fn watch(&self) -> PriorityWatch {
        let receivers = self.0.iter().map(|waiters| waiters.0.subscribe()).collect();
        PriorityWatch { receivers, _priority: self.clone() }
    }
}

impl PriorityWatch {
    /// Returns the namespaces now, sorted. There are none for a preload.
    pub(super) fn tenants(&mut self) -> Vec<Tenant> {
        let mut tenants = BTreeSet::new();
        for receiver in &mut self.receivers {
            tenants.extend(receiver.borrow_and_update().keys().cloned());
        }
        tenants.into_iter().collect()
    }

    /// Returns the namespaces if they have changed since they were last read.
    pub(super) fn changed_tenants(&mut self) -> Option<Vec<Tenant>> {
        let has_changed = self.receivers.iter().any(|receiver| receiver.has_changed().unwrap_or(false));
        has_changed.then(|| self.tenants())
    }

    /// Waits until the namespaces change. Read them with [`Self::tenants`] afterwards.
    pub(super) async fn changed(&mut self) {
        let _ = select_all(self.receivers.iter_mut().map(|receiver| receiver.changed().boxed())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(names: &[&str]) -> Vec<Tenant> {
        names.iter().map(|name| Tenant::of_namespace(name)).collect()
    }

    #[tokio::test]
    async fn a_task_works_for_all_namespaces_that_wait_and_for_no_others() {
        let (own, shared) = (Waiters::default(), Waiters::default());
        let both = Priority::of(&own).and(&shared);
        let mut watch = both.watch();
        assert_eq!(watch.tenants(), []);
        let first = own.add(tenants(&["b"]));
        watch.changed().await;
        let second = shared.add(tenants(&["a", "b"]));
        assert_eq!(watch.changed_tenants(), Some(tenants(&["a", "b"])));
        assert_eq!(watch.changed_tenants(), None);
        drop(first);
        assert_eq!(watch.tenants(), tenants(&["a", "b"]), "another task of b still waits");
        drop(second);
        assert_eq!(watch.changed_tenants(), Some(Vec::new()));
        assert_eq!(Priority::default().watch().tenants(), [Tenant::node()]);
    }
}
