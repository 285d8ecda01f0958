//! Publishing what is attached to something, and small artifacts: patches and recipes.
//!
//! [`Publisher`] writes in the name of whoever has credentials, with the client that reads ([`HttpRegistry`]). What has a
//! `subject` is found through the referrers of that: where a registry keeps no list of them, the index under the
//! referrers tag is brought up to date (OCI distribution-spec 1.1, "Pushing Manifests with Subject").

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::RegistryError;
use super::access::{Candidate, Credentials, may_be_hidden, refused};
use super::http::{HttpRegistry, referrers_tag};
use crate::digest::Digest;
use crate::display::Printable;
use crate::manifest::media;
use crate::manifest::{EntryPlatform, IndexEntry, MAX_ENTRIES};
use crate::patch::{self, Patch};
use crate::recipe::artifact;
use crate::reference::{PinnedReference, Reference};

/// How often the index under a referrers tag is written, while others write it too.
const MOST_TRIES: u32 = 8;

/// Why something was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The registry, or the way there.
    #[error("{what} was not pushed to {to}: {source}")]
    Registry {
        /// Which blob or manifest.
        what: Printable,
        /// Where to.
        to: Printable,
        /// What it said.
        source: RegistryError,
    },
    /// A reference with a digest.
    #[error("{0}: a push makes the digest: leave it out, and write a tag or nothing behind the repository")]
    Digest(Printable),
    /// Others keep writing the same index.
    #[error(
        "the tag {tag}, which lists what is attached there, was written by others {MOST_TRIES} times in a row: what was \
         pushed is {pushed}, and pushing it again lists it"
    )]
    Contended {
        /// The referrers tag.
        tag: Printable,
        /// What is not listed.
        pushed: Printable,
    },
    /// More is attached than is read.
    #[error("more than {MAX_ENTRIES} manifests are attached to {0}: delete some of them first")]
    TooMany(Printable),
}

/// A manifest to publish, with all that it needs.
#[derive(Clone, Debug)]
pub struct Publication {
    blobs: Vec<Bytes>,
    /// An OCI image manifest.
    manifest: Bytes,
    artifact_type: &'static str,
    /// What it is attached to.
    subject: Option<Digest>,
    /// The manifest's own, for the list of what is attached.
    annotations: Map<String, Value>,
}

/// Writes to registries in somebody's name.
#[derive(Clone)]
pub struct Publisher {
    registry: Arc<HttpRegistry>,
    credentials: Arc<dyn Credentials>,
}

impl Publisher {
    /// In the name of whoever has these credentials.
    pub fn new(registry: Arc<HttpRegistry>, credentials: Arc<dyn Credentials>) -> Self {
        Self { registry, credentials }
    }

    /// Publishes in the repository of `to`: under its tag if one is written, else by digest alone. Gives what it is now.
    ///
    /// Where `to` was parsed from a text without a tag, it has the tag `latest`: `tag` says what was meant.
    pub async fn publish(
        &self,
        to: &Reference,
        tag: Option<&str>,
        publication: &Publication,
    ) -> Result<PinnedReference, PublishError> {
        if to.digest().is_some() {
            return Err(PublishError::Digest(Printable::new(&to.to_string())));
        }
        for blob in &publication.blobs {
            let what = format!("the blob {}", Digest::sha256_of(blob));
            let write = |registry: HttpRegistry| async move { registry.put_blob(to, blob).await };
            self.write(to, &what, write).await?;
        }
        let digest = Digest::sha256_of(&publication.manifest);
        let pushed = to.pin(digest.clone());
        let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
        self.put_manifest(to, &name, media::OCI_MANIFEST, &publication.manifest, "the manifest").await?;
        if let Some(subject) = &publication.subject {
            self.list(to, subject, publication, &digest).await?;
        }
        Ok(pushed)
    }

    async fn put_manifest(
        &self,
        to: &Reference,
        name: &str,
        media_type: &'static str,
        bytes: &Bytes,
        what: &str,
    ) -> Result<(), PublishError> {
        let write =
            |registry: HttpRegistry| async move { registry.put_manifest(to, name, media_type, bytes).await };
        self.write(to, what, write).await
    }

