//! Marks for trees and layers that are visible but may not be on the disk yet.
//!
//! A complete tree is mounted before it is synced to the disk. A killed process loses no data, because the
//! kernel has it, but a power cut can lose data. So a *mark* is synced before the tree or the layer is
//! renamed to its final name. The mark is removed when the content is synced too:
//!
//! ```text
//! mark ─► fsync ─► content written ─► rename ─► mount ┄► syncfs ─► mark removed
//! ```
//!
//! ```text
//! STORE/unsynced/BOOT/pull-N       a line for each item that one pull creates: tree-KEY or layer-KEY; in a folder for
//!                                  each boot of the machine
//! STORE/unsynced/BOOT/tree-KEY     an empty file for one item, by an earlier version; read, never written
//! ```
//!
//! The file of a pull is removed when all of its items are synced or were not created. One file for all of them costs
//! one inode, however many layers an artifact has.
//!
//! A mark of an earlier boot means that the content on the disk is unknown. The store quarantines such a tree
//! when it is opened, and the tree is built again when a pod requests it. Its blobs and layers are verified
//! before they become part of a tree (`store::integrity`), so only damaged ones are downloaded again. A layer
//! without checksums is quarantined too.
//!
//! One thread syncs all waiting items at once (`syncfs`). If the sync fails, these items count as damaged:
//! pods keep their mounts, and the next publish builds the tree again.
//!
//! Architecture Invariant: a visible tree or layer is synced to the disk, or its mark is.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::disk::DiskError;
use crate::disk::folders::{make_private_folder, move_to_free_name, names_in, sync_folder};
use crate::layout::{CHECKSUMS, Item, LayerKey, Layout, TreeKey};

const PULL: &str = "pull-";
const TREE: &str = "tree-";
const LAYER: &str = "layer-";

/// The marks of a store, and the thread that syncs it.
#[derive(Debug)]
pub(crate) struct Durability {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    /// The folder with the marks of this boot.
    folder: PathBuf,
    root: OwnedFd,
    table: Mutex<Table>,
    changed: Condvar,
    /// The number of the next file.
    next_file: AtomicU64,
    sync_failures: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    /// The items that are in a file.
    marks: HashMap<String, Mark>,
    /// The files of pulls that have ended, by name, with their items.
    ended: HashMap<String, Vec<String>>,
    /// Items that could not be synced, with the error.
    failed: HashMap<String, String>,
    renames: u64,
    is_due: bool,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Mark {
    /// How many files have the item.
    files: usize,
    is_durable: bool,
    /// The number of the last rename of the item that has not been synced.
    renamed: Option<u64>,
}

/// The marks of the items that one pull may create. When it is dropped and none of the items was created, they are
/// removed at once, otherwise after a sync.
#[derive(Debug)]
pub(crate) struct UnsyncedMarks {
    shared: Option<Arc<Shared>>,
    file: String,
    names: Vec<String>,
}

impl Durability {
    /// Reads the marks of earlier runs. Quarantines items that were not synced in an earlier boot.
    pub(crate) fn open(layout: &Layout, root: &OwnedFd, boot: &str) -> Result<Self, DiskError> {
        let all = layout.unsynced();
        let folder = all.join(boot);
        let root = root.try_clone().map_err(|error| DiskError::new("open", layout.path(), error))?;
        let mut table = Table::default();
        for name in names_in(&all)? {
            let path = all.join(&name);
            for file in names_in(&path)? {
                let items = items_in(&path, &file)?;
                if name == boot {
                    for item in &items {
                        let mark = table.marks.entry(item.clone()).or_default();
                        (mark.files, mark.is_durable, mark.renamed) = (mark.files + 1, true, Some(0));
                    }
                    table.ended.insert(file, items);
                } else {
                    for item in items {
                        quarantine_unsynced(layout, &item)?;
                    }
                }
            }
            if name != boot {
                std::fs::remove_dir_all(&path).map_err(|error| DiskError::new("remove", &path, error))?;
            }
        }
        let is_due = !table.ended.is_empty();
        let next_file =
            table.ended.keys().filter_map(|file| file.strip_prefix(PULL)?.parse::<u64>().ok()).max();
        let next_file = AtomicU64::new(next_file.unwrap_or(0).saturating_add(1));
        let (table, changed, sync_failures) = (Mutex::new(table), Condvar::new(), AtomicU64::new(0));
        let shared = Arc::new(Shared { folder, root, table, changed, next_file, sync_failures });
        let durability = Self { shared, thread: Mutex::default() };
        if is_due {
            durability.ensure_thread();
        }
        Ok(durability)
    }

