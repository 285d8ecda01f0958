//! Preloads the cluster sets that select this node: pulls their content before a pod requests it, and keeps it from
//! garbage collection as long as they select the node (docs/design.md, "Preloading").
//!
//! ```text
//! ClusterArtifactSets ─ watched ──────┐                       ┌─► preload.json (GC roots, written before the pull)
//! labels of the node ─ read ──────────┼─► desired ─► to keep ─┤
//! preload.json, until these are known ┘                       └─► one task for each set ─► pulls at low priority
//!                                                                     │ state
//!                            NodeArtifacts ◄── pulls of pods ──────────┘ at most every five seconds
//! ```
//!
//! Preloading is off unless the driver has [`ClusterSets`]: a stand-alone driver does not connect to an API server. While
//! the API server is unreachable, the last known sets stay preloaded. After a start, these are the sets in
//! `preload.json`.
//!
//! Architecture Invariant: only the report to the API server waits for the API server. A publish reads one Secret from
//! it, with a deadline, and only if content is missing.
//!
//! Architecture Invariant: a preload never delays a pod (see `oras_csi_store::pull`). If a pod requests content that a
//! preload is downloading, that pull gets the priority of the pod.

mod cluster_set;
mod controller;
mod desired;
mod events;
mod report;
mod secrets;
mod task;

use std::fmt;
use std::time::Duration;

use oras_csi_core::jitter;
use oras_csi_kube_support::field_manager::FieldManager;

pub(crate) use self::controller::{Preload, run};
pub use self::secrets::{SetSecretError, SetSecrets};
pub use oras_csi_node_artifacts as object;

/// The name under which the API server records the writes of the driver.
const FIELD_MANAGER: FieldManager = FieldManager::new("oras-csi-driver");

/// The connection to the API server for cluster sets.
#[derive(Clone)]
pub struct ClusterSets {
    client: kube::Client,
    namespace: String,
    intervals: Intervals,
}

/// The intervals of preloading. All are multiples of the interval of reports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intervals(Duration);

impl ClusterSets {
    /// Uses `client` to reach the API server. The pull secrets of sets are in `namespace`, the namespace of the driver.
    pub fn new(client: kube::Client, namespace: impl Into<String>) -> Self {
        Self { client, namespace: namespace.into(), intervals: Intervals(Duration::from_secs(5)) }
    }

    /// Sets the shortest interval between two reports to the API server; by default five seconds. The other intervals
    /// follow from it: the first retry after a failure comes after two intervals, and preloaded content is checked every
    /// twelve.
    #[must_use]
    pub fn with_report_interval(self, interval: Duration) -> Self {
        Self { intervals: Intervals(interval), ..self }
    }

    /// Returns the reader of the pull secrets of sets.
    pub(crate) fn secrets(&self) -> SetSecrets {
        SetSecrets::new(self.client.clone(), &self.namespace)
    }
}

impl fmt::Debug for ClusterSets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterSets").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Intervals {
    /// The shortest time between two writes of `NodeArtifacts`.
    fn report(self) -> Duration {
        self.0
    }

    /// The shortest time between two writes that report only the progress of sets in bytes, or the number of volumes.
    fn progress(self) -> Duration {
        self.0 * 6
    }

    /// The shortest time between two writes because of pulls that pods wait for: ten seconds, which is how often kubelet
    /// renews the Lease of its node.
    fn pulls(self) -> Duration {
        self.0 * 2
    }

    /// How long a pull has run at least when it is reported. Most pulls are shorter, and cause no write.
    fn reported_pull(self) -> Duration {
        self.0
    }

    /// How often the driver checks whether preloaded content is still in the store, which labels the node has, and
    /// whether damage was found.
    fn check(self) -> Duration {
        self.0 * 12
    }

    /// How often an unchanged status is written again, because another client may have deleted it.
    fn renew(self) -> Duration {
        self.0 * 120
    }

    /// The delay before a retry after this many failures: 10 seconds to ten minutes, with jitter.
    fn retry(self, failures: u32) -> Duration {
        let wait = self.0 * 2 * 2_u32.saturating_pow(failures.saturating_sub(1).min(6));
        with_jitter(wait.min(self.0 * 120))
    }
}

/// Shortens a time by up to a quarter, so that not all nodes call the API server or a registry at once.
fn with_jitter(time: Duration) -> Duration {
    time.saturating_sub(jitter::up_to(time / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_back_off_up_to_ten_minutes() {
        let intervals = Intervals(Duration::from_secs(5));
        for (failures, seconds) in [(1, 10), (2, 20), (4, 80), (7, 600), (1_000_000, 600)] {
            let longest = Duration::from_secs(seconds);
            let wait = intervals.retry(failures);
            assert!(wait <= longest && wait >= longest * 3 / 4, "{failures}: {wait:?}");
        }
    }
}
