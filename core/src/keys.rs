//! The keys of the contract: every annotation and volume attribute that oras-csi reads or writes
//! (docs/design.md, "Annotations", "Volume attributes" and "Canonical volume").

/// The name of the CSI driver, which is also the prefix of a canonical volume's attributes.
pub const DRIVER: &str = "csi.oras.land";
/// The key of the taint that the driver removes from its node when kubelet has registered it.
pub const STARTUP_TAINT: &str = "oras.land/agent-not-ready";
/// The prefix of all annotations of oras-csi.
pub const ANNOTATION_PREFIX: &str = "oras.land/";
/// The name of the volume that the webhook adds to a pod for its annotations.
pub const VOLUME_NAME: &str = "oras-artifacts";
/// The mount path of that volume when `oras.land/mount-path` is not set.
pub const DEFAULT_MOUNT_PATH: &str = "/mnt/oras";
/// The prefix of the volume attributes that only kubelet may write.
pub const KUBELET_PREFIX: &str = "csi.storage.k8s.io/";

/// Annotations on a pod.
pub mod annotation {
    /// A reference. Its files are at the root of the volume; with `.NAME`, they are under `NAME/`.
    pub const ARTIFACT: &str = "oras.land/artifact";
    /// A complete recipe in YAML.
    pub const RECIPE: &str = "oras.land/recipe";
    /// The name of an ArtifactSet or ClusterArtifactSet.
    pub const ARTIFACT_SET: &str = "oras.land/artifact-set";
    /// A reference to a patch artifact.
    pub const PATCH: &str = "oras.land/patch";
    /// The highest level of the patch artifact to apply.
    pub const PATCH_LEVEL: &str = "oras.land/patch-level";
    /// The mount path of the volume; with `.NAME`, an additional mount path for the files of NAME.
    pub const MOUNT_PATH: &str = "oras.land/mount-path";
    /// The containers that get the volume.
    pub const CONTAINERS: &str = "oras.land/containers";
    /// The media types of the layers to keep; with `.NAME`, of that artifact.
    pub const MEDIA_TYPES: &str = "oras.land/media-types";
    /// The platform to select from an image index; with `.NAME`, for that artifact.
    pub const PLATFORM: &str = "oras.land/platform";
    /// The Secret with the credentials for the registry.
    pub const PULL_SECRET: &str = "oras.land/pull-secret";
    /// `"false"` makes the webhook ignore the annotations.
    pub const INJECT: &str = "oras.land/inject";
    /// Written by the webhook: the references that each volume is pinned to.
    pub const PINNED: &str = "oras.land/pinned";
    /// Written by the webhook: the digest of the patch from which it made the volume of the annotations.
    pub const PINNED_PATCH: &str = "oras.land/pinned-patch";
    /// Written by the webhook: what the user wrote as the source of each volume, as JSON.
    pub const WRITTEN: &str = "oras.land/written";

    /// All annotations.
    pub const ALL: [&str; 14] = [
        ARTIFACT,
        RECIPE,
        ARTIFACT_SET,
        PATCH,
        PATCH_LEVEL,
        MOUNT_PATH,
        CONTAINERS,
        MEDIA_TYPES,
        PLATFORM,
        PULL_SECRET,
        INJECT,
        PINNED,
        PINNED_PATCH,
        WRITTEN,
    ];
    /// The annotations that can end in `.NAME`.
    pub const NAMED: [&str; 4] = [ARTIFACT, MOUNT_PATH, MEDIA_TYPES, PLATFORM];
}

/// Attributes of a canonical volume (docs/design.md, "Canonical volume").
pub mod canonical {
    /// The identifier of the volume ([`crate::volume_id`]).
    pub const ID: &str = "csi.oras.land/id";
    /// The pinned recipe as canonical JSON.
    pub const RECIPE: &str = "csi.oras.land/recipe";
    /// The ClusterArtifactSet that the recipe comes from.
    pub const SET: &str = "csi.oras.land/set";
    /// The signature of the webhook ([`crate::seal`]).
    pub const SEAL: &str = "csi.oras.land/seal";
    /// The trace of the pod's admission ([`crate::trace`]). Only with `--otlp-endpoint`; not sealed.
    pub const TRACE_PARENT: &str = "csi.oras.land/traceparent";

