//! containerd as a process, for `ctr image pull`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::measure::{Usage, measure, usage_of};
use crate::{tools, words};

/// A containerd whose content and snapshots are in a folder.
#[derive(Debug)]
pub(crate) struct Containerd {
    child: Child,
    socket: PathBuf,
}

impl Containerd {
    /// Starts one with its files below `disk`.
    pub(crate) fn start(disk: &Path) -> Result<Self> {
        let folder = disk.join("containerd");
        std::fs::create_dir_all(&folder)?;
        let socket = folder.join("sock");
        let at = |name: &str| folder.join(name).display().to_string();
        // Without the services for Kubernetes, which a pull with ctr does not use.
        let configuration = format!(
            "version = 3\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = \"{}\"\n[ttrpc]\n  address = \"{}\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{}\"\n",
            at("root"),
            at("state"),
            socket.display(),
            at("ttrpc"),
            at("opt")
        );
        std::fs::write(folder.join("config.toml"), configuration)?;
        let log = std::fs::File::create(folder.join("log"))?;
        let mut command = Command::new(tools::testbed("containerd")?);
        command.arg("-c").arg(folder.join("config.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("cannot start containerd")?;
        let begun = Instant::now();
        let is_ready = || {
            let version = Command::new(tools::testbed("ctr")?).arg("-a").arg(&socket).arg("version").output();
            anyhow::Ok(version?.status.success())
        };
        while !is_ready()? {
            if child.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(30) {
                let _ = child.kill();
                bail!("containerd does not answer:\n{}", std::fs::read_to_string(folder.join("log"))?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { child, socket })
    }

    /// Pulls and unpacks an image. The use of containerd itself is part of what is returned.
    pub(crate) fn pull(&self, reference: &str) -> Result<Usage> {
        let ctr: OsString = tools::testbed("ctr")?.into();
        let before = usage_of(self.child.id())?;
        let used = measure(words![ctr, "-a", &self.socket, "image", "pull", "--plain-http", reference])?;
        let after = usage_of(self.child.id())?;
        Ok(Usage {
            wall: used.wall,
            user: used.user + after.user - before.user,
            system: used.system + after.system - before.system,
            peak: after.peak,
            written: used.written + after.written - before.written,
        })
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
