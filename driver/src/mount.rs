//! Mounts: the only place that makes, moves or takes away one.
//!
//! At start the folder of all trees is mounted a second time, at `readonly` in the store: read-only,
//! nosuid, nodev, private to us. A volume is a clone of one directory of *that* mount (`open_tree`,
//! `move_mount`): a clone has its origin's flags, so a volume is read-only from the instant at which it
//! can be seen, and there is no `bind` that is remounted afterwards. What is mounted is read back from
//! `/proc/self/mountinfo` and compared.
//!
//! ```text
//! STORE/trees ── bind, remount ro,nosuid,nodev ──► STORE/readonly
//!                                                       │ open_tree(KEY/files, CLONE), move_mount
//!                                                       ▼
//!                                       /var/lib/kubelet/pods/…/mount
//! ```
//!
//! The flags that a mount in a user namespace inherited are locked: taking one of them away is refused
//! (mount_namespaces(7)). So a remount keeps whatever is set and adds.
//!
//! A target is a name in a folder that is held open: no path is walked twice. We make the target's
//! directory ourselves (kubelet makes only the one above), take only an empty directory that is there
//! already, and never touch a file, a symbolic link, or a mount that is not of a tree.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use oras_csi_store::{Store, TreeKey, tree_files};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, StatVfsMountFlags, Statx, StatxAttributes, StatxFlags,
};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_bind, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};

use crate::mountinfo::{self, MountEntry, MountedTree};

/// The flags that every mount of ours has.
const FLAGS: [&str; 3] = ["ro", "nosuid", "nodev"];
/// How many mounts on one target are taken away at once.
const MOST_STACKED: usize = 64;

/// Why something is not mounted, or not unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel does not let us mount at all.
    #[error(
        "cannot {step} {}: {source}. The driver needs CAP_SYS_ADMIN: a privileged container, root, or a user and mount namespace of its own in which an AppArmor or seccomp profile does not forbid mounts", .path.display()
    )]
    Forbidden {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Any other refusal.
    #[error("cannot {step} {}: {source}", .path.display())]
    System {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The flags that were read back are not those that were asked for.
    #[error("{} is mounted with the flags {found} where ro, nosuid and nodev must be among them; it was unmounted again", .path.display())]
    Flags {
        /// Where.
        path: PathBuf,
        /// What mountinfo says.
        found: String,
    },
    /// The folder above the target is missing.
    #[error(
        "the folder {} does not exist: kubelet makes it, so kubelet's folder must be mounted into the driver's container at the same path as on the node", .0.display()
    )]
    NoParent(PathBuf),
    /// Not a path that can be a target.
    #[error("\"{}\" is no target path: it must be absolute, without \".\" or \"..\"", .0.display())]
    Path(PathBuf),
    /// Something at the target that is not ours.
    #[error(
        "{} is {found}, which this driver never makes: nothing is mounted on it or removed; look what put it there, and remove it by hand", .path.display()
    )]
    Foreign {
        /// The target.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The kernel is too old.
    #[error("the kernel does not tell mount points apart (statx): Linux 5.10 or later is needed")]
    OldKernel,
}

impl MountError {
    fn new(step: &'static str, path: impl Into<PathBuf>, errno: Errno) -> Self {
        let (path, source) = (path.into(), errno.into());
        match errno {
            Errno::PERM | Errno::ACCESS | Errno::NOSYS => Self::Forbidden { step, path, source },
            _ => Self::System { step, path, source },
        }
    }
}

/// A target path as kubelet sends it: absolute and normal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    path: PathBuf,
    parent: PathBuf,
    name: OsString,
}

impl Target {
    /// Reads a path.
    pub fn parse(text: &str) -> Result<Self, MountError> {
        let given = Path::new(text);
        let bad = || MountError::Path(given.to_owned());
        let normal = given.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let dotted = text.split('/').any(|segment| matches!(segment, "." | ".."));
        if !given.is_absolute() || !normal || dotted || text.contains('\0') {
            return Err(bad());
        }
        let path = given.components().collect::<PathBuf>();
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(bad()) };
        Ok(Self { parent: parent.to_owned(), name: name.to_owned(), path: path.clone() })
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The error for one whose folder does not exist.
    pub(crate) fn no_parent(&self) -> MountError {
        MountError::NoParent(self.parent.clone())
    }

