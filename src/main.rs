//! `oras-csi`: OCI artifacts as volumes in Kubernetes.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks to its terminal")]

mod asking;
mod cli;
mod documents;
mod driver;
mod explain;
mod failure;
mod limits;
mod lock;
mod patch;
mod policies;
mod pull;
mod recipe;
mod registries;
mod render;
mod runtime;
mod sets;
mod storage;
mod store;
mod terminal;
mod webhook;

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("oras-csi: {failure}");
            failure.exit_code()
        }
    }
}
