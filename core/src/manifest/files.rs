//! Decides which files a manifest gives to a volume. The webhook uses it to refuse an artifact that no node could mount,
//! the driver to unpack it.
//!
//! Which kind a layer has is decided for each alone ([`super::layer_kind`]). Here the layers of a manifest are looked at
//! together: the names of layers without a title ([`super::known_files`]), and that each path is one file.

use std::collections::{BTreeMap, BTreeSet};

use super::layer_kind::TITLE;
use super::{Descriptor, ImageManifest, LayerDescriptor, LayerKind, MAX_ENTRIES, known_files};
use crate::digest::Digest;
use crate::display::Shown;
use crate::entry_path::{EntryPath, NameError, PathLimits};
use crate::media_type::{MediaType, essence};
use crate::path::TreePath;

/// The annotation of ORAS with the digest of the uncompressed tar stream.
pub const CONTENT_DIGEST: &str = "io.deis.oras.content.digest";

/// A layer and what it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFiles {
    descriptor: Descriptor,
    content: FileContent,
}

/// What a layer becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileContent {
    /// One file at this path.
    File(EntryPath),
    /// A tar archive that ORAS packed, unpacked at this path. Its entries are relative to the title.
    Directory {
        /// The title of the layer.
        at: EntryPath,
        /// The digest of the uncompressed stream, if the manifest states it.
        content: Option<Digest>,
    },
    /// A tar archive, unpacked at the root as an image layer.
    Archive,
}

/// Which layers of a manifest a step of a recipe selects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerSelection<'a> {
    /// The media types of the layers. Empty means all layers.
    pub media_types: &'a [MediaType],
    /// The name of the one selected layer that has no title.
    pub name: Option<&'a TreePath>,
}

impl LayerSelection<'_> {
    /// Reports whether layers of this media type are selected.
    pub fn has(&self, media_type: &str) -> bool {
        let found = essence(media_type);
        self.media_types.is_empty() || self.media_types.iter().any(|wanted| essence(wanted.as_str()) == found)
    }
}

/// The limits on the files of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLimits {
    /// The most layers.
    pub layers: usize,
    /// The limits on a path.
    pub path: PathLimits,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { layers: MAX_ENTRIES, path: PathLimits::default() }
    }
}

impl LayerFiles {
    /// Returns the descriptor of the blob.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Returns what the layer becomes.
    pub fn content(&self) -> &FileContent {
        &self.content
    }
}

