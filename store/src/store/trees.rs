//! Layers and trees: folders that one rename makes visible when they are complete.
//!
//! Before a tree is mounted again, the store checks it in a time that does not depend on its size: its
//! description has a checksum of itself and the sizes of the largest files. This detects damage by a power
//! cut or a file system repair. The scrubber detects single wrong bits.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Instant;

use oras_csi_core::display::Shown;
use rustix::fs::{AtFlags, CWD, FileType, RenameFlags, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::content::checksums::{self, Which};
use crate::content::description::{
    self, ImageDescription, LargeFile, LayerDescription, TreeContent, TreeDescription, TreeUsage,
};
use crate::content::verify;
use crate::disk::files::DIRECTORY_MODE;
use crate::disk::folders::{make_new_folder, open_folder};
use crate::disk::reader::Reader;
use crate::disk::walk::Entry;
use crate::disk::{DiskError, Totals, Unpaced, Usage};
use crate::layout::{CHECKSUMS, FILES, IMAGE, Item, LAYER, LayerKey, TREE, TreeKey};

/// How many files of a tree, the largest ones, are checked before it is mounted.
const MAX_LARGEST_FILES: usize = 16;

/// An unpacked tar layer in the store.
#[derive(Debug)]
pub struct Layer {
    files: OwnedFd,
    totals: Totals,
    usage: Usage,
    image: Option<ImageDescription>,
}

impl Layer {
    /// Returns the open root folder of the layer's files.
    pub fn files(&self) -> &OwnedFd {
        &self.files
    }

    /// Returns the image that has the files, if the layer is one. Its folder of files is empty then.
    pub(crate) fn image(&self) -> Option<&ImageDescription> {
        self.image.as_ref()
    }

    /// Returns the size of the layer.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Returns what the disk is charged for the layer.
    pub fn usage(&self) -> Usage {
        self.usage
    }
}

/// A tree in the store, which can be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    key: TreeKey,
    totals: Totals,
    usage: Usage,
    is_image: bool,
}

impl Tree {
    /// Returns the key of the tree.
    pub fn key(&self) -> &TreeKey {
        &self.key
    }

    /// Reports whether the files are in an EROFS image ([`crate::Layout::tree_image`]).
    pub fn is_image(&self) -> bool {
        self.is_image
    }

    /// Returns the size of the tree.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Returns what the disk is charged for the tree with its blobs and layers.
    pub fn usage(&self) -> Usage {
        self.usage
    }
}

/// A layer or tree that is being built in `tmp`. Its folder is deleted when this value is dropped, unless it
/// was committed.
#[derive(Debug)]
pub struct Staging<'a> {
    store: &'a Store,
    folder: Unfinished,
    files: OwnedFd,
    started_at: Instant,
}

/// A folder that is deleted when this value is dropped, unless it was renamed.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
    renamed: bool,
}

impl Store {
    /// Returns the layer `key`, if the store has it. Quarantines it if it is damaged.
    pub fn layer(&self, key: &LayerKey) -> Result<Option<Layer>, DiskError> {
        let path = self.layout.layer(key);
        self.look_up(&Item::Layer(key.clone()), || {
            let description: LayerDescription = match read_description(&path, LAYER)? {
                Lookup::Found(description) => description,
                Lookup::Absent => return Ok(Lookup::Absent),
                Lookup::Damaged(found) => return Ok(Lookup::Damaged(found)),
            };
            if let Err(found) = verify::check_image(&path, description.image.as_ref()) {
                return Ok(Lookup::Damaged(found));
            }
            match open_folder(&path.join(FILES)) {
                Ok(files) => {
                    let (totals, usage) = (description.totals, description.usage());
                    Ok(Lookup::Found(Layer { files, totals, usage, image: description.image }))
                }
                Err(error) if error.is_damage() => Ok(Lookup::Damaged(error.to_string())),
                Err(error) => Err(error),
            }
        })
    }

    /// Returns the tree `key`, if the store has it and a quick check finds no damage. Quarantines it
    /// otherwise.
    pub fn tree(&self, key: &TreeKey) -> Result<Option<Tree>, DiskError> {
        let path = self.layout.tree(key);
        self.look_up(&Item::Tree(key.clone()), || {
            let description: TreeDescription = match read_description(&path, TREE)? {
                Lookup::Found(description) => description,
                Lookup::Absent => return Ok(Lookup::Absent),
                Lookup::Damaged(found) => return Ok(Lookup::Damaged(found)),
            };
            let image = description.content.image.as_ref();
            if image.is_some() && !self.has_images {
                let found = "it is an EROFS image, which this process cannot mount".to_owned();
                return Ok(Lookup::Damaged(found));
            }
            let checked = check_largest_files(&path.join(FILES), &description.largest);
            Ok(match checked.and_then(|()| verify::check_image(&path, image)) {
                Ok(()) => Lookup::Found(Tree {
                    key: key.clone(),
                    totals: description.totals(),
                    usage: description.usage().with_parts,
                    is_image: image.is_some(),
                }),
                Err(found) => Lookup::Damaged(found),
            })
        })
    }

