//! Every annotation and volume attribute of the contract, in one place.

/// The CSI driver's name, also the prefix of the attributes of a canonical volume.
pub const DRIVER: &str = "csi.oras.land";
/// The prefix of all our annotations.
pub const ANNOTATION_PREFIX: &str = "oras.land/";
/// The volume that a pod gains for its annotations.
pub const VOLUME_NAME: &str = "oras-artifacts";
/// Where that volume appears in containers unless `oras.land/mount-path` says otherwise.
pub const DEFAULT_MOUNT_PATH: &str = "/mnt/oras";
/// The prefix of attributes that only kubelet may write.
pub const KUBELET_PREFIX: &str = "csi.storage.k8s.io/";

/// Annotations on a pod.
pub mod annotation {
    /// A reference whose files lie at the root of the volume; with `.NAME`, under `NAME/`.
    pub const ARTIFACT: &str = "oras.land/artifact";
    /// A whole recipe in YAML.
    pub const RECIPE: &str = "oras.land/recipe";
    /// A named set.
    pub const ARTIFACT_SET: &str = "oras.land/artifact-set";
    /// A patch artifact.
    pub const PATCH: &str = "oras.land/patch";
    /// Up to which level of a patch artifact.
    pub const PATCH_LEVEL: &str = "oras.land/patch-level";
    /// Where the volume appears; with `.NAME`, where NAME's files appear as well.
    pub const MOUNT_PATH: &str = "oras.land/mount-path";
    /// Which containers get the volume.
    pub const CONTAINERS: &str = "oras.land/containers";
    /// Which layers are kept, by media type; with `.NAME`, of that artifact.
    pub const MEDIA_TYPES: &str = "oras.land/media-types";
    /// Which manifest of an image index; with `.NAME`, of that artifact.
    pub const PLATFORM: &str = "oras.land/platform";
    /// The Secret with the registry's credentials.
    pub const PULL_SECRET: &str = "oras.land/pull-secret";
    /// `"false"`: ignore the annotations.
    pub const INJECT: &str = "oras.land/inject";
    /// Written by the webhook: what each volume was pinned to.
    pub const PINNED: &str = "oras.land/pinned";
    /// Written by the webhook: what the patch was pinned to that gave the volume of the annotations.
    pub const PINNED_PATCH: &str = "oras.land/pinned-patch";

    /// All of them.
    pub const ALL: [&str; 13] = [
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
    ];
    /// Those that take `.NAME` behind them.
    pub const NAMED: [&str; 4] = [ARTIFACT, MOUNT_PATH, MEDIA_TYPES, PLATFORM];
}

/// Attributes of a canonical volume (design §4).
pub mod canonical {
    /// The safe identifier.
    pub const ID: &str = "csi.oras.land/id";
    /// The pinned recipe as canonical JSON.
    pub const RECIPE: &str = "csi.oras.land/recipe";
    /// The cluster set that gave the recipe.
    pub const SET: &str = "csi.oras.land/set";
    /// The webhook's signature.
    pub const SEAL: &str = "csi.oras.land/seal";

    /// All of them.
    pub const ALL: [&str; 4] = [ID, RECIPE, SET, SEAL];
}

/// Attributes of the earlier driver, and those that its issue 25 sketches.
pub mod attribute {
    /// The artifact.
    pub const REFERENCE: &str = "oras.artifact.reference";
    /// Which layers are kept: media types, separated by commas.
    pub const MEDIA_TYPE: &str = "oras.artifact.layers.mediatype";
    /// A patch artifact.
    pub const PATCH: &str = "oras.artifact.patch";
    /// Up to which level of it.
    pub const PATCH_LEVEL: &str = "oras.artifact.patch.level";
    /// Plain http to the registry.
    pub const PLAIN_HTTP: &str = "oras.options.plainhttp";
    /// A registry whose certificate is not verified.
    pub const INSECURE: &str = "oras.options.insecure";
    /// How many layers to fetch at once; taken, and without effect.
    pub const CONCURRENCY: &str = "oras.options.concurrency";
    /// Resolve past the cache.
    pub const PULL_ALWAYS: &str = "oras.options.pullalways";
    /// The name of a group of artifacts.
    pub const NAME: &str = "oras-csi.name";
    /// A recipe in YAML.
    pub const ACTIONS: &str = "oras-csi.actions";

    /// All of them.
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

/// The known annotation that an unknown one was probably meant to be; a `.NAME` behind it is left out.
pub fn nearest_annotation(key: &str) -> &'static str {
    let named = key.strip_prefix(ANNOTATION_PREFIX).and_then(|rest| rest.split_once('.'));
    let bare = named.map_or_else(|| key.to_owned(), |(rest, _)| format!("{ANNOTATION_PREFIX}{rest}"));
    nearest(&bare, &annotation::ALL)
}

/// The known attribute that an unknown one was probably meant to be.
pub fn nearest_attribute(key: &str) -> &'static str {
    if key.starts_with(DRIVER) { nearest(key, &canonical::ALL) } else { nearest(key, &attribute::ALL) }
}

fn nearest(key: &str, known: &[&'static str]) -> &'static str {
    // A key may be as long as its sender likes; its beginning is enough to compare.
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
    fn a_typo_is_told_its_annotation(#[case] typo: &str, #[case] meant: &str) {
        assert_eq!(nearest_annotation(typo), meant);
    }

    #[rstest]
    #[case("oras.artifact.ref", attribute::REFERENCE)]
    #[case("oras.options.plain-http", attribute::PLAIN_HTTP)]
    #[case("oras-csi.action", attribute::ACTIONS)]
    #[case("csi.oras.land/recpie", canonical::RECIPE)]
    fn a_typo_is_told_its_attribute(#[case] typo: &str, #[case] meant: &str) {
        assert_eq!(nearest_attribute(typo), meant);
    }
}
