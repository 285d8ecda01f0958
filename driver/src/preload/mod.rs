//! Preloading: what cluster sets want on this node is fetched before a pod asks for it, and kept as long as they do.
//!
//! ```text
//! ClusterArtifactSets ─ watched ─┐                          ┌─► preload.json (roots, before anything is fetched)
//! labels of the node ─ asked ────┼─► wanted ─► what is kept ┤
//! preload.json, until then ──────┘                          └─► a task a set ─► pulls, in no hurry
//!                                                                    │ state
//!                                                   NodeArtifacts ◄──┘ at most every five seconds
//! ```
//!
//! All of it is off unless the driver is given [`ClusterSets`]: a driver that stands alone asks Kubernetes nothing.
//! While the API server is silent, all goes on as it last was; after a start, as `preload.json` says.
//!
//! Architecture Invariant: nothing waits for the API server but what is written for it. A publish asks it for one
//! Secret, with a deadline, and only where the bytes are missing.
//!
//! Architecture Invariant: fetching ahead never keeps a pod waiting (see `oras_csi_store::pull`), and a pod that asks for what is
//! being fetched ahead makes that as urgent as its own.

mod cluster_set;
mod controller;
mod desired;
mod events;
pub mod object;
mod report;
mod secrets;
mod task;

use std::fmt;
use std::time::Duration;

use oras_csi_core::jitter;
use oras_csi_kube_support::field_manager::FieldManager;

pub(crate) use self::controller::{Preload, run};
pub use self::secrets::{SetSecretError, SetSecrets};

/// The name under which the API server records the writes of the driver.
const FIELD_MANAGER: FieldManager = FieldManager::new("oras-csi-driver");

/// How the driver hears of cluster sets.
#[derive(Clone)]
pub struct ClusterSets {
    client: kube::Client,
    namespace: String,
    rhythm: Rhythm,
}

/// How often things are done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rhythm(Duration);

impl ClusterSets {
    /// Asks the API server by `client`; pull secrets of sets are those of `namespace`, the driver's own.
    pub fn new(client: kube::Client, namespace: impl Into<String>) -> Self {
        Self { client, namespace: namespace.into(), rhythm: Rhythm(Duration::from_secs(5)) }
    }

    /// Tells the API server something new at most this often: every five seconds. All that is done by itself follows:
    /// a failure is tried again after twice the time at first, and what is there is looked at after twelve times.
    #[must_use]
    pub fn with_rhythm(self, least: Duration) -> Self {
        Self { rhythm: Rhythm(least), ..self }
    }

    /// The pull secrets of sets.
    pub(crate) fn secrets(&self) -> SetSecrets {
        SetSecrets::new(self.client.clone(), &self.namespace)
    }
}

impl fmt::Debug for ClusterSets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterSets").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Rhythm {
    /// The least time between two writes of `NodeArtifacts`.
    fn report(self) -> Duration {
        self.0
    }

    /// The least time between two writes that only tell of more bytes.
    fn progress(self) -> Duration {
        self.0 * 6
    }

    /// How often it is looked whether what was fetched is still there, what the node's labels are, and whether there
    /// is damage to tell of.
    fn look(self) -> Duration {
        self.0 * 12
    }

    /// How often what did not change is written nevertheless: somebody may have deleted it.
    fn renew(self) -> Duration {
        self.0 * 120
    }

    /// How long after so many failures it is tried again: 10 seconds to ten minutes, more or less.
    fn retry(self, failures: u32) -> Duration {
        let wait = self.0 * 2 * 2_u32.saturating_pow(failures.saturating_sub(1).min(6));
        spread(wait.min(self.0 * 120))
    }
}

/// The time, up to a quarter less: nodes shall not all come at once.
fn spread(time: Duration) -> Duration {
    time.saturating_sub(jitter::up_to(time / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_ever_later_up_to_ten_minutes() {
        let rhythm = Rhythm(Duration::from_secs(5));
        for (failures, most) in [(1, 10), (2, 20), (4, 80), (7, 600), (1_000_000, 600)] {
            let most = Duration::from_secs(most);
            let wait = rhythm.retry(failures);
            assert!(wait <= most && wait >= most * 3 / 4, "{failures}: {wait:?}");
        }
    }
}
