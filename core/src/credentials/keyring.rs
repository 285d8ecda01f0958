//! Credentials under their keys, and the order in which they are tried.

use std::collections::HashSet;

use crate::reference::RegistryHost;

use super::credential::Credential;
use super::match_image::MatchImage;

/// kubelet's `BasicDockerKeyring` (kubernetes, pkg/credentialprovider/keyring.go).
#[derive(Clone, Debug, Default)]
pub(super) struct Keyring(Vec<(MatchImage, Credential)>);

impl Keyring {
    /// Sorts what was found; entries with the same key stay in the order given.
    pub(super) fn new(mut entries: Vec<(MatchImage, Credential)>) -> Self {
        entries.sort_by(|(one, _), (other, _)| one.order(other));
        Self(entries)
    }

    /// What is for this repository, the most specific key first, none twice.
    pub(super) fn lookup(&self, registry: &RegistryHost, repository: &str) -> Vec<Credential> {
        let entries = self.0.iter().filter(|(key, _)| key.matches(registry, repository));
        without_duplicates(entries.map(|(_, credential)| credential.clone()))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The same in the same order, each where it comes first.
pub(super) fn without_duplicates(credentials: impl IntoIterator<Item = Credential>) -> Vec<Credential> {
    let mut seen = HashSet::new();
    credentials.into_iter().filter(|credential| seen.insert(credential.clone())).collect()
}
