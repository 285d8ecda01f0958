//! The command line: parses the arguments, starts logging and the runtime, and calls the subcommand.

use std::ffi::OsStr;
use std::path::Path;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use oras_csi_traces::{Exporter, ExporterError};

use crate::commands::{completion, explain, patch, recipe, render, status, webhook, why};
#[cfg(feature = "node")]
use crate::commands::{driver, pull, store};
use crate::exit_status::Failure;
use crate::logging::{LogOptions, start_logging};
use crate::runtime::block_on;
use crate::standard_output::exit_quietly_on_broken_pipe;

/// The name of the binary as a plugin of kubectl, which finds it as `kubectl oras-csi` (Kubernetes, "Extend kubectl with
/// plugins").
const PLUGIN: &str = "kubectl-oras_csi";

/// Returns how this program was called: `oras-csi`, or `kubectl oras-csi`.
pub(crate) fn program() -> &'static str {
    program_of(std::env::args_os().next().as_deref())
}

fn program_of(first: Option<&OsStr>) -> &'static str {
    let name = first.map(Path::new).and_then(Path::file_stem);
    if name.is_some_and(|name| name == PLUGIN) { "kubectl oras-csi" } else { "oras-csi" }
}

/// Mounts OCI artifacts as read-only volumes in Kubernetes pods, with an admission webhook and a CSI driver.
#[derive(Debug, Parser)]
#[command(name = "oras-csi", version, max_term_width = 110, after_help = EXIT_STATUS, after_long_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

macro_rules! exit_status {
    () => {
        "\
Exit status:
  0  success
  1  failure of the network, a registry or the disk; a retry may succeed
  2  invalid input: a flag, a reference, a manifest or a configuration file
  3  denied by a policy
  4  content refused: a digest does not match, a path leaves the volume, or a limit is exceeded"
    };
}

const EXIT_STATUS: &str = exit_status!();

#[cfg(feature = "node")]
macro_rules! pull_example {
    () => {
        "
  # Download an artifact into a directory
  oras-csi pull ghcr.io/acme/model:v1 ./model
"
    };
}
#[cfg(not(feature = "node"))]
macro_rules! pull_example {
    () => {
        ""
    };
}

const EXAMPLES: &str = concat!(
    exit_status!(),
    "

Examples:
  # Show how a reference is parsed and which digest it resolves to
  oras-csi explain ghcr.io/acme/model:v1

  # Show what the webhook makes of a pod
  oras-csi render -f pod.yaml
",
    pull_example!(),
    "
  # Show nodes, sets and pods with volumes of a cluster
  oras-csi status

  # Show the examples of a subcommand
  oras-csi render --help"
);

#[derive(Debug, Subcommand)]
enum Command {
    Webhook(Box<webhook::Arguments>),
    #[cfg(feature = "node")]
    Driver(driver::Arguments),
    Render(render::Arguments),
    Explain(explain::Arguments),
    #[cfg(feature = "node")]
    Pull(pull::Arguments),
    Patch(patch::Arguments),
    Recipe(recipe::Arguments),
    #[cfg(feature = "node")]
    Store(store::Arguments),
    Status(status::Arguments),
    Why(why::Arguments),
    Completion(completion::Arguments),
}

impl Cli {
    /// Parses the arguments of the process. Wrong arguments end it with exit status 2.
    pub(crate) fn from_command_line() -> Self {
        let matches = Self::command().bin_name(program()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    pub(crate) fn run(self) -> Result<(), Failure> {
        exit_quietly_on_broken_pipe();
        match self.command {
            Command::Webhook(arguments) => {
                let exporter = start_with_traces(arguments.log(), arguments.traces());
                run_with_traces(webhook::run(*arguments), exporter)
            }
            #[cfg(feature = "node")]
            Command::Driver(arguments) => {
                let exporter = start_with_traces(arguments.log(), arguments.traces());
                run_with_traces(driver::run(arguments), exporter)
            }
            Command::Render(arguments) => {
                start_logging("error");
                block_on(render::run(arguments))
            }
            Command::Explain(arguments) => {
                start_logging("error");
                block_on(explain::run(arguments))
            }
            #[cfg(feature = "node")]
            Command::Pull(arguments) => {
                start_logging("error");
                block_on(pull::run(arguments))
            }
            Command::Patch(arguments) => {
                start_logging("error");
                block_on(patch::run(arguments))
            }
            Command::Recipe(arguments) => {
                start_logging("error");
                block_on(recipe::run(arguments))
            }
            #[cfg(feature = "node")]
            Command::Store(arguments) => {
                start_logging("warn");
                store::run(arguments)
            }
            Command::Status(arguments) => {
                start_logging("error");
                block_on(status::run(arguments))
            }
            Command::Why(arguments) => {
                start_logging("error");
                block_on(why::run(arguments))
            }
            Command::Completion(arguments) => completion::run(&arguments),
        }
    }
}

/// Starts logging. A wrong address of a collector must not end a program that pods need.
fn start_with_traces(
    log: &LogOptions,
    exporter: Result<Option<Exporter>, ExporterError>,
) -> Option<Exporter> {
    match exporter {
        Ok(exporter) => {
            log.start(exporter.as_ref());
            exporter
        }
        Err(error) => {
            log.start(None);
            tracing::error!(%error, "continuing without traces");
            None
        }
    }
}

/// Runs a subcommand, then sends the traces that are left.
fn run_with_traces(
    command: impl Future<Output = Result<(), Failure>>,
    exporter: Option<Exporter>,
) -> Result<(), Failure> {
    let result = block_on(command);
    if let Some(exporter) = exporter {
        exporter.shut_down();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_binary_is_a_plugin_of_kubectl_under_its_other_name() {
        for (first, program) in [
            (Some("/usr/bin/oras-csi"), "oras-csi"),
            (Some("/home/user/.krew/bin/kubectl-oras_csi"), "kubectl oras-csi"),
            (Some("kubectl-oras_csi"), "kubectl oras-csi"),
            (None, "oras-csi"),
        ] {
            assert_eq!(program_of(first.map(OsStr::new)), program);
        }
        let help = Cli::command().bin_name("kubectl oras-csi").try_get_matches_from(["x", "why", "--help"]);
        let help = help.err().map(|help| help.to_string()).unwrap_or_default();
        assert!(help.contains("Usage: kubectl oras-csi why [OPTIONS] <POD>"), "{help}");
    }

    #[test]
    fn every_subcommand_has_examples_in_its_long_help() {
        for subcommand in Cli::command().get_subcommands() {
            let help = subcommand.clone().render_long_help().to_string();
            let call = format!("\n  oras-csi {} ", subcommand.get_name());
            assert!(help.contains("Examples:\n") && help.matches(&call).count() >= 2, "{help}");
        }
    }
}
