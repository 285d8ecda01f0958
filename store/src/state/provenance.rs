//! Provenance: records which registry and repository served each digest to this node, so that cached bytes
//! are never given to a pod whose repository did not serve them.
//!
//! Knowledge of a digest must not give access to cached bytes. So a manifest, a child of an index, a blob or
//! a tree counts as present only for repositories that have served these exact bytes to this node.
//!
//! ```text
//! STORE/given        a line for each fact: 32 hex digits of a SHA-256, append-only
//! ```
//!
//! A lost fact costs one more download, so facts are not synced, and a line that a crash cut short is
//! ignored. Facts about deleted content are harmless, because that content is downloaded again anyway.
//!
//! Architecture Invariant: a fact is recorded only after all its bytes were received from that repository and
//! their digest was verified.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::reference::{PinnedReference, RegistryHost};

use crate::layout::TreeKey;

/// More facts are not kept: the older half goes.
const MAX_FACTS: usize = 200_000;
const HEX: usize = 32;

/// Half a SHA-256 in hex.
type Fact = [u8; HEX];

/// The facts.
#[derive(Debug)]
pub struct Provenance {
    is_persistent: bool,
    /// Never locked while the disk is used: runtime threads ask what is known.
    known: Mutex<Known>,
    /// Locked before `known`, by threads that may block on the disk.
    file: Mutex<FactFile>,
}

#[derive(Debug, Default)]
struct Known {
    facts: HashSet<Fact>,
    order: VecDeque<Fact>,
}

#[derive(Debug)]
struct FactFile {
    path: PathBuf,
    /// Whether this process has appended to the file.
    has_begun: bool,
}

/// What must be written after new facts were added.
enum Change {
    Append(Vec<u8>),
    /// The older half was dropped: the file is written again in full.
    Replace(Vec<u8>),
}

fn fact(words: &[&str]) -> Fact {
    let digest = Digest::sha256_of(words.join("\n").as_bytes());
    let mut fact = [0; HEX];
    fact.copy_from_slice(&digest.hex().as_bytes()[..HEX]);
    fact
}

impl Provenance {
    /// What an earlier run noted.
    pub(crate) fn read(path: &Path) -> Self {
        let mut known = Known::default();
        match std::fs::read(path) {
            Ok(text) => {
                let whole = text.split_inclusive(|byte| *byte == b'\n');
                let lines = whole.filter_map(|line| Fact::try_from(line.strip_suffix(b"\n")?).ok());
                for fact in lines.filter(|fact| fact.iter().all(u8::is_ascii_hexdigit)) {
                    if known.facts.insert(fact) {
                        known.order.push_back(fact);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "who gave what cannot be read; it is asked for again");
            }
        }
        let file = FactFile { path: path.to_owned(), has_begun: false };
        Self { is_persistent: true, known: Mutex::new(known), file: Mutex::new(file) }
    }

    /// The same facts, which are no longer written to the disk.
    pub(crate) fn in_memory(self) -> Self {
        Self { is_persistent: false, ..self }
    }

    fn has(&self, fact: &Fact) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).facts.contains(fact)
    }

    /// Adds facts, in memory at once and then to the file. Blocks while the disk does.
    fn note(&self, facts: &[Fact]) {
        // A known fact does not wait for the disk.
        if facts.iter().all(|fact| self.has(fact)) {
            return;
        }
        // Taken first, so that the lines reach the file in the order in which facts were added.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let change = self.known.lock().unwrap_or_else(PoisonError::into_inner).add(facts);
        let written = match change {
            Some(Change::Append(lines)) if self.is_persistent => file.append(&lines),
            Some(Change::Replace(text)) if self.is_persistent => file.replace(&text),
            _ => return,
        };
        if let Err(error) = written {
            tracing::warn!(
                path = %file.path.display(), %error,
                "cannot write which registry served which content; after a restart the driver downloads it again"
            );
        }
    }
}

