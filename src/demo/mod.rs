//! `oras-csi demo`: the whole path on one machine, as a tour.
//!
//! Registry, webhook and driver are processes of their own, started from this very program. They and the
//! tour meet only where they meet in a cluster: HTTP to the registry, TLS to the webhook, the CSI socket of
//! the driver. Nothing here calls their code.

mod admission;
mod artifact;
mod namespace;
mod narrator;
mod node;
mod patch;
mod processes;
mod set;
mod tour;
mod volume;

use std::net::SocketAddr;

use clap::Args;

use crate::exit_status::Failure;
use crate::registry;
use crate::runtime::{block_on, cancelled_by_signal};

/// Shows the whole path on this machine, without Kubernetes and without root.
///
/// Starts a registry, the webhook and the driver, pushes files, has a pod admitted and its volume mounted,
/// and says at each step what happens and why.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Run nothing but the embedded registry, in memory and without any protection, until interrupted.
    #[arg(long, value_name = "ADDRESS:PORT")]
    serve_registry: Option<SocketAddr>,
    /// Show the files without mounting them, as where user namespaces are forbidden.
    #[arg(long)]
    no_mount: bool,
    /// Exit with 0 where mounts work in namespaces of this user: how the demo asks before it begins.
    #[arg(long, hide = true)]
    probe_namespaces: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(address) = arguments.serve_registry {
        crate::logging::start_logging("info");
        return block_on(serve_registry(address));
    }
    if arguments.probe_namespaces {
        return namespace::try_mount().map_err(Failure::failed);
    }
    crate::logging::start_logging("error");
    let mounts = if arguments.no_mount { Err("--no-mount was given".to_owned()) } else { namespace::enter() };
    block_on(tour::run(mounts))
}

async fn serve_registry(address: SocketAddr) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("cannot listen at {address}: {error}"));
    let bound = registry::EmbeddedRegistry::bind(address).await.map_err(failed)?;
    println!("registry at http://{}", bound.local_addr());
    bound.serve(cancelled_by_signal()).await.map_err(failed)
}
