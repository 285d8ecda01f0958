//! Mounts and unmounts volumes. No other module makes, moves or removes a mount.
//!
//! At start, the folder of all trees is mounted a second time at `readonly` in the store: read-only, nosuid, nodev and
//! private. A volume is a clone of one directory of *that* mount (`open_tree`, `move_mount`). A clone has the flags of
//! its origin, so a volume is read-only from the instant at which it is visible; there is no bind mount that is
//! remounted later. After each mount the driver reads back what is at the target, and its flags.
//!
//! ```text
//! STORE/trees ── bind, remount ro,nosuid,nodev ──► STORE/readonly
//!                                                       │ open_tree(KEY/files, CLONE), move_mount
//!                                                       ▼
//!                                       /var/lib/kubelet/pods/…/mount
//! ```
//!
//! A tree of many small files is an EROFS image (`trees/KEY/image`), mounted from the file (Linux 6.12 or later). Its volume
//! is a clone of one directory of the mounted image. Volumes of one tree are clones of the same mount, so they share the
//! cache of the kernel. The path of that directory in the image is that of a tree, `trees/KEY/files`, so mountinfo shows
//! what is mounted in the same way for both.
//!
//! Flags that a mount inherited in a user namespace are locked: the kernel denies a remount without them
//! (mount_namespaces(7)). So a remount keeps the existing flags and adds to them.
//!
//! A target is a name in a folder that is held open, so no path is resolved twice. The driver creates the directory of
//! the target itself (kubelet creates only its parent). It accepts an existing directory only if that is empty, and never
//! touches a file, a symbolic link, or a mount that is not of a tree.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use oras_csi_store::{Layout, Store, Tree, TreeKey, tree_files};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, StatVfsMountFlags, Statx, StatxAttributes, StatxFlags, makedev,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount_bind, mount_change, mount_remount, move_mount, open_tree, unmount,
};

use crate::mountinfo::{self, MountEntry, MountedTree};

/// The flags that every volume must have.
const FLAGS: [&str; 3] = ["ro", "nosuid", "nodev"];
/// The same, as statvfs(3) reports them.
const WANTED_FLAGS: StatVfsMountFlags =
    StatVfsMountFlags::RDONLY.union(StatVfsMountFlags::NOSUID).union(StatVfsMountFlags::NODEV);
/// How many mounts of images are remembered. Without an entry, an image is mounted once more.
const MAX_REMEMBERED: usize = 4_096;
/// How many mounts on top of each other at one path are unmounted.
const MAX_STACKED: usize = 64;

/// Why a mount or unmount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel does not permit mounts at all.
    #[error(
        "cannot {step} {}: {source}. The driver needs CAP_SYS_ADMIN: run it in a privileged container, as root, or in a user and mount namespace of its own, where no AppArmor or seccomp profile forbids mounts", .path.display()
    )]
    Forbidden {
        /// The operation.
        step: &'static str,
        /// The path of the operation.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A system call failed for another reason.
    #[error("cannot {step} {}: {source}", .path.display())]
    System {
        /// The operation.
        step: &'static str,
        /// The path of the operation.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The mount does not have the flags that it must have.
    #[error("the mount at {} has the flags {found}, but must have ro, nosuid and nodev. It was unmounted", .path.display())]
    Flags {
        /// The mount point.
        path: PathBuf,
        /// The flags that were found.
        found: String,
    },
    /// The parent folder of the target does not exist.
    #[error(
        "cannot mount below {}: the folder does not exist. Kubelet creates it, so kubelet's folder must be mounted into the driver's container at the same path as on the node (--kubelet-dir)", .0.display()
    )]
    NoParent(PathBuf),
    /// The path cannot be a target.
    #[error("invalid target path \"{}\": it must be absolute, without \".\" or \"..\"", .0.display())]
    Path(PathBuf),
    /// The driver did not create what is at the target.
    #[error(
        "cannot use the target path {}: it is {found}, which this driver did not create. Find out what created it, and remove it by hand", .path.display()
    )]
    Foreign {
        /// The target.
        path: PathBuf,
        /// A description of it.
        found: &'static str,
    },
    /// The kernel does not report mount points in statx.
    #[error("the kernel does not report mount points (statx). Linux 5.10 or later is required")]
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