    /// Marks items that are about to be created. The marks are durable when this returns.
    pub(crate) fn mark(&self, items: &[Item]) -> Result<UnsyncedMarks, DiskError> {
        self.ensure_thread();
        let folder = &self.shared.folder;
        let failed = |path: &Path, error: io::Error| DiskError::new("write the mark", path, error);
        if !folder.exists() {
            make_private_folder(folder)?;
            for above in [folder.parent(), folder.parent().and_then(Path::parent)].into_iter().flatten() {
                sync_folder(above).map_err(|error| failed(above, error))?;
            }
        }
        let names: BTreeSet<String> = items.iter().filter_map(mark_name).collect();
        let file = format!("{PULL}{}", self.shared.next_file.fetch_add(1, Ordering::Relaxed));
        let text: String = names.iter().flat_map(|name| [name.as_str(), "\n"]).collect();
        let mut table = self.shared.table();
        for name in &names {
            table.marks.entry(name.clone()).or_default().files += 1;
        }
        drop(table);
        let path = folder.join(&file);
        // If writing fails, dropping this removes the marks again.
        let marked =
            UnsyncedMarks { shared: Some(self.shared.clone()), file, names: names.into_iter().collect() };
        let written = std::fs::write(&path, text).and_then(|()| std::fs::File::open(&path)?.sync_all());
        written.map_err(|error| failed(&path, error))?;
        sync_folder(folder).map_err(|error| failed(folder, error))?;
        let mut table = self.shared.table();
        for name in &marked.names {
            if let Some(mark) = table.marks.get_mut(name) {
                mark.is_durable = true;
            }
        }
        drop(table);
        Ok(marked)
    }

    /// Records that an item is about to be renamed to its final name. Reports whether this is allowed before
    /// it is synced, because it has a durable mark.
    pub(crate) fn record_rename(&self, item: &Item) -> bool {
        let mut table = self.shared.table();
        table.renames += 1;
        let number = table.renames;
        let mark = mark_name(item).and_then(|name| table.marks.get_mut(&name)).filter(|mark| mark.is_durable);
        mark.is_some_and(|mark| {
            mark.renamed = Some(number);
            true
        })
    }

    /// Returns why a visible item may be damaged, if a sync of it failed.
    pub(crate) fn sync_error(&self, item: &Item) -> Option<String> {
        let table = self.shared.table();
        if table.failed.is_empty() {
            return None;
        }
        table.failed.get(&mark_name(item)?).cloned()
    }

    /// Clears the sync error of an item that is no longer visible.
    pub(crate) fn clear_sync_error(&self, item: &Item) {
        if let Some(name) = mark_name(item) {
            self.shared.table().failed.remove(&name);
        }
    }

    /// Returns the number of failed syncs.
    pub(crate) fn sync_failures(&self) -> u64 {
        self.shared.sync_failures.load(Ordering::Acquire)
    }

    /// Simulates a failed sync of all waiting items.
    #[cfg(test)]
    pub(crate) fn fail_next_sync(&self) {
        let shared = &self.shared;
        let mut table = shared.table();
        let waiting: Vec<(String, u64)> =
            table.marks.iter().filter_map(|(name, mark)| Some((name.clone(), mark.renamed?))).collect();
        assert_eq!(waiting.len(), table.marks.len());
        shared.sync_failures.fetch_add(1, Ordering::Release);
        table.finish_sync(&shared.folder, waiting, Some(&io::Error::from_raw_os_error(5)));
    }

