//! Registries as one person sees them: credentials in turn, until one is let in.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{BlobStream, Registry, RegistryError, RegistryErrorKind};
use crate::credentials::{Administrator, Credential, DockerConfig};
use crate::display::Shown;
use crate::manifest::{Descriptor, IndexEntry, VerifiedManifest};
use crate::reference::{PinnedReference, Reference, RegistryHost};

/// More credentials for one repository are not tried: each costs a request.
const MOST_CANDIDATES: usize = 16;

/// Where a credential comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A Secret, by its name.
    Secret(String),
    /// The Secret that came with a volume.
    OfVolume,
    /// The administrator's docker config, credential helpers and providers.
    Administrator,
    /// Nowhere: nobody in particular asks.
    Anonymous,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "secret {}", Shown::new(name)),
            Self::OfVolume => f.write_str("the volume's pull secret"),
            Self::Administrator => f.write_str("the administrator's credentials"),
            Self::Anonymous => f.write_str("no credentials"),
        }
    }
}

/// A credential and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    source: Source,
    credential: Credential,
}

impl Candidate {
    /// A credential that came from `source`.
    pub fn new(source: Source, credential: Credential) -> Self {
        Self { source, credential }
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self::new(Source::Anonymous, Credential::Anonymous)
    }

    /// Where it comes from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The credential.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }
}

/// Knows the credentials for a repository.
#[async_trait]
pub trait Credentials: Send + Sync + 'static {
    /// Those that may be tried, in their order.
    async fn candidates(&self, registry: &RegistryHost, repository: &str) -> Vec<Candidate>;
}

/// [`Credentials`] of nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    async fn candidates(&self, _registry: &RegistryHost, _repository: &str) -> Vec<Candidate> {
        vec![Candidate::anonymous()]
    }
}

/// Pull secrets in their order, then the administrator's credentials, then nobody's.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    secrets: Vec<(Source, Arc<DockerConfig>)>,
    administrator: Option<Administrator>,
    /// What the administrator's credentials stand for.
    in_place_of: Option<Source>,
}

impl Keyring {
    /// What the administrator gave, and nothing else.
    pub fn new(administrator: Option<Administrator>) -> Self {
        Self { secrets: Vec::new(), administrator, in_place_of: None }
    }

    /// Without the secrets of all sources but one.
    #[must_use]
    pub fn only(&self, source: &Source) -> Self {
        let mut one = self.clone();
        one.secrets.retain(|(from, _)| from == source);
        one
    }

    /// With the administrator's credentials in the place of a secret that nobody here can read.
    #[must_use]
    pub fn in_place_of(mut self, source: Source) -> Self {
        self.in_place_of = Some(source);
        self
    }

    /// The pull secrets with an entry for a repository, in their order. Nobody is asked.
    pub fn secrets_for(&self, registry: &RegistryHost, repository: &str) -> impl Iterator<Item = &Source> {
        let has_entry = move |(_, secret): &&(Source, Arc<DockerConfig>)| {
            !secret.credentials_for(registry, repository).is_empty()
        };
        self.secrets.iter().filter(has_entry).map(|(source, _)| source)
    }

    /// With one pull secret more, behind those that are there.
    #[must_use]
    pub fn with_secret(mut self, source: Source, secret: Arc<DockerConfig>) -> Self {
        self.secrets.push((source, secret));
        self
    }
}

#[async_trait]
impl Credentials for Keyring {
    async fn candidates(&self, registry: &RegistryHost, repository: &str) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for (source, secret) in &self.secrets {
            let found = secret.credentials_for(registry, repository).into_iter();
            candidates.extend(found.map(|credential| Candidate::new(source.clone(), credential)));
        }
        if let Some(administrator) = &self.administrator {
            let found = administrator.lookup(registry, repository).await;
            for problem in found.problems {
                tracing::warn!(%registry, %problem, "a credential of the administrator's may be missing");
            }
            let source = self.in_place_of.clone().unwrap_or(Source::Administrator);
            let found = found.credentials.into_iter();
            candidates.extend(found.map(|credential| Candidate::new(source.clone(), credential)));
        }
        let mut seen = HashSet::new();
        candidates.retain(|candidate| seen.insert(candidate.credential.fingerprint()));
        candidates.truncate(MOST_CANDIDATES);
        candidates.push(Candidate::anonymous());
        candidates
    }
}

