//! Registry access with several credentials: each is tried in order until the registry accepts one.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::api::{BlobStream, Registry};
use super::error::{RegistryError, RegistryErrorKind};
use crate::credentials::{Administrator, Credential, DockerConfig};
use crate::display::Shown;
use crate::manifest::{Descriptor, IndexEntry, VerifiedManifest};
use crate::reference::{PinnedReference, Reference, RegistryHost};

/// How many credentials are tried for one repository. Each one costs a request.
const MAX_CANDIDATES: usize = 16;

/// The source of a credential.
///
/// ```
/// use oras_csi_core::registry::Source;
///
/// assert_eq!(Source::Secret("regcred".into()).to_string(), "secret regcred");
/// assert_eq!(Source::Anonymous.to_string(), "no credentials");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A Secret, by its name.
    Secret(String),
    /// The Secret in the volume's `nodePublishSecretRef`.
    VolumeSecret,
    /// The administrator's docker config, credential helpers and credential providers.
    Administrator,
    /// No credential: the request is anonymous.
    Anonymous,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "secret {}", Shown::new(name)),
            Self::VolumeSecret => f.write_str("the volume's pull secret"),
            Self::Administrator => f.write_str("the administrator's credentials"),
            Self::Anonymous => f.write_str("no credentials"),
        }
    }
}

/// A credential and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    source: Source,
    credential: Credential,
}

impl Candidate {
    /// Creates a candidate.
    pub fn new(source: Source, credential: Credential) -> Self {
        Self { source, credential }
    }

    /// Returns the anonymous candidate.
    pub fn anonymous() -> Self {
        Self::new(Source::Anonymous, Credential::Anonymous)
    }

    /// Returns the source of the credential.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Returns the credential.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }
}

/// Returns the credentials for a repository.
#[async_trait]
pub trait Credentials: Send + Sync + 'static {
    /// Returns the credentials to try, in order.
    async fn candidates(&self, registry: &RegistryHost, repository: &str) -> Vec<Candidate>;
}

/// [`Credentials`] that are always anonymous.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    async fn candidates(&self, _registry: &RegistryHost, _repository: &str) -> Vec<Candidate> {
        vec![Candidate::anonymous()]
    }
}

/// Pull secrets in their order, then the administrator's credentials, then anonymous.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    secrets: Vec<(Source, Arc<DockerConfig>)>,
    administrator: Option<Administrator>,
    /// The source under which the administrator's credentials are reported.
    substitute_for: Option<Source>,
}

impl Keyring {
    /// Creates a keyring with the administrator's credentials and without secrets.
    pub fn new(administrator: Option<Administrator>) -> Self {
        Self { secrets: Vec::new(), administrator, substitute_for: None }
    }

    /// Removes the secrets of all sources but one.
    #[must_use]
    pub fn only(&self, source: &Source) -> Self {
        let mut keyring = self.clone();
        keyring.secrets.retain(|(from, _)| from == source);
        keyring
    }

    /// Uses the administrator's credentials as a substitute for a secret that this program cannot read. They are
    /// reported under the source of that secret.
    #[must_use]
    pub fn with_substitute_for(mut self, source: Source) -> Self {
        self.substitute_for = Some(source);
        self
    }

    /// Returns the pull secrets with an entry for a repository, in their order. Sends no request.
    pub fn secrets_for(&self, registry: &RegistryHost, repository: &str) -> impl Iterator<Item = &Source> {
        let has_entry = move |(_, secret): &&(Source, Arc<DockerConfig>)| {
            !secret.credentials_for(registry, repository).is_empty()
        };
        self.secrets.iter().filter(has_entry).map(|(source, _)| source)
    }

    /// Adds a pull secret after the existing ones.
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
                tracing::warn!(%registry, %problem, "cannot look up a credential of the administrator");
            }
            let source = self.substitute_for.clone().unwrap_or(Source::Administrator);
            let found = found.credentials.into_iter();
            candidates.extend(found.map(|credential| Candidate::new(source.clone(), credential)));
        }
        let mut seen = HashSet::new();
        candidates.retain(|candidate| seen.insert(candidate.credential.fingerprint()));
        candidates.truncate(MAX_CANDIDATES);
        candidates.push(Candidate::anonymous());
        candidates
    }
}

