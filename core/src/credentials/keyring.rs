//! Credentials by key, in the order in which they are tried.

use std::collections::HashSet;

use crate::reference::RegistryHost;

use super::credential::Credential;
use super::match_image::MatchImage;

/// Credentials by key, as in kubelet's `BasicDockerKeyring` (kubernetes, pkg/credentialprovider/keyring.go).
#[derive(Clone, Debug, Default)]
pub(super) struct Keyring(Vec<(MatchImage, Credential)>);

impl Keyring {
    /// Sorts the entries by specificity. Entries with the same key keep their order.
    pub(super) fn new(mut entries: Vec<(MatchImage, Credential)>) -> Self {
        entries.sort_by(|(one, _), (other, _)| one.compare_specificity(other));
        Self(entries)
    }

    /// Returns the credentials for a repository, the most specific key first and without duplicates.
    pub(super) fn lookup(&self, registry: &RegistryHost, repository: &str) -> Vec<Credential> {
        let entries = self.0.iter().filter(|(key, _)| key.matches(registry, repository));
        without_duplicates(entries.map(|(_, credential)| credential.clone()))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Removes duplicates and keeps the order of the first occurrences.
pub(super) fn without_duplicates(credentials: impl IntoIterator<Item = Credential>) -> Vec<Credential> {
    let mut seen = HashSet::new();
    credentials.into_iter().filter(|credential| seen.insert(credential.clone())).collect()
}
