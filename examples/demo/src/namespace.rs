//! Enters namespaces in which an unprivileged user can mount.

use std::process::{Command, Stdio};

use anyhow::Context as _;
use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use crate::processes::Programs;

/// Moves this process into a user namespace and a mount namespace of its own. This process and its children can mount
/// there, and no other process sees these mounts. Returns the reason if the machine forbids it.
///
/// A child tries the whole sequence first: some systems allow the namespace and refuse the mount in it, and a process
/// cannot leave a user namespace.
pub(crate) fn enter(programs: &Programs) -> Result<(), String> {
    let probe = Command::new(&programs.demo)
        .arg("--probe-namespaces")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start this program again: {error}"))?;
    if !probe.status.success() {
        let message = String::from_utf8_lossy(&probe.stderr);
        return Err(message.trim().trim_start_matches("oras-csi-demo: ").to_owned());
    }
    unshare().map_err(|error| format!("{error:#}"))
}

/// Enters the namespaces and mounts a file system there.
pub(crate) fn try_mount() -> anyhow::Result<()> {
    unshare()?;
    let folder = std::env::temp_dir();
    mount("oras-csi", &folder, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)
        .context("this machine refuses mounts in a user namespace")?;
    unmount(&folder, UnmountFlags::DETACH).context("cannot unmount")
}

fn unshare() -> anyhow::Result<()> {
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let user_namespace = if user == 0 { CloneFlags::empty() } else { CloneFlags::CLONE_NEWUSER };
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | user_namespace)
        .context("this machine forbids user namespaces")?;
    if user != 0 {
        write_maps(user, group).context("cannot become root of a user namespace")?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make mounts private to this process")
}

/// Maps the user to root. An unprivileged user can map only itself, and must give up setgroups (user_namespaces(7)).
fn write_maps(user: u32, group: u32) -> std::io::Result<()> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}
