//! Which layers of an artifact have files, by what its manifest says of them: the one place that decides it, for the
//! webhook, which refuses what nothing of could be mounted, and for the driver, which mounts it.

use super::LayerDescriptor;
use crate::media_type::essence;

/// The name of a layer's file or directory (OCI image-spec, annotations.md).
pub const TITLE: &str = "org.opencontainers.image.title";
/// ORAS: the layer is a directory, packed as tar and gzip.
pub const UNPACK: &str = "io.deis.oras.content.unpack";
/// ModelPack: the path of a model's file, before and after the project moved.
pub const MODEL_PATHS: [&str; 2] = ["org.cncf.model.filepath", "org.cnai.model.filepath"];
/// How the media types of tar layers end (OCI's, Docker's, Helm's, ModelPack's), behind one of `./+-`.
const TAR_ENDINGS: [&str; 7] = ["tar", "tar+gzip", "tar+zstd", "tar.gzip", "tar.gz", "tar.zstd", "tgz"];
/// Media types of archives that do not end so.
const TARS: [&str; 3] = ["application/gzip", "application/x-gzip", "application/x-gtar"];

/// What a layer gives to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerFiles<'a> {
    /// A file of this title or path.
    File(&'a str),
    /// A tar archive that is unpacked as the directory of this title.
    Directory(&'a str),
    /// A tar archive that is unpacked at the root, as a layer of an image.
    Archive,
    /// Nothing that has a name: a config, a signature, an empty layer.
    Nothing,
}

impl LayerDescriptor {
    /// What it gives.
    ///
    /// A title goes before all else: a tar with one that ORAS did not pack stays a file.
    pub fn files(&self) -> LayerFiles<'_> {
        let annotation = |key: &str| self.annotations().get(key).map(String::as_str);
        let named = |key: &str| annotation(key).filter(|name| !name.is_empty());
        if let Some(title) = named(TITLE) {
            return if annotation(UNPACK) == Some("true") {
                LayerFiles::Directory(title)
            } else {
                LayerFiles::File(title)
            };
        }
        if is_tar(self.descriptor().media_type()) {
            return LayerFiles::Archive;
        }
        MODEL_PATHS.into_iter().find_map(named).map_or(LayerFiles::Nothing, LayerFiles::File)
    }
}

/// Whether a layer of this type that has no title is a tar archive.
fn is_tar(media_type: &str) -> bool {
    let essence = essence(media_type);
    let ends =
        |ending: &str| essence.strip_suffix(ending).is_some_and(|rest| rest.ends_with(['.', '/', '+', '-']));
    TAR_ENDINGS.into_iter().any(ends) || TARS.contains(&essence.as_str())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::Document;
    use super::*;

    #[rstest]
    #[case("a/b", &[(TITLE, "a.jar")], LayerFiles::File("a.jar"))]
    #[case("a/b.tar", &[(TITLE, "a.tar")], LayerFiles::File("a.tar"))]
    #[case("a/b", &[(TITLE, "d"), (UNPACK, "true")], LayerFiles::Directory("d"))]
    #[case("a/b", &[(TITLE, "d"), (UNPACK, "yes")], LayerFiles::File("d"))]
    #[case("a/b.tar", &[(TITLE, ""), (UNPACK, "true")], LayerFiles::Archive)]
    #[case("application/vnd.oci.image.layer.v1.tar+gzip", &[], LayerFiles::Archive)]
    #[case("application/vnd.docker.image.rootfs.diff.tar.gzip", &[], LayerFiles::Archive)]
    #[case("Application/Vnd.X+TAR; a=b", &[], LayerFiles::Archive)]
    #[case("application/gzip", &[], LayerFiles::Archive)]
    #[case("application/vnd.acme.star", &[], LayerFiles::Nothing)]
    #[case("a/b", &[(MODEL_PATHS[0], ""), (MODEL_PATHS[1], "w.bin")], LayerFiles::File("w.bin"))]
    #[case("a/b", &[], LayerFiles::Nothing)]
    fn what_a_layer_gives(
        #[case] media_type: &str,
        #[case] annotations: &[(&str, &str)],
        #[case] files: LayerFiles<'_>,
    ) {
        let digest = format!("sha256:{}", "0".repeat(64));
        let annotations: std::collections::BTreeMap<_, _> = annotations.iter().copied().collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": {"mediaType": "a/b", "digest": digest, "size": 2},
            "layers": [{"mediaType": media_type, "digest": digest, "size": 1, "annotations": annotations}],
        });
        match Document::parse(None, manifest.to_string().as_bytes()).unwrap() {
            Document::Image(image) => assert_eq!(image.layers()[0].files(), files),
            Document::Index(_) => panic!("an image was written"),
        }
    }
}
