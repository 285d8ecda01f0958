//! Log output on standard error, and the spans beside it.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use oras_csi_core::trace;
use oras_csi_traces::Exporter;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt};

/// The format of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object in each line.
    Json,
}

/// The options of the long-running programs for their logs.
#[derive(Debug, Args)]
pub(crate) struct LogOptions {
    /// Format of the log on standard error [default: text on a terminal, json elsewhere].
    #[arg(long, value_name = "FORMAT", env = "ORAS_CSI_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

impl LogOptions {
    /// Starts logging at the level of `RUST_LOG`, or at `info`, and gives the spans to `exporter`.
    pub(crate) fn start(&self, exporter: Option<&Exporter>) {
        const LEVEL: &str = "info";
        match exporter {
            Some(exporter) => {
                let log = output(self.log_format).with_filter(filter(LEVEL));
                Registry::default().with(log).with(exporter.layer()).init();
            }
            None => start(LEVEL, self.log_format),
        }
    }
}

/// Starts logging at `level`, or at the level of `RUST_LOG`: plain lines on a terminal, JSON elsewhere.
pub(crate) fn start_logging(level: &str) {
    start(level, None);
}

fn start(level: &str, format: Option<LogFormat>) {
    Registry::default().with(filter(level)).with(output(format)).init();
}

/// The filter of the log. It never lets a span of a trace through.
fn filter(level: &str) -> EnvFilter {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let no_spans = format!("{}={}", trace::TARGET, LevelFilter::OFF);
    match no_spans.parse() {
        Ok(no_spans) => filter.add_directive(no_spans),
        Err(_) => filter,
    }
}

fn output<S: Subscriber + for<'span> LookupSpan<'span>>(format: Option<LogFormat>) -> impl Layer<S> {
    let is_terminal = std::io::stderr().is_terminal();
    let log = fmt::layer().with_writer(std::io::stderr);
    match format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => log.with_ansi(is_terminal).boxed(),
        LogFormat::Json => log.json().boxed(),
    }
}
