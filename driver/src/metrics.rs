//! The metrics of the driver, for Prometheus. Label values come from closed sets: names of volumes, pods or registries
//! are never labels.

mod preloads;
mod store;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use oras_csi_store::PullErrorKind;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use self::preloads::Preloads;
use self::store::StoreMetrics;
pub(crate) use self::store::TreeLookup;

/// The outcome of a CSI call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallOutcome {
    /// The volume was mounted or unmounted.
    Done,
    /// The volume was mounted or unmounted already.
    Already,
    /// Another call or a pull is in progress.
    InProgress,
    /// The call failed; kubelet retries.
    Failed,
    /// The request is invalid, or the volume is rejected.
    Refused,
}

/// The outcome of a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PullOutcome {
    /// The tree is in the store.
    Done,
    /// The registry does not have the artifact.
    NotFound,
    /// The registry denies the pull.
    Denied,
    /// The registry fails or is unreachable.
    Unavailable,
    /// The disk is full.
    NoRoom,
    /// The content does not match its digest.
    Corrupt,
    /// The content is rejected.
    Refused,
    /// The disk or the driver failed.
    Internal,
    /// The driver shut down.
    Stopped,
}

impl From<PullErrorKind> for PullOutcome {
    fn from(kind: PullErrorKind) -> Self {
        match kind {
            PullErrorKind::NotFound => Self::NotFound,
            PullErrorKind::Denied => Self::Denied,
            PullErrorKind::Unavailable => Self::Unavailable,
            PullErrorKind::DiskFull => Self::NoRoom,
            PullErrorKind::Corrupt => Self::Corrupt,
            PullErrorKind::Refused => Self::Refused,
            PullErrorKind::Internal => Self::Internal,
            PullErrorKind::Stopped => Self::Stopped,
        }
    }
}

impl EncodeLabelValue for CallOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Done => "done",
            Self::Already => "already",
            Self::InProgress => "in_progress",
            Self::Failed => "failed",
            Self::Refused => "refused",
        };
        name.encode(encoder)
    }
}

impl EncodeLabelValue for PullOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Done => "done",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::NoRoom => "no_room",
            Self::Corrupt => "corrupt",
            Self::Refused => "refused",
            Self::Internal => "internal",
            Self::Stopped => "stopped",
        };
        name.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    outcome: CallOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pull {
    outcome: PullOutcome,
}

/// The counters of the driver. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    publishes: Family<Call, Counter>,
    unpublishes: Family<Call, Counter>,
    pulls: Family<Pull, Counter>,
    bytes: Counter<u64, AtomicU64>,
    publish_seconds: Histogram,
    volumes: Gauge,
    store: StoreMetrics,
    preloads: Preloads,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("oras_csi_driver");
        let (publishes, unpublishes) = (Family::default(), Family::default());
        let (pulls, bytes, volumes) = (Family::default(), Counter::default(), Gauge::default());
        let publish_seconds = Histogram::new([0.001, 0.002, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 120.0]);
        registry.register("publishes", "NodePublishVolume calls, by outcome", Family::clone(&publishes));
        registry.register(
            "unpublishes",
            "NodeUnpublishVolume calls, by outcome",
            Family::clone(&unpublishes),
        );
        registry.register("pulls", "Pulls of recipes into the store, by outcome", Family::clone(&pulls));
        registry.register("pulled_bytes", "Bytes received from registries", Counter::clone(&bytes));
        registry.register(
            "publish_seconds",
            "Duration of NodePublishVolume calls in seconds",
            publish_seconds.clone(),
        );
        registry.register("volumes", "Volumes that are published on this node", Gauge::clone(&volumes));
        let store = StoreMetrics::register(&mut registry);
        let preloads = Preloads::register(&mut registry);
        Self(Arc::new(Inner {
            registry,
            publishes,
            unpublishes,
            pulls,
            bytes,
            publish_seconds,
            volumes,
            store,
            preloads,
        }))
    }
}

impl Metrics {
    pub(crate) fn published(&self, outcome: CallOutcome, seconds: f64) {
        self.0.publishes.get_or_create(&Call { outcome }).inc();
        self.0.publish_seconds.observe(seconds);
    }

    pub(crate) fn unpublished(&self, outcome: CallOutcome) {
        self.0.unpublishes.get_or_create(&Call { outcome }).inc();
    }

    pub(crate) fn volumes(&self) -> &Gauge {
        &self.0.volumes
    }

    /// Returns all metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.0.registry);
        text
    }
}
