//! Manifests and indexes. This module is the only one that parses their JSON, and it does no I/O.
//!
//! It accepts the manifests of OCI image-spec 1.1 (manifest.md, image-index.md, descriptor.md) and Docker's schema 2
//! manifest and manifest list, which have the same shape. The `Content-Type`, the `mediaType` field and the other
//! fields must agree whether it is an image or an index: a document that is an image to one reader and an index to
//! another is rejected (CVE-2021-41190). Proxy caches send the `Content-Type` of Docker for an OCI document or the other
//! way round. That is accepted, and the `mediaType` field counts, because it has the digest.
//!
//! Earlier tools wrote patches as the artifact manifest of the release candidates of image-spec 1.1. Such a manifest
//! is accepted for patches only: it becomes an image without layers, whose subject can have the name `refers`.

mod descriptor;
mod error;
mod fields;
pub mod files;
pub mod known_files;
pub mod layer_kind;
pub mod media;
mod strict_json;
#[cfg(test)]
mod tests;
mod verified;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use self::fields::Object;
use crate::digest::Digest;
use crate::display::Printable;
use crate::platform::Platform;

pub use self::descriptor::Descriptor;
pub use self::error::{ManifestError, SelectError};
pub use self::files::{FileContent, FileLimits, LayerFiles, LayerSelection, PlanError};
pub use self::layer_kind::LayerKind;
pub use self::verified::VerifiedManifest;

/// The maximum number of layers of an image and of manifests of an index.
pub const MAX_ENTRIES: usize = 4_096;

/// A parsed manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manifest {
    /// An image or an artifact.
    Image(ImageManifest),
    /// An index: one manifest per platform.
    Index(Index),
}

/// The manifest of an image or an artifact (image-spec, manifest.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageManifest {
    media_type: &'static str,
    config: Descriptor,
    artifact_type: Option<String>,
    layers: Vec<LayerDescriptor>,
    subject: Option<Descriptor>,
    annotations: BTreeMap<String, String>,
}

/// A layer of an image or artifact: its descriptor and its annotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDescriptor {
    descriptor: Descriptor,
    annotations: BTreeMap<String, String>,
}

/// An image index or manifest list (image-spec, image-index.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    media_type: &'static str,
    artifact_type: Option<String>,
    entries: Vec<IndexEntry>,
    subject: Option<Descriptor>,
    annotations: BTreeMap<String, String>,
}

/// An entry of an index: one manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    descriptor: Descriptor,
    platform: Option<EntryPlatform>,
    artifact_type: Option<String>,
    annotations: BTreeMap<String, String>,
}

/// The platform of an index entry, as the index states it. Unlike a [`Platform`], it can have any value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Manifest {
    /// Parses a manifest. `media_type` is the `Content-Type` of the response, if there was one.
    pub fn parse(media_type: Option<&str>, bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::parse_with_origin(media_type, bytes).map(|(manifest, _)| manifest)
    }

    /// Parses a manifest. Also returns whether its bytes alone say what kind it is, without the `Content-Type`.
    fn parse_with_origin(media_type: Option<&str>, bytes: &[u8]) -> Result<(Self, bool), ManifestError> {
        let value =
            strict_json::parse(bytes).map_err(|error| ManifestError::Json(error.to_string().into()))?;
        let Value::Object(map) = value else {
            return Err(ManifestError::Json("the value is not an object".into()));
        };
        let top = Object::new(String::new(), &map)?;
        let kind = Kind::of(media_type, &top)?;
        let is_self_described = Kind::of(None, &top).is_ok_and(|without| without == kind);
        match top.map.get("schemaVersion") {
            Some(Value::Number(version)) if version.as_u64() == Some(2) => {}
            None if kind == Kind::Artifact => {}
            _ => return Err(top.problem("schemaVersion", "is not 2")),
        }
        let artifact_type = top.media_type("artifactType")?;
        let subject = top.descriptor_at("subject")?;
        let annotations = top.annotations()?;
        if kind == Kind::Artifact {
            let image = ImageManifest::from_artifact_manifest(&top, artifact_type, subject, annotations)?;
            return Ok((Self::Image(image), is_self_described));
        }
        let manifest = if kind.is_index() {
            let entries = top.list("manifests", IndexEntry::parse)?;
            let media_type = kind.media_type();
            Self::Index(Index { media_type, artifact_type, entries, subject, annotations })
        } else {
            let config = top.descriptor_at("config")?.ok_or_else(|| top.problem("config", "is missing"))?;
            let layers = top.list("layers", LayerDescriptor::parse)?;
            let media_type = kind.media_type();
            Self::Image(ImageManifest { media_type, config, artifact_type, layers, subject, annotations })
        };
        Ok((manifest, is_self_described))
    }

    /// Returns the media type of the manifest.
    pub fn media_type(&self) -> &'static str {
        match self {
            Self::Image(image) => image.media_type,
            Self::Index(index) => index.media_type,
        }
    }
}

