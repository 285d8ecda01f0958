//! What an artifact's manifest contains: whether anything can be mounted, and the types and sizes that policies check.
//! Pure: it reads manifests that the resolver downloaded.
//!
//! Which layers have files is decided in core (`manifest/layer_kind.rs`), so that the driver decides the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use oras_csi_core::manifest::{FileLimits, LayerKind, LayerSelection, PlanError, known_files};
use oras_csi_core::manifest::{Index, IndexEntry, Manifest};
use oras_csi_core::media_type::{MediaType, essence};
use oras_csi_core::patch::{self, Instructions, Patch, PatchError};
use oras_csi_core::path::TreePath;
use oras_csi_core::policy::ArtifactContents;
use oras_csi_core::reference::PinnedReference;

use crate::denial::listed;

/// What the cache keeps of a manifest.
#[derive(Clone, Debug)]
pub(crate) enum Contents {
    /// An image manifest: one artifact.
    Image(Image),
    /// An image index: one manifest for each platform.
    Index(Index),
}

/// One artifact: its type and its layers, grouped by media type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    artifact_type: String,
    layers: Vec<LayerSummary>,
    /// Why the driver could not mount all layers together.
    refused: Option<PlanError>,
    /// The whole manifest of a patch or a recipe artifact, or its length where it is too long.
    instructions: Option<Result<Arc<Manifest>, usize>>,
}

/// The layers of one media type, either all with files or all without, and either all with a name or all without.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LayerSummary {
    media_type: String,
    has_files: bool,
    /// How many a step of a recipe can give a name.
    nameable: usize,
    /// The sum of their sizes, as the manifest states them.
    size: u64,
}

/// Why the volume would be empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NothingToMount {
    #[error("has no layers")]
    NoLayers,
    #[error("has no layer of the requested media types ({requested}); it has {found}")]
    NoMatch { requested: String, found: String },
    #[error(
        "has nothing to mount: none of its layers has a file name (org.opencontainers.image.title) or is a tar archive; it \
         has {found}"
    )]
    NoName { found: String },
    #[error("is an index that leads through more than {} indexes to a manifest", Index::MAX_DEPTH)]
    NestedIndex,
    #[error("is an index without manifests")]
    EmptyIndex,
    #[error("is a patch, which has no files of its own")]
    Patch,
    #[error(
        "has no layer that `as: {name}` could name: of the selected layers {nameable} have no title and are no archive, and it \
         must be one; it has {found}"
    )]
    Name { name: TreePath, nameable: usize, found: String },
    #[error("cannot be mounted: {0}")]
    Refused(PlanError),
}

/// What a patch reference stands for, once it has been read.
#[derive(Clone, Debug)]
pub(crate) enum PatchDocument {
    /// A patch.
    Patch(Box<Patch>),
    /// The YAML of a recipe artifact, not parsed.
    Recipe(Arc<str>),
}

/// The unit of the cache's weight, in bytes: what one layer or index entry takes besides its strings.
const UNIT: usize = 256;

impl Contents {
    /// Reads a manifest of `length` bytes.
    pub(crate) fn of(document: &Manifest, length: usize) -> Self {
        match document {
            Manifest::Index(index) => Self::Index(index.without_annotations()),
            Manifest::Image(image) => {
                let mut kinds: BTreeMap<_, LayerSummary> = BTreeMap::new();
                for layer in image.layers() {
                    let media_type = essence(layer.descriptor().media_type());
                    let is_nameable = layer.can_be_named();
                    let has_files = layer.kind() != LayerKind::NoFiles || known_files::is_known(&media_type);
                    let key = (media_type.clone(), has_files, is_nameable);
                    let new = || LayerSummary { media_type, has_files, nameable: 0, size: 0 };
                    let kind = kinds.entry(key).or_insert_with(new);
                    kind.size = kind.size.saturating_add(layer.descriptor().size());
                    kind.nameable += usize::from(is_nameable);
                }
                let layers = kinds.into_values().collect();
                let instructions = Instructions::is_kind(image.kind()).then(|| {
                    if length <= Instructions::MAX_BYTES {
                        Ok(Arc::new(document.clone()))
                    } else {
                        Err(length)
                    }
                });
                let refused = image.files(LayerSelection::default(), FileLimits::default()).err();
                let artifact_type = image.kind().to_owned();
                Self::Image(Image { artifact_type, layers, refused, instructions })
            }
        }
    }

