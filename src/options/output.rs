//! `--output`: the format of what a command prints.

use clap::ValueEnum;

/// The format of what a command prints.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Plain text.
    Text,
    /// JSON.
    Json,
}
