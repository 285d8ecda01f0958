//! Decides which files a layer gives to a volume, from what the manifest states about it.
//!
//! The webhook uses this to reject artifacts without mountable files, the driver to unpack them.

use super::LayerDescriptor;
use super::media::EMPTY;
use crate::media_type::essence;

/// The annotation with the name of a layer's file or directory (OCI image-spec, annotations.md).
pub const TITLE: &str = "org.opencontainers.image.title";
/// The annotation by which ORAS marks a layer as a directory, packed as tar and gzip.
pub const UNPACK: &str = "io.deis.oras.content.unpack";
/// The annotations of ModelPack with the path of a model's file: the current one, and that of its former project.
pub const MODEL_PATHS: [&str; 2] = ["org.cncf.model.filepath", "org.cnai.model.filepath"];
/// How the media types of tar layers end (OCI, Docker, Helm, ModelPack), after one of `./+-`.
const TAR_ENDINGS: [&str; 7] = ["tar", "tar+gzip", "tar+zstd", "tar.gzip", "tar.gz", "tar.zstd", "tgz"];
/// How the media types of the layers of images begin (image-spec, media-types.md; Docker image manifest, version 2).
const IMAGE_LAYERS: [&str; 2] = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];
/// Media types of tar archives without such an ending.
const TAR_TYPES: [&str; 3] = ["application/gzip", "application/x-gzip", "application/x-gtar"];

/// What a layer gives to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind<'a> {
    /// A file with this title or path.
    File(&'a str),
    /// A tar archive that is unpacked into the directory with this title.
    Directory(&'a str),
    /// A tar archive that is unpacked at the root, as an image layer.
    Archive,
    /// A layer of an image that cannot be read, for example an encrypted one. Without it the image would be another one.
    Unreadable,
    /// No files: the layer has no name, for example a config, a signature or an empty layer.
    NoFiles,
}

impl LayerDescriptor {
    /// Returns what the layer gives to a volume.
    ///
    /// A title takes precedence over the media type: a tar archive with a title stays a file, unless ORAS marked it
    /// as a packed directory.
    pub fn kind(&self) -> LayerKind<'_> {
        let annotation = |key: &str| self.annotations().get(key).map(String::as_str);
        let non_empty = |key: &str| annotation(key).filter(|name| !name.is_empty());
        if let Some(title) = non_empty(TITLE) {
            return if annotation(UNPACK) == Some("true") {
                LayerKind::Directory(title)
            } else {
                LayerKind::File(title)
            };
        }
        if is_tar(self.descriptor().media_type()) {
            return LayerKind::Archive;
        }
        if let Some(path) = MODEL_PATHS.into_iter().find_map(non_empty) {
            return LayerKind::File(path);
        }
        let essence = essence(self.descriptor().media_type());
        let is_of_image = IMAGE_LAYERS.into_iter().any(|beginning| essence.starts_with(beginning));
        if is_of_image { LayerKind::Unreadable } else { LayerKind::NoFiles }
    }
}

impl LayerDescriptor {
    /// Reports whether a step of a recipe can give the layer a name: it has none, and is no archive.
    pub fn can_be_named(&self) -> bool {
        self.kind() == LayerKind::NoFiles && essence(self.descriptor().media_type()) != EMPTY
    }
}

/// Reports whether a layer without a title is a tar archive, by its media type.
fn is_tar(media_type: &str) -> bool {
    let essence = essence(media_type);
    let has_ending =
        |ending: &str| essence.strip_suffix(ending).is_some_and(|rest| rest.ends_with(['.', '/', '+', '-']));
    TAR_ENDINGS.into_iter().any(has_ending) || TAR_TYPES.contains(&essence.as_str())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::Manifest;
    use super::*;

    #[rstest]
    #[case("a/b", &[(TITLE, "a.jar")], LayerKind::File("a.jar"))]
    #[case("a/b.tar", &[(TITLE, "a.tar")], LayerKind::File("a.tar"))]
    #[case("a/b", &[(TITLE, "d"), (UNPACK, "true")], LayerKind::Directory("d"))]
    #[case("a/b", &[(TITLE, "d"), (UNPACK, "yes")], LayerKind::File("d"))]
    #[case("a/b.tar", &[(TITLE, ""), (UNPACK, "true")], LayerKind::Archive)]
    #[case("application/vnd.oci.image.layer.v1.tar+gzip", &[], LayerKind::Archive)]
    #[case("application/vnd.docker.image.rootfs.diff.tar.gzip", &[], LayerKind::Archive)]
    #[case("Application/Vnd.X+TAR; a=b", &[], LayerKind::Archive)]
    #[case("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", &[], LayerKind::Unreadable)]
    #[case("application/vnd.oci.image.layer.v1.tar+xz", &[], LayerKind::Unreadable)]
    #[case("application/vnd.docker.image.rootfs.diff.tar.bzip2", &[], LayerKind::Unreadable)]
    #[case("application/vnd.oci.image.layer.v1.tar+xz", &[(TITLE, "a.tar.xz")], LayerKind::File("a.tar.xz"))]
    #[case("application/gzip", &[], LayerKind::Archive)]
    #[case("application/vnd.acme.star", &[], LayerKind::NoFiles)]
    #[case("a/b", &[(MODEL_PATHS[0], ""), (MODEL_PATHS[1], "w.bin")], LayerKind::File("w.bin"))]
    #[case("a/b", &[], LayerKind::NoFiles)]
    fn title_media_type_and_model_path_decide_the_kind(
        #[case] media_type: &str,
        #[case] annotations: &[(&str, &str)],
        #[case] kind: LayerKind<'_>,
    ) {
        let digest = format!("sha256:{}", "0".repeat(64));
        let annotations: std::collections::BTreeMap<_, _> = annotations.iter().copied().collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": {"mediaType": "a/b", "digest": digest, "size": 2},
            "layers": [{"mediaType": media_type, "digest": digest, "size": 1, "annotations": annotations}],
        });
        match Manifest::parse(None, manifest.to_string().as_bytes()).unwrap() {
            Manifest::Image(image) => assert_eq!(image.layers()[0].kind(), kind),
            Manifest::Index(_) => panic!("the manifest is an image"),
        }
    }
}
