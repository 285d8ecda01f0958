//! Manifests and indexes: the one place that reads their JSON. Pure.
//!
//! OCI image-spec 1.1 (manifest.md, image-index.md, descriptor.md) and Docker's schema 2 manifest and
//! manifest list, which have the same shape. What a manifest says about itself must agree with how it
//! came: a document that is an image to one reader and an index to another (CVE-2021-41190) is refused.
//!
//! The artifact manifest of image-spec 1.1's first candidates is read for patches alone ([`crate::patch`]), where
//! earlier tools wrote it: as an image without layers, whose subject may be called `refers`.

mod descriptor;
mod fields;
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
use crate::patch;
use crate::platform::Platform;

pub use self::descriptor::Descriptor;
pub use self::layer_kind::LayerFiles;
pub use self::verified::ManifestDocument;

/// The most layers of an image, and the most manifests of an index.
pub const MOST_ENTRIES: usize = 4_096;

/// Why bytes are not a manifest that we read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The bytes have another digest.
    #[error("the bytes have the digest {found}, asked was {wanted}")]
    Digest {
        /// The digest that was asked for.
        wanted: Digest,
        /// The sha256 of what came.
        found: Digest,
    },
    /// Not JSON, or JSON that says a thing twice.
    #[error("the manifest is not proper JSON: {0}")]
    Json(Printable),
    /// A media type that is neither an image nor an index.
    #[error(
        "the manifest is of type \"{0}\", which this version does not read: push it as an OCI image manifest"
    )]
    Unsupported(Printable),
    /// The type it came with, the type it has in it, and what it holds are not one thing.
    #[error("the manifest is ambiguous: {0}")]
    Ambiguous(Printable),
    /// A field that is missing or has a value that cannot be.
    #[error("the manifest's {field} {problem}")]
    Field {
        /// Where in the document.
        field: Printable,
        /// What is wrong there.
        problem: Printable,
    },
    /// More layers or manifests than we read.
    #[error("the manifest has {found} {what}, at most {MOST_ENTRIES} are read")]
    TooMany {
        /// `layers` or `manifests`.
        what: &'static str,
        /// How many there are.
        found: usize,
    },
}

/// Why no manifest of an index was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// None is for the platform.
    #[error("the index has nothing for {wanted}; it has: {offered}")]
    NoPlatform {
        /// The platform that was asked for.
        wanted: Platform,
        /// The platforms that there are.
        offered: Printable,
    },
    /// Several manifests, and none says a platform.
    #[error("the index has {count} manifests that name no platform: refer to one of them by its digest")]
    Undecided {
        /// How many.
        count: usize,
    },
}

/// A manifest, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image or artifact.
    Image(ImageManifest),
    /// Several, one a platform.
    Index(Index),
}

/// An image manifest or artifact (image-spec, manifest.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageManifest {
    media_type: &'static str,
    config: Descriptor,
    artifact_type: Option<String>,
    layers: Vec<LayerDescriptor>,
    subject: Option<Descriptor>,
    annotations: BTreeMap<String, String>,
}

/// One layer: what it is, and what is said about it.
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

/// One manifest of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    descriptor: Descriptor,
    platform: Option<EntryPlatform>,
    artifact_type: Option<String>,
    annotations: BTreeMap<String, String>,
}

/// The platform of an index's entry, in the registry's words: it may name systems that no [`Platform`] can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Document {
    /// Reads a manifest. `media_type` is the `Content-Type` that it came with, if any.
    pub fn parse(media_type: Option<&str>, bytes: &[u8]) -> Result<Self, ManifestError> {
        let value =
            strict_json::parse(bytes).map_err(|error| ManifestError::Json(error.to_string().into()))?;
        let Value::Object(map) = value else {
            return Err(ManifestError::Json("it is not an object".into()));
        };
        let top = Object::new(String::new(), &map)?;
        let kind = Kind::of(media_type, &top)?;
        match top.map.get("schemaVersion") {
            Some(Value::Number(version)) if version.as_u64() == Some(2) => {}
            None if kind == Kind::Artifact => {}
            _ => return Err(top.problem("schemaVersion", "is not 2")),
        }
        let artifact_type = top.media_type("artifactType")?;
        let subject = top.descriptor_at("subject")?;
        let annotations = top.annotations()?;
        if kind == Kind::Artifact {
            return ImageManifest::earlier(&top, artifact_type, subject, annotations).map(Self::Image);
        }
        if kind.is_index() {
            let entries = top.list("manifests", IndexEntry::read)?;
            Ok(Self::Index(Index {
                media_type: kind.media_type(),
                artifact_type,
                entries,
                subject,
                annotations,
            }))
        } else {
            let config = top.descriptor_at("config")?.ok_or_else(|| top.problem("config", "is missing"))?;
            let layers = top.list("layers", LayerDescriptor::read)?;
            let media_type = kind.media_type();
            Ok(Self::Image(ImageManifest { media_type, config, artifact_type, layers, subject, annotations }))
        }
    }

    /// The media type that the document has.
    pub fn media_type(&self) -> &'static str {
        match self {
            Self::Image(image) => image.media_type,
            Self::Index(index) => index.media_type,
        }
    }
}

