//! Log output on standard error.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

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
    /// Starts logging at the level of `RUST_LOG`, or at `info`.
    pub(crate) fn start(&self) {
        start("info", self.log_format);
    }
}

/// Starts logging at `level`, or at the level of `RUST_LOG`: plain lines on a terminal, JSON elsewhere.
pub(crate) fn start_logging(level: &str) {
    start(level, None);
}

fn start(level: &str, format: Option<LogFormat>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let is_terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => log.with_ansi(is_terminal).init(),
        LogFormat::Json => log.json().init(),
    }
}