/// A target path of kubelet: absolute and normalized.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    path: PathBuf,
    parent: PathBuf,
    name: OsString,
}

impl Target {
    /// Parses and normalizes a path.
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

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the error for a target whose parent folder does not exist.
    pub(crate) fn no_parent(&self) -> MountError {
        MountError::NoParent(self.parent.clone())
    }

    /// Opens the parent folder, if it exists.
    fn open_parent(&self) -> Result<Option<OwnedFd>, MountError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&self.parent, flags, Mode::empty()) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(MountError::new("open", &self.parent, errno)),
        }
    }
}

/// The state of a target path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The parent folder does not exist.
    NoParent,
    /// Nothing exists at the path.
    Nothing,
    /// An empty directory.
    Empty,
    /// A directory that is not empty, a file, or a symbolic link.
    Other(&'static str),
    /// A mount of a tree.
    Mounted {
        /// The tree.
        tree: TreeKey,
        /// Whether the mount has the required flags; otherwise the flags that it has.
        flags: Result<(), String>,
    },
    /// A mount that is not of a tree.
    ForeignMount,
}

/// The read-only view of the trees in the store, from which volumes are cloned.
#[derive(Debug)]
pub struct Mounter {
    layout: Layout,
    readonly: PathBuf,
    view: OwnedFd,
    /// A volume of each tree that is an image, from which the next ones are cloned.
    images: Mutex<HashMap<TreeKey, MountedImage>>,
}

/// A volume that is a clone of a mounted image.
#[derive(Clone, Debug)]
struct MountedImage {
    target: PathBuf,
    /// Device and inode of its root.
    root: (u64, u64),
}