impl ImageManifest {
    /// A patch in the form of an artifact manifest, which has no config and, being a patch, nothing in it.
    fn earlier(
        top: &Object<'_>,
        artifact_type: Option<String>,
        subject: Option<Descriptor>,
        annotations: BTreeMap<String, String>,
    ) -> Result<Self, ManifestError> {
        match top.map.get("blobs") {
            None | Some(Value::Null) => {}
            Some(Value::Array(blobs)) if blobs.is_empty() => {}
            Some(_) => return Err(top.problem("blobs", "is not empty, and a patch has none")),
        }
        let refers = top.descriptor_at("refers")?;
        if subject.is_some() && refers.is_some() && subject != refers {
            return Err(ManifestError::Ambiguous("its subject and what it refers to differ".into()));
        }
        let config = Descriptor::new(media::EMPTY, Digest::sha256_of(b"{}"), 2);
        let (media_type, layers) = (media::OCI_ARTIFACT, Vec::new());
        Ok(Self { media_type, config, artifact_type, layers, subject: subject.or(refers), annotations })
    }

    /// The config blob; the empty JSON object for most artifacts.
    pub fn config(&self) -> &Descriptor {
        &self.config
    }

    /// `artifactType` as it is written.
    pub fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// What kind of artifact it is: `artifactType`, else the config's media type (distribution-spec,
    /// "Listing Referrers").
    pub fn kind(&self) -> &str {
        self.artifact_type.as_deref().unwrap_or(self.config.media_type())
    }

    /// The layers, in order.
    pub fn layers(&self) -> &[LayerDescriptor] {
        &self.layers
    }

    /// The manifest that this one is attached to.
    pub fn subject(&self) -> Option<&Descriptor> {
        self.subject.as_ref()
    }

    /// Annotations of the manifest itself.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }
}

impl LayerDescriptor {
    /// Type, digest and size.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Annotations: the ORAS title is one of them.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    fn read(object: &Object<'_>) -> Result<Self, ManifestError> {
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
    /// The same for whoever only chooses: annotations may be anything, and much.
    #[must_use]
    pub fn without_annotations(&self) -> Self {
        let bare = |entry: &IndexEntry| IndexEntry { annotations: BTreeMap::new(), ..entry.clone() };
        let entries = self.entries.iter().map(bare).collect();
        let (media_type, artifact_type) = (self.media_type, self.artifact_type.clone());
        Self {
            media_type,
            artifact_type,
            entries,
            subject: self.subject.clone(),
            annotations: BTreeMap::new(),
        }
    }

    /// The manifests, in order.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// `artifactType` as it is written.
    pub fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// The manifest that this one is attached to.
    pub fn subject(&self) -> Option<&Descriptor> {
        self.subject.as_ref()
    }