    /// Returns the content of a patch or a recipe artifact; anything else is an error.
    pub(crate) fn instructions(&self, own: &PinnedReference) -> Result<Instructions, PatchError> {
        match self {
            Self::Index(_) => Err(PatchError::Index),
            Self::Image(image) => match &image.instructions {
                Some(Ok(document)) => Instructions::read(own, document),
                Some(Err(length)) => Err(PatchError::TooLong { length: *length }),
                None => Err(PatchError::Kind { kind: image.artifact_type.as_str().into() }),
            },
        }
    }

    /// Returns roughly how much memory it takes, in units of [`UNIT`] bytes.
    pub(crate) fn weight(&self) -> u32 {
        let (entries, bytes) = match self {
            Self::Image(image) => {
                let texts: usize = image.layers.iter().map(|layer| layer.media_type.len()).sum();
                let whole = if let Some(Ok(_)) = image.instructions { Instructions::MAX_BYTES } else { 0 };
                (image.layers.len(), image.artifact_type.len() + texts + whole)
            }
            Self::Index(index) => {
                let texts = |entry: &IndexEntry| {
                    let platform = entry.platform().map_or(0, |platform| platform.to_string().len());
                    entry.descriptor().media_type().len()
                        + entry.artifact_type().map_or(0, str::len)
                        + platform
                };
                (index.entries().len(), index.entries().iter().map(texts).sum())
            }
        };
        let pieces = entries.saturating_add(bytes / UNIT).saturating_add(1);
        u32::try_from(pieces).unwrap_or(u32::MAX)
    }
}

impl Image {
    /// Returns the selected layers.
    fn selected<'a>(&'a self, selection: LayerSelection<'a>) -> impl Iterator<Item = &'a LayerSummary> {
        self.layers.iter().filter(move |kind| selection.has(&kind.media_type))
    }

    /// Checks that a selected layer has files.
    pub(crate) fn check(&self, selection: LayerSelection<'_>) -> Result<(), NothingToMount> {
        if self.artifact_type == patch::ARTIFACT_TYPE {
            return Err(NothingToMount::Patch);
        }
        if self.layers.is_empty() {
            return Err(NothingToMount::NoLayers);
        }
        let selected: Vec<_> = self.selected(selection).collect();
        let found = || listed(self.layers.iter().map(|kind| kind.media_type.as_str()));
        if selected.is_empty() {
            let requested = listed(selection.media_types.iter().map(MediaType::as_str));
            return Err(NothingToMount::NoMatch { requested, found: found() });
        }
        if let Some(name) = selection.name {
            let nameable = selected.iter().map(|kind| kind.nameable).sum();
            if nameable != 1 {
                return Err(NothingToMount::Name { name: name.clone(), nameable, found: found() });
            }
        } else if !selected.iter().any(|kind| kind.has_files) {
            return Err(NothingToMount::NoName { found: found() });
        }
        match &self.refused {
            Some(PlanError::NoFiles { .. }) | None => Ok(()),
            // The problem may be in layers that are not selected. The node looks at those that are.
            Some(error) if selection.media_types.is_empty() && selection.name.is_none() => {
                Err(NothingToMount::Refused(error.clone()))
            }
            Some(_) => Ok(()),
        }
    }

    /// Returns the types of the layers that have no file name, beside others that have one. They are not mounted.
    pub(crate) fn unnamed(&self, selection: LayerSelection<'_>) -> Vec<String> {
        if selection.name.is_some() {
            return Vec::new();
        }
        let unnamed = self.selected(selection).filter(|kind| !kind.has_files && kind.nameable > 0);
        unnamed.map(|kind| kind.media_type.clone()).collect()
    }

