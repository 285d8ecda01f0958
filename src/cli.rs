//! The commands, and what each of them needs around it.

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::runtime::block_on;
use crate::{driver, explain, patch, pull, recipe, render, store, terminal, webhook};

/// OCI artifacts as volumes in Kubernetes: an admission webhook and a CSI driver that share one contract.
///
/// Exit status: 0 done, 1 failed (network, registry, disk), 2 bad input, 3 denied by policy, 4 refused content.
#[derive(Debug, Parser)]
#[command(name = "oras-csi", version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

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
        terminal::keep_quiet_about_closed_pipes();
        match self.command {
            Command::Webhook(arguments) => {
                terminal::start_log("info");
                block_on(webhook::run(arguments))
            }
            Command::Driver(arguments) => {
                terminal::start_log("info");
                block_on(driver::run(arguments))
            }
            Command::Render(arguments) => {
                terminal::start_log("error");
                block_on(render::run(arguments))
            }
            Command::Explain(arguments) => {
                terminal::start_log("error");
                block_on(explain::run(arguments))
            }
            Command::Pull(arguments) => {
                terminal::start_log("error");
                block_on(pull::run(arguments))
            }
            Command::Patch(arguments) => {
                terminal::start_log("error");
                block_on(patch::run(arguments))
            }
            Command::Recipe(arguments) => {
                terminal::start_log("error");
                block_on(recipe::run(arguments))
            }
            Command::Store(arguments) => {
                terminal::start_log("warn");
                store::run(arguments)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn options_do_not_contradict_each_other() {
        super::Cli::command().debug_assert();
    }
}
