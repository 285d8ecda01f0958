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
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    facts: HashSet<Fact>,
    order: VecDeque<Fact>,
    /// Where they are kept, where they are.
    path: Option<PathBuf>,
    /// This process has written there.
    has_begun: bool,
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
        let mut known = Known { path: Some(path.to_owned()), ..Known::default() };
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
        Self { is_persistent: true, known: Mutex::new(known) }
    }

    /// The same facts, which are no longer written to the disk.
    pub(crate) fn in_memory(self) -> Self {
        Self { is_persistent: false, ..self }
    }

    fn has(&self, fact: &Fact) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).facts.contains(fact)
    }

    fn note(&self, facts: &[Fact]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = Vec::new();
        for fact in facts {
            if known.facts.insert(*fact) {
                known.order.push_back(*fact);
                lines.extend_from_slice(fact);
                lines.push(b'\n');
            }
        }
        if !self.is_persistent || lines.is_empty() {
            return;
        }
        let written = if known.facts.len() > MAX_FACTS { known.halve() } else { known.append(&lines) };
        if let Err(error) = written {
            tracing::warn!(%error, "who gave what is not written down; after a start it is asked for again");
        }
    }
}

impl Known {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        // Not held open: a disk with a file open for writing cannot become read-only.
        let mut file = File::options().create(true).append(true).mode(0o600).open(path)?;
        if !self.has_begun {
            // There may be a line that was cut short.
            file.write_all(b"\n")?;
            self.has_begun = true;
        }
        file.write_all(lines)
    }

    /// Forgets the older half, and writes the rest anew.
    fn halve(&mut self) -> io::Result<()> {
        for fact in self.order.drain(..MAX_FACTS / 2) {
            self.facts.remove(&fact);
        }
        let Some(path) = &self.path else { return Ok(()) };
        let text: Vec<u8> = self.order.iter().flat_map(|fact| fact.iter().copied().chain([b'\n'])).collect();
        // Facts are what may be lost, so it need not be whole at every moment.
        std::fs::write(path, text)
    }
}

/// What is known of one content and one repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServedBy {
    /// It gave these bytes.
    ThisRepository,
    /// Another repository of the same registry did: it has them, and may or may not give them here.
    ThisHost,
    /// Nobody knows.
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