/// Reports whether another credential may be accepted after this error. Registries also hide private content with a
/// 404, token services answer an expired refresh token with 400 (RFC 6749, 5.2), and some answer unknown credentials with
/// a page.
pub fn may_depend_on_credential(error: &RegistryError) -> bool {
    match error {
        RegistryError::Refused { status, .. } => matches!(status, 400 | 401 | 403),
        error => matches!(error.kind(), RegistryErrorKind::NotFound | RegistryErrorKind::Authentication),
    }
}

/// Combines the errors of all tried credentials into one: the first "not found", else the first refusal, with the
/// sources of all credentials. Returns `None` if no credential was tried.
pub fn combine_refusals(mut tried: Vec<(Source, RegistryError)>) -> Option<RegistryError> {
    let sources = tried.iter().map(|(source, _)| source.to_string()).collect::<Vec<_>>().join(", ");
    let found = tried.iter().position(|(_, error)| error.kind() == RegistryErrorKind::NotFound);
    if tried.is_empty() {
        return None;
    }
    let (_, error) = tried.swap_remove(found.unwrap_or(0));
    Some(error.with_tried_credentials(&sources))
}

/// Returns an error that ends the search for a credential. A 429 gets the sources of the credentials that were tried,
/// because an anonymous client has another limit than a user.
pub fn with_sources(error: RegistryError, tried: &[(Source, RegistryError)], last: &Source) -> RegistryError {
    if error.kind() != RegistryErrorKind::RateLimited {
        return error;
    }
    let sources = tried.iter().map(|(source, _)| source).chain([last]);
    error.with_tried_credentials(&sources.map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

/// A [`Registry`] that tries credentials in order until one is accepted, and then uses that one for the repository.
pub struct Access {
    registry: Arc<dyn Registry>,
    credentials: Arc<dyn Credentials>,
    accepted: Mutex<HashMap<(RegistryHost, String), Candidate>>,
}

impl Access {
    /// Creates access to `registry` with `credentials`.
    pub fn new(registry: Arc<dyn Registry>, credentials: Arc<dyn Credentials>) -> Self {
        Self { registry, credentials, accepted: Mutex::default() }
    }

    /// Returns the source of the credential that was accepted for a repository, after a successful request.
    pub fn accepted_source(&self, registry: &RegistryHost, repository: &str) -> Option<Source> {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.get(&(registry.clone(), repository.to_owned())).map(|candidate| candidate.source.clone())
    }

    async fn candidates(&self, registry: &RegistryHost, repository: &str) -> Vec<Candidate> {
        let key = (registry.clone(), repository.to_owned());
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let mut candidates = self.credentials.candidates(registry, repository).await;
        if let Some(accepted) = accepted {
            candidates.retain(|candidate| *candidate != accepted);
            candidates.insert(0, accepted);
        }
        candidates
    }

    async fn try_candidates<T, F>(
        &self,
        registry: &RegistryHost,
        repository: &str,
        request: impl Fn(Arc<dyn Registry>) -> F,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>> + Send,
    {
        let mut tried = Vec::new();
        for candidate in self.candidates(registry, repository).await {
            match request(Arc::clone(&self.registry).with_credential(candidate.credential.clone())).await {
                Ok(found) => {
                    let key = (registry.clone(), repository.to_owned());
                    self.accepted.lock().unwrap_or_else(PoisonError::into_inner).insert(key, candidate);
                    return Ok(found);
                }
                Err(error) if may_depend_on_credential(&error) => tried.push((candidate.source, error)),
                Err(error) => return Err(with_sources(error, &tried, &candidate.source)),
            }
        }
        Err(combine_refusals(tried).unwrap_or_else(|| RegistryError::NotAllowed {
            at: format!("{registry}/{repository}").into(),
            words: "there is no credential to try, not even anonymous".into(),
        }))
    }
}

#[async_trait]
impl Registry for Access {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        self.try_candidates(reference.registry(), reference.repository(), |registry| async move {
            registry.resolve(reference).await
        })
        .await
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError> {
        self.try_candidates(reference.registry(), reference.repository(), |registry| async move {
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
        self.try_candidates(reference.registry(), reference.repository(), |registry| async move {
            registry.blob(reference, blob, offset).await
        })
        .await
    }

    async fn referrers(&self, subject: &PinnedReference) -> Result<Vec<IndexEntry>, RegistryError> {
        self.try_candidates(subject.registry(), subject.repository(), |registry| async move {
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
        self.try_candidates(reference.registry(), reference.repository(), |registry| {
            let range = range.clone();
            async move { registry.part(reference, blob, range).await }
        })
        .await
    }

    fn with_credential(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry> {
        Arc::clone(&self.registry).with_credential(credential)
    }
}