    /// The folder it lies in, if that exists.
    fn open_parent(&self) -> Result<Option<OwnedFd>, MountError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&self.parent, flags, Mode::empty()) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(MountError::new("open", &self.parent, errno)),
        }
    }
}

/// What is at a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Not even the folder it would lie in.
    NoParent,
    /// Nothing.
    Nothing,
    /// An empty directory.
    Empty,
    /// A directory with something in it, a file, a symbolic link.
    Other(&'static str),
    /// A mount of one of our trees.
    Mounted {
        /// Which.
        tree: TreeKey,
        /// Whether it has the flags that it must have.
        flags: Result<(), String>,
    },
    /// A mount of something else.
    ForeignMount,
}

/// The read-only view of the store's trees, and what is cloned from it.
#[derive(Debug)]
pub struct Mounter {
    readonly: PathBuf,
    view: OwnedFd,
}

impl Mounter {
    /// Mounts the read-only view; what an earlier run left there is taken away first.
    pub fn prepare(store: &Store) -> Result<Self, MountError> {
        let (trees, readonly) = (store.layout().trees(), store.layout().readonly());
        detach_all(&readonly)?;
        mount_bind(&trees, &readonly)
            .map_err(|errno| MountError::new("mount the store's trees at", &readonly, errno))?;
        match Self::restrict(&trees, &readonly) {
            Ok(view) => Ok(Self { readonly, view }),
            Err(error) => {
                let _ = unmount(&readonly, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
                Err(error)
            }
        }
    }

    fn restrict(trees: &Path, readonly: &Path) -> Result<OwnedFd, MountError> {
        mount_change(readonly, MountPropagationFlags::PRIVATE)
            .map_err(|errno| MountError::new("make private the mount at", readonly, errno))?;
        let kept =
            rustix::fs::statvfs(readonly).map_err(|errno| MountError::new("look at", readonly, errno))?;
        let mut flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        if kept.f_flag.contains(StatVfsMountFlags::NOEXEC) {
            flags |= MountFlags::NOEXEC;
        }
        // Naming no atime flag keeps the one there is, which may be locked.
        mount_remount(readonly, flags, "")
            .map_err(|errno| MountError::new("make read-only the mount at", readonly, errno))?;
        let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let view = rustix::fs::open(readonly, open, Mode::empty())
            .map_err(|errno| MountError::new("open", readonly, errno))?;
        let found = statx(&view, OsStr::new(""), readonly)?;
        let found = found.ok_or_else(|| MountError::new("look at", readonly, Errno::NOENT))?;
        check_flags(readonly, &entry(&found, readonly)?)?;
        tracing::debug!(trees = %trees.display(), view = %readonly.display(), "the read-only view is mounted");
        Ok(view)
    }

    /// What is at a target.
    pub fn look(&self, target: &Target) -> Result<Found, MountError> {
        let Some(parent) = target.open_parent()? else { return Ok(Found::NoParent) };
        look_in(&parent, target)
    }

    /// Mounts a tree at a target at which there is nothing, or an empty directory.
    ///
    /// On an error the target is as it was before.
    pub fn publish(&self, tree: &TreeKey, target: &Target) -> Result<(), MountError> {
        let path = target.path();
        let parent = target.open_parent()?.ok_or_else(|| target.no_parent())?;
        let clone = open_tree(
            &self.view,
            tree_files(tree),
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
                | OpenTreeFlags::AT_NO_AUTOMOUNT,
        )
        .map_err(|errno| {
            MountError::new("clone for a volume the mount", self.readonly.join(tree.as_str()), errno)
        })?;
        let made = match rustix::fs::mkdirat(&parent, &target.name, Mode::from_raw_mode(0o750)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(MountError::new("make the directory", path, errno)),
        };
        let mounted = match look_in(&parent, target)? {
            Found::Empty => Self::attach(&clone, &parent, target),
            Found::Other(found) => Err(MountError::Foreign { path: path.to_owned(), found }),
            Found::Mounted { .. } | Found::ForeignMount => {
                Err(MountError::Foreign { path: path.to_owned(), found: "a mount point already" })
            }
            Found::Nothing | Found::NoParent => Err(MountError::new("find", path, Errno::NOENT)),
        };
        if mounted.is_err() && made {
            let _ = rustix::fs::unlinkat(&parent, &target.name, AtFlags::REMOVEDIR);
        }
        mounted
    }

    fn attach(clone: &OwnedFd, parent: &OwnedFd, target: &Target) -> Result<(), MountError> {
        let path = target.path();
        move_mount(clone, "", parent, &target.name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| MountError::new("mount a volume at", path, errno))?;
        let checked = match check_mounted(clone, parent, target) {
            Ok(()) => return Ok(()),
            Err(error) => Err(error),
        };
        let _ = unmount(through(parent, &target.name), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        checked
    }

    /// Takes every mount of a tree off the target, and removes its directory. Nothing there is no error.
    pub fn unpublish(&self, target: &Target) -> Result<(), MountError> {
        let path = target.path();
        let Some(parent) = target.open_parent()? else { return Ok(()) };
        for _ in 0..=MOST_STACKED {
            match look_in(&parent, target)? {
                Found::Mounted { .. } => {
                    let name = through(&parent, &target.name);
                    match unmount(&name, UnmountFlags::NOFOLLOW) {
                        // Somebody still reads: nothing can be lost, it goes with the last of them.
                        Err(Errno::BUSY) => unmount(&name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW),
                        other => other,
                    }
                    .map_err(|errno| MountError::new("unmount", path, errno))?;
                }
                Found::NoParent | Found::Nothing => return Ok(()),
                Found::Empty => {
                    return match rustix::fs::unlinkat(&parent, &target.name, AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOENT) => Ok(()),
                        Err(errno) => Err(MountError::new("remove the directory", path, errno)),
                    };
                }
                Found::Other(found) => return Err(MountError::Foreign { path: path.to_owned(), found }),
                Found::ForeignMount => {
                    return Err(MountError::Foreign {
                        path: path.to_owned(),
                        found: "a mount of something else than a volume of this driver",
                    });
                }
            }
        }
        Err(MountError::Foreign { path: path.to_owned(), found: "under more mounts than can be counted" })
    }

    /// Every mount of one of our trees in this mount namespace.
    pub fn mounted(&self) -> Result<Vec<(PathBuf, TreeKey)>, MountError> {
        Ok(mounted()?
            .into_iter()
            .map(|mounted| (mounted.point().to_owned(), mounted.tree().clone()))
            .collect())
    }
}

/// Every mount of a tree, of whatever store, in this mount namespace.
pub fn mounted() -> Result<Vec<MountedTree>, MountError> {
    let text = read_mountinfo()?;
    Ok(mountinfo::all(&text).filter_map(|entry| entry.tree()).collect())
}

/// Whether what is at a target now is what was just mounted, with its flags. Asks the mount itself: mountinfo grows
/// with every volume of the node, and reading it would make each publish dearer than the one before.
fn check_mounted(clone: &OwnedFd, parent: &OwnedFd, target: &Target) -> Result<(), MountError> {
    let path = target.path();
    let failed = |step| move |errno| MountError::new(step, path, errno);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::openat(parent, &target.name, flags, Mode::empty()).map_err(failed("open"))?;
    let number = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|found| (found.st_dev, found.st_ino));
    if number(&found).map_err(failed("look at"))? != number(clone).map_err(failed("look at"))? {
        return Err(MountError::Foreign { path: path.to_owned(), found: "not what was just mounted" });
    }
    let flags = rustix::fs::fstatvfs(&found).map_err(failed("look at"))?.f_flag;
    let wanted = StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
    if flags.contains(wanted) {
        return Ok(());
    }
    Err(MountError::Flags { path: path.to_owned(), found: format!("{flags:?}") })
}

