//! OpenTelemetry traces of the webhook and the driver (docs/operate/traces.md).
//!
//! ```text
//! webhook: admission ─► spans of the stages        driver: NodePublishVolume ─► check, pull, mount
//!              │                                                ▲
//!              └─ csi.oras.land/traceparent of the volume ──────┘
//! ```
//!
//! The other crates make spans with `tracing` at [`TARGET`] and know nothing of OpenTelemetry, except at the two ends of
//! that arrow: [`trace_of`] and [`continue_trace`]. [`Exporter`] sends the spans to a collector as OTLP over HTTP.
//!
//! Bounds: at most 2,048 ended spans wait for the collector, and the rest are dropped; each text in them is cut
//! ([`Short`]); a batch has at most 512 spans and is sent after at most 5 s; a try to send it takes at most
//! [`EXPORT_TIMEOUT`]. All of it happens on threads of the exporter,
//! so a collector that is slow or away delays no pod.

#![cfg_attr(test, allow(clippy::expect_used, clippy::panic, clippy::unwrap_used))]

mod sampling;
mod short;

use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracerProvider};
use oras_csi_core::trace::{TARGET, TraceParent};
use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

pub use self::sampling::{Decides, SampleRatio, SampleRatioError};
use self::short::Short;

/// The longest time of one try to send spans, and of the last one before the program ends.
pub const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The path of the collector that receives traces (OTLP specification, "OTLP/HTTP Request").
const TRACES_PATH: &str = "/v1/traces";

/// Why no traces can be sent.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The address is not one of HTTP. It is not in the message, because it can have a password.
    #[error(
        "cannot send traces: the value of --otlp-endpoint is not an http or https address. Write the address of an \
         OpenTelemetry collector, for example http://HOST:4318"
    )]
    Address,
    /// The exporter cannot be made.
    #[error("cannot send traces: {0}. Check the variables OTEL_EXPORTER_OTLP_…")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Sends spans to a collector.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Makes an exporter for the collector at `endpoint`, the base address of OTLP over HTTP. It connects when there is
    /// something to send. Each span has `service` as `service.name` and the version of this build.
    ///
    /// `decides` and `ratio` say which traces are recorded.
    pub fn new(
        endpoint: &str,
        service: &'static str,
        attributes: impl IntoIterator<Item = (&'static str, String)>,
        decides: Decides,
        ratio: SampleRatio,
    ) -> Result<Self, ExporterError> {
        let url = Url::parse(endpoint).map_err(|_| ExporterError::Address)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(ExporterError::Address);
        }
        let url = format!("{}{TRACES_PATH}", endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(url)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let attributes = attributes.into_iter().map(|(key, value)| KeyValue::new(key, value));
        let resource = Resource::builder_empty()
            .with_attribute(KeyValue::new("service.name", service))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attributes(attributes)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Short(BatchSpanProcessor::builder(exporter).build()))
            .with_sampler(decides.sampler(ratio))
            .with_resource(resource)
            .build();
        Ok(Self(provider))
    }

    /// Returns the layer of a subscriber that records the spans of [`TARGET`], and nothing else.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("oras-csi"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_filter(Targets::new().with_target(TARGET, LevelFilter::TRACE))
    }

    /// Sends what is left and ends the exporter's threads. Takes at most [`EXPORT_TIMEOUT`].
    pub fn shut_down(self) {
        if let Err(error) = self.0.shutdown_with_timeout(EXPORT_TIMEOUT) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Makes `span` a part of a trace that another program began. It must not have been entered yet. Without an exporter this
/// does nothing.
pub fn continue_trace(span: &Span, parent: TraceParent) {
    if span.is_disabled() {
        return;
    }
    let flags = if parent.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, span_id) = (TraceId::from_bytes(parent.trace_id()), SpanId::from_bytes(parent.span_id()));
    let context = SpanContext::new(trace, span_id, flags, true, TraceState::default());
    let result = span.set_parent(Context::new().with_remote_span_context(context));
    if let Err(error) = result {
        tracing::debug!(%error, "a span is not a part of its trace");
    }
}

/// Returns where another program continues the trace of `span`. Without an exporter there is none.
pub fn trace_of(span: &Span) -> Option<TraceParent> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    TraceParent::new(context.trace_id().to_bytes(), context.span_id().to_bytes(), context.is_sampled())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exporter_needs_an_http_address() {
        let exporter =
            |endpoint| Exporter::new(endpoint, "test", [], Decides::ByRatio, SampleRatio::ALL).map(|_| ());
        for endpoint in ["http://127.0.0.1:4318", "https://collector.example/otlp/"] {
            assert!(exporter(endpoint).is_ok(), "{endpoint}");
        }
        for endpoint in
            ["", "collector:4318", "127.0.0.1:4318", "ftp://user:secret@collector", "http://", "foo bar"]
        {
            let error = exporter(endpoint).unwrap_err();
            assert!(matches!(error, ExporterError::Address), "{endpoint}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn without_an_exporter_a_span_has_no_trace() {
        let span = tracing::trace_span!(target: TARGET, "nothing");
        assert_eq!(trace_of(&span), None);
    }
}
