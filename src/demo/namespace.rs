//! Namespaces of our own, in which a plain user may mount.

use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::UnshareFlags;

/// Moves this process into a user and a mount namespace of its own, where both it and what it starts may
/// mount, and nobody else sees it. Says why where the machine forbids that.
///
/// The whole thing is tried in a child first: some systems allow the namespace and refuse the mount in it,
/// and a namespace that was entered cannot be left.
pub(super) fn enter() -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let probe = Command::new(program)
        .args(["demo", "--probe-namespaces"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start this program again: {error}"))?;
    if !probe.status.success() {
        let words = String::from_utf8_lossy(&probe.stderr);
        return Err(words.trim().trim_start_matches("oras-csi: ").to_owned());
    }
    unshare()
}

/// Enters the namespaces and mounts something.
pub(super) fn try_mount() -> Result<(), String> {
    unshare()?;
    let folder = std::env::temp_dir();
    mount("oras-csi", &folder, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)
        .map_err(|error| format!("this machine refuses mounts in a user namespace: {error}"))?;
    unmount(&folder, UnmountFlags::DETACH).map_err(|error| format!("cannot unmount: {error}"))
}

fn unshare() -> Result<(), String> {
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let flags = if user == 0 { UnshareFlags::NEWNS } else { UnshareFlags::NEWNS | UnshareFlags::NEWUSER };
    #[expect(unsafe_code, reason = "marked so for UnshareFlags::FILES alone, which is not used")]
    let entered = unsafe { rustix::thread::unshare_unsafe(flags) };
    entered.map_err(|error| format!("this machine forbids user namespaces: {error}"))?;
    if user != 0 {
        write_maps(user, group)
            .map_err(|error| format!("cannot become root of a user namespace: {error}"))?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|error| format!("cannot keep mounts to this process: {error}"))
}

/// user_namespaces(7): a plain user may map only itself, after giving up setgroups.
fn write_maps(user: u32, group: u32) -> std::io::Result<()> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}
