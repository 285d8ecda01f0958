//! Whether somebody waits for what is being pulled.
//!
//! A pull for a pod is urgent from the start. One that fetches ahead is not, until a pod asks for the same recipe, or
//! for one of the blobs that it is bringing: then it is urgent for good, and as fast as any other.

use futures_util::future::{FutureExt as _, select_all};
use tokio_util::sync::CancellationToken;

/// Who may make a piece of work urgent; without anybody it is urgent already.
#[derive(Clone, Debug, Default)]
pub(super) struct Priority(Vec<PriorityBoost>);

/// The word that somebody waits: given once, heard by all, never taken back.
#[derive(Clone, Debug, Default)]
pub(super) struct PriorityBoost(CancellationToken);

impl PriorityBoost {
    /// Somebody waits.
    pub(super) fn raise(&self) {
        self.0.cancel();
    }

    /// Whether somebody has waited.
    pub(super) fn is_raised(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl Priority {
    /// Of something that nobody waits for until `boost` is called.
    pub(super) fn until(boost: &PriorityBoost) -> Self {
        Self(vec![boost.clone()])
    }

    /// The same, also when `boost` is called.
    #[must_use]
    pub(super) fn or(&self, boost: &PriorityBoost) -> Self {
        if self.is_urgent() {
            return Self::default();
        }
        Self(self.0.iter().chain([boost]).cloned().collect())
    }

    /// Whether somebody waits.
    pub(super) fn is_urgent(&self) -> bool {
        self.0.is_empty() || self.0.iter().any(PriorityBoost::is_raised)
    }

    /// Until somebody waits.
    pub(super) async fn urgent(&self) {
        if !self.is_urgent() {
            select_all(self.0.iter().map(|boost| boost.0.cancelled().boxed())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_urgent_once_anybody_waits() {
        let (own, shared) = (PriorityBoost::default(), PriorityBoost::default());
        let alone = Priority::until(&own);
        let both = alone.or(&shared);
        assert!(Priority::default().is_urgent() && !both.is_urgent());
        shared.raise();
        both.urgent().await;
        assert!(both.is_urgent() && !alone.is_urgent());
        own.raise();
        alone.urgent().await;
        assert!(alone.or(&PriorityBoost::default()).is_urgent());
    }
}
