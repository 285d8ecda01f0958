//! Layer trees and trees: folders that appear whole.
//!
//! Before a tree is mounted again it is looked at, in a time that does not grow with it: its description bears a
//! checksum of itself, and says how long its largest files are. That finds what a power cut or a repaired file
//! system leaves; single bits are found by the scrub.

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
use crate::content::description::{self, LargeFile, LayerDescription, TreeContent, TreeDescription};
use crate::disk::files::DIRECTORY_MODE;
use crate::disk::folders::{make_new_folder, open_folder};
use crate::disk::reader::Reader;
use crate::disk::walk::Entry;
use crate::disk::{DiskError, Totals};
use crate::layout::{CHECKSUMS, FILES, Item, LAYER, LayerKey, TREE, TreeKey};

/// How many of a tree's files are looked at before it is mounted: the largest.
const LOOKED_AT: usize = 16;

/// A tar layer that was unpacked.
#[derive(Debug)]
pub struct Layer {
    files: OwnedFd,
    totals: Totals,
}

impl Layer {
    /// The root of its files.
    pub fn files(&self) -> &OwnedFd {
        &self.files
    }

    /// How much is in it.
    pub fn totals(&self) -> Totals {
        self.totals
    }
}

/// A tree that can be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    key: TreeKey,
    totals: Totals,
}

impl Tree {
    /// Its name.
    pub fn key(&self) -> &TreeKey {
        &self.key
    }

    /// How much is in it.
    pub fn totals(&self) -> Totals {
        self.totals
    }
}

/// A folder in `tmp` with a `files` folder in it; it goes when this is dropped, unless it was committed.
#[derive(Debug)]
pub struct Staging<'a> {
    store: &'a Store,
    folder: Unfinished,
    files: OwnedFd,
    begun: Instant,
}

/// A folder that is removed when this is dropped, unless it was renamed.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
    renamed: bool,
}

impl Store {
    /// The layer of this name, if it is there.
    pub fn layer(&self, key: &LayerKey) -> Result<Option<Layer>, DiskError> {
        let path = self.layout.layer(key);
        self.look(&Item::Layer(key.clone()), || {
            let note: LayerDescription = match look_at_note(&path, LAYER)? {
                Looked::There(note) => note,
                Looked::Absent => return Ok(Looked::Absent),
                Looked::Damaged(found) => return Ok(Looked::Damaged(found)),
            };
            match open_folder(&path.join(FILES)) {
                Ok(files) => Ok(Looked::There(Layer { files, totals: note.totals })),
                Err(error) if error.is_damage() => Ok(Looked::Damaged(error.to_string())),
                Err(error) => Err(error),
            }
        })
    }

    /// The tree of this name, if it is there and, at a glance, what it was.
    pub fn tree(&self, key: &TreeKey) -> Result<Option<Tree>, DiskError> {
        let path = self.layout.tree(key);
        self.look(&Item::Tree(key.clone()), || {
            let note: TreeDescription = match look_at_note(&path, TREE)? {
                Looked::There(note) => note,
                Looked::Absent => return Ok(Looked::Absent),
                Looked::Damaged(found) => return Ok(Looked::Damaged(found)),
            };
            Ok(match glance(&path.join(FILES), &note.largest) {
                Ok(()) => Looked::There(Tree { key: key.clone(), totals: note.totals() }),
                Err(found) => Looked::Damaged(found),
            })
        })
    }

    /// Looks for something; what is damaged is set aside, so that it is made again.
    fn look<T>(
        &self,
        item: &Item,
        look: impl Fn() -> Result<Looked<T>, DiskError>,
    ) -> Result<Option<T>, DiskError> {
        let look = || match self.durability.refused(item) {
            Some(found) => Ok(Looked::Damaged(found)),
            None => look(),
        };
        if let Looked::There(found) = look()? {
            return Ok(Some(found));
        }
        // Once more, with nobody else setting aside: they may have, and a good one may have come in its place.
        let _one = self.quarantining.lock().unwrap_or_else(PoisonError::into_inner);
        match look()? {
            Looked::There(found) => Ok(Some(found)),
            Looked::Absent => Ok(None),
            Looked::Damaged(found) => {
                self.quarantine(item, &found)?;
                Ok(None)
            }
        }
    }

    /// Notes that a tree was used just now: what was not for the longest time is collected first. One system call,
    /// and nothing waits for the disk.
    pub fn mark_used(&self, key: &TreeKey) {
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let path = self.layout.tree(key).join(TREE);
        if let Err(errno) = rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
            && errno != Errno::NOENT
        {
            tracing::debug!(path = %path.display(), error = %io::Error::from(errno), "cannot note that a tree is used");
        }
    }

    /// The files of a tree, for a copy.
    pub(crate) fn tree_files(&self, key: &TreeKey) -> Result<OwnedFd, DiskError> {
        open_folder(&self.layout.tree(key).join(FILES))
    }

    /// Begins a layer or a tree.
    pub fn stage(&self) -> Result<Staging<'_>, DiskError> {
        let folder = Unfinished::create(self.tmp_path(), 0o700)?;
        let inner = folder.path.join(FILES);
        make_new_folder(&inner, 0o755)?;
        let files = open_folder(&inner)?;
        rustix::fs::fchmod(&files, DIRECTORY_MODE)
            .map_err(|errno| DiskError::new("set the mode of", &inner, errno))?;
        Ok(Staging { store: self, folder, files, begun: Instant::now() })
    }
}

