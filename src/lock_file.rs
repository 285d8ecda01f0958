//! The lock file of `oras-csi render --lock`: stores registry answers, so that a later run gives the same result
//! offline.
//!
//! The file holds the digest of each tag, each manifest that was read, and the YAML of each recipe artifact that was
//! read. Manifests and recipes are verified against their digests when the file is loaded.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use oras_csi_core::credentials::Credential;
use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::{Descriptor, IndexEntry, VerifiedManifest};
use oras_csi_core::recipe::artifact;
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{BlobStream, Registry, RegistryError};
use serde::{Deserialize, Serialize};

use crate::exit_status::Failure;

/// The version of the file format.
const FORMAT_VERSION: u32 = 1;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    /// The digest of each tag, by canonical reference.
    references: BTreeMap<String, LockedDescriptor>,
    /// The manifests, by pinned reference and not by digest alone: credentials for one repository give no access to
    /// the same manifest in another.
    manifests: BTreeMap<String, LockedManifest>,
    /// The YAML of recipe artifacts, by the pinned reference of the blob.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    recipes: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LockedDescriptor {
    media_type: String,
    digest: Digest,
    size: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LockedManifest {
    media_type: String,
    content: String,
}

/// A registry client that answers from a lock file first, and adds to it what it reads from the registry.
pub(crate) struct LockedRegistry {
    registry: Arc<dyn Registry>,
    path: PathBuf,
    content: Arc<Mutex<Content>>,
    /// The content of the file as it was loaded.
    loaded: Option<Arc<Content>>,
}

impl LockedRegistry {
    /// Loads the lock file at `path`. A file that does not exist is an empty one.
    pub(crate) fn open(path: &Path, registry: Arc<dyn Registry>) -> Result<Self, Failure> {
        // A symbolic link stays: its target is replaced.
        let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let loaded = match std::fs::read_to_string(path) {
            Ok(text) => Some(parse(path, &text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(Failure::bad_input(format!("cannot read {}: {error}", path.display())));
            }
        };
        let empty = || Content {
            version: FORMAT_VERSION,
            references: BTreeMap::new(),
            manifests: BTreeMap::new(),
            recipes: BTreeMap::new(),
        };
        let content = Arc::new(Mutex::new(loaded.clone().unwrap_or_else(empty)));
        Ok(Self { registry, path: path.to_owned(), content, loaded: loaded.map(Arc::new) })
    }

    /// Replaces the file atomically, if anything was added to it.
    pub(crate) fn save(&self) -> Result<(), Failure> {
        let content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if self.loaded.as_deref() == Some(&*content) {
            return Ok(());
        }
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("cannot write {}: {error}", self.path.display()))
        };
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder.unwrap_or(Path::new(".")))
            .map_err(|error| failed(&error))?;
        let text = serde_json::to_string_pretty(&*content).map_err(|error| failed(&error))?;
        writeln!(file, "{text}").and_then(|()| file.as_file().sync_all()).map_err(|error| failed(&error))?;
        file.persist(&self.path).map_err(|error| failed(&error))?;
        Ok(())
    }

    fn with_content<T>(&self, act: impl FnOnce(&mut Content) -> T) -> T {
        act(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Parses the file and verifies the digests of its manifests and recipes.
fn parse(path: &Path, text: &str) -> Result<Content, Failure> {
    let invalid = |reason: &dyn std::fmt::Display| {
        Failure::bad_input(format!(
            "cannot read lock file {}: {reason}. Delete it to resolve all references again.",
            path.display()
        ))
    };
    let content: Content = serde_json::from_str(text).map_err(|error| invalid(&error))?;
    if content.version != FORMAT_VERSION {
        return Err(invalid(&format_args!(
            "it has format version {}, and this program reads version {FORMAT_VERSION}",
            content.version
        )));
    }
    for (reference, manifest) in &content.manifests {
        let pinned: PinnedReference = reference.parse().map_err(|error| invalid(&error))?;
        verify_manifest(pinned.digest(), manifest)
            .map_err(|error| invalid(&format_args!("manifest {pinned}: {error}")))?;
    }
    for (reference, text) in &content.recipes {
        let pinned: PinnedReference = reference.parse().map_err(|error| invalid(&error))?;
        if !pinned.digest().matches(text.as_bytes()) {
            return Err(invalid(&format_args!("recipe {pinned}: it has another digest")));
        }
    }
    Ok(content)
}

/// Parses a stored manifest and verifies its digest.
fn verify_manifest(
    digest: &Digest,
    manifest: &LockedManifest,
) -> Result<VerifiedManifest, oras_csi_core::manifest::ManifestError> {
    let bytes = Bytes::copy_from_slice(manifest.content.as_bytes());
    VerifiedManifest::verify(digest, Some(&manifest.media_type), bytes)
}

#[async_trait]
impl Registry for LockedRegistry {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        let key = reference.to_string();
        if let Some(known) = self.with_content(|content| content.references.get(&key).cloned()) {
            return Ok(Descriptor::new(known.media_type, known.digest, known.size));
        }
        let found = self.registry.resolve(reference).await?;
        let (media_type, digest) = (found.media_type().to_owned(), found.digest().clone());
        let known = LockedDescriptor { media_type, digest, size: found.size() };
        self.with_content(|content| content.references.insert(key, known));
        Ok(found)
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError> {
        let key = reference.to_string();
        let known = self.with_content(|content| content.manifests.get(&key).cloned());
        if let Some(Ok(known)) = known.map(|known| verify_manifest(reference.digest(), &known)) {
            return Ok(known);
        }
        let found = self.registry.manifest(reference).await?;
        if let Ok(content) = std::str::from_utf8(found.bytes()) {
            let media_type = found.manifest().media_type().to_owned();
            let known = LockedManifest { media_type, content: content.to_owned() };
            self.with_content(|content| content.manifests.insert(key, known));
        }
        Ok(found)
    }

    async fn blob(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        if blob.media_type() != artifact::LAYER_TYPE || offset > 0 {
            return self.registry.blob(reference, blob, offset).await;
        }
        let key = reference.with_digest(blob.digest().clone()).to_string();
        if let Some(text) = self.with_content(|content| content.recipes.get(&key).cloned()) {
            return Ok(Box::pin(stream::once(std::future::ready(Ok(text.into())))));
        }
        let pieces: Vec<Bytes> = self.registry.blob(reference, blob, 0).await?.try_collect().await?;
        let bytes = pieces.concat();
        if blob.digest().matches(&bytes)
            && let Ok(text) = std::str::from_utf8(&bytes)
        {
            self.with_content(|content| content.recipes.insert(key, text.to_owned()));
        }
        Ok(Box::pin(stream::once(std::future::ready(Ok(bytes.into())))))
    }

    async fn referrers(&self, subject: &PinnedReference) -> Result<Vec<IndexEntry>, RegistryError> {
        self.registry.referrers(subject).await
    }

    /// All credentials share the content of the file: it pins digests and gives no pull permission.
    fn with_credential(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry> {
        Arc::new(Self {
            registry: Arc::clone(&self.registry).with_credential(credential),
            path: self.path.clone(),
            content: Arc::clone(&self.content),
            loaded: self.loaded.clone(),
        })
    }
}
