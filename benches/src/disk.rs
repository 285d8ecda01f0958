//! The disks that are measured: memory, and new file systems on loop devices, so that no run inherits what an earlier run
//! has left on a file system.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The kind of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A tmpfs.
    Memory,
    /// ext4 with its journal, on a loop device.
    Ext4,
    /// xfs on a loop device.
    Xfs,
}

impl Kind {
    /// The name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// A mounted file system, which is removed when dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: tempfile::TempDir,
    device: Option<String>,
}

/// Runs a command to its end; returns its output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{command:?} ended with {}:\n{out}{err}", output.status);
    }
    Ok(out.trim().to_owned())
}

impl Disk {
    /// Makes one. The file behind a loop device is sparse, in `TMPDIR`.
    pub(crate) fn new(kind: Kind, bytes: u64) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("b-").tempdir()?;
        std::fs::create_dir(folder.path().join("d"))?;
        let mut disk = Self { folder, device: None };
        let mut mount = Command::new("mount");
        if kind == Kind::Memory {
            mount.args(["-t", "tmpfs", "-o"]).arg(format!("size={bytes}")).arg("bench");
        } else {
            let image = disk.folder.path().join("image");
            File::create(&image)?.set_len(bytes)?;
            let mut make = Command::new(format!("mkfs.{}", kind.name()));
            // Without these options, the kernel writes the inode tables while programs are measured.
            let ext4 = "lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=1,nodiscard";
            if kind == Kind::Ext4 {
                make.args(["-E", ext4]);
            }
            run(make.arg("-q").arg(&image))?;
            // The kernel frees the loop device with the mount.
            mount.args(["-o", "loop"]).arg(&image);
        }
        run(mount.arg(disk.path()))?;
        if kind != Kind::Memory {
            let device = run(Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(disk.path()))?;
            disk.device = Some(device);
        }
        Ok(disk)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("d")
    }

    /// Waits until all data is on the device.
    pub(crate) fn sync(&self) -> Result<()> {
        sync(&self.path())
    }

    /// Returns the bytes that the device has received.
    pub(crate) fn written(&self) -> Result<Option<f64>> {
        let Some(device) = &self.device else { return Ok(None) };
        let path = format!("/sys/block/{}/stat", device.trim_start_matches("/dev/"));
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // Documentation/block/stat.rst: the seventh field counts sectors of 512 bytes.
        let sectors = text.split_whitespace().nth(6).and_then(|field| field.parse::<f64>().ok());
        Ok(Some(512.0 * sectors.with_context(|| format!("{path} has no seventh field"))?))
    }

    /// Limits the bytes a second that the device writes; 0 is no limit.
    ///
    /// The limit is that of the root group of cgroup v1: the kernel writes back the page cache with the rights of that
    /// group, so a limit of another group would not be seen.
    pub(crate) fn throttle(&self, bytes_per_second: u64) -> Result<()> {
        let device = self.device.as_deref().context("a disk in memory has no rate")?;
        let number = format!("/sys/block/{}/dev", device.trim_start_matches("/dev/"));
        let number = std::fs::read_to_string(&number).with_context(|| format!("cannot read {number}"))?;
        let file = Path::new(THROTTLE);
        std::fs::write(file, format!("{} {bytes_per_second}", number.trim()))
            .with_context(|| format!("cannot write to {THROTTLE}"))
    }
}

const THROTTLE: &str = "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device";

/// Reports whether [`Disk::throttle`] can work on this machine.
pub(crate) fn can_throttle() -> bool {
    Path::new(THROTTLE).exists()
}

/// Waits until all data of the file system of `path` is on its device.
pub(crate) fn sync(path: &Path) -> Result<()> {
    let folder = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    rustix::fs::syncfs(&folder).with_context(|| format!("cannot sync {}", path.display()))
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.device.is_some() {
            let _ = self.throttle(0);
        }
        if let Err(error) = run(Command::new("umount").arg(self.path())) {
            eprintln!("{error:#}");
        }
    }
}