    /// All attributes of a canonical volume.
    pub const ALL: [&str; 5] = [ID, RECIPE, SET, SEAL, TRACE_PARENT];
}

/// Attributes of the earlier driver of the same name, and those proposed in its issue 25.
pub mod attribute {
    /// A reference to the artifact.
    pub const REFERENCE: &str = "oras.artifact.reference";
    /// The media types of the layers to keep, separated by commas.
    pub const MEDIA_TYPE: &str = "oras.artifact.layers.mediatype";
    /// A reference to a patch artifact.
    pub const PATCH: &str = "oras.artifact.patch";
    /// The highest level of the patch to apply.
    pub const PATCH_LEVEL: &str = "oras.artifact.patch.level";
    /// Use plain HTTP for the registry.
    pub const PLAIN_HTTP: &str = "oras.options.plainhttp";
    /// Do not verify the certificate of the registry.
    pub const INSECURE: &str = "oras.options.insecure";
    /// The number of layers to download in parallel; accepted, without effect.
    pub const CONCURRENCY: &str = "oras.options.concurrency";
    /// Resolve the tag without the cache.
    pub const PULL_ALWAYS: &str = "oras.options.pullalways";
    /// The name of a set.
    pub const NAME: &str = "oras-csi.name";
    /// A recipe in YAML.
    pub const ACTIONS: &str = "oras-csi.actions";

    /// All attributes of the earlier driver.
    pub const ALL: [&str; 10] = [
        REFERENCE,
        MEDIA_TYPE,
        PATCH,
        PATCH_LEVEL,
        PLAIN_HTTP,
        INSECURE,
        CONCURRENCY,
        PULL_ALWAYS,
        NAME,
        ACTIONS,
    ];
}

/// Returns the known annotation that is nearest to an unknown one, without a `.NAME` at its end.
pub fn nearest_annotation(key: &str) -> &'static str {
    let named = key.strip_prefix(ANNOTATION_PREFIX).and_then(|rest| rest.split_once('.'));
    let bare = named.map_or_else(|| key.to_owned(), |(rest, _)| format!("{ANNOTATION_PREFIX}{rest}"));
    nearest(&bare, &annotation::ALL)
}

/// Returns the known volume attribute that is nearest to an unknown one.
pub fn nearest_attribute(key: &str) -> &'static str {
    if key.starts_with(DRIVER) { nearest(key, &canonical::ALL) } else { nearest(key, &attribute::ALL) }
}

fn nearest(key: &str, known: &[&'static str]) -> &'static str {
    // The length of a key is not limited, and the comparison costs the product of both lengths.
    let key = key.chars().take(128).collect::<String>();
    let longer = known.iter().find(|known| known.starts_with(&key));
    let similar = || known.iter().min_by_key(|known| strsim::damerau_levenshtein(&key, known));
    longer.or_else(similar).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("oras.land/artefact", annotation::ARTIFACT)]
    #[case("oras.land/artifcat.model", annotation::ARTIFACT)]
    #[case("oras.land/mountpath", annotation::MOUNT_PATH)]
    #[case("oras.land/container", annotation::CONTAINERS)]
    #[case("oras.land/pull-secrets", annotation::PULL_SECRET)]
    fn suggests_the_nearest_annotation_for_a_typo(#[case] typo: &str, #[case] expected: &str) {
        assert_eq!(nearest_annotation(typo), expected);
    }

    #[rstest]
    #[case("oras.artifact.ref", attribute::REFERENCE)]
    #[case("oras.options.plain-http", attribute::PLAIN_HTTP)]
    #[case("oras-csi.action", attribute::ACTIONS)]
    #[case("csi.oras.land/recpie", canonical::RECIPE)]
    fn suggests_the_nearest_attribute_for_a_typo(#[case] typo: &str, #[case] expected: &str) {
        assert_eq!(nearest_attribute(typo), expected);
    }
}