impl ImageManifest {
    /// Converts a patch in the form of an artifact manifest, which has no config and no blobs.
    fn from_artifact_manifest(
        top: &Object<'_>,
        artifact_type: Option<String>,
        subject: Option<Descriptor>,
        annotations: BTreeMap<String, String>,
    ) -> Result<Self, ManifestError> {
        match top.map.get("blobs") {
            None | Some(Value::Null) => {}
            Some(Value::Array(blobs)) if blobs.is_empty() => {}
            Some(_) => return Err(top.problem("blobs", "is not empty, but a patch has no blobs")),
        }
        let refers = top.descriptor_at("refers")?;
        if subject.is_some() && refers.is_some() && subject != refers {
            return Err(ManifestError::Ambiguous("its fields subject and refers differ".into()));
        }
        let config = Descriptor::new(media::EMPTY, Digest::sha256_of(b"{}"), 2);
        let (media_type, layers) = (media::OCI_ARTIFACT, Vec::new());
        Ok(Self { media_type, config, artifact_type, layers, subject: subject.or(refers), annotations })
    }

    /// Returns the descriptor of the config blob; for most artifacts it is the empty JSON object.
    pub fn config(&self) -> &Descriptor {
        &self.config
    }

    /// Returns the `artifactType` field, as the manifest states it.
    pub fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// Returns the type of the artifact: `artifactType`, or else the media type of the config (distribution-spec,
    /// "Listing Referrers").
    pub fn kind(&self) -> &str {
        self.artifact_type.as_deref().unwrap_or(self.config.media_type())
    }

    /// Returns the layers, in order.
    pub fn layers(&self) -> &[LayerDescriptor] {
        &self.layers
    }

    /// Returns the descriptor of the manifest that this one is attached to.
    pub fn subject(&self) -> Option<&Descriptor> {
        self.subject.as_ref()
    }

    /// Returns the annotations of the manifest itself.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }
}

impl LayerDescriptor {
    /// Returns media type, digest and size of the layer.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Returns the annotations of the layer, for example the ORAS title.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    fn parse(object: &Object<'_>) -> Result<Self, ManifestError> {
        let descriptor = object.descriptor()?;
        let urls = match object.map.get("urls") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(urls)) => urls
                .iter()
                .map(|url| url.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| object.problem("urls", "is not a list of strings"))?,
            Some(_) => return Err(object.problem("urls", "is not a list of strings")),
        };
        Ok(Self { descriptor: descriptor.with_urls(urls), annotations: object.annotations()? })
    }
}

impl Index {
    /// How many indexes are followed to a manifest, each an entry of the one before (image-spec, image-index.md, allows
    /// nested indexes).
    pub const MAX_DEPTH: usize = 4;

    /// Returns the index without any annotations, for caches: annotations can be large, and [`Self::select`] does not
    /// use them.
    #[must_use]
    pub fn without_annotations(&self) -> Self {
        let strip = |entry: &IndexEntry| IndexEntry { annotations: BTreeMap::new(), ..entry.clone() };
        let entries = self.entries.iter().map(strip).collect();
        let (media_type, artifact_type) = (self.media_type, self.artifact_type.clone());
        Self {
            media_type,
            artifact_type,
            entries,
            subject: self.subject.clone(),
            annotations: BTreeMap::new(),
        }
    }

