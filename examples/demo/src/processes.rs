//! The programs that the demo starts. Each is a process of its own that ends with the demo.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// How long a process can take until it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a process can take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// This program, which also serves the registry.
    pub(crate) demo: PathBuf,
    /// The `oras-csi` binary.
    pub(crate) oras_csi: PathBuf,
}

impl Programs {
    /// Finds the `oras-csi` binary at `path`, or beside this program.
    pub(crate) fn find(path: Option<&Path>) -> anyhow::Result<Self> {
        let demo = std::env::current_exe().context("cannot find the path of this program")?;
        let oras_csi = path.map_or_else(|| demo.with_file_name("oras-csi"), Path::to_owned);
        ensure!(
            oras_csi.exists(),
            "cannot find the oras-csi binary: {} does not exist. Run `make demo`, or name the binary with --oras-csi.",
            oras_csi.display()
        );
        Ok(Self { demo, oras_csi: oras_csi.canonicalize().context("cannot resolve the path of oras-csi")? })
    }

    /// Runs `oras-csi ARGUMENTS…` to its end, and returns its standard output.
    pub(crate) async fn run(&self, certs: &Path, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.oras_csi);
        let output = command.args(arguments).arg("--certs-dir").arg(certs).output().await;
        let output = output.context("cannot start oras-csi")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A process that ends when this value is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Process {
    /// Starts a program with its log in `folder`.
    pub(crate) fn start(
        name: &'static str,
        program: &Path,
        arguments: &[&str],
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let child = Command::new(program)
            .args(arguments)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cannot duplicate the handle of a log file")?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        Ok(Self { child, name, log })
    }

    /// Waits until `is_ready` returns true. Fails if the process ends before, or after a timeout.
    pub(crate) async fn wait_until(&mut self, mut is_ready: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || started.elapsed() > START_TIMEOUT {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                bail!("the {} did not start:\n{log}", self.name);
            }
            if is_ready().await {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }
}

impl Drop for Process {
    /// Sends SIGTERM, as kubelet does, so that the process can clean up; kills it after a timeout.
    fn drop(&mut self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            let _ = kill_process(id, Signal::TERM);
        }
        let signalled = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if signalled.elapsed() > STOP_TIMEOUT {
                let _ = self.child.start_kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Returns a port of 127.0.0.1 that was free a moment ago.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let bound = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    Ok(bound.context("cannot find a free port")?.port())
}