fn look_in(parent: &OwnedFd, target: &Target) -> Result<Found, MountError> {
    let Some(found) = statx(parent, &target.name, target.path())? else { return Ok(Found::Nothing) };
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        let entry = entry(&found, target.path())?;
        return Ok(match entry.tree() {
            None => Found::ForeignMount,
            Some(mounted) => Found::Mounted { tree: mounted.tree().clone(), flags: has_flags(&entry) },
        });
    }
    Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::Directory if is_empty(parent, target)? => Found::Empty,
        FileType::Directory => Found::Other("a directory with something in it"),
        FileType::Symlink => Found::Other("a symbolic link"),
        _ => Found::Other("a file"),
    })
}

impl Drop for Mounter {
    fn drop(&mut self) {
        if let Err(errno) = unmount(&self.readonly, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            tracing::warn!(path = %self.readonly.display(), error = %io::Error::from(errno), "cannot unmount the read-only view; the next start does");
        }
    }
}

/// A path to `name` in an open folder, for the calls that take no descriptor.
fn through(parent: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name)
}

/// `None` where there is nothing.
fn statx(folder: impl std::os::fd::AsFd, name: &OsStr, path: &Path) -> Result<Option<Statx>, MountError> {
    let mut flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    if name.is_empty() {
        flags |= AtFlags::EMPTY_PATH;
    }
    let mask = StatxFlags::TYPE | StatxFlags::MODE | StatxFlags::INO | StatxFlags::MNT_ID;
    match rustix::fs::statx(folder, name, flags, mask) {
        Ok(found) if !found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            Err(MountError::OldKernel)
        }
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(MountError::new("look at", path, errno)),
    }
}