    /// Returns the types and sizes that policies check. Layers without files count too: another client of the same
    /// artifact may download them.
    pub(crate) fn found(&self, selection: LayerSelection<'_>) -> ArtifactContents {
        let layers = self.selected(selection).map(|kind| (kind.media_type.clone(), kind.size)).collect();
        ArtifactContents { artifact_type: self.artifact_type.clone(), layers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn contents(layers: &str) -> Image {
        let digest = format!("sha256:{}", "0".repeat(64));
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{digest}","size":2}},"layers":[{}]}}"#,
            layers
                .replace("TYPE(", r#"{"mediaType":""#)
                .replace(')', &format!(r#","digest":"{digest}","size":1}}"#))
        );
        match Contents::of(&Manifest::parse(None, manifest.as_bytes()).unwrap(), manifest.len()) {
            Contents::Image(image) => image,
            Contents::Index(_) => panic!("an image was written"),
        }
    }

    #[rstest]
    #[case(r#"TYPE(application/java-archive","annotations":{"org.opencontainers.image.title":"a.jar"})"#, &[], None)]
    #[case(r#"TYPE(application/vnd.oci.image.layer.v1.tar+gzip")"#, &[], None)]
    #[case(r#"TYPE(application/vnd.docker.image.rootfs.diff.tar.gzip")"#, &[], None)]
    #[case(r#"TYPE(a/b","annotations":{"org.cncf.model.filepath":"w.bin"})"#, &[], None)]
    #[case(r#"TYPE(a/b","annotations":{"org.opencontainers.image.title":""})"#, &[], Some("file name"))]
    #[case(r#"TYPE(application/vnd.oci.empty.v1+json")"#, &[], Some("file name"))]
    #[case(r#"TYPE(application/vnd.acme.star")"#, &[], Some("file name"))]
    #[case(r#"TYPE(Application/Vnd.X+TAR")"#, &["application/vnd.x+tar"], None)]
    #[case(r#"TYPE(application/gzip")"#, &[], None)]
    #[case("", &[], Some("no layers"))]
    #[case(r#"TYPE(a/tar.tar"),TYPE(a/b")"#, &["a/tar.tar"], None)]
    #[case(r#"TYPE(a/tar.tar"),TYPE(a/b")"#, &["a/b"], Some("file name"))]
    #[case(r#"TYPE(a/tar.tar"),TYPE(a/b")"#, &["a/c", "x/y"], Some("(a/c, x/y); it has a/b, a/tar.tar"))]
    fn an_artifact_without_files_gets_a_reason(
        #[case] layers: &str,
        #[case] requested: &[&str],
        #[case] words: Option<&str>,
    ) {
        let requested: Vec<MediaType> = requested.iter().map(|text| text.parse().unwrap()).collect();
        let selection = LayerSelection { media_types: &requested, name: None };
        let found = contents(layers).check(selection).map_err(|nothing| nothing.to_string());
        match words {
            None => assert_eq!(found, Ok(())),
            Some(words) => assert!(found.as_ref().is_err_and(|found| found.contains(words)), "{found:?}"),
        }
    }

    fn patch_of(annotation: usize) -> (Contents, usize) {
        let digest = format!("sha256:{}", "0".repeat(64));
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": patch::ARTIFACT_TYPE,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest, "size": 2},
            "layers": [],
            "annotations": {"a": "x".repeat(annotation)},
        })
        .to_string();
        (Contents::of(&Manifest::parse(None, manifest.as_bytes()).unwrap(), manifest.len()), manifest.len())
    }

    #[test]
    fn a_patch_weighs_its_maximum_length_and_a_longer_one_is_not_cached() {
        let own = format!("a.example/b@sha256:{}", "0".repeat(64)).parse().unwrap();
        let (short, _) = patch_of(100);
        assert!(short.weight() as usize * UNIT >= Instructions::MAX_BYTES);
        assert!(!matches!(short.instructions(&own), Err(PatchError::TooLong { .. })));
        let (long, length) = patch_of(Instructions::MAX_BYTES);
        assert!((long.weight() as usize) * UNIT < 4_096, "{}", long.weight());
        match long.instructions(&own) {
            Err(PatchError::TooLong { length: found }) => assert_eq!(found, length),
            other => panic!("{other:?}"),
        }
    }
}
