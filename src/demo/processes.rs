//! The three programs of the tour, each a process of its own that ends with it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::exit_status::Failure;

const PATIENCE: Duration = Duration::from_secs(20);
/// How long a process may take to end by itself.
const TO_END: Duration = Duration::from_secs(5);

/// A process of this very program, which ends when the value is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Process {
    /// Starts `oras-csi ARGUMENTS…` with its log in `folder`.
    pub(super) fn start<const N: usize>(
        name: &'static str,
        arguments: [&str; N],
        folder: &Path,
    ) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::failed(format!("cannot start the {name}: {error}"));
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::File::create(&log).map_err(failed)?;
        let child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(arguments)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        Ok(Self { child, name, log })
    }

    /// Waits until `ready` says yes.
    pub(super) async fn until(&mut self, mut ready: impl AsyncFnMut() -> bool) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || started.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                return Err(Failure::failed(format!("the {} did not start:\n{log}", self.name)));
            }
            if ready().await {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its process id, for the reader.
    pub(super) fn id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }
}

impl Drop for Process {
    /// Asks it to end, as kubelet does, so that it can clean up; kills it where it does not.
    fn drop(&mut self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            let _ = kill_process(id, Signal::TERM);
        }
        let asked = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if asked.elapsed() > TO_END {
                let _ = self.child.start_kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A port of 127.0.0.1 that was free a moment ago.
pub(super) fn free_port() -> Result<u16, Failure> {
    let bound = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    bound.map(|address| address.port()).map_err(|error| Failure::failed(format!("no free port: {error}")))
}
