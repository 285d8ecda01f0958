//! `oras-csi-demo`: shows the whole path of an artifact into a pod on one machine, without Kubernetes and without root.
//!
//! The registry, the webhook and the driver are processes of their own: the registry is this program again, the webhook
//! and the driver are the `oras-csi` binary. The demo talks to them only through the interfaces that they have in a
//! cluster: HTTP to the registry, TLS to the webhook, the CSI socket of the driver.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the demo prints what it does")]

mod admission;
mod artifact;
mod manifests;
mod namespace;
mod narrator;
mod node;
mod patch;
mod processes;
mod set;
mod tour;
mod volume;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use oras_csi_testkit::registry::MemoryRegistry;

use crate::processes::Programs;

/// Shows the whole path of an artifact into a pod on this machine, without Kubernetes and without root.
///
/// Starts a registry, the webhook and the driver, pushes files, lets the webhook admit a pod and the driver mount its
/// volume, and prints at each step what happens and why.
#[derive(Debug, Parser)]
#[command(name = "oras-csi-demo", version, max_term_width = 110)]
struct Arguments {
    /// The `oras-csi` binary. Default: the file of that name beside this program.
    #[arg(long, value_name = "PATH")]
    oras_csi: Option<PathBuf>,
    /// Run only the registry, in memory and without authentication, until interrupted.
    #[arg(long, value_name = "ADDRESS:PORT")]
    serve_registry: Option<SocketAddr>,
    /// Show the files without mounting them, for machines that forbid user namespaces.
    #[arg(long)]
    no_mount: bool,
    /// Exit with status 0 if this user can mount in a user namespace. The demo calls itself with this option first.
    #[arg(long, hide = true)]
    probe_namespaces: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oras-csi-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(address) = arguments.serve_registry {
        return runtime()?.block_on(serve_registry(address));
    }
    if arguments.probe_namespaces {
        return namespace::try_mount();
    }
    let programs = Programs::find(arguments.oras_csi.as_deref())?;
    // Before any thread starts: only a process with a single thread can enter a user namespace.
    let mounts =
        if arguments.no_mount { Err("--no-mount was given".to_owned()) } else { namespace::enter(&programs) };
    // Fails only if a provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    runtime()?.block_on(tour::run(&programs, mounts))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")
}

async fn serve_registry(address: SocketAddr) -> anyhow::Result<()> {
    let registry =
        MemoryRegistry::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    println!("registry at http://{}", registry.address());
    registry.serve(interrupted()).await.context("cannot serve the registry")
}

/// Ends when this process receives SIGTERM or SIGINT.
async fn interrupted() {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
