//! The options of the long-running programs for their traces.

use clap::Args;
use oras_csi_traces::{Decides, Exporter, ExporterError, SampleRatio};

/// Where traces are sent, and how many.
#[derive(Debug, Args)]
pub(crate) struct TraceOptions {
    /// Send OpenTelemetry traces to the collector at this address, as OTLP over HTTP, for example http://HOST:4318. With
    /// it, the webhook writes the trace of an admission into the volumes of the pod, and the driver continues it: update all
    /// drivers first [default: no traces].
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Share of the traces that are recorded, from 0 to 1. The driver records the traces that the webhook records, and this
    /// share of its other work.
    #[arg(long, value_name = "RATIO", env = "ORAS_CSI_TRACE_RATIO", default_value_t = SampleRatio::ALL)]
    trace_ratio: SampleRatio,
}

impl TraceOptions {
    /// Makes the exporter, if traces are wanted. `attributes` describe the process, for example its node, and `decides` says which
    /// traces of other programs are recorded.
    pub(crate) fn exporter(
        &self,
        service: &'static str,
        attributes: impl IntoIterator<Item = (&'static str, String)>,
        decides: Decides,
    ) -> Result<Option<Exporter>, ExporterError> {
        // A variable that is set to nothing is as good as none (OpenTelemetry specification, "Environment variables").
        let endpoint = self.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty());
        let new = |endpoint| Exporter::new(endpoint, service, attributes, decides, self.trace_ratio);
        endpoint.map(new).transpose()
    }
}