impl Known {
    /// Adds facts; returns what to write if one of them is new.
    fn add(&mut self, facts: &[Fact]) -> Option<Change> {
        let mut new = Vec::new();
        for fact in facts {
            if self.facts.insert(*fact) {
                self.order.push_back(*fact);
                new.push(*fact);
            }
        }
        if new.is_empty() {
            return None;
        }
        if self.facts.len() <= MAX_FACTS {
            return Some(Change::Append(to_lines(&new)));
        }
        for fact in self.order.drain(..MAX_FACTS / 2) {
            self.facts.remove(&fact);
        }
        Some(Change::Replace(to_lines(&self.order)))
    }
}

fn to_lines<'a>(facts: impl IntoIterator<Item = &'a Fact>) -> Vec<u8> {
    facts.into_iter().flat_map(|fact| fact.iter().copied().chain([b'\n'])).collect()
}

impl FactFile {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        // Not kept open: a disk with a file open for writing cannot become read-only.
        let mut file = File::options().create(true).append(true).mode(0o600).open(&self.path)?;
        if !self.has_begun {
            // A crash can have left the last line incomplete.
            file.write_all(b"\n")?;
            self.has_begun = true;
        }
        file.write_all(lines)
    }

    /// Writes the whole file again. Facts can be lost, so it need not be whole at every moment.
    fn replace(&mut self, text: &[u8]) -> io::Result<()> {
        std::fs::write(&self.path, text)?;
        self.has_begun = true;
        Ok(())
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
    /// Whether the repository of `reference` gave content of that digest.
    pub(crate) fn of(&self, reference: &PinnedReference, content: &Digest) -> ServedBy {
        if self.has(&of_repository(&reference.name(), content)) {
            ServedBy::ThisRepository
        } else if self.has(&of_host(reference.registry(), content)) {
            ServedBy::ThisHost
        } else {
            ServedBy::Unknown
        }
    }

    /// The repository of `reference` gave all bytes of `content`.
    pub(crate) fn record(&self, reference: &PinnedReference, content: &Digest) {
        let facts = [of_repository(&reference.name(), content), of_host(reference.registry(), content)];
        self.note(&facts);
    }

    /// Whether all of a tree was given by the repositories that this recipe names.
    pub fn has_tree(&self, key: &TreeKey, recipe: &PinnedRecipe) -> bool {
        self.has(&of_tree(key, recipe))
    }

    /// All of a tree was given by the repositories that this recipe names.
    pub(crate) fn record_tree(&self, key: &TreeKey, recipe: &PinnedRecipe) {
        self.note(&[of_tree(key, recipe)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(count: usize) -> Vec<Fact> {
        (0..count).map(|number| fact(&["t", &number.to_string()])).collect()
    }

    #[test]
    fn facts_outlive_the_process_and_a_line_cut_short_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("given");
        let all = facts(3);
        Provenance::read(&path).note(&all[..2]);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(&all[2][..20]);
        std::fs::write(&path, text).unwrap();
        let again = Provenance::read(&path);
        assert_eq!(all.iter().map(|fact| again.has(fact)).collect::<Vec<_>>(), [true, true, false]);
        again.note(&all);
        let again = Provenance::read(&path);
        assert!(all.iter().all(|fact| again.has(fact)));
        let again = again.in_memory();
        again.note(&facts(5));
        assert!(again.has(&facts(5)[4]) && !Provenance::read(&path).has(&facts(5)[4]), "only in memory");
    }

    #[test]
    fn the_older_half_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("given");
        let all = facts(MAX_FACTS + 1);
        let provenance = Provenance::read(&path);
        provenance.note(&all[..MAX_FACTS]);
        provenance.note(&all[MAX_FACTS..]);
        for provenance in [provenance, Provenance::read(&path)] {
            assert!(
                !provenance.has(&all[0])
                    && provenance.has(&all[MAX_FACTS])
                    && provenance.has(&all[MAX_FACTS / 2])
            );
        }
    }
}