impl Mounter {
    /// Mounts the read-only view, after it unmounted the view of an earlier run.
    pub fn prepare(store: &Store) -> Result<Self, MountError> {
        let (trees, readonly) = (store.layout().trees(), store.layout().readonly());
        detach_all(&readonly)?;
        mount_bind(&trees, &readonly)
            .map_err(|errno| MountError::new("mount the store's trees at", &readonly, errno))?;
        match Self::restrict(&trees, &readonly) {
            Ok(view) => Ok(Self { layout: store.layout().clone(), readonly, view, images: Mutex::default() }),
            Err(error) => {
                let _ = unmount(&readonly, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
                Err(error)
            }
        }
    }

    fn restrict(trees: &Path, readonly: &Path) -> Result<OwnedFd, MountError> {
        mount_change(readonly, MountPropagationFlags::PRIVATE)
            .map_err(|errno| MountError::new("make private the mount at", readonly, errno))?;
        let current = rustix::fs::statvfs(readonly)
            .map_err(|errno| MountError::new("read the state of", readonly, errno))?;
        let mut flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        if current.f_flag.contains(StatVfsMountFlags::NOEXEC) {
            flags |= MountFlags::NOEXEC;
        }
        // Without an atime flag, the remount keeps the existing one, which may be locked.
        mount_remount(readonly, flags, "")
            .map_err(|errno| MountError::new("make read-only the mount at", readonly, errno))?;
        let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let view = rustix::fs::open(readonly, open, Mode::empty())
            .map_err(|errno| MountError::new("open", readonly, errno))?;
        let found = statx(&view, OsStr::new(""), readonly)?;
        let found = found.ok_or_else(|| MountError::new("read the state of", readonly, Errno::NOENT))?;
        check_flags(readonly, &entry(&found, readonly)?)?;
        tracing::debug!(trees = %trees.display(), view = %readonly.display(), "the read-only view is mounted");
        Ok(view)
    }

    /// Returns the state of a target. `expected` is the tree of its record: where it is mounted, mountinfo is not read,
    /// whose size grows with the volumes of the node.
    pub fn look(&self, target: &Target, expected: Option<&TreeKey>) -> Result<Found, MountError> {
        let Some(parent) = target.open_parent()? else { return Ok(Found::NoParent) };
        self.state_of(&parent, target, expected)
    }

    fn state_of(
        &self,
        parent: &OwnedFd,
        target: &Target,
        expected: Option<&TreeKey>,
    ) -> Result<Found, MountError> {
        match expected {
            Some(tree) if self.is_mounted(tree, parent, target)? => {
                Ok(Found::Mounted { tree: tree.clone(), flags: Ok(()) })
            }
            _ => target_state(parent, target),
        }
    }

    /// Reports whether this tree is mounted at the target with the required flags. A tree in quarantine or of another
    /// store is not recognized.
    fn is_mounted(&self, tree: &TreeKey, parent: &OwnedFd, target: &Target) -> Result<bool, MountError> {
        let is_root = |found: &Statx| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        let Some(found) = statx(parent, &target.name, target.path())?.filter(is_root) else {
            return Ok(false);
        };
        let number = |found: &Statx| (makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino);
        let files = statx(&self.view, tree_files(tree).as_os_str(), &self.readonly)?;
        let is_tree = files.is_some_and(|files| number(&files) == number(&found))
            || self
                .images()
                .get(tree)
                .is_some_and(|image| image.target == target.path() && image.root == number(&found));
        if !is_tree {
            return Ok(false);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let state = rustix::fs::openat(parent, &target.name, flags, Mode::empty())
            .and_then(rustix::fs::fstatvfs)
            .map_err(|errno| MountError::new("read the state of", target.path(), errno))?;
        Ok(state.f_flag.contains(WANTED_FLAGS))
    }

    /// Mounts a tree at a target. The target must not exist, or must be an empty directory.
    ///
    /// After an error, the target is in the same state as before.
    pub fn publish(&self, tree: &Tree, target: &Target) -> Result<(), MountError> {
        let parent = target.open_parent()?.ok_or_else(|| target.no_parent())?;
        if !tree.is_image() {
            let clone = self.clone_from_view(tree.key(), &tree_files(tree.key()))?;
            return Self::attach_new(&clone, &parent, target);
        }
        // Held until the volume is mounted, so that the next one finds it.
        let mut images = self.images();
        let clone = match Self::clone_volume(&images, tree.key()) {
            Some(clone) => clone,
            None => self.mount_image(tree.key())?,
        };
        Self::attach_new(&clone, &parent, target)?;
        let root = device_and_inode(&clone)
            .map_err(|errno| MountError::new("read the state of", target.path(), errno))?;
        if images.len() >= MAX_REMEMBERED {
            images.clear();
        }
        images.retain(|_, image| image.target != target.path());
        images.insert(tree.key().clone(), MountedImage { target: target.path().to_owned(), root });
        Ok(())
    }

    /// Reports whether this kernel can mount an image of the store, by mounting a small one.
    pub fn can_mount_images(&self, store: &Store) -> bool {
        const CONTENT: &[u8] = b"oras-csi";
        let path = store.tmp_path();
        let read = || -> io::Result<bool> {
            let file = store.write_test_image(&path, CONTENT)?;
            let mounted = self.open_image(&path)?;
            let file = rustix::fs::openat(&mounted, &file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let mut found = Vec::new();
            io::Read::read_to_end(&mut std::fs::File::from(file), &mut found)?;
            Ok(found == CONTENT)
        };
        let result = read();
        let _ = std::fs::remove_file(&path);
        match result {
            Ok(true) => true,
            Ok(false) => {
                tracing::warn!(
                    "the kernel returns wrong content from an EROFS image; archives are unpacked into files"
                );
                false
            }
            Err(error) => {
                tracing::info!(%error, "the kernel cannot mount EROFS images from files; archives are unpacked into files");
                false
            }
        }
    }

    fn images(&self) -> MutexGuard<'_, HashMap<TreeKey, MountedImage>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clones a volume of the same tree, if there is one.
    fn clone_volume(images: &HashMap<TreeKey, MountedImage>, tree: &TreeKey) -> Option<OwnedFd> {
        let image = images.get(tree)?;
        let clone = open_tree(CWD, &image.target, clone_flags()).ok()?;
        // Something else may be mounted there now.
        (device_and_inode(&clone) == Ok(image.root)).then_some(clone)
    }

    /// Mounts the image of a tree, and returns a clone of the directory with its files.
    fn mount_image(&self, tree: &TreeKey) -> Result<OwnedFd, MountError> {
        let image = self.layout.tree_image(tree);
        let failed = |errno| MountError::new("mount the image", &image, errno);
        let mounted = self.open_image(&image).map_err(failed)?;
        // A directory of a mount can be cloned only while the mount is attached. The view is private, so no other mount
        // namespace sees it.
        let place = tree_files(tree);
        move_mount(&mounted, "", &self.view, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(failed)?;
        let clone = self.clone_from_view(tree, &place.join("trees").join(tree_files(tree)));
        let attached = through(&self.view, place.as_os_str());
        unmount(attached, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(failed)?;
        clone
    }

    /// Mounts an image without attaching it to a path.
    fn open_image(&self, image: &Path) -> Result<OwnedFd, Errno> {
        let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", image)?;
        fsconfig_set_flag(&context, "ro")?;
        fsconfig_create(&context)?;
        let mut flags = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV;
        // As for the other trees: if the store's disk forbids programs, so do its volumes.
        if rustix::fs::fstatvfs(&self.view)?.f_flag.contains(StatVfsMountFlags::NOEXEC) {
            flags |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
        }
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    }

    fn clone_from_view(&self, tree: &TreeKey, place: &Path) -> Result<OwnedFd, MountError> {
        open_tree(&self.view, place, clone_flags()).map_err(|errno| {
            MountError::new("clone for a volume the mount of", self.readonly.join(tree.as_str()), errno)
        })
    }

    /// Attaches a clone to a target that does not exist, or is an empty directory.
    fn attach_new(clone: &OwnedFd, parent: &OwnedFd, target: &Target) -> Result<(), MountError> {
        let path = target.path();
        let is_created = match rustix::fs::mkdirat(parent, &target.name, Mode::from_raw_mode(0o750)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(MountError::new("create the directory", path, errno)),
        };
        let mounted = match target_state(parent, target)? {
            Found::Empty => Self::attach(clone, parent, target),
            Found::Other(found) => Err(MountError::Foreign { path: path.to_owned(), found }),
            Found::Mounted { .. } | Found::ForeignMount => {
                Err(MountError::Foreign { path: path.to_owned(), found: "a mount point" })
            }
            Found::Nothing | Found::NoParent => Err(MountError::new("find", path, Errno::NOENT)),
        };
        if mounted.is_err() && is_created {
            let _ = rustix::fs::unlinkat(parent, &target.name, AtFlags::REMOVEDIR);
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

    /// Unmounts every tree at the target, of which the record says `expected`, and removes its directory. A target that does not exist is not an error.
    pub fn unpublish(&self, target: &Target, expected: Option<&TreeKey>) -> Result<(), MountError> {
        let path = target.path();
        let parent = target.open_parent()?;
        let mut expected = expected;
        for _ in 0..=MAX_STACKED {
            let Some(parent) = &parent else { break };
            let found = self.state_of(parent, target, expected.take())?;
            self.images().retain(|_, image| image.target != path);
            match found {
                Found::Mounted { .. } => {
                    let name = through(parent, &target.name);
                    match unmount(&name, UnmountFlags::NOFOLLOW) {
                        // A process still reads the volume. A lazy unmount loses nothing: the mount ends with its last user.
                        Err(Errno::BUSY) => unmount(&name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW),
                        other => other,
                    }
                    .map_err(|errno| MountError::new("unmount", path, errno))?;
                }
                Found::NoParent | Found::Nothing => return Ok(()),
                Found::Empty => {
                    return match rustix::fs::unlinkat(parent, &target.name, AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOENT) => Ok(()),
                        Err(errno) => Err(MountError::new("remove the directory", path, errno)),
                    };
                }
                Found::Other(found) => return Err(MountError::Foreign { path: path.to_owned(), found }),
                Found::ForeignMount => {
                    return Err(MountError::Foreign {
                        path: path.to_owned(),
                        found: "a mount that is not a volume of this driver",
                    });
                }
            }
        }
        if parent.is_none() {
            return Ok(());
        }
        Err(MountError::Foreign { path: path.to_owned(), found: "covered by too many mounts" })
    }

    /// Reports whether something else than a tree is mounted below `folder`, which is the folder of the volumes of a pod. Kubelet
    /// unmounts them, for example the token of the service account, only when the containers of the pod have ended.
    pub fn has_other_mounts_below(&self, folder: &Path) -> Result<bool, MountError> {
        let text = read_mountinfo()?;
        Ok(mountinfo::all(&text).any(|entry| entry.point().starts_with(folder) && entry.tree().is_none()))
    }

    /// Unmounts what kubelet mounted below `folder` from this tree: the `subPath`s of a volume.
    pub fn unmount_subpaths(&self, tree: &TreeKey, folder: &Path) -> Result<(), MountError> {
        let text = read_mountinfo()?;
        // The newest mount is last in the text, and must be unmounted first.
        let mut subpaths: Vec<_> = mountinfo::all(&text)
            .filter(|entry| entry.point().starts_with(folder) && entry.is_within(tree))
            .collect();
        while let Some(subpath) = subpaths.pop() {
            unmount(subpath.point(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(|errno| MountError::new("unmount", subpath.point(), errno))?;
        }
        Ok(())
    }

    /// Returns every mount of a tree in this mount namespace, with its path.
    pub fn mounted(&self) -> Result<Vec<(PathBuf, TreeKey)>, MountError> {
        Ok(mounted()?
            .into_iter()
            .map(|mounted| (mounted.point().to_owned(), mounted.tree().clone()))
            .collect())
    }
}

/// Returns every mount of a tree in this mount namespace, of any store.
pub fn mounted() -> Result<Vec<MountedTree>, MountError> {
    let text = read_mountinfo()?;
    Ok(mountinfo::all(&text).filter_map(|entry| entry.tree()).collect())
}

/// Verifies that the target has the mount that was just made, with its flags. It checks the mount itself, because
/// mountinfo grows with every volume of the node, and reading it would make each publish slower than the one before.
fn check_mounted(clone: &OwnedFd, parent: &OwnedFd, target: &Target) -> Result<(), MountError> {
    let path = target.path();
    let failed = |step| move |errno| MountError::new(step, path, errno);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::openat(parent, &target.name, flags, Mode::empty()).map_err(failed("open"))?;
    if device_and_inode(&found).map_err(failed("read the state of"))?
        != device_and_inode(clone).map_err(failed("read the state of"))?
    {
        return Err(MountError::Foreign {
            path: path.to_owned(),
            found: "another mount than the one that was just made",
        });
    }
    let flags = rustix::fs::fstatvfs(&found).map_err(failed("read the state of"))?.f_flag;
    if flags.contains(WANTED_FLAGS) {
        return Ok(());
    }
    Err(MountError::Flags { path: path.to_owned(), found: format!("{flags:?}") })
}

fn target_state(parent: &OwnedFd, target: &Target) -> Result<Found, MountError> {
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
        FileType::Directory => Found::Other("a directory that is not empty"),
        FileType::Symlink => Found::Other("a symbolic link"),
        _ => Found::Other("a file"),
    })
}

impl Drop for Mounter {
    fn drop(&mut self) {
        if let Err(errno) = unmount(&self.readonly, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            tracing::warn!(path = %self.readonly.display(), error = %io::Error::from(errno), "cannot unmount the read-only view; the next start of the driver unmounts it");
        }
    }
}

fn clone_flags() -> OpenTreeFlags {
    OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
        | OpenTreeFlags::AT_NO_AUTOMOUNT
}

fn device_and_inode(file: &OwnedFd) -> Result<(u64, u64), Errno> {
    rustix::fs::fstat(file).map(|found| (found.st_dev, found.st_ino))
}

/// Returns a path to `name` in an open folder, for system calls that take no descriptor.
fn through(parent: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name)
}

/// Calls statx(2). Returns `None` if the file does not exist.
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
        Err(errno) => Err(MountError::new("read the state of", path, errno)),
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

/// Unmounts everything that an earlier run mounted at `path`, a folder of the store.
fn detach_all(path: &Path) -> Result<(), MountError> {
    for _ in 0..MAX_STACKED {
        match statx(CWD, path.as_os_str(), path)? {
            Some(found) if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) => {
                unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(|errno| {
                    MountError::new("unmount the mount of an earlier run at", path, errno)
                })?;
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
    fn target_paths_are_absolute_and_normalized() {
        for (given, wanted) in [("/a/b", "/a/b"), ("/a//b/", "/a/b"), ("/a", "/a")] {
            assert_eq!(Target::parse(given).unwrap().path(), Path::new(wanted));
        }
        for given in ["", "/", "a/b", "/a/../b", "/a/./b", "/a/b/..", "/a/b/.", "/a\0b"] {
            assert!(Target::parse(given).is_err(), "{given:?}");
        }
    }
}