    /// Returns the manifests, in order.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Returns the `artifactType` field, as the manifest states it.
    pub fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// Returns the descriptor of the manifest that this one is attached to.
    pub fn subject(&self) -> Option<&Descriptor> {
        self.subject.as_ref()
    }

    /// Returns the annotations of the index itself.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// Selects the manifest for `platform`: the first that states this platform, or else the only one that states none.
    /// containerd treats a descriptor without a platform as a match, too.
    pub fn select(&self, platform: &Platform) -> Result<&IndexEntry, SelectError> {
        let matches = |entry: &&IndexEntry| {
            let stated = entry.platform.as_ref();
            stated.is_some_and(|stated| platform.matches(&stated.os, &stated.architecture, stated.variant()))
        };
        if let Some(entry) = self.entries.iter().find(matches) {
            return Ok(entry);
        }
        let mut without_platform = self.entries.iter().filter(|entry| entry.platform.is_none());
        match (without_platform.next(), without_platform.count()) {
            (Some(entry), 0) => Ok(entry),
            (Some(_), more) => Err(SelectError::NoPlatformStated { count: more + 1 }),
            (None, _) => {
                let stated = self.entries.iter().filter_map(IndexEntry::platform).map(ToString::to_string);
                let available = stated.collect::<Vec<_>>().join(", ");
                let available =
                    if available.is_empty() { SelectError::NO_MANIFESTS.to_owned() } else { available };
                Err(SelectError::NoPlatform { platform: platform.clone(), available: available.into() })
            }
        }
    }
}

impl Index {
    /// Returns every entry that [`Self::select`] can select for a platform of that operating system.
    pub fn candidates<'a>(&'a self, os: &'a str) -> impl Iterator<Item = &'a IndexEntry> {
        let without_platform = self.entries.iter().filter(|entry| entry.platform.is_none()).count();
        self.entries.iter().filter(move |entry| match &entry.platform {
            // Of several, none is selected.
            None => without_platform == 1,
            Some(platform) => platform.os.eq_ignore_ascii_case(os) && platform.states_architecture(),
        })
    }
}

impl IndexEntry {
    /// Returns media type, digest and size of the manifest.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Returns the platform that the entry states.
    pub fn platform(&self) -> Option<&EntryPlatform> {
        self.platform.as_ref()
    }

    /// Returns the `artifactType` field, as the manifest states it.
    pub fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// Returns the annotations of the entry.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    fn parse(object: &Object<'_>) -> Result<Self, ManifestError> {
        let descriptor = object.descriptor()?;
        let platform = match object.map.get("platform") {
            None | Some(Value::Null) => None,
            Some(Value::Object(map)) => {
                let platform = Object::new(object.path_of("platform"), map)?;
                Some(EntryPlatform {
                    // Some tools write no value, for example for attestations. Such an entry fits no node.
                    os: platform.text("os")?.unwrap_or_default(),
                    architecture: platform.text("architecture")?.unwrap_or_default(),
                    variant: platform.text("variant")?.filter(|variant| !variant.is_empty()),
                })
            }
            Some(_) => return Err(object.problem("platform", "is not an object")),
        };
        let artifact_type = object.media_type("artifactType")?;
        Ok(Self { descriptor, platform, artifact_type, annotations: object.annotations()? })
    }
}

impl EntryPlatform {
    fn states_architecture(&self) -> bool {
        !self.architecture.is_empty() && !self.architecture.eq_ignore_ascii_case("unknown")
    }

    /// Returns the operating system.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Returns the CPU architecture.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Returns the variant of the CPU architecture.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }
}