    /// Looks up an item. A damaged item is quarantined, so that it is created again.
    fn look_up<T>(
        &self,
        item: &Item,
        look: impl Fn() -> Result<Lookup<T>, DiskError>,
    ) -> Result<Option<T>, DiskError> {
        let look = || match self.durability.sync_error(item) {
            Some(found) => Ok(Lookup::Damaged(found)),
            None => look(),
        };
        match look()? {
            Lookup::Found(found) => return Ok(Some(found)),
            Lookup::Absent => return Ok(None),
            Lookup::Damaged(_) => {}
        }
        // Looks again under the lock: another thread may have quarantined the item, and a new one may have
        // replaced it.
        let _one = self.quarantine_lock.lock().unwrap_or_else(PoisonError::into_inner);
        match look()? {
            Lookup::Found(found) => Ok(Some(found)),
            Lookup::Absent => Ok(None),
            Lookup::Damaged(found) => {
                self.quarantine(item, &found)?;
                Ok(None)
            }
        }
    }

    /// Sets the tree's time of last use to now. Garbage collection deletes the least recently used trees
    /// first. This is one system call that does not wait for the disk.
    pub fn mark_used(&self, key: &TreeKey) {
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let path = self.layout.tree(key).join(TREE);
        if let Err(errno) = rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
            && errno != Errno::NOENT
        {
            tracing::debug!(path = %path.display(), error = %io::Error::from(errno), "cannot update the time of last use of a tree");
        }
    }

    /// Opens the files of a tree, to copy them.
    pub(crate) fn tree_files(&self, key: &TreeKey) -> Result<OwnedFd, DiskError> {
        open_folder(&self.layout.tree(key).join(FILES))
    }

    /// Starts to build a layer or a tree in `tmp`.
    pub fn stage(&self) -> Result<Staging<'_>, DiskError> {
        let folder = Unfinished::create(self.tmp_path(), 0o700)?;
        let inner = folder.path.join(FILES);
        make_new_folder(&inner, 0o755)?;
        let files = open_folder(&inner)?;
        rustix::fs::fchmod(&files, DIRECTORY_MODE)
            .map_err(|errno| DiskError::new("set the mode of", &inner, errno))?;
        Ok(Staging { store: self, folder, files, started_at: Instant::now() })
    }
}

/// The result of looking up an item.
enum Lookup<T> {
    Found(T),
    Absent,
    Damaged(String),
}

/// Reads the description of a layer or a tree.
fn read_description<T: for<'de> Deserialize<'de>>(folder: &Path, name: &str) -> Result<Lookup<T>, DiskError> {
    // Checks the folder first: one rename creates it with its description, and the caller's lease prevents
    // its deletion.
    if !folder.exists() {
        return Ok(Lookup::Absent);
    }
    let path = folder.join(name);
    match std::fs::read(&path).map(|text| description::parse(&text)) {
        Ok(Some(description)) => Ok(Lookup::Found(description)),
        Ok(None) => Ok(Lookup::Damaged(format!("its description ({name}) is damaged"))),
        Err(error) => {
            let error = DiskError::new("read", path, error);
            if error.is_damage() { Ok(Lookup::Damaged(error.to_string())) } else { Err(error) }
        }
    }
}

/// Checks that the largest files of a tree exist with the right size, without reading them.
fn check_largest_files(files: &Path, largest: &[LargeFile]) -> Result<(), String> {
    let folder = open_folder(files).map_err(|error| error.to_string())?;
    for large in largest {
        match rustix::fs::statat(&folder, large.path.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if u64::try_from(found.st_size) == Ok(large.bytes) => {}
            Ok(found) => {
                let (path, wanted, found) = (Shown::new(&large.path), large.bytes, found.st_size);
                return Err(format!("\"{path}\" has {found} bytes instead of {wanted}"));
            }
            Err(errno) => return Err(format!("\"{}\": {}", Shown::new(&large.path), io::Error::from(errno))),
        }
    }
    Ok(())
}

/// Collects the largest files of a tree.
#[derive(Default)]
struct Largest(Vec<LargeFile>);

impl Largest {
    fn add(&mut self, entry: &Entry<'_>) {
        let (bytes, full) = (entry.size(), self.0.len() == MAX_LARGEST_FILES);
        if entry.kind != FileType::RegularFile
            || (full && self.0.last().is_some_and(|last| last.bytes >= bytes))
        {
            return;
        }
        // A path that is not UTF-8 cannot be stored in JSON, and is skipped.
        let Ok(path) = std::str::from_utf8(entry.path.as_bytes()) else { return };
        self.0.truncate(MAX_LARGEST_FILES - 1);
        let place = self.0.partition_point(|large| large.bytes >= bytes);
        self.0.insert(place, LargeFile { path: path.to_owned(), bytes });
    }
}

