//! Registries of several projects, each empty and with plain HTTP.

use std::process::Command;
use std::time::Duration;

use super::{Distribution, write_hosts_toml};
use crate::parts::testbed;
use crate::process::{Running, free_port, listens};

/// The project of a registry.
#[derive(Clone, Copy, Debug)]
pub enum Make {
    /// The registry of the distribution project.
    Distribution,
    /// The registry of go-containerregistry, in memory.
    GoContainerRegistry,
    /// The registry of cuelabs.dev/go/oci/ociregistry, in memory.
    Ociserver,
}

/// A registry that runs until it is dropped.
#[derive(Debug)]
pub struct Made(Held);

#[derive(Debug)]
enum Held {
    Distribution(Box<Distribution>),
    InMemory { _running: Running, _folder: tempfile::TempDir, port: u16 },
}

impl Make {
    /// Starts one at a free port of 127.0.0.1.
    pub fn start(self) -> Made {
        let port = free_port();
        match self {
            Self::Distribution => Made(Held::Distribution(Box::new(Distribution::start()))),
            Self::GoContainerRegistry => in_memory("ggcr", port),
            Self::Ociserver => in_memory("ociserver", port),
        }
    }
}

fn in_memory(make: &str, port: u16) -> Made {
    let folder = tempfile::tempdir().expect("a folder");
    let mut program = Command::new(testbed("memory-registry"));
    let mut running = Running::start(program.arg(make).arg(format!("127.0.0.1:{port}")), make, folder.path());
    running.wait_until("listening", Duration::from_secs(20), || listens(port));
    Made(Held::InMemory { _running: running, _folder: folder, port })
}

impl Made {
    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        match &self.0 {
            Held::Distribution(registry) => registry.host(),
            Held::InMemory { port, .. } => format!("127.0.0.1:{port}"),
        }
    }

    /// A `certs.d` folder in which `name` is this registry.
    pub fn certs_d(&self, name: &str) -> tempfile::TempDir {
        let certs = tempfile::tempdir().expect("a folder");
        write_hosts_toml(certs.path(), name, &format!("http://{}", self.host()));
        certs
    }
}
