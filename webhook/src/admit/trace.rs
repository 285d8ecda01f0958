//! The span of an admission, and the trace that the volumes of a pod carry to the driver (docs/operate/traces.md).

use oras_csi_core::keys::DRIVER;
use oras_csi_core::trace::{TARGET, TraceParent, record_error};
use oras_csi_core::volume::trace_parent;
use oras_csi_traces::{continue_trace, trace_of};
use tracing::{Span, field};

use super::Outcome;
use crate::denial::Denial;
use crate::view::Pod;

/// Begins the span of the admission of a pod. A pod that comes with a trace continues it: it was admitted before, as when
/// the API server calls the webhook again because another one changed the pod.
pub(super) fn admission_of(pod: &Pod<'_>, namespace: &str) -> Span {
    let span = admission("admission", namespace);
    if !span.is_disabled() {
        if let Some(owner) = pod.controller() {
            span.record("oras_csi.owner", format!("{}/{}", owner.kind, owner.name));
        }
        if let Some(parent) = earlier_trace(pod) {
            continue_trace(&span, parent);
        }
    }
    span
}

/// Returns what the volumes of the pod carry: the trace of the present span, or the one that the pod came with, so that
/// a second admission changes nothing. Whether it is recorded is the decision of this webhook. `None` where no traces are
/// sent.
pub(super) fn of_volumes(pod: &Pod<'_>) -> Option<TraceParent> {
    let current = trace_of(&Span::current())?;
    let earlier = earlier_trace(pod).map(|earlier| earlier.with_sampled(current.is_sampled()));
    Some(earlier.unwrap_or(current))
}

/// Begins the span of the admission of a `PersistentVolume`, which is a trace of its own.
pub(super) fn admission_of_persistent_volume(namespace: &str) -> Span {
    admission("admission of a PersistentVolume", namespace)
}

/// Begins the span of an admission. The exporter shows it under `name`.
fn admission(name: &str, namespace: &str) -> Span {
    tracing::trace_span!(
        target: TARGET,
        "admission",
        otel.name = name,
        otel.kind = "server",
        k8s.namespace.name = namespace,
        oras_csi.owner = field::Empty,
        oras_csi.pinned = field::Empty,
        oras_csi.code = field::Empty,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
    )
}

/// Writes the result of an admission into its span.
pub(super) fn record(span: &Span, admitted: &Result<Outcome, Denial>) {
    match admitted {
        Ok(outcome) => record_pinned(span, outcome.pinned.as_deref()),
        Err(denial) => record_denial(span, denial),
    }
}

/// Writes the digests of an admission into its span.
pub(super) fn record_pinned(span: &Span, pinned: Option<&str>) {
    span.record("oras_csi.pinned", pinned);
}

/// Writes a denial into the span of its admission.
pub(super) fn record_denial(span: &Span, denial: &Denial) {
    span.record("oras_csi.code", denial.code().number());
    record_error(span, &denial.message());
}

fn earlier_trace(pod: &Pod<'_>) -> Option<TraceParent> {
    let sources = pod.volumes().iter().filter_map(|volume| volume.csi.as_ref());
    let mut own = sources.filter(|csi| csi.driver == DRIVER);
    own.find_map(|csi| trace_parent(csi.attributes.iter().map(|(key, value)| (*key, *value))))
}
