//! Whether a pull is urgent.
//!
//! A pull for a pod is urgent from the start. A preload becomes urgent when a pod requests the same recipe, or one of
//! the blobs that it downloads. It then stays urgent.

use futures_util::future::{FutureExt as _, select_all};
use tokio_util::sync::CancellationToken;

/// The boosts that can make a task urgent. A task without boosts is urgent already.
#[derive(Clone, Debug, Default)]
pub(super) struct Priority(Vec<PriorityBoost>);

/// A signal that a pod waits. It is sent once, all clones see it, and it is never withdrawn.
#[derive(Clone, Debug, Default)]
pub(super) struct PriorityBoost(CancellationToken);

impl PriorityBoost {
    /// Signals that a pod waits.
    pub(super) fn raise(&self) {
        self.0.cancel();
    }

    /// Reports whether a pod has waited.
    pub(super) fn is_raised(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl Priority {
    /// Returns the priority of a task that becomes urgent when `boost` is raised.
    pub(super) fn raised_by(boost: &PriorityBoost) -> Self {
        Self(vec![boost.clone()])
    }

    /// Adds another boost that can raise this priority.
    #[must_use]
    pub(super) fn or_raised_by(&self, boost: &PriorityBoost) -> Self {
        if self.is_urgent() {
            return Self::default();
        }
        Self(self.0.iter().chain([boost]).cloned().collect())
    }

    /// Reports whether the task is urgent.
    pub(super) fn is_urgent(&self) -> bool {
        self.0.is_empty() || self.0.iter().any(PriorityBoost::is_raised)
    }

    /// Waits until the task is urgent.
    pub(super) async fn wait_until_urgent(&self) {
        if !self.is_urgent() {
            select_all(self.0.iter().map(|boost| boost.0.cancelled().boxed())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_is_urgent_once_one_of_its_boosts_is_raised() {
        let (own, shared) = (PriorityBoost::default(), PriorityBoost::default());
        let alone = Priority::raised_by(&own);
        let both = alone.or_raised_by(&shared);
        assert!(Priority::default().is_urgent() && !both.is_urgent());
        shared.raise();
        both.wait_until_urgent().await;
        assert!(both.is_urgent() && !alone.is_urgent());
        own.raise();
        alone.wait_until_urgent().await;
        assert!(alone.or_raised_by(&PriorityBoost::default()).is_urgent());
    }
}