    /// Annotations of the index itself.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// The manifest for `platform`: the first that names it, else the only one that names none (as
    /// containerd takes a descriptor without a platform for one that fits).
    pub fn select(&self, platform: &Platform) -> Result<&IndexEntry, SelectError> {
        let fits = |entry: &&IndexEntry| {
            let named = entry.platform.as_ref();
            named.is_some_and(|named| platform.matches(&named.os, &named.architecture, named.variant()))
        };
        if let Some(entry) = self.entries.iter().find(fits) {
            return Ok(entry);
        }
        let mut unnamed = self.entries.iter().filter(|entry| entry.platform.is_none());
        match (unnamed.next(), unnamed.count()) {
            (Some(entry), 0) => Ok(entry),
            (Some(_), more) => Err(SelectError::Undecided { count: more + 1 }),
            (None, _) => {
                let named = self.entries.iter().filter_map(IndexEntry::platform).map(ToString::to_string);
                let offered = named.collect::<Vec<_>>().join(", ");
                let offered = if offered.is_empty() { "nothing at all".to_owned() } else { offered };
                Err(SelectError::NoPlatform { wanted: platform.clone(), offered: offered.into() })
            }
        }
    }
}

impl Index {
    /// Every entry that [`Self::select`] may choose for some platform of that system.
    pub fn candidates<'a>(&'a self, os: &'a str) -> impl Iterator<Item = &'a IndexEntry> {
        self.entries.iter().filter(move |entry| {
            entry.platform.as_ref().is_none_or(|platform| platform.os.eq_ignore_ascii_case(os))
        })
    }
}

impl IndexEntry {
    /// Type, digest and size of the manifest.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The platform it is for.
    pub fn platform(&self) -> Option<&EntryPlatform> {
        self.platform.as_ref()
    }

    /// `artifactType` as it is written.
    pub fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// Annotations of the entry.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    fn read(object: &Object<'_>) -> Result<Self, ManifestError> {
        let descriptor = object.descriptor()?;
        let platform = match object.map.get("platform") {
            None | Some(Value::Null) => None,
            Some(Value::Object(map)) => {
                let platform = Object::new(object.path("platform"), map)?;
                Some(EntryPlatform {
                    os: platform.required("os")?,
                    architecture: platform.required("architecture")?,
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
    /// The operating system.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The CPU architecture.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant of the CPU.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }
}

impl fmt::Display for EntryPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Printable::new(&self.os), Printable::new(&self.architecture))?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{}", Printable::new(variant)))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    OciManifest,
    OciIndex,
    DockerManifest,
    DockerList,
    /// The artifact manifest of the candidates for image-spec 1.1.
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

    fn named(media_type: &str) -> Result<Self, ManifestError> {
        match media_type {
            media::OCI_MANIFEST => Ok(Self::OciManifest),
            media::OCI_INDEX => Ok(Self::OciIndex),
            media::DOCKER_MANIFEST => Ok(Self::DockerManifest),
            media::DOCKER_LIST => Ok(Self::DockerList),
            media::OCI_ARTIFACT => Ok(Self::Artifact),
            other => Err(ManifestError::Unsupported(other.into())),
        }
    }

    /// What a document is: by the type that it came with, by `mediaType` in it and by what it holds,
    /// which must all agree where they say something.
    fn of(came_with: Option<&str>, top: &Object<'_>) -> Result<Self, ManifestError> {
        let came_with = came_with
            .map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
            .filter(|essence| !is_generic(essence));
        let inside = top.text("mediaType")?.filter(|text| !text.is_empty());
        let kind = match (came_with.as_deref(), inside.as_deref()) {
            (Some(header), Some(inside)) if header != inside => {
                let words = format!("it came as \"{header}\" and says that it is \"{inside}\"");
                return Err(ManifestError::Ambiguous(words.into()));
            }
            (Some(named), _) | (None, Some(named)) => Some(Self::named(named)?),
            (None, None) => None,
        };
        let has = |name: &str| top.map.get(name).is_some_and(|value| !value.is_null());
        let (image, index) = (has("layers") || has("config"), has("manifests"));
        let is_artifact = kind == Some(Self::Artifact);
        if is_artifact && top.text("artifactType")?.as_deref() != Some(patch::ARTIFACT_TYPE) {
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
                let words = format!("it is of type \"{}\" and holds the other kind", kind.media_type());
                Err(ManifestError::Ambiguous(words.into()))
            }
            Some(kind) => Ok(kind),
            None if index => Ok(Self::OciIndex),
            None if image => Ok(Self::OciManifest),
            None => Err(ManifestError::Unsupported("unknown".into())),
        }
    }
}

/// Types that servers send for any JSON and any file.
fn is_generic(essence: &str) -> bool {
    matches!(
        essence,
        "" | "application/json" | "application/octet-stream" | "text/plain" | "binary/octet-stream"
    )
}