/// Whether another credential may be let in where this one was not. Registries hide what is private behind a
/// 404 as well, and token services say 400 to a refresh token that has ended (RFC 6749, 5.2).
pub fn may_be_hidden(error: &RegistryError) -> bool {
    match error {
        RegistryError::Refused { status, .. } => matches!(status, 400 | 401 | 403),
        error => error.kind() == RegistryErrorKind::NotFound,
    }
}

/// What is told when nobody was let in: the first answer of a registry that let somebody look and found
/// nothing, else the first refusal; with all who were tried.
pub fn refused(mut tried: Vec<(Source, RegistryError)>) -> Option<RegistryError> {
    let sources = tried.iter().map(|(source, _)| source.to_string()).collect::<Vec<_>>().join(", ");
    let found = tried.iter().position(|(_, error)| error.kind() == RegistryErrorKind::NotFound);
    if tried.is_empty() {
        return None;
    }
    let (_, error) = tried.swap_remove(found.unwrap_or(0));
    Some(error.asked_as(&sources))
}

/// A [`Registry`] that asks with each of somebody's credentials until one is let in, and stays with that one for
/// the repository.
pub struct Access {
    registry: Arc<dyn Registry>,
    credentials: Arc<dyn Credentials>,
    chosen: Mutex<HashMap<(RegistryHost, String), Candidate>>,
}

impl Access {
    /// `registry` in the name of whoever has these credentials.
    pub fn new(registry: Arc<dyn Registry>, credentials: Arc<dyn Credentials>) -> Self {
        Self { registry, credentials, chosen: Mutex::default() }
    }

    /// Whose credential was let in, once something was asked.
    pub fn let_in(&self, registry: &RegistryHost, repository: &str) -> Option<Source> {
        let chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        chosen.get(&(registry.clone(), repository.to_owned())).map(|candidate| candidate.source.clone())
    }

    async fn candidates(&self, registry: &RegistryHost, repository: &str) -> Vec<Candidate> {
        let key = (registry.clone(), repository.to_owned());
        let known = self.chosen.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let mut candidates = self.credentials.candidates(registry, repository).await;
        if let Some(known) = known {
            candidates.retain(|candidate| *candidate != known);
            candidates.insert(0, known);
        }
        candidates
    }

    async fn ask<T, F>(
        &self,
        registry: &RegistryHost,
        repository: &str,
        ask: impl Fn(Arc<dyn Registry>) -> F,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>> + Send,
    {
        let mut tried = Vec::new();
        for candidate in self.candidates(registry, repository).await {
            match ask(Arc::clone(&self.registry).seen_by(candidate.credential.clone())).await {
                Ok(found) => {
                    let key = (registry.clone(), repository.to_owned());
                    self.chosen.lock().unwrap_or_else(PoisonError::into_inner).insert(key, candidate);
                    return Ok(found);
                }
                Err(error) if may_be_hidden(&error) => tried.push((candidate.source, error)),
                Err(error) => return Err(error),
            }
        }
        Err(refused(tried).unwrap_or_else(|| RegistryError::NotAllowed {
            at: format!("{registry}/{repository}").into(),
            words: "there is no credential to ask with, not even nobody's".into(),
        }))
    }
}

#[async_trait]
impl Registry for Access {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        self.ask(reference.registry(), reference.repository(), |registry| async move {
            registry.resolve(reference).await
        })
        .await
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError> {
        self.ask(reference.registry(), reference.repository(), |registry| async move {
            registry.manifest(reference).await
        })
        .await
    }

    async fn blob(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        self.ask(reference.registry(), reference.repository(), |registry| async move {
            registry.blob(reference, blob, offset).await
        })
        .await
    }

    async fn referrers(&self, subject: &PinnedReference) -> Result<Vec<IndexEntry>, RegistryError> {
        self.ask(subject.registry(), subject.repository(), |registry| async move {
            registry.referrers(subject).await
        })
        .await
    }

    async fn part(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        self.ask(reference.registry(), reference.repository(), |registry| {
            let range = range.clone();
            async move { registry.part(reference, blob, range).await }
        })
        .await
    }

    fn seen_by(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry> {
        Arc::clone(&self.registry).seen_by(credential)
    }
}
