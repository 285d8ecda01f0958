//! An artifact that is built from files or bytes (OCI image-spec, manifest.md, "Guidelines for Artifact Usage").

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;

use crate::manifest::Descriptor;

/// The content of a layer.
#[derive(Clone, Debug)]
pub enum Content {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A file. It is read twice: for its digest, and for the push.
    File(PathBuf),
}

/// A layer of an [`Artifact`].
#[derive(Clone, Debug)]
pub struct Layer {
    pub(super) media_type: String,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) content: Content,
}

impl Layer {
    /// Creates a layer without annotations.
    pub fn new(media_type: impl Into<String>, content: Content) -> Self {
        Self { media_type: media_type.into(), annotations: BTreeMap::new(), content }
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotated(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }
}

/// An artifact to push.
///
/// ```
/// use oras_csi_core::registry::{Artifact, Content, Layer};
///
/// let layer = Layer::new("text/plain", Content::Bytes("hello".into()))
///     .annotated("org.opencontainers.image.title", "hello.txt");
/// let artifact = Artifact::new("application/vnd.example.greeting", vec![layer]).annotated("language", "en");
/// # let _ = artifact;
/// ```
#[derive(Clone, Debug)]
pub struct Artifact {
    pub(super) kind: String,
    pub(super) layers: Vec<Layer>,
    pub(super) config: Option<(String, Bytes)>,
    pub(super) subject: Option<Descriptor>,
    pub(super) annotations: BTreeMap<String, String>,
}

impl Artifact {
    /// Creates an artifact with the empty config.
    pub fn new(artifact_type: impl Into<String>, layers: Vec<Layer>) -> Self {
        let (kind, annotations) = (artifact_type.into(), BTreeMap::new());
        Self { kind, layers, config: None, subject: None, annotations }
    }

    /// Sets the config.
    #[must_use]
    pub fn with_config(mut self, media_type: impl Into<String>, content: impl Into<Bytes>) -> Self {
        self.config = Some((media_type.into(), content.into()));
        self
    }

    /// Attaches the artifact to another manifest of the repository, its subject.
    #[must_use]
    pub fn attached_to(mut self, subject: Descriptor) -> Self {
        self.subject = Some(subject);
        self
    }

    /// Adds an annotation to the manifest.
    #[must_use]
    pub fn annotated(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }
}