/// Why the files of a manifest cannot be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No layer is a file or an archive.
    #[error(
        "it has no files: no layer has a title ({TITLE}) and none is a tar archive; it has {layers}. Push files, as \
         `oras push REFERENCE FILE` does; a patch is mounted with oras.land/patch or a patch step"
    )]
    NoFiles {
        /// The media types of the layers.
        layers: String,
    },
    /// No layer has one of the media types that the step selects.
    #[error(
        "no layer has one of the requested media types ({wanted}); it has {layers}. Request media types that it has: \
         oras.land/media-types of a pod, mediaTypes of a step, or --media-type"
    )]
    NoMediaType {
        /// The media types that the step selects.
        wanted: String,
        /// The media types of the layers.
        layers: String,
    },
    /// A layer of an image cannot be read.
    #[error(
        "layer {layer} is a part of an image, and its media type {media_type} cannot be read: tar, gzip and zstd are \
         supported, encrypted layers and other compressions are not. Push the image again with gzip or zstd"
    )]
    Unreadable {
        /// The position of the layer, counted from 1.
        layer: usize,
        /// Its media type.
        media_type: Shown,
    },
    /// The manifest has more layers than the limit.
    #[error(
        "the manifest has {found} layers: the limit is {limit} (--max-layers). Push a directory as one layer"
    )]
    TooManyLayers {
        /// The number of layers.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A title is not a path within a tree.
    #[error(
        "the title of layer {layer} is invalid: {source}. Push the artifact again with a title that is a relative path in the volume"
    )]
    Title {
        /// The position of the layer, counted from 1.
        layer: usize,
        /// What is wrong.
        source: NameError,
    },
    /// Two layers have the same title.
    #[error(
        "two layers, {first} and {second}, have the title \"{path}\". Push them again with different titles"
    )]
    SameTitle {
        /// The title.
        path: String,
        /// The digest of the first layer.
        first: Digest,
        /// The digest of the second layer.
        second: Digest,
    },
    /// A title is a file and also a directory.
    #[error(
        "the file \"{file}\" of one layer is a directory in another: \"{below}\". Push them again with different titles"
    )]
    FileAndDirectory {
        /// The file.
        file: String,
        /// The path below it.
        below: String,
    },
    /// A step names one layer without a title, and the artifact has none or several.
    #[error(
        "as: {name} is the name of one layer that has no title and is no archive; {found} of the selected layers are like \
         that, it has {layers}. Select one with mediaTypes, or remove as"
    )]
    Name {
        /// The name in the recipe.
        name: TreePath,
        /// The number of layers without a title.
        found: usize,
        /// The media types of the layers.
        layers: String,
    },
    /// Two descriptors of the same blob have different sizes.
    #[error(
        "the blob {digest} has {first} bytes in one layer of the manifest and {second} in another. Push the artifact again"
    )]
    TwoSizes {
        /// The digest of the blob.
        digest: Digest,
        /// The first size.
        first: u64,
        /// The second size.
        second: u64,
    },
    /// The annotation is not a digest.
    #[error(
        "layer {layer} has the annotation {CONTENT_DIGEST} with the value \"{value}\", which is not a digest. Push the artifact again"
    )]
    ContentDigest {
        /// The position of the layer, counted from 1.
        layer: usize,
        /// The value of the annotation.
        value: Shown,
    },
}

impl ImageManifest {
    /// Returns the selected layers that have files, in the order of the manifest.
    pub fn files(
        &self,
        selection: LayerSelection<'_>,
        limits: FileLimits,
    ) -> Result<Vec<LayerFiles>, PlanError> {
        let layers = self.layers();
        if layers.len() > limits.layers {
            return Err(PlanError::TooManyLayers { found: layers.len(), limit: limits.layers });
        }
        let wanted = |layer: &LayerDescriptor| selection.has(layer.descriptor().media_type());
        let mut names = known_files::names(layers);
        if let Some(name) = selection.name {
            let can_be_named = |(_, layer): &(usize, &LayerDescriptor)| wanted(layer) && layer.can_be_named();
            let unnamed: Vec<usize> =
                layers.iter().enumerate().filter(can_be_named).map(|(position, _)| position).collect();
            let [position] = *unnamed.as_slice() else {
                let (name, layers) = (name.clone(), list_media_types(layers));
                return Err(PlanError::Name { name, found: unnamed.len(), layers });
            };
            names.insert(position, name.to_string());
        }
        let mut found = Vec::new();
        let mut kept = 0;
        for (position, layer) in layers.iter().enumerate().filter(|(_, layer)| wanted(layer)) {
            kept += 1;
            let name = names.get(&position).map(String::as_str);
            if let Some(content) = classify(layer, name, position + 1, limits)? {
                found.push(LayerFiles { descriptor: layer.descriptor().clone(), content });
            }
        }
        if kept == 0 && !selection.media_types.is_empty() {
            let wanted = selection.media_types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(PlanError::NoMediaType { wanted, layers: list_media_types(layers) });
        }
        if found.is_empty() {
            return Err(PlanError::NoFiles { layers: list_media_types(layers) });
        }
        check_sizes(&found)?;
        check_paths(&found)?;
        Ok(found)
    }
}