    /// Sees to it that what was pushed is among the referrers of its subject.
    async fn list(
        &self,
        to: &Reference,
        subject: &Digest,
        publication: &Publication,
        pushed: &Digest,
    ) -> Result<(), PublishError> {
        let what = "the list of what is attached there";
        let by_api = |registry: HttpRegistry| async move { registry.referrers_of_api(to, subject).await };
        if self.write(to, what, by_api).await?.is_some() {
            return Ok(());
        }
        let tag = referrers_tag(subject);
        let by_tag = |registry: HttpRegistry| async move { registry.referrers_of_tag(to, subject).await };
        let is_there =
            |entries: &[IndexEntry]| entries.iter().any(|entry| entry.descriptor().digest() == pushed);
        // No registry compares before it writes: whoever read before us and writes after us takes us out again. So each
        // looks a moment later whether it is still there, and needs look after nobody else.
        for _ in 0..MOST_TRIES {
            let entries = self.write(to, what, by_tag).await?;
            if is_there(&entries) {
                return Ok(());
            }
            if entries.len() >= MAX_ENTRIES {
                return Err(PublishError::TooMany(Printable::new(&to.pin(subject.clone()).to_string())));
            }
            let mut manifests: Vec<Value> = entries.iter().map(described).collect();
            manifests.push(publication.described(pushed));
            let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": manifests});
            self.put_manifest(to, &tag, media::OCI_INDEX, &index.to_string().into(), what).await?;
            tokio::time::sleep(moment(pushed)).await;
        }
        if is_there(&self.write(to, what, by_tag).await?) {
            return Ok(());
        }
        let (tag, pushed) = (format!("{}:{tag}", to.name()), to.pin(pushed.clone()));
        Err(PublishError::Contended { tag: tag.into(), pushed: Printable::new(&pushed.to_string()) })
    }

    /// Writes with each credential until one is let in.
    async fn write<T, F>(
        &self,
        to: &Reference,
        what: &str,
        write: impl Fn(HttpRegistry) -> F,
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
        for candidate in self.candidates(to).await {
            match write(self.registry.in_the_name_of(candidate.credential().clone())).await {
                Ok(done) => return Ok(done),
                Err(error) if may_be_hidden(&error) => tried.push((candidate.source().clone(), error)),
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(refused(tried).unwrap_or_else(|| RegistryError::NotAllowed {
            at: Printable::new(&to.name()),
            words: "there is no credential to write with, not even nobody's".into(),
        })))
    }

    async fn candidates(&self, to: &Reference) -> Vec<Candidate> {
        self.credentials.candidates(to.registry(), to.repository()).await
    }
}

/// How long others have to write what they have read: not the same for all, so that two do not go on together.
fn moment(pushed: &Digest) -> Duration {
    let spread = pushed.to_string().bytes().rev().take(4).map(u64::from).sum::<u64>();
    Duration::from_millis(150 + spread % 200)
}

impl Publication {
    /// A patch, by its manifest.
    pub fn of_patch(patch: &Patch, manifest: Vec<u8>) -> Self {
        Self {
            blobs: vec![Bytes::from_static(b"{}")],
            annotations: annotations(&manifest),
            manifest: manifest.into(),
            artifact_type: patch::ARTIFACT_TYPE,
            subject: Some(patch.base_digest().clone()),
        }
    }

    /// A recipe, as it is written.
    pub fn of_recipe(yaml: &str) -> Self {
        Self {
            blobs: vec![Bytes::from_static(b"{}"), yaml.to_owned().into()],
            annotations: Map::new(),
            manifest: artifact::to_manifest(yaml).into(),
            artifact_type: artifact::ARTIFACT_TYPE,
            subject: None,
        }
    }

    /// As the list of referrers has it.
    fn described(&self, digest: &Digest) -> Value {
        json!({
            "mediaType": media::OCI_MANIFEST,
            "digest": digest,
            "size": self.manifest.len(),
            "artifactType": self.artifact_type,
            "annotations": self.annotations,
        })
    }
}

/// The annotations of a manifest of ours.
fn annotations(manifest: &[u8]) -> Map<String, Value> {
    let manifest = serde_json::from_slice::<Value>(manifest).unwrap_or_default();
    manifest.get("annotations").and_then(Value::as_object).cloned().unwrap_or_default()
}

/// An entry of an index, written again.
fn described(entry: &IndexEntry) -> Value {
    let descriptor = entry.descriptor();
    let mut value = json!({
        "mediaType": descriptor.media_type(),
        "digest": descriptor.digest(),
        "size": descriptor.size(),
    });
    if let Some(artifact_type) = entry.artifact_type() {
        value["artifactType"] = artifact_type.into();
    }
    if !entry.annotations().is_empty() {
        value["annotations"] = json!(entry.annotations());
    }
    if let Some(platform) = entry.platform() {
        value["platform"] = platform_of(platform);
    }
    value
}

fn platform_of(platform: &EntryPlatform) -> Value {
    let mut value = json!({"os": platform.os(), "architecture": platform.architecture()});
    if let Some(variant) = platform.variant() {
        value["variant"] = variant.into();
    }
    value
}