impl Staging<'_> {
    /// Returns the open root folder of the files.
    pub fn files(&self) -> &OwnedFd {
        &self.files
    }

    /// Returns the path of the image, for a layer that becomes one.
    pub(crate) fn image_path(&self) -> PathBuf {
        self.folder.path.join(IMAGE)
    }

    /// Makes the image of a layer the image of this tree, without a copy.
    pub(crate) fn link_image(&self, layer: &LayerKey) -> Result<(), DiskError> {
        let source = self.store.layout.layer(layer).join(IMAGE);
        std::fs::hard_link(&source, self.image_path())
            .map_err(|error| DiskError::new("link the image", source, error))
    }

    /// Commits it as the layer `key`, an image. `usage` is what the disk is charged for it.
    pub(crate) fn commit_image(self, key: &LayerKey, totals: Totals, usage: Usage) -> Result<(), DiskError> {
        let path = self.image_path();
        let image = verify::describe_image(&path, &mut Unpaced)
            .map_err(|errno| DiskError::new("read the image", &path, errno))?;
        self.commit_described_layer(key, totals, usage, Some(image))
    }

    /// Commits it as the layer `key`, with checksums of its files. `usage` is what the disk is charged for its files.
    pub(crate) fn commit_layer(self, key: &LayerKey, totals: Totals, usage: Usage) -> Result<(), DiskError> {
        if self.store.is_persistent {
            let path = self.folder.path.join(CHECKSUMS);
            checksums::write(&self.files, &path, Which::All, &mut Reader::from_memory(), |_| {})?;
        }
        self.commit_described_layer(key, totals, usage, None)
    }

    fn commit_described_layer(
        self,
        key: &LayerKey,
        totals: Totals,
        usage: Usage,
        image: Option<ImageDescription>,
    ) -> Result<(), DiskError> {
        let name = self.store.layout.layer(key);
        let store = self.store;
        let item = Item::Layer(key.clone());
        let usage = usage.plus(self.record_usage()).plus(Usage::file(0));
        self.commit(&item, &name, LAYER, &LayerDescription { totals, disk: Some(usage), image }, [])?;
        store.mark_verified(item);
        Ok(())
    }

    /// Returns what the disk is charged for the folder, its name, the list of checksums and the provenance.
    fn record_usage(&self) -> Usage {
        const NAME: usize = 64;
        let sums = std::fs::symlink_metadata(self.folder.path.join(CHECKSUMS));
        let sums = sums.map_or_else(|_| Usage::default(), |found| Usage::file(found.len()));
        [Usage::directory(), Usage::name(NAME), sums, Usage::file(0)].into_iter().sum()
    }

    /// Commits it as the tree `key`. `usage` is what the disk is charged for its files: for those that belong to the
    /// tree alone, and with its blobs and layers.
    pub(crate) fn commit_tree(
        self,
        key: &TreeKey,
        made: &TreeContent,
        usage: TreeUsage,
    ) -> Result<(), DiskError> {
        // How much longer the numbers themselves make the description.
        const NUMBERS: u64 = 256;
        let mut largest = Largest::default();
        if self.store.is_persistent {
            let path = self.folder.path.join(CHECKSUMS);
            let look = |entry: &Entry<'_>| largest.add(entry);
            checksums::write(&self.files, &path, Which::Own, &mut Reader::from_memory(), look)?;
        }
        let name = self.store.layout.tree(key);
        let parts: Vec<Item> = made.parts().collect();
        let mut description = TreeDescription { content: made.clone(), largest: largest.0 };
        let text = description::to_text(&description)
            .map_err(|error| DiskError::new("describe", self.folder.path.join(TREE), error))?;
        let records = self.record_usage().plus(Usage::file(text.len() as u64 + NUMBERS));
        let TreeUsage { own, with_parts } = usage;
        let disk = TreeUsage { own: own.plus(records), with_parts: with_parts.plus(records) };
        description.content.disk = Some(disk);
        self.commit(&Item::Tree(key.clone()), &name, TREE, &description, parts)
    }

    fn commit(
        mut self,
        item: &Item,
        name: &Path,
        description: &str,
        content: &impl Serialize,
        parts: impl IntoIterator<Item = Item>,
    ) -> Result<(), DiskError> {
        let file = self.folder.path.join(description);
        let text = description::to_text(content).map_err(|error| DiskError::new("describe", &file, error))?;
        std::fs::write(&file, text).map_err(|error| DiskError::new("write", &file, error))?;
        self.store.label(&self.folder.path)?;
        // Without a durable mark the content must be synced before it becomes visible.
        if !self.store.durability.record_rename(item) {
            self.store.sync()?;
        }
        let (from, renamed) = (&self.folder.path, &mut self.folder.renamed);
        self.store.leases.commit(self.started_at, parts, || {
            match rustix::fs::renameat_with(CWD, from, CWD, name, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    *renamed = true;
                    Ok(())
                }
                // Another task created the same item, which is equally valid.
                Err(Errno::EXIST) => Ok(()),
                Err(errno) => Err(DiskError::new("commit", name, errno)),
            }
        })
    }
}

impl Unfinished {
    fn create(path: PathBuf, mode: u32) -> Result<Self, DiskError> {
        make_new_folder(&path, mode)?;
        Ok(Self { path, renamed: false })
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot delete unfinished work; it is deleted at the next start");
        }
    }
}
