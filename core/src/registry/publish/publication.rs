//! What a push consists of: blobs and a manifest.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;

use super::artifact::{Artifact, Content};
use super::error::PublishError;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::manifest::{Descriptor, EntryPlatform, IndexEntry, media};
use crate::patch::{self, Patch};
use crate::recipe::artifact;
use crate::registry::http::{Blob, BlobContent};

/// How much of a file is in memory while it is hashed.
const CHUNK_BYTES: usize = 256 << 10;
/// The empty JSON object (image-spec, manifest.md, "Guidance for an Empty Descriptor").
const EMPTY: &[u8] = b"{}";

/// A manifest to push, with its blobs.
#[derive(Clone, Debug)]
pub struct Publication(Parts);

#[derive(Clone, Debug)]
enum Parts {
    /// A finished manifest and its blobs.
    Finished { blobs: Vec<Bytes>, manifest: Bytes, artifact_type: &'static str, subject: Option<Digest> },
    /// An artifact whose manifest is made when its files are read.
    Artifact(Artifact),
}

/// A publication whose files have been hashed.
pub(super) struct Prepared {
    pub(super) blobs: Vec<Blob>,
    /// An OCI image manifest.
    pub(super) manifest: Bytes,
    pub(super) subject: Option<Digest>,
    artifact_type: String,
}

impl Publication {
    /// Publishes a patch by its manifest.
    pub fn of_patch(patch: &Patch, manifest: Vec<u8>) -> Self {
        Self(Parts::Finished {
            blobs: vec![Bytes::from_static(EMPTY)],
            manifest: manifest.into(),
            artifact_type: patch::ARTIFACT_TYPE,
            subject: Some(patch.base_digest().clone()),
        })
    }

    /// Publishes the YAML text of a recipe.
    pub fn of_recipe(yaml: &str) -> Self {
        Self(Parts::Finished {
            blobs: vec![Bytes::from_static(EMPTY), yaml.to_owned().into()],
            manifest: artifact::to_manifest(yaml).into(),
            artifact_type: artifact::ARTIFACT_TYPE,
            subject: None,
        })
    }

    /// Publishes files or bytes as an artifact.
    pub fn of_artifact(artifact: Artifact) -> Self {
        Self(Parts::Artifact(artifact))
    }

    /// Hashes the blobs and makes the manifest.
    pub(super) async fn prepare(&self) -> Result<Prepared, PublishError> {
        match &self.0 {
            Parts::Finished { blobs, manifest, artifact_type, subject } => Ok(Prepared {
                blobs: blobs.iter().map(blob_of_bytes).collect(),
                manifest: manifest.clone(),
                subject: subject.clone(),
                artifact_type: (*artifact_type).to_owned(),
            }),
            Parts::Artifact(artifact) => prepare_artifact(artifact).await,
        }
    }
}

impl Prepared {
    /// Returns the entry for the list of referrers.
    pub(super) fn referrers_entry(&self, digest: &Digest) -> Value {
        json!({
            "mediaType": media::OCI_MANIFEST,
            "digest": digest,
            "size": self.manifest.len(),
            "artifactType": self.artifact_type,
            "annotations": annotations_of(&self.manifest),
        })
    }
}

async fn prepare_artifact(artifact: &Artifact) -> Result<Prepared, PublishError> {
    let (config_type, config) = match &artifact.config {
        Some((media_type, content)) => (media_type.as_str(), content.clone()),
        None => (media::EMPTY, Bytes::from_static(EMPTY)),
    };
    let config = blob_of_bytes(&config);
    let config_descriptor = descriptor_json(&descriptor_of(config_type, &config), &BTreeMap::new());
    let mut blobs = vec![config];
    let mut layers = Vec::new();
    for layer in &artifact.layers {
        let blob = match &layer.content {
            Content::Bytes(bytes) => blob_of_bytes(bytes),
            Content::File(path) => blob_of_file(path).await?,
        };
        layers.push(descriptor_json(&descriptor_of(&layer.media_type, &blob), &layer.annotations));
        blobs.push(blob);
    }
    if layers.is_empty() {
        let empty = blob_of_bytes(&Bytes::from_static(EMPTY));
        layers.push(descriptor_json(&descriptor_of(media::EMPTY, &empty), &BTreeMap::new()));
        blobs.push(empty);
    }
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "artifactType": artifact.kind,
        "config": config_descriptor,
        "layers": layers,
    });
    if let Some(subject) = &artifact.subject {
        manifest["subject"] = descriptor_json(subject, &BTreeMap::new());
    }
    if !artifact.annotations.is_empty() {
        manifest["annotations"] = json!(artifact.annotations);
    }
    Ok(Prepared {
        blobs,
        manifest: manifest.to_string().into(),
        subject: artifact.subject.as_ref().map(|subject| subject.digest().clone()),
        artifact_type: artifact.kind.clone(),
    })
}

fn blob_of_bytes(bytes: &Bytes) -> Blob {
    Blob {
        digest: Digest::sha256_of(bytes),
        size: bytes.len() as u64,
        content: BlobContent::Bytes(bytes.clone()),
    }
}

async fn blob_of_file(path: &Path) -> Result<Blob, PublishError> {
    let unreadable =
        |error: io::Error| PublishError::File { path: path.to_owned(), reason: error.to_string() };
    let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut size = 0;
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
    while file.read_buf(&mut chunk).await.map_err(unreadable)? > 0 {
        hasher.update(&chunk);
        size += chunk.len() as u64;
        chunk.clear();
    }
    Ok(Blob { digest: hasher.finish(), size, content: BlobContent::File(path.to_owned()) })
}

fn descriptor_of(media_type: &str, blob: &Blob) -> Descriptor {
    Descriptor::new(media_type, blob.digest.clone(), blob.size)
}

fn descriptor_json(descriptor: &Descriptor, annotations: &BTreeMap<String, String>) -> Value {
    let mut object = Map::new();
    object.insert("mediaType".into(), descriptor.media_type().into());
    object.insert("digest".into(), descriptor.digest().to_string().into());
    object.insert("size".into(), descriptor.size().into());
    if !annotations.is_empty() {
        object.insert("annotations".into(), json!(annotations));
    }
    Value::Object(object)
}

/// Returns the annotations of a manifest that this program made.
fn annotations_of(manifest: &[u8]) -> Map<String, Value> {
    let manifest = serde_json::from_slice::<Value>(manifest).unwrap_or_default();
    manifest.get("annotations").and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Converts an entry of an index back to JSON.
pub(super) fn entry_json(entry: &IndexEntry) -> Value {
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
        value["platform"] = platform_json(platform);
    }
    value
}

fn platform_json(platform: &EntryPlatform) -> Value {
    let mut value = json!({"os": platform.os(), "architecture": platform.architecture()});
    if let Some(variant) = platform.variant() {
        value["variant"] = variant.into();
    }
    value
}
