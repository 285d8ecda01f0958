//! The metrics of pulls: outcomes, durations, the queue of downloads, and where content came from.

use std::sync::Arc;

use oras_csi_metrics::RegistryRequests;
use oras_csi_store::{PullErrorKind, Work};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{Labels, Metrics, counters};

/// The outcomes of a pull, as values of a label.
pub(super) const PULL_OUTCOMES: [&str; 9] =
    ["done", "not_found", "denied", "unavailable", "no_room", "corrupt", "refused", "internal", "stopped"];

/// Returns the value of the label for the end of a pull.
pub(super) fn pull_outcome(failure: Option<PullErrorKind>) -> &'static str {
    match failure {
        None => "done",
        Some(PullErrorKind::NotFound) => "not_found",
        Some(PullErrorKind::Denied) => "denied",
        Some(PullErrorKind::Unavailable) => "unavailable",
        Some(PullErrorKind::DiskFull) => "no_room",
        Some(PullErrorKind::Corrupt) => "corrupt",
        Some(PullErrorKind::Refused) => "refused",
        Some(PullErrorKind::Internal) => "internal",
        Some(PullErrorKind::Stopped) => "stopped",
    }
}

/// The size classes of trees: the largest size of each in bytes, and the value of the label.
const SIZE_CLASSES: [(u64, &str); 4] =
    [(1 << 20, "1048576"), (64 << 20, "67108864"), (1 << 30, "1073741824"), (16 << 30, "17179869184")];
const LARGEST_CLASS: &str = "+Inf";

fn size_class(bytes: u64) -> &'static str {
    SIZE_CLASSES.iter().find(|(most, _)| bytes <= *most).map_or(LARGEST_CLASS, |(_, class)| class)
}

const PRIORITIES: [Work; 2] = [Work::Pods, Work::Preload];

type Histograms = Family<Labels<1>, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug)]
pub(super) struct PullMetrics {
    pulls: Family<Labels<1>, Counter>,
    duration: Histograms,
    waiting: Family<Labels<1>, Gauge>,
    wait: Histograms,
    content: Family<Labels<1>, Counter>,
    requests: Arc<RegistryRequests>,
}

impl PullMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let durations = || Histogram::new([0.1, 0.5, 2.0, 10.0, 30.0, 120.0, 600.0, 3_600.0]);
        let waits = || Histogram::new([0.001, 0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0]);
        let new = Self {
            pulls: counters("outcome", &PULL_OUTCOMES),
            duration: Family::new_with_constructor(durations),
            waiting: Family::default(),
            wait: Family::new_with_constructor(waits),
            content: counters("source", &["registry", "store"]),
            requests: Arc::new(RegistryRequests::register(registry)),
        };
        for class in SIZE_CLASSES.map(|(_, class)| class).iter().chain([&LARGEST_CLASS]) {
            drop(new.duration.get_or_create(&[("max_bytes", *class)]));
        }
        for priority in PRIORITIES {
            drop(new.waiting.get_or_create(&[("priority", priority.name())]));
            drop(new.wait.get_or_create(&[("priority", priority.name())]));
        }
        let metrics = new.clone();
        registry.register("pulls", "Pulls of recipes into the store, by outcome", metrics.pulls);
        registry.register_with_unit(
            "pull_duration",
            "Duration of successful pulls; max_bytes is the class of the tree by its size, and classes are not cumulative",
            Unit::Seconds,
            metrics.duration,
        );
        registry.register(
            "downloads_waiting",
            "Blobs that wait for their first turn to be downloaded, for pods or for preloads",
            metrics.waiting,
        );
        registry.register_with_unit(
            "download_wait",
            "Time that blobs waited for their first turn, for pods or for preloads",
            Unit::Seconds,
            metrics.wait,
        );
        registry.register_with_unit(
            "content",
            "Bytes of content for volumes: received from registries, or used from the store without a download",
            Unit::Bytes,
            metrics.content,
        );
        new
    }

    pub(super) fn requests(&self) -> Arc<RegistryRequests> {
        Arc::clone(&self.requests)
    }
}

impl Metrics {
    pub(super) fn content(&self, source: &'static str, bytes: u64) {
        self.0.pulls.content.get_or_create(&[("source", source)]).inc_by(bytes);
    }

    pub(super) fn pull_ended(&self, failure: Option<PullErrorKind>) {
        self.0.pulls.pulls.get_or_create(&[("outcome", pull_outcome(failure))]).inc();
    }

    pub(super) fn pull_lasted(&self, bytes: u64, seconds: f64) {
        self.0.pulls.duration.get_or_create(&[("max_bytes", size_class(bytes))]).observe(seconds);
    }

    pub(super) fn download_queued(&self, work: Work) {
        self.0.pulls.waiting.get_or_create(&[("priority", work.name())]).inc();
    }

    pub(super) fn download_left_queue(&self, work: Work, waited: Option<f64>) {
        let labels = [("priority", work.name())];
        self.0.pulls.waiting.get_or_create(&labels).dec();
        if let Some(seconds) = waited {
            self.0.pulls.wait.get_or_create(&labels).observe(seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_of_a_size_is_the_smallest_that_holds_it() {
        for (bytes, class) in
            [(0, "1048576"), (1 << 20, "1048576"), ((1 << 20) + 1, "67108864"), (u64::MAX, LARGEST_CLASS)]
        {
            assert_eq!(size_class(bytes), class, "{bytes}");
        }
        for (most, class) in SIZE_CLASSES {
            assert_eq!(class.parse(), Ok(most));
        }
    }
}
