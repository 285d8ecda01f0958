//! Provenance: records which registry and repository served each digest to this node, so that cached bytes
//! are never given to a pod whose repository did not serve them.
//!
//! Knowledge of a digest must not give access to cached bytes. So a manifest, a child of an index, a blob or
//! a tree counts as present only for repositories that have served these exact bytes to this node.
//!
//! ```text
//! STORE/trees/KEY/served-by              a line for each fact about the tree: 32 hex digits of a SHA-256, append-only
//! STORE/layers/KEY/served-by             the same for a layer
//! STORE/served-by/sha256/HEX             the same for a blob
//! STORE/given                            the facts of an earlier version, about all content; read, never written
//! ```
//!
//! The facts about an item are in a file of their own. It is deleted with the item, and no other item's facts can
//! displace them: a tenant that pulls a large amount of content does not age out the facts of another. An item has
//! at most [`MAX_FACTS`] facts; then the older half goes.
//!
//! A lost fact costs one more download, so facts are not synced, and a line that a crash cut short is
//! ignored. A file whose blob no longer exists is harmless, because that content is downloaded again anyway;
//! garbage collection deletes it.
//!
//! Architecture Invariant: a fact is recorded only after all its bytes were received from that repository and
//! their digest was verified.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oras_csi_core::digest::{Algorithm, Digest};
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::reference::{PinnedReference, RegistryHost};

use crate::disk::folders::{make_private_folder, names_in};
use crate::layout::{Item, Layout, TreeKey};

/// The maximum number of facts about one item. A repository is forgotten only for content that so many others have
/// served as well.
const MAX_FACTS: usize = 1_024;
/// The maximum number of facts in memory that could not be written.
const MAX_UNWRITTEN: usize = 65_536;
/// After this time the facts of an earlier version are deleted. Those that were needed meanwhile were copied.
const KEEP_EARLIER: Duration = Duration::from_hours(30 * 24);
const HEX: usize = 32;

/// Half a SHA-256 in hex.
type Fact = [u8; HEX];

/// The facts. All methods read the disk.
#[derive(Debug)]
pub struct Provenance {
    layout: Layout,
    is_persistent: bool,
    /// The facts of an earlier version.
    earlier: HashSet<Fact>,
    /// The facts that could not be written, or all facts of an ephemeral store. Never locked while the disk is used.
    unwritten: Mutex<HashSet<Fact>>,
}

fn fact(words: &[&str]) -> Fact {
    let digest = Digest::sha256_of(words.join("\n").as_bytes());
    let mut fact = [0; HEX];
    fact.copy_from_slice(&digest.hex().as_bytes()[..HEX]);
    fact
}

/// Returns the complete lines of a file that are facts.
fn facts_in(text: &[u8]) -> impl Iterator<Item = Fact> + '_ {
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let facts = lines.filter_map(|line| Fact::try_from(line.strip_suffix(b"\n")?).ok());
    facts.filter(|fact| fact.iter().all(u8::is_ascii_hexdigit))
}

fn to_lines<'a>(facts: impl IntoIterator<Item = &'a Fact>) -> Vec<u8> {
    facts.into_iter().flat_map(|fact| fact.iter().copied().chain([b'\n'])).collect()
}

fn read_or_empty(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| {
        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            tracing::warn!(path = %path.display(), %error, "cannot read which registry served which content; the driver downloads it again");
        }
        Vec::new()
    })
}

/// Returns the facts of an earlier version, and deletes them when they are old.
fn read_earlier(path: &Path) -> HashSet<Fact> {
    let modified = std::fs::symlink_metadata(path).and_then(|found| found.modified());
    let is_old = modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > KEEP_EARLIER));
    if is_old && std::fs::remove_file(path).is_ok() {
        return HashSet::new();
    }
    facts_in(&read_or_empty(path)).collect()
}

impl Provenance {
    /// Returns the facts of this store.
    pub(crate) fn open(layout: &Layout) -> Self {
        Self {
            is_persistent: true,
            earlier: read_earlier(&layout.earlier_provenance()),
            unwritten: Mutex::default(),
            layout: layout.clone(),
        }
    }

    /// Returns the same facts. New facts are not written to the disk.
    pub(crate) fn in_memory(self) -> Self {
        Self { is_persistent: false, ..self }
    }

    fn unwritten(&self) -> MutexGuard<'_, HashSet<Fact>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the position of the first of `facts` that is known about the item.
    fn find(&self, item: &Item, facts: &[Fact]) -> Option<usize> {
        let unwritten = facts.iter().position(|fact| self.unwritten().contains(fact));
        let written = || {
            let text = read_or_empty(&self.layout.provenance(item));
            let known: HashSet<Fact> = facts_in(&text).filter(|fact| facts.contains(fact)).collect();
            facts.iter().position(|fact| known.contains(fact))
        };
        let earlier = || {
            let found = facts.iter().position(|fact| self.earlier.contains(fact))?;
            // A repository implies its host.
            self.note(item, &facts[found..]);
            Some(found)
        };
        unwritten.or_else(written).or_else(earlier)
    }

