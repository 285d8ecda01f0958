//! `oras-csi completion`: writes the completion script of a shell.

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::generate;

use crate::cli::Cli;
use crate::exit_status::Failure;
use crate::standard_output::write_stdout;

/// Write the script that completes commands and options in a shell.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// fish.
    Fish,
}

const EXAMPLES: &str = "\
Examples:
  # Bash, for the current user
  oras-csi completion bash > ~/.local/share/bash-completion/completions/oras-csi

  # fish, for the current user
  oras-csi completion fish > ~/.config/fish/completions/oras-csi.fish";

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    write_stdout(&script(arguments.shell))
}

fn script(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "oras-csi", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_complete_every_subcommand_and_its_options() {
        let registrations = [
            (Shell::Bash, "complete -F _oras"),
            (Shell::Zsh, "#compdef oras-csi"),
            (Shell::Fish, "complete -c oras-csi"),
        ];
        for (shell, registration) in registrations {
            let script = script(shell);
            assert!(script.contains(registration), "{shell:?}");
            for subcommand in Cli::command().get_subcommands() {
                assert!(script.contains(subcommand.get_name()), "{shell:?}: {}", subcommand.get_name());
            }
            assert!(script.contains("check-tags"), "{shell:?}");
        }
    }
}