fn read_mountinfo() -> Result<Vec<u8>, MountError> {
    let path = "/proc/self/mountinfo";
    std::fs::read(path).map_err(|source| MountError::System { step: "read", path: path.into(), source })
}

fn entry(found: &Statx, path: &Path) -> Result<MountEntry, MountError> {
    let missing = || MountError::new("find in /proc/self/mountinfo the mount at", path, Errno::NOENT);
    mountinfo::find(&read_mountinfo()?, found.stx_mnt_id).ok_or_else(missing)
}

fn has_flags(entry: &MountEntry) -> Result<(), String> {
    if FLAGS.iter().all(|flag| entry.has(flag)) { Ok(()) } else { Err(entry.options().to_owned()) }
}

fn check_flags(path: &Path, entry: &MountEntry) -> Result<(), MountError> {
    has_flags(entry).map_err(|found| MountError::Flags { path: path.to_owned(), found })
}

fn is_empty(parent: &OwnedFd, target: &Target) -> Result<bool, MountError> {
    let failed = |errno| MountError::new("list", target.path(), errno);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(parent, &target.name, flags, Mode::empty()).map_err(failed)?;
    for entry in Dir::read_from(&folder).map_err(failed)? {
        if !matches!(entry.map_err(failed)?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes away whatever an earlier run mounted at `path`, a folder of the store.
fn detach_all(path: &Path) -> Result<(), MountError> {
    for _ in 0..MOST_STACKED {
        match statx(CWD, path.as_os_str(), path)? {
            Some(found) if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) => {
                unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                    .map_err(|errno| MountError::new("unmount what an earlier run left at", path, errno))?;
            }
            _ => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_absolute_and_normal() {
        for (given, wanted) in [("/a/b", "/a/b"), ("/a//b/", "/a/b"), ("/a", "/a")] {
            assert_eq!(Target::parse(given).unwrap().path(), Path::new(wanted));
        }
        for given in ["", "/", "a/b", "/a/../b", "/a/./b", "/a/b/..", "/a/b/.", "/a\0b"] {
            assert!(Target::parse(given).is_err(), "{given:?}");
        }
    }
}
