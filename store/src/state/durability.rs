//! What can be seen and is not on the disk yet.
//!
//! A tree is mounted once it is whole, which is when the kernel has it; the disk gets it behind that. A killed process
//! loses nothing by that, but a power cut may. So before a tree or a layer gets its name, its *mark* is on the disk,
//! and the mark goes once the rest is there too:
//!
//! ```text
//! mark ─► fsync ─► bytes come ─► rename ─► mounted ┄► syncfs ─► the mark goes
//! ```
//!
//! ```text
//! STORE/unsynced/BOOT/tree-KEY     an empty file each, in a folder for each start of the machine
//! STORE/unsynced/BOOT/layer-KEY
//! ```
//!
//! A mark of another start of the machine says that nobody knows what the disk has. The tree is taken out of sight when
//! the store is opened, and made again for whoever asks: its blobs and layers are compared with what they were before
//! they become part of a tree (`store::integrity`), so that only what is damaged comes again from a registry. A layer
//! that has no checksums any more goes with it.
//!
//! One thread brings to the disk what waits, all at once (`syncfs`). Where the disk refuses, what was waiting counts as
//! damaged: pods keep it, and whoever asks next gets one that is made anew.
//!
//! Architecture Invariant: a tree or a layer that is in sight is on the disk, or its mark is.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::disk::DiskError;
use crate::disk::folders::{make_private_folder, move_to_free_name, names_in, sync_folder};
use crate::layout::{CHECKSUMS, Item, LayerKey, Layout, TreeKey};

const TREE: &str = "tree-";
const LAYER: &str = "layer-";

/// The marks of a store.
#[derive(Debug)]
pub(crate) struct Durability {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    /// That of this start of the machine.
    folder: PathBuf,
    root: OwnedFd,
    table: Mutex<Table>,
    changed: Condvar,
    refusals: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    marks: HashMap<String, Mark>,
    /// What the disk refused, and its words.
    refused: HashMap<String, String>,
    renames: u64,
    is_due: bool,
    is_over: bool,
}

#[derive(Debug, Default)]
struct Mark {
    holders: usize,
    is_durable: bool,
    /// The last rename under it that no sync has followed.
    renamed: Option<u64>,
}

/// What one pull may make. Its marks go when this is dropped, but for those of what was made: they go behind a sync.
#[derive(Debug)]
pub(crate) struct UnsyncedMarks {
    shared: Option<Arc<Shared>>,
    names: Vec<String>,
}

impl Durability {
    /// Reads what an earlier run left: what it left before the machine stopped goes out of sight.
    pub(crate) fn open(layout: &Layout, root: &OwnedFd, boot: &str) -> Result<Self, DiskError> {
        let all = layout.unsynced();
        let folder = all.join(boot);
        let root = root.try_clone().map_err(|error| DiskError::new("open", layout.path(), error))?;
        let mut table = Table::default();
        for name in names_in(&all)? {
            let path = all.join(&name);
            for mark in names_in(&path)? {
                if name == boot {
                    let left = Mark { holders: 0, is_durable: true, renamed: Some(0) };
                    table.marks.insert(mark, left);
                } else {
                    take_out_of_sight(layout, &mark)?;
                }
            }
            if name != boot {
                std::fs::remove_dir_all(&path).map_err(|error| DiskError::new("remove", &path, error))?;
            }
        }
        let is_due = !table.marks.is_empty();
        let (table, changed, refusals) = (Mutex::new(table), Condvar::new(), AtomicU64::new(0));
        let shared = Arc::new(Shared { folder, root, table, changed, refusals });
        let durability = Self { shared, thread: Mutex::default() };
        if is_due {
            durability.wake();
        }
        Ok(durability)
    }

    /// Marks what is about to be made; it is on the disk when this returns.
    pub(crate) fn mark(&self, items: &[Item]) -> Result<UnsyncedMarks, DiskError> {
        self.wake();
        let mut marked = UnsyncedMarks { shared: Some(self.shared.clone()), names: Vec::new() };
        let folder = &self.shared.folder;
        let failed = |path: &Path, error: io::Error| DiskError::new("mark", path, error);
        if !folder.exists() {
            make_private_folder(folder)?;
            for above in [folder.parent(), folder.parent().and_then(Path::parent)].into_iter().flatten() {
                sync_folder(above).map_err(|error| failed(above, error))?;
            }
        }
        let mut table = self.shared.table();
        for name in items.iter().filter_map(name_of) {
            let path = folder.join(&name);
            if !table.marks.contains_key(&name) {
                std::fs::File::create(&path).map_err(|error| failed(&path, error))?;
            }
            table.marks.entry(name.clone()).or_default().holders += 1;
            marked.names.push(name);
        }
        drop(table);
        sync_folder(folder).map_err(|error| failed(folder, error))?;
        let mut table = self.shared.table();
        for name in &marked.names {
            if let Some(mark) = table.marks.get_mut(name) {
                mark.is_durable = true;
            }
        }
        Ok(marked)
    }

    /// Notes that something gets its name at once; says whether it may before it is on the disk.
    pub(crate) fn note_rename(&self, item: &Item) -> bool {
        let mut table = self.shared.table();
        table.renames += 1;
        let number = table.renames;
        let mark = name_of(item).and_then(|name| table.marks.get_mut(&name)).filter(|mark| mark.is_durable);
        mark.is_some_and(|mark| {
            mark.renamed = Some(number);
            true
        })
    }