    /// Adds facts about an item. Blocks while the disk does.
    fn note(&self, item: &Item, facts: &[Fact]) {
        if self.is_persistent {
            let path = self.layout.provenance(item);
            match self.write(item, &path, facts) {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(
                        path = %path.display(), %error,
                        "cannot write which registry served which content; after a restart the driver downloads it again"
                    );
                }
            }
        }
        let mut unwritten = self.unwritten();
        if self.is_persistent && unwritten.len() >= MAX_UNWRITTEN {
            unwritten.clear();
        }
        unwritten.extend(facts);
    }

    fn write(&self, item: &Item, path: &Path, facts: &[Fact]) -> io::Result<()> {
        // A fact about content that is not in the store has no use.
        if !self.layout.item(item).exists() {
            return Ok(());
        }
        if let (Item::Blob(_), Some(folder)) = (item, path.parent())
            && !folder.exists()
        {
            make_private_folder(folder).map_err(io::Error::other)?;
        }
        // Not kept open: a disk with a file open for writing cannot become read-only.
        let mut file = File::options().create(true).read(true).append(true).mode(0o600).open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let known: Vec<Fact> = facts_in(&text).collect();
        let new: Vec<Fact> = facts.iter().copied().filter(|fact| !known.contains(fact)).collect();
        if new.is_empty() {
            return Ok(());
        }
        if known.len() + new.len() > MAX_FACTS {
            // Facts can be lost, so the file need not be whole at every moment.
            let all: Vec<Fact> = known.into_iter().chain(new).collect();
            return std::fs::write(path, to_lines(&all[all.len().saturating_sub(MAX_FACTS / 2)..]));
        }
        // A crash can have left the last line incomplete.
        let is_cut = text.last().is_some_and(|last| *last != b'\n');
        let start: &[u8] = if is_cut { b"\n" } else { b"" };
        file.write_all(&[start, &to_lines(&new)].concat())
    }

    /// Deletes the facts about a blob that was deleted. The facts about a layer or a tree are in its folder.
    pub(crate) fn forget(&self, item: &Item) {
        if matches!(item, Item::Blob(_)) {
            let _ = std::fs::remove_file(self.layout.provenance(item));
        }
    }

    /// Deletes the facts about blobs that no longer exist, for example after a crash between the two deletions.
    pub(crate) fn forget_missing(&self) {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let folder = self.layout.blob_provenance(algorithm);
            let blobs = self.layout.blobs(algorithm);
            for name in names_in(&folder).unwrap_or_default() {
                if !blobs.join(&name).exists() {
                    let _ = std::fs::remove_file(folder.join(name));
                }
            }
        }
    }
}

/// What this node knows about a digest and a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServedBy {
    /// The repository served this content.
    ThisRepository,
    /// Another repository of the same registry served it, so the registry has it; whether this repository serves it is
    /// not known.
    ThisHost,
    /// This registry has not served it to this node.
    Unknown,
}

fn of_host(host: &RegistryHost, content: &Digest) -> Fact {
    fact(&["host", &host.to_string(), &content.to_string()])
}

fn of_repository(name: &str, content: &Digest) -> Fact {
    fact(&["repository", name, &content.to_string()])
}

fn of_tree(key: &TreeKey, recipe: &PinnedRecipe) -> Fact {
    let names: Vec<String> = recipe.references().map(PinnedReference::name).collect();
    let mut words = vec!["tree", key.as_str()];
    words.extend(names.iter().map(String::as_str));
    fact(&words)
}

impl Provenance {
    /// Returns whether the repository of `reference` served `content`, which is stored as `item`.
    pub(crate) fn of(&self, reference: &PinnedReference, content: &Digest, item: &Item) -> ServedBy {
        let facts = [of_repository(&reference.name(), content), of_host(reference.registry(), content)];
        match self.find(item, &facts) {
            Some(0) => ServedBy::ThisRepository,
            Some(_) => ServedBy::ThisHost,
            None => ServedBy::Unknown,
        }
    }

    /// Records that the repository of `reference` served all bytes of `content`, which is stored as `item`.
    pub(crate) fn record(&self, reference: &PinnedReference, content: &Digest, item: &Item) {
        let facts = [of_repository(&reference.name(), content), of_host(reference.registry(), content)];
        self.note(item, &facts);
    }

    /// Reports whether all of a tree was served by the repositories that this recipe names.
    pub fn has_tree(&self, key: &TreeKey, recipe: &PinnedRecipe) -> bool {
        self.find(&Item::Tree(key.clone()), &[of_tree(key, recipe)]).is_some()
    }