/// What somebody found who looked.
enum Looked<T> {
    There(T),
    Absent,
    Damaged(String),
}

/// Reads what stands beside the files of a layer or a tree.
fn look_at_note<T: for<'de> Deserialize<'de>>(folder: &Path, name: &str) -> Result<Looked<T>, DiskError> {
    // First the folder: it comes with its note, and while it is leased it does not go.
    if !folder.exists() {
        return Ok(Looked::Absent);
    }
    let path = folder.join(name);
    match std::fs::read(&path).map(|text| description::parse(&text)) {
        Ok(Some(note)) => Ok(Looked::There(note)),
        Ok(None) => Ok(Looked::Damaged(format!("{name} is not what was written"))),
        Err(error) => {
            let error = DiskError::new("read", path, error);
            if error.is_damage() { Ok(Looked::Damaged(error.to_string())) } else { Err(error) }
        }
    }
}

/// Looks whether the files of a tree are there, without reading them.
fn glance(files: &Path, largest: &[LargeFile]) -> Result<(), String> {
    let folder = open_folder(files).map_err(|error| error.to_string())?;
    for large in largest {
        match rustix::fs::statat(&folder, large.path.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if u64::try_from(found.st_size) == Ok(large.bytes) => {}
            Ok(found) => {
                let (path, wanted, found) = (Shown::new(&large.path), large.bytes, found.st_size);
                return Err(format!("\"{path}\" has {found} bytes, and had {wanted}"));
            }
            Err(errno) => return Err(format!("\"{}\": {}", Shown::new(&large.path), io::Error::from(errno))),
        }
    }
    Ok(())
}

/// The largest files seen so far.
#[derive(Default)]
struct Largest(Vec<LargeFile>);

impl Largest {
    fn see(&mut self, entry: &Entry<'_>) {
        let (bytes, full) = (entry.size(), self.0.len() == LOOKED_AT);
        if entry.kind != FileType::RegularFile
            || (full && self.0.last().is_some_and(|last| last.bytes >= bytes))
        {
            return;
        }
        // A name that is no text cannot be written down in JSON; there are others.
        let Ok(path) = std::str::from_utf8(entry.path.as_bytes()) else { return };
        self.0.truncate(LOOKED_AT - 1);
        let place = self.0.partition_point(|large| large.bytes >= bytes);
        self.0.insert(place, LargeFile { path: path.to_owned(), bytes });
    }
}

impl Staging<'_> {
    /// The root of the files.
    pub fn files(&self) -> &OwnedFd {
        &self.files
    }

    /// Makes it the layer `key`, with the checksums of what is in it.
    pub(crate) fn commit_layer(self, key: &LayerKey, totals: Totals) -> Result<(), DiskError> {
        if self.store.is_persistent {
            let path = self.folder.path.join(CHECKSUMS);
            checksums::write(&self.files, &path, Which::All, &mut Reader::from_memory(), |_| {})?;
        }
        let name = self.store.layout.layer(key);
        let store = self.store;
        let item = Item::Layer(key.clone());
        self.commit(&item, &name, LAYER, &LayerDescription { totals }, [])?;
        store.mark_verified(item);
        Ok(())
    }

    /// Makes it the tree `key`.
    pub(crate) fn commit_tree(self, key: &TreeKey, made: &TreeContent) -> Result<(), DiskError> {
        let mut largest = Largest::default();
        if self.store.is_persistent {
            let path = self.folder.path.join(CHECKSUMS);
            let look = |entry: &Entry<'_>| largest.see(entry);
            checksums::write(&self.files, &path, Which::Own, &mut Reader::from_memory(), look)?;
        }
        let name = self.store.layout.tree(key);
        let parts: Vec<Item> = made.parts().collect();
        let note = TreeDescription { content: made.clone(), largest: largest.0 };
        self.commit(&Item::Tree(key.clone()), &name, TREE, &note, parts)
    }

    fn commit(
        mut self,
        item: &Item,
        name: &Path,
        note: &str,
        content: &impl Serialize,
        parts: impl IntoIterator<Item = Item>,
    ) -> Result<(), DiskError> {
        let file = self.folder.path.join(note);
        let text = description::to_text(content).map_err(|error| DiskError::new("describe", &file, error))?;
        std::fs::write(&file, text).map_err(|error| DiskError::new("write", &file, error))?;
        // Where nothing says that it may not be on the disk, it has to be.
        if !self.store.durability.note_rename(item) {
            self.store.sync()?;
        }
        let (from, renamed) = (&self.folder.path, &mut self.folder.renamed);
        self.store.leases.commit(self.begun, parts, || {
            match rustix::fs::renameat_with(CWD, from, CWD, name, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    *renamed = true;
                    Ok(())
                }
                // Somebody else made the same: theirs is as good.
                Err(Errno::EXIST) => Ok(()),
                Err(errno) => Err(DiskError::new("keep", name, errno)),
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
            tracing::warn!(path = %self.path.display(), %error, "cannot remove what was unfinished; the next start does");
        }
    }
}
