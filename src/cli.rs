//! The command line: parses the arguments, starts logging and the runtime, and calls the subcommand.

use clap::{Parser, Subcommand};

use crate::commands::{driver, explain, patch, pull, recipe, render, store, webhook};
use crate::exit_status::Failure;
use crate::logging::start_logging;
use crate::runtime::block_on;
use crate::standard_output::exit_quietly_on_broken_pipe;

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

const EXAMPLES: &str = concat!(
    exit_status!(),
    "

Examples:
  # Show how a reference is parsed and which digest it resolves to
  oras-csi explain ghcr.io/acme/model:v1

  # Show what the webhook makes of a pod
  oras-csi render -f pod.yaml

  # Download an artifact into a directory
  oras-csi pull ghcr.io/acme/model:v1 ./model

  # Show the examples of a subcommand
  oras-csi render --help"
);

#[derive(Debug, Subcommand)]
enum Command {
    Webhook(webhook::Arguments),
    Driver(driver::Arguments),
    Render(render::Arguments),
    Explain(explain::Arguments),
    Pull(pull::Arguments),
    Patch(patch::Arguments),
    Recipe(recipe::Arguments),
    Store(store::Arguments),
}

impl Cli {
    pub(crate) fn run(self) -> Result<(), Failure> {
        exit_quietly_on_broken_pipe();
        match self.command {
            Command::Webhook(arguments) => {
                arguments.log().start();
                block_on(webhook::run(arguments))
            }
            Command::Driver(arguments) => {
                arguments.log().start();
                block_on(driver::run(arguments))
            }
            Command::Render(arguments) => {
                start_logging("error");
                block_on(render::run(arguments))
            }
            Command::Explain(arguments) => {
                start_logging("error");
                block_on(explain::run(arguments))
            }
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
            Command::Store(arguments) => {
                start_logging("warn");
                store::run(arguments)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn options_do_not_contradict_each_other() {
        Cli::command().debug_assert();
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