    /// Records that all of a tree was served by the repositories that this recipe names.
    pub(crate) fn record_tree(&self, key: &TreeKey, recipe: &PinnedRecipe) {
        self.note(&Item::Tree(key.clone()), &[of_tree(key, recipe)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        _folder: tempfile::TempDir,
        layout: Layout,
    }

    impl Case {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let layout = Layout::new(folder.path());
            std::fs::create_dir_all(layout.tree(&key("a"))).unwrap();
            Self { _folder: folder, layout }
        }

        fn open(&self) -> Provenance {
            Provenance::open(&self.layout)
        }

        /// Returns a blob that exists.
        fn blob(&self, text: &str) -> Item {
            let digest = Digest::sha256_of(text.as_bytes());
            let path = self.layout.blob(&digest);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            Item::Blob(digest)
        }
    }

    fn key(digit: &str) -> TreeKey {
        TreeKey::parse(&digit.repeat(64)).unwrap()
    }

    fn facts(count: usize) -> Vec<Fact> {
        (0..count).map(|number| fact(&["t", &number.to_string()])).collect()
    }

    fn has(provenance: &Provenance, item: &Item, fact: &Fact) -> bool {
        provenance.find(item, &[*fact]).is_some()
    }

    #[test]
    fn facts_outlive_the_process_and_an_incomplete_line_is_none() {
        let case = Case::new();
        for item in [Item::Tree(key("a")), case.blob("b")] {
            let all = facts(3);
            case.open().note(&item, &all[..2]);
            let path = case.layout.provenance(&item);
            let mut text = std::fs::read(&path).unwrap();
            text.extend_from_slice(&all[2][..20]);
            std::fs::write(&path, text).unwrap();
            let again = case.open();
            assert_eq!(
                all.iter().map(|fact| has(&again, &item, fact)).collect::<Vec<_>>(),
                [true, true, false]
            );
            again.note(&item, &all);
            let again = case.open();
            assert!(all.iter().all(|fact| has(&again, &item, fact)));
            let again = again.in_memory();
            again.note(&item, &facts(5));
            assert!(has(&again, &item, &facts(5)[4]) && !has(&case.open(), &item, &facts(5)[4]));
        }
    }

    #[test]
    fn facts_about_other_content_do_not_displace_facts() {
        let case = Case::new();
        let (mine, provenance) = (Item::Tree(key("a")), case.open());
        let fact_of_mine = fact(&["mine"]);
        provenance.note(&mine, &[fact_of_mine]);
        for number in 0..500 {
            provenance.note(&case.blob(&number.to_string()), &facts(2));
        }
        // More than an earlier version kept about all content together.
        provenance.note(&case.blob("many"), &facts(200_001));
        assert!(has(&provenance, &mine, &fact_of_mine) && has(&case.open(), &mine, &fact_of_mine));
        assert!(std::fs::metadata(case.layout.provenance(&case.blob("many"))).unwrap().len() < 1 << 16);
    }

    #[test]
    fn the_older_half_of_the_facts_about_one_item_goes() {
        let case = Case::new();
        let (item, all) = (case.blob("b"), facts(MAX_FACTS + 1));
        let provenance = case.open();
        provenance.note(&item, &all[..MAX_FACTS]);
        assert!(has(&provenance, &item, &all[0]));
        provenance.note(&item, &all[MAX_FACTS..]);
        let provenance = case.open();
        assert!(!has(&provenance, &item, &all[0]) && has(&provenance, &item, &all[MAX_FACTS]));
        assert!(has(&provenance, &item, &all[MAX_FACTS - 1]));
        assert!(std::fs::metadata(case.layout.provenance(&item)).unwrap().len() <= 33 * MAX_FACTS as u64);
    }

    #[test]
    fn facts_end_with_their_content() {
        let case = Case::new();
        let (kept, deleted, provenance) = (case.blob("kept"), case.blob("deleted"), case.open());
        let never = Item::Blob(Digest::sha256_of(b"never stored"));
        for item in [&kept, &deleted, &never] {
            provenance.note(item, &facts(1));
        }
        assert!(!case.layout.provenance(&never).exists(), "a fact without content is not written");
        std::fs::remove_file(case.layout.item(&deleted)).unwrap();
        provenance.forget_missing();
        assert!(!case.layout.provenance(&deleted).exists());
        assert!(has(&provenance, &kept, &facts(1)[0]));
        provenance.forget(&kept);
        assert!(!has(&provenance, &kept, &facts(1)[0]));
    }

    #[test]
    fn the_facts_of_an_earlier_version_are_copied_when_they_are_needed() {
        let case = Case::new();
        let (item, other, all) = (case.blob("b"), case.blob("c"), facts(2));
        let path = case.layout.earlier_provenance();
        std::fs::write(&path, to_lines(&all)).unwrap();
        let provenance = case.open();
        assert!(has(&provenance, &item, &all[0]));
        std::fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(std::time::SystemTime::now() - KEEP_EARLIER * 2))
            .unwrap();
        let provenance = case.open();
        assert!(!path.exists(), "deleted when it is old");
        assert!(has(&provenance, &item, &all[0]) && !has(&provenance, &other, &all[1]));
    }

    #[test]
    fn facts_that_cannot_be_written_are_known_until_the_process_ends() {
        let case = Case::new();
        let item = Item::Tree(key("a"));
        std::fs::create_dir(case.layout.provenance(&item)).unwrap();
        let provenance = case.open();
        provenance.note(&item, &facts(1));
        assert!(has(&provenance, &item, &facts(1)[0]));
    }
}
