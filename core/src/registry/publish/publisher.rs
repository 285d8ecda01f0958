//! Pushes a publication and adds it to the list of referrers of its subject.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::error::{MAX_INDEX_WRITES, PublishError};
use super::publication::{Prepared, Publication, entry_json};
use crate::digest::Digest;
use crate::display::Printable;
use crate::manifest::{IndexEntry, MAX_ENTRIES, media};
use crate::reference::{PinnedReference, Reference};
use crate::registry::access::{Credentials, combine_refusals, may_depend_on_credential};
use crate::registry::error::RegistryError;
use crate::registry::http::{HttpRegistry, referrers_tag};

/// Pushes to registries with the first credential that is accepted.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use oras_csi_core::reference::Reference;
/// use oras_csi_core::registry::{
///     Anonymous, Artifact, Content, HostsConfig, HttpRegistry, Layer, Publication, Publisher, Settings,
/// };
///
/// # async fn push() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Arc::new(HttpRegistry::new(HostsConfig::load(None)?, Settings::default()));
/// let publisher = Publisher::new(registry, Arc::new(Anonymous));
/// let layer = Layer::new("text/plain", Content::Bytes("hello".into()));
/// let publication = Publication::of_artifact(Artifact::new("application/vnd.example", vec![layer]));
/// let to: Reference = "registry.example/greeting:v1".parse()?;
/// let pushed = publisher.publish(&to, to.tag(), &publication).await?;
/// println!("{}", pushed.reference());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Publisher {
    registry: Arc<HttpRegistry>,
    credentials: Arc<dyn Credentials>,
}

/// A manifest that was pushed, and whether the list of referrers of its subject has it. The push is not undone if the list
/// cannot be written.
#[derive(Clone, Debug)]
#[must_use = "the list of referrers may lack the manifest"]
pub struct Published {
    reference: PinnedReference,
    listed: Result<(), PublishError>,
}

impl Published {
    /// Returns the pinned reference of the manifest.
    pub fn reference(&self) -> &PinnedReference {
        &self.reference
    }

    /// Returns the pinned reference, if the list of referrers has the manifest or needs not.
    pub fn into_listed(self) -> Result<PinnedReference, PublishError> {
        self.listed.map(|()| self.reference)
    }
}

impl Publisher {
    /// Creates a publisher that tries `credentials` in order.
    pub fn new(registry: Arc<HttpRegistry>, credentials: Arc<dyn Credentials>) -> Self {
        Self { registry, credentials }
    }

    /// Pushes to the repository of `to`: under `tag`, or by digest if `tag` is `None`. An error means that the manifest was
    /// not pushed.
    ///
    /// The tag of `to` is not used, because a reference that was parsed from a text without a tag has the tag `latest`.
    pub async fn publish(
        &self,
        to: &Reference,
        tag: Option<&str>,
        publication: &Publication,
    ) -> Result<Published, PublishError> {
        if to.digest().is_some() {
            return Err(PublishError::Digest(Printable::new(&to.to_string())));
        }
        let prepared = publication.prepare().await?;
        for blob in &prepared.blobs {
            let what = format!("the blob {}", blob.digest);
            let put = |registry: HttpRegistry| async move { registry.put_blob(to, blob).await };
            self.try_credentials(to, &what, put).await?;
        }
        let digest = Digest::sha256_of(&prepared.manifest);
        let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
        self.put_manifest(to, &name, media::OCI_MANIFEST, &prepared.manifest, "the manifest").await?;
        let listed = match &prepared.subject {
            Some(subject) => self.add_to_referrers(to, subject, &prepared, &digest).await,
            None => Ok(()),
        };
        Ok(Published { reference: to.pin(digest), listed })
    }

    async fn put_manifest(
        &self,
        to: &Reference,
        name: &str,
        media_type: &'static str,
        bytes: &Bytes,
        what: &str,
    ) -> Result<(), PublishError> {
        let put =
            |registry: HttpRegistry| async move { registry.put_manifest(to, name, media_type, bytes).await };
        self.try_credentials(to, what, put).await
    }

    /// Adds the pushed manifest to the referrers of its subject, unless the registry has the referrers API.
    async fn add_to_referrers(
        &self,
        to: &Reference,
        subject: &Digest,
        prepared: &Prepared,
        pushed: &Digest,
    ) -> Result<(), PublishError> {
        let what = "the list of referrers";
        let by_api = |registry: HttpRegistry| async move { registry.referrers_of_api(to, subject).await };
        if self.try_credentials(to, what, by_api).await?.is_some() {
            return Ok(());
        }
        let tag = referrers_tag(subject);
        let by_tag = |registry: HttpRegistry| async move { registry.referrers_of_tag(to, subject).await };
        let is_listed =
            |entries: &[IndexEntry]| entries.iter().any(|entry| entry.descriptor().digest() == pushed);
        // Registries have no conditional write. A client that read the index before this one wrote it, and writes after,
        // removes this entry again. So every client reads the index again after a delay and repeats the write if its own
        // entry is missing.
        for _ in 0..MAX_INDEX_WRITES {
            let entries = self.try_credentials(to, what, by_tag).await?;
            if is_listed(&entries) {
                return Ok(());
            }
            if entries.len() >= MAX_ENTRIES {
                return Err(PublishError::TooMany(Printable::new(&to.pin(subject.clone()).to_string())));
            }
            let mut manifests: Vec<Value> = entries.iter().map(entry_json).collect();
            manifests.push(prepared.referrers_entry(pushed));
            let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": manifests});
            self.put_manifest(to, &tag, media::OCI_INDEX, &index.to_string().into(), what).await?;
            tokio::time::sleep(recheck_delay(pushed)).await;
        }
        if is_listed(&self.try_credentials(to, what, by_tag).await?) {
            return Ok(());
        }
        let (tag, pushed) = (format!("{}:{tag}", to.name()), to.pin(pushed.clone()));
        Err(PublishError::Contended { tag: tag.into(), pushed: Printable::new(&pushed.to_string()) })
    }

    /// Sends a request with each credential until one is accepted.
    async fn try_credentials<T, F>(
        &self,
        to: &Reference,
        what: &str,
        request: impl Fn(HttpRegistry) -> F,
    ) -> Result<T, PublishError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let failed = |source| PublishError::Registry {
            what: Printable::new(what),
            to: Printable::new(&to.name()),
            source,
        };
        let mut tried = Vec::new();
        for candidate in self.credentials.candidates(to.registry(), to.repository()).await {
            match request(self.registry.authenticated_with(candidate.credential().clone())).await {
                Ok(done) => return Ok(done),
                Err(error) if may_depend_on_credential(&error) => {
                    tried.push((candidate.source().clone(), error));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(combine_refusals(tried).unwrap_or_else(|| RegistryError::NotAllowed {
            at: Printable::new(&to.name()),
            words: "there is no credential to try, not even anonymous".into(),
        })))
    }
}

/// Returns how long other clients get to write an index that they have read. The delay depends on the digest, so that
/// two clients do not stay in step.
fn recheck_delay(pushed: &Digest) -> Duration {
    let spread = pushed.to_string().bytes().rev().take(4).map(u64::from).sum::<u64>();
    Duration::from_millis(150 + spread % 200)
}
