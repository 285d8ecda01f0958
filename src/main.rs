//! `oras-csi`: mounts OCI artifacts as read-only volumes in Kubernetes pods.
//!
//! The subcommands are in `commands/`, one file or folder each; `cli.rs` dispatches to them. `options/` holds the
//! flags that several subcommands share.

#![expect(clippy::print_stderr, reason = "a command writes to its terminal")]
#![cfg_attr(feature = "node", expect(clippy::print_stdout, reason = "a command writes to its terminal"))]

mod admission;
mod admission_object;
mod api_client;
mod cli;
#[cfg(test)]
mod cli_reference_tests;
mod cluster;
mod commands;
mod exit_status;
mod lock_file;
mod logging;
mod manifest_policies;
mod manifest_sets;
mod options;
mod parsing;
mod patch_expansion;
mod registry_client;
mod runtime;
mod standard_output;
mod unrendered;
mod yaml_documents;

fn main() -> std::process::ExitCode {
    match cli::Cli::from_command_line().run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("oras-csi: {failure}");
            failure.exit_code()
        }
    }
}