impl fmt::Display for EntryPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |text: &str| Printable::new(if text.is_empty() { "?" } else { text });
        write!(f, "{}/{}", show(&self.os), show(&self.architecture))?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{}", Printable::new(variant)))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    OciManifest,
    OciIndex,
    DockerManifest,
    DockerList,
    /// The artifact manifest of the release candidates of image-spec 1.1.
    Artifact,
}

impl Kind {
    fn media_type(self) -> &'static str {
        match self {
            Self::OciManifest => media::OCI_MANIFEST,
            Self::OciIndex => media::OCI_INDEX,
            Self::DockerManifest => media::DOCKER_MANIFEST,
            Self::DockerList => media::DOCKER_LIST,
            Self::Artifact => media::OCI_ARTIFACT,
        }
    }

    fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }

    fn from_media_type(media_type: &str) -> Result<Self, ManifestError> {
        match media_type {
            media::OCI_MANIFEST => Ok(Self::OciManifest),
            media::OCI_INDEX => Ok(Self::OciIndex),
            media::DOCKER_MANIFEST => Ok(Self::DockerManifest),
            media::DOCKER_LIST => Ok(Self::DockerList),
            media::OCI_ARTIFACT => Ok(Self::Artifact),
            other => Err(ManifestError::Unsupported(other.into())),
        }
    }

    /// Reports whether another kind has the same fields with the same meaning: OCI's and Docker's form of it.
    fn is_equivalent(self, other: Self) -> bool {
        let is_artifact = |kind| kind == Self::Artifact;
        self.is_index() == other.is_index() && is_artifact(self) == is_artifact(other)
    }

    /// Determines the kind of a manifest from the `mediaType` field, else from the `Content-Type`, else from the other
    /// fields. Those that are present must be equivalent.
    fn of(content_type: Option<&str>, top: &Object<'_>) -> Result<Self, ManifestError> {
        let content_type = content_type
            .map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
            .filter(|essence| !is_generic(essence));
        let inside = top.text("mediaType")?.filter(|text| !text.is_empty());
        let kind = match (content_type.as_deref(), inside.as_deref()) {
            (Some(header), Some(inside)) if header != inside => {
                let kinds = Self::from_media_type(header).ok().zip(Self::from_media_type(inside).ok());
                let Some((_, inside)) = kinds.filter(|(header, inside)| header.is_equivalent(*inside)) else {
                    let problem =
                        format!("its Content-Type is \"{header}\", but its mediaType is \"{inside}\"");
                    return Err(ManifestError::Ambiguous(problem.into()));
                };
                Some(inside)
            }
            (Some(media_type), _) | (None, Some(media_type)) => Some(Self::from_media_type(media_type)?),
            (None, None) => None,
        };
        let has = |name: &str| top.map.get(name).is_some_and(|value| !value.is_null());
        let (image, index) = (has("layers") || has("config"), has("manifests"));
        let is_artifact = kind == Some(Self::Artifact);
        if is_artifact && top.text("artifactType")?.as_deref() != Some(media::PATCH_ARTIFACT) {
            return Err(ManifestError::Unsupported(media::OCI_ARTIFACT.into()));
        }
        let other = if is_artifact { image || index } else { has("blobs") };
        if (image && index) || has("fsLayers") || other {
            return Err(ManifestError::Ambiguous(
                "it has the fields of more than one kind of manifest".into(),
            ));
        }
        match kind {
            Some(kind) if (kind.is_index() && image) || (!kind.is_index() && index) => {
                let problem =
                    format!("its type is \"{}\", but it has the fields of the other kind", kind.media_type());
                Err(ManifestError::Ambiguous(problem.into()))
            }
            Some(kind) => Ok(kind),
            None if index => Ok(Self::OciIndex),
            None if image => Ok(Self::OciManifest),
            None => Err(ManifestError::Unsupported("unknown".into())),
        }
    }
}

/// Reports whether servers send this type for any JSON or any file.
fn is_generic(essence: &str) -> bool {
    matches!(
        essence,
        "" | "application/json" | "application/octet-stream" | "text/plain" | "binary/octet-stream"
    )
}