    /// Why something that can be seen may not be what was written.
    pub(crate) fn refused(&self, item: &Item) -> Option<String> {
        let table = self.shared.table();
        if table.refused.is_empty() {
            return None;
        }
        table.refused.get(&name_of(item)?).cloned()
    }

    /// It is out of sight.
    pub(crate) fn forget(&self, item: &Item) {
        if let Some(name) = name_of(item) {
            self.shared.table().refused.remove(&name);
        }
    }

    /// How often the disk has refused.
    pub(crate) fn refusals(&self) -> u64 {
        self.shared.refusals.load(Ordering::Acquire)
    }

    /// Acts as if the disk had refused to sync everything that waits.
    #[cfg(test)]
    pub(crate) fn refuse_all(&self) {
        let shared = &self.shared;
        let mut table = shared.table();
        let waiting: Vec<(String, u64)> =
            table.marks.iter().filter_map(|(name, mark)| Some((name.clone(), mark.renamed?))).collect();
        assert_eq!(waiting.len(), table.marks.len());
        shared.refusals.fetch_add(1, Ordering::Release);
        table.ended(&shared.folder, waiting, Some(&io::Error::from_raw_os_error(5)));
    }

    /// Sees to it that somebody syncs.
    fn wake(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_some() {
            return;
        }
        let shared = self.shared.clone();
        shared.table().is_due = true;
        let name = "store sync".to_owned();
        match std::thread::Builder::new().name(name).spawn(move || shared.run()) {
            Ok(started) => *thread = Some(started),
            // The marks stay, and the next start goes on with them.
            Err(error) => tracing::warn!(%error, "no thread brings to the disk what is mounted already"),
        }
    }
}

impl Drop for Durability {
    fn drop(&mut self) {
        self.shared.table().is_over = true;
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

    /// Brings to the disk what waits, until the store is closed and nothing does.
    fn run(&self) {
        loop {
            let mut table = self.table();
            while !table.is_due && !table.is_over {
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
                let refused = rustix::fs::syncfs(&self.root).err().map(io::Error::from);
                if refused.is_some() {
                    self.refusals.fetch_add(1, Ordering::Release);
                }
                self.table().ended(&self.folder, waiting, refused.as_ref());
                if let Some(error) = refused {
                    tracing::error!(
                        path = %self.folder.display(), %error,
                        "the disk does not take what was written to the store; what is mounted of it may be damaged, and is made again for whoever asks next"
                    );
                }
            }
        }
    }
}

impl Table {
    /// Takes the marks away of what a sync followed.
    fn ended(&mut self, folder: &Path, waiting: Vec<(String, u64)>, refused: Option<&io::Error>) {
        for (name, number) in waiting {
            let Some(mark) = self.marks.get_mut(&name).filter(|mark| mark.renamed == Some(number)) else {
                continue;
            };
            if let Some(error) = refused {
                self.refused.insert(name.clone(), format!("the disk did not take it: {error}"));
            }
            mark.renamed = None;
            self.let_go(folder, &name);
        }
    }

    /// Takes a mark away that nobody needs.
    fn let_go(&mut self, folder: &Path, name: &str) {
        let is_needed = |mark: &Mark| mark.holders > 0 || mark.renamed.is_some();
        if self.marks.get(name).is_none_or(is_needed) {
            return;
        }
        // What the disk refused is to be taken out of sight should the machine stop.
        if !self.refused.contains_key(name)
            && let Err(error) = std::fs::remove_file(folder.join(name))
        {
            tracing::debug!(name, %error, "a mark of what is on the disk stays");
        }
        self.marks.remove(name);
    }
}

impl UnsyncedMarks {
    /// Of nothing.
    pub(crate) fn none() -> Self {
        Self { shared: None, names: Vec::new() }
    }
}

impl Drop for UnsyncedMarks {
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        let mut table = shared.table();
        for name in self.names.drain(..) {
            let Some(mark) = table.marks.get_mut(&name) else { continue };
            mark.holders -= 1;
            if mark.renamed.is_some() {
                table.is_due = true;
            } else {
                table.let_go(&shared.folder, &name);
            }
        }
        drop(table);
        shared.changed.notify_all();
    }
}

fn name_of(item: &Item) -> Option<String> {
    match item {
        Item::Tree(key) => Some(format!("{TREE}{key}")),
        Item::Layer(name) => Some(format!("{LAYER}{name}")),
        // Its name says what its bytes are.
        Item::Blob(_) => None,
    }
}

fn take_out_of_sight(layout: &Layout, mark: &str) -> Result<(), DiskError> {
    let quarantine = layout.quarantine();
    if let Some(key) = mark.strip_prefix(TREE).and_then(TreeKey::parse) {
        tracing::info!(tree = %key, "the machine stopped before a tree was on the disk; it is made again when it is asked for");
        return move_to_free_name(&layout.tree(&key), &quarantine, key.as_str());
    }
    match mark.strip_prefix(LAYER).and_then(LayerKey::parse) {
        Some(key) if !layout.layer(&key).join(CHECKSUMS).exists() => {
            move_to_free_name(&layout.layer(&key), &quarantine, mark)
        }
        _ => Ok(()),
    }
}