impl ImageManifest {
    /// Returns the media types of the selected layers that give no file, because they have no name. A step can name one of
    /// them.
    pub fn unnamed(&self, selection: LayerSelection<'_>) -> BTreeSet<String> {
        let is_left_out = |layer: &&LayerDescriptor| {
            let media_type = layer.descriptor().media_type();
            selection.name.is_none()
                && selection.has(media_type)
                && layer.can_be_named()
                && !known_files::is_known(media_type)
        };
        let left_out = self.layers().iter().filter(is_left_out);
        left_out.map(|layer| essence(layer.descriptor().media_type())).collect()
    }
}

fn list_media_types(layers: &[LayerDescriptor]) -> String {
    let mut counted = BTreeMap::new();
    for layer in layers {
        *counted.entry(Shown::new(layer.descriptor().media_type())).or_insert(0_usize) += 1;
    }
    if counted.is_empty() {
        return "no layers at all".to_owned();
    }
    let mut shown = counted.iter().take(8).map(|(name, count)| format!("{count} of type {name}"));
    let more = counted.len().saturating_sub(8);
    let list = shown.by_ref().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{list}, and {more} other types") } else { list }
}

/// Returns what a layer becomes. `known` is its name if it has no title.
fn classify(
    layer: &LayerDescriptor,
    known: Option<&str>,
    position: usize,
    limits: FileLimits,
) -> Result<Option<FileContent>, PlanError> {
    let parse = |title: &str| {
        EntryPath::from_title(title, limits.path)
            .map_err(|source| PlanError::Title { layer: position, source })
    };
    let file = |name: &str| {
        let path = parse(name)?;
        if path.is_root() {
            return Err(PlanError::Title { layer: position, source: NameError::Empty(name.into()) });
        }
        Ok(FileContent::File(path))
    };
    Ok(Some(match (layer.kind(), known) {
        (LayerKind::File(name), _) | (LayerKind::NoFiles, Some(name)) => file(name)?,
        (LayerKind::Directory(title), _) => {
            let annotation = layer.annotations().get(CONTENT_DIGEST).filter(|text| !text.is_empty());
            let content = annotation.map(|text| {
                let value = Shown::new(text);
                text.parse().map_err(|_| PlanError::ContentDigest { layer: position, value })
            });
            FileContent::Directory { at: parse(title)?, content: content.transpose()? }
        }
        (LayerKind::Archive, _) => FileContent::Archive,
        (LayerKind::Unreadable, _) => {
            let media_type = layer.descriptor().media_type().into();
            return Err(PlanError::Unreadable { layer: position, media_type });
        }
        (LayerKind::NoFiles, None) => return Ok(None),
    }))
}

/// Checks that the descriptors of the same blob agree on its size. It is downloaded once.
fn check_sizes(layers: &[LayerFiles]) -> Result<(), PlanError> {
    let mut sizes: BTreeMap<&Digest, u64> = BTreeMap::new();
    for descriptor in layers.iter().map(LayerFiles::descriptor) {
        let (digest, second) = (descriptor.digest(), descriptor.size());
        if let Some(first) = sizes.insert(digest, second)
            && first != second
        {
            return Err(PlanError::TwoSizes { digest: digest.clone(), first, second });
        }
    }
    Ok(())
}

/// Checks that each path is one file. Layers with the same title and the same digest count as one.
fn check_paths(layers: &[LayerFiles]) -> Result<(), PlanError> {
    let mut files: BTreeMap<Vec<u8>, (&EntryPath, &Digest)> = BTreeMap::new();
    for layer in layers {
        let FileContent::File(path) = &layer.content else { continue };
        let digest = layer.descriptor.digest();
        if let Some((_, first)) = files.insert(sort_key(path), (path, digest))
            && first != digest
        {
            let (path, first, second) = (path.to_string(), first.clone(), digest.clone());
            return Err(PlanError::SameTitle { path, first, second });
        }
    }
    // With a slash before all other bytes, the files below a path follow it directly.
    for (one, next) in files.values().zip(files.values().skip(1)) {
        if next.0.beneath(one.0).is_some() {
            return Err(PlanError::FileAndDirectory { file: one.0.to_string(), below: next.0.to_string() });
        }
    }
    Ok(())
}