    /// Starts the sync thread, if it is not running.
    fn ensure_thread(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_some() {
            return;
        }
        let shared = self.shared.clone();
        shared.table().is_due = true;
        let name = "store sync".to_owned();
        match std::thread::Builder::new().name(name).spawn(move || shared.run()) {
            Ok(started) => *thread = Some(started),
            // The marks stay, and the next run syncs the items.
            Err(error) => {
                tracing::warn!(%error, "cannot start the thread that syncs the store; mounted trees are synced after a restart of the driver");
            }
        }
    }
}

impl Drop for Durability {
    fn drop(&mut self) {
        self.shared.table().is_closed = true;
        self.shared.changed.notify_all();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs waiting items until the store is closed and no item waits.
    fn run(&self) {
        loop {
            let mut table = self.table();
            while !table.is_due && !table.is_closed {
                table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
            }
            if !table.is_due {
                return;
            }
            table.is_due = false;
            let waiting = table.marks.iter().filter_map(|(name, mark)| Some((name.clone(), mark.renamed?)));
            let waiting: Vec<(String, u64)> = waiting.collect();
            drop(table);
            if !waiting.is_empty() {
                let error = rustix::fs::syncfs(&self.root).err().map(io::Error::from);
                if error.is_some() {
                    self.sync_failures.fetch_add(1, Ordering::Release);
                }
                self.table().finish_sync(&self.folder, waiting, error.as_ref());
                if let Some(error) = error {
                    tracing::error!(
                        path = %self.folder.display(), %error,
                        "cannot sync the store to the disk; trees mounted recently may be damaged, and are built again for the next pod"
                    );
                }
            }
        }
    }
}

impl Table {
    /// Handles the end of a sync: records its error, and removes marks that are no longer needed.
    fn finish_sync(&mut self, folder: &Path, waiting: Vec<(String, u64)>, error: Option<&io::Error>) {
        for (name, number) in waiting {
            let Some(mark) = self.marks.get_mut(&name).filter(|mark| mark.renamed == Some(number)) else {
                continue;
            };
            if let Some(error) = error {
                self.failed.insert(name.clone(), format!("the disk refused to sync it: {error}"));
            }
            mark.renamed = None;
        }
        for file in self.ended.keys().cloned().collect::<Vec<_>>() {
            self.remove_unused_file(folder, &file);
        }
    }

    /// Removes the file of a pull that has ended, unless one of its items is not synced.
    fn remove_unused_file(&mut self, folder: &Path, file: &str) {
        let Some(items) = self.ended.get(file) else { return };
        let waits = |item: &String| self.marks.get(item).is_some_and(|mark| mark.renamed.is_some());
        // After a failed sync the file stays on the disk, so that the item is quarantined if the machine stops.
        if items.iter().any(|item| waits(item) || self.failed.contains_key(item)) {
            return;
        }
        if let Err(error) = std::fs::remove_file(folder.join(file)) {
            tracing::debug!(file, %error, "cannot remove the marks of synced items");
        }
        for item in self.ended.remove(file).unwrap_or_default() {
            if let Some(mark) = self.marks.get_mut(&item) {
                mark.files -= 1;
                if mark.files == 0 {
                    self.marks.remove(&item);
                }
            }
        }
    }
}

impl UnsyncedMarks {
    /// Returns an empty set of marks.
    pub(crate) fn none() -> Self {
        Self { shared: None, file: String::new(), names: Vec::new() }
    }
}

impl Drop for UnsyncedMarks {
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        let mut table = shared.table();
        let (file, names) = (std::mem::take(&mut self.file), std::mem::take(&mut self.names));
        let is_renamed = |name| table.marks.get(name).is_some_and(|mark: &Mark| mark.renamed.is_some());
        if names.iter().any(is_renamed) {
            table.is_due = true;
        }
        table.ended.insert(file.clone(), names);
        table.remove_unused_file(&shared.folder, &file);
        drop(table);
        shared.changed.notify_all();
    }
}

fn mark_name(item: &Item) -> Option<String> {
    match item {
        Item::Tree(key) => Some(format!("{TREE}{key}")),
        Item::Layer(name) => Some(format!("{LAYER}{name}")),
        // A blob needs no mark, because its name is the digest of its content.
        Item::Blob(_) => None,
    }
}

/// Returns the items of a file.
fn items_in(folder: &Path, file: &str) -> Result<Vec<String>, DiskError> {
    if !file.starts_with(PULL) {
        return Ok(vec![file.to_owned()]);
    }
    let path = folder.join(file);
    let text = std::fs::read(&path).map_err(|error| DiskError::new("read", &path, error))?;
    Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
}

fn quarantine_unsynced(layout: &Layout, mark: &str) -> Result<(), DiskError> {
    let quarantine = layout.quarantine();
    if let Some(key) = mark.strip_prefix(TREE).and_then(TreeKey::parse) {
        tracing::info!(tree = %key, "the machine stopped before a tree was synced to the disk; the tree is quarantined, and built again when a pod requests it");
        return move_to_free_name(&layout.tree(&key), &quarantine, key.as_str());
    }
    match mark.strip_prefix(LAYER).and_then(LayerKey::parse) {
        Some(key) if !layout.layer(&key).join(CHECKSUMS).exists() => {
            move_to_free_name(&layout.layer(&key), &quarantine, mark)
        }
        _ => Ok(()),
    }
}
