//! The calls of kubelet: outcomes, durations, volumes, and volumes that are rejected for their seal.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{Labels, Metrics, counters};
use crate::publish::SealRejection;

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

impl CallOutcome {
    const NAMES: [&'static str; 5] = ["done", "already", "in_progress", "failed", "refused"];

    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Already => "already",
            Self::InProgress => "in_progress",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Calls {
    publishes: Family<Labels<1>, Counter>,
    unpublishes: Family<Labels<1>, Counter>,
    publish_duration: Histogram,
    volumes: Gauge,
    seal_rejections: Family<Labels<1>, Counter>,
}

impl Calls {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new = Self {
            publishes: counters("outcome", &CallOutcome::NAMES),
            unpublishes: counters("outcome", &CallOutcome::NAMES),
            publish_duration: Histogram::new([0.001, 0.002, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 120.0]),
            volumes: Gauge::default(),
            seal_rejections: counters("reason", &SealRejection::REASONS),
        };
        let metrics = new.clone();
        registry.register("publishes", "NodePublishVolume calls, by outcome", metrics.publishes);
        registry.register("unpublishes", "NodeUnpublishVolume calls, by outcome", metrics.unpublishes);
        registry.register_with_unit(
            "publish_duration",
            "Duration of NodePublishVolume calls",
            Unit::Seconds,
            metrics.publish_duration,
        );
        registry.register("volumes", "Volumes that are published on this node", metrics.volumes);
        registry.register(
            "seal_rejections",
            "NodePublishVolume calls that were rejected for the seal of the volume, by reason",
            metrics.seal_rejections,
        );
        new
    }
}

impl Metrics {
    pub(crate) fn published(&self, outcome: CallOutcome, seconds: f64) {
        self.0.calls.publishes.get_or_create(&[("outcome", outcome.name())]).inc();
        self.0.calls.publish_duration.observe(seconds);
    }

    pub(crate) fn unpublished(&self, outcome: CallOutcome) {
        self.0.calls.unpublishes.get_or_create(&[("outcome", outcome.name())]).inc();
    }

    pub(crate) fn volumes(&self) -> &Gauge {
        &self.0.calls.volumes
    }

    pub(crate) fn seal_rejected(&self, rejection: &SealRejection) {
        self.0.calls.seal_rejections.get_or_create(&[("reason", rejection.reason())]).inc();
    }
}