/// Paths have no zero bytes.
fn sort_key(path: &EntryPath) -> Vec<u8> {
    path.as_bytes().iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::super::Manifest;
    use super::*;

    fn layer(media_type: &str, title: Option<&str>, content: &str) -> Value {
        let annotations = title.map(|title| json!({ TITLE: title }));
        json!({"mediaType": media_type, "digest": Digest::sha256_of(content.as_bytes()).to_string(),
            "size": content.len(), "annotations": annotations})
    }

    fn files(layers: &[Value]) -> Result<Vec<String>, PlanError> {
        let manifest = json!({"schemaVersion": 2, "config": layer("a/b", None, "{}"), "layers": layers});
        let Manifest::Image(image) = Manifest::parse(None, manifest.to_string().as_bytes()).unwrap() else {
            panic!("the manifest is an image");
        };
        let path = |file: &LayerFiles| match file.content() {
            FileContent::File(path) | FileContent::Directory { at: path, .. } => path.to_string(),
            FileContent::Archive => "archive".to_owned(),
        };
        Ok(image.files(LayerSelection::default(), FileLimits::default())?.iter().map(path).collect())
    }

    #[rstest]
    #[case::one_file_twice(&[("a", "x"), ("a", "x")], Ok(2))]
    #[case::two_files(&[("a", "x"), ("a", "y")], Err("two layers"))]
    #[case::a_file_and_a_directory(&[("a", "x"), ("b", "y"), ("a/b/c", "z")], Err("is a directory in another"))]
    #[case::names_that_begin_the_same(&[("a", "x"), ("a.b", "y"), ("a-b/c", "z"), ("ab", "w")], Ok(4))]
    #[case::something_between(&[("a", "x"), ("a b", "y"), ("a/b", "z")], Err("the file \"a\""))]
    #[case::a_path_that_leaves(&[("../a", "x")], Err("must not leave"))]
    #[case::an_absolute_path(&[("/a", "x")], Err("is absolute"))]
    #[case::no_name(&[(".", "x")], Err("does not name a file"))]
    fn each_path_is_one_file(#[case] layers: &[(&str, &str)], #[case] expected: Result<usize, &str>) {
        let layers: Vec<Value> =
            layers.iter().map(|(title, content)| layer("a/b", Some(title), content)).collect();
        match (files(&layers), expected) {
            (Ok(found), Ok(count)) => assert_eq!(found.len(), count),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (found, _) => panic!("{found:?}"),
        }
    }

    #[test]
    fn thousands_of_deep_paths_are_compared_fast() {
        let below = "d/".repeat(200);
        let layers: Vec<Value> = (0..MAX_ENTRIES)
            .map(|number| layer("a/b", Some(&format!("{below}{number}")), &number.to_string()))
            .collect();
        assert_eq!(files(&layers).unwrap().len(), MAX_ENTRIES);
    }

    #[test]
    fn layers_without_a_title_get_the_names_that_their_users_agreed_on() {
        let gguf = "application/vnd.docker.ai.gguf.v3";
        assert_eq!(files(&[layer(gguf, None, "x")]).unwrap(), ["model.gguf"]);
        assert_eq!(
            files(&[
                layer(gguf, None, "x"),
                layer("application/vnd.docker.ai.license", None, "l"),
                layer(gguf, None, "y")
            ])
            .unwrap(),
            ["model-00001-of-00002.gguf", "LICENSE", "model-00002-of-00002.gguf"]
        );
        assert_eq!(files(&[layer("application/wasm", None, "x")]).unwrap(), ["module.wasm"]);
        // A title takes precedence, and does not count.
        assert_eq!(
            files(&[layer(gguf, Some("own"), "x"), layer(gguf, None, "y")]).unwrap(),
            ["own", "model.gguf"]
        );
        assert!(files(&[layer("application/vnd.acme.star", None, "x")]).is_err());
    }
}
