//! Why a recipe could not be pulled.

use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::{Index, ManifestError, SelectError};
use oras_csi_core::path::Glob;
use oras_csi_core::reference::PinnedReference;
use oras_csi_core::registry::{RegistryError, RegistryErrorKind};

use crate::content::blob_reader::StreamFault;
use crate::disk::DiskError;
use crate::error_class::{ErrorClass, PullErrorKind};
use crate::unpack::error::UnpackError;
use crate::unpack::plan::PlanError;
use crate::unpack::tree_builder::TreeBuildError;

/// The reference that an error is about. Boxed, because errors are returned through every call.
type BoxedReference = Box<PinnedReference>;

/// Why a recipe could not be pulled. Each message names the reference.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry did not serve the manifest.
    #[error("cannot pull the manifest of {reference}: {}", registry_reason(.source))]
    Registry {
        /// The reference.
        reference: BoxedReference,
        /// The error of the registry.
        source: RegistryError,
    },
    /// The manifest is invalid.
    #[error(
        "cannot mount {reference}: its manifest is rejected: {source}. Push the artifact again with a valid manifest"
    )]
    Manifest {
        /// The reference.
        reference: BoxedReference,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// The size of the manifest differs from the size in the index.
    #[error(
        "cannot mount {reference}: the manifest has {found} bytes, but the index that names it says {wanted}. Push the index again"
    )]
    ManifestSize {
        /// The reference with the digest of the manifest.
        reference: BoxedReference,
        /// The size that the index says.
        wanted: u64,
        /// The size of the manifest.
        found: u64,
    },
    /// The index has no manifest for the platform.
    #[error("cannot mount {reference}: it is an image index that {source}. {}", .source.advice())]
    Platform {
        /// The reference.
        reference: BoxedReference,
        /// Which platforms the index has.
        source: SelectError,
    },
    /// The index selects an index, and so on. The webhook follows as many levels.
    #[error(
        "cannot mount {reference}: it is an image index that leads through more than {} indexes to the manifest for this \
         platform. Name an inner index or the image manifest by its digest instead",
        Index::MAX_DEPTH
    )]
    Nested {
        /// The reference.
        reference: BoxedReference,
    },
    /// The manifest has no layers that can be mounted.
    #[error("cannot mount {reference}: {source}")]
    Plan {
        /// The reference.
        reference: BoxedReference,
        /// The reason.
        source: PlanError,
    },
    /// A layer could not be downloaded or is rejected.
    #[error("cannot pull layer {layer} of {reference}: {source}")]
    Layer {
        /// The reference.
        reference: BoxedReference,
        /// The digest of the layer.
        layer: Digest,
        /// The reason.
        source: UnpackError,
    },
    /// Two `add` steps contain the same path.
    #[error(
        "two steps of the recipe contain \"{path}\": {first} and {second}. Give one of them a path of its own, or exclude the file from one of them"
    )]
    Conflict {
        /// The path in the volume.
        path: String,
        /// The earlier step.
        first: BoxedReference,
        /// The later step.
        second: BoxedReference,
    },
    /// Two layers of one artifact contain the same path.
    #[error("cannot combine the layers of {reference}: {source}")]
    Layers {
        /// The reference.
        reference: BoxedReference,
        /// What collides.
        source: TreeBuildError,
    },
    /// The filters of a step leave no file.
    #[error("the filters of the step match no file of {reference}: {filters}. Correct include or exclude")]
    Filtered {
        /// The reference.
        reference: BoxedReference,
        /// The filters.
        filters: String,
    },
    /// The archives have no entries.
    #[error("cannot mount {reference}: its archives are empty. Push files, or a directory with files")]
    Empty {
        /// The reference.
        reference: BoxedReference,
    },
    /// A `remove` step matches no file.
    #[error(
        "the recipe step \"remove: {glob}\" matches nothing that an earlier step adds. Correct the glob; if the file may be absent, use exclude in the step that adds it"
    )]
    RemovesNothing {
        /// The glob of the step.
        glob: Glob,
    },
    /// Later steps remove all files of a step.
    #[error(
        "nothing is left at \"{path}\" in the volume, where the recipe adds {reference}: later steps remove, hide or replace all of its files. Correct those steps, or remove the one that adds it"
    )]
    Emptied {
        /// The reference.
        reference: BoxedReference,
        /// The path of the step in the volume.
        path: String,
    },
    /// The volume exceeds a limit.
    #[error("cannot mount {reference}: {source}")]
    LimitExceeded {
        /// The reference that exceeded it.
        reference: BoxedReference,
        /// The limit.
        source: TreeBuildError,
    },
    /// The tree cannot be assembled, and no single artifact is the cause.
    #[error("cannot assemble the volume: {0}")]
    Assemble(TreeBuildError),
    /// The disk has too little space for the pull. Checked before anything is downloaded.
    #[error("not enough disk space to pull {reference} and the other artifacts of the volume: {source}")]
    NoSpace {
        /// The first reference of the recipe.
        reference: BoxedReference,
        /// How much space is needed and how much is free.
        source: DiskError,
    },
    /// An operation on the store's disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The driver is shutting down.
    #[error("the pull was stopped because the driver shuts down. It starts again with the next attempt")]
    Stopped,
    /// No pod waits for the pull any more.
    #[error(
        "the pull was stopped because no pod waits for it any more. The next pod that requests the content continues it"
    )]
    Abandoned,
}

impl PullError {
    /// Returns the kind of the failure, for metrics and gRPC codes.
    pub fn kind(&self) -> PullErrorKind {
        match self {
            Self::Registry { source, .. } => registry_error_kind(source),
            Self::Layer { source, .. } => match source {
                UnpackError::Stream(fault) => match fault {
                    StreamFault::Registry(error) => registry_error_kind(error),
                    StreamFault::Stopped => PullErrorKind::Stopped,
                    StreamFault::Size { .. } | StreamFault::Digest { .. } => PullErrorKind::Corrupt,
                    StreamFault::Unpacked { .. } => PullErrorKind::Refused,
                    StreamFault::Disk(error) => disk_error_kind(error),
                },
                UnpackError::Disk(error) => disk_error_kind(error),
                UnpackError::ContentDigest { .. } => PullErrorKind::Corrupt,
                _ => PullErrorKind::Refused,
            },
            Self::Layers { source: TreeBuildError::Disk(error), .. }
            | Self::NoSpace { source: error, .. }
            | Self::Disk(error) => disk_error_kind(error),
            Self::Manifest { .. }
            | Self::ManifestSize { .. }
            | Self::Platform { .. }
            | Self::Nested { .. }
            | Self::Plan { .. }
            | Self::Conflict { .. }
            | Self::Layers { .. }
            | Self::Filtered { .. }
            | Self::Empty { .. }
            | Self::RemovesNothing { .. }
            | Self::Emptied { .. }
            | Self::LimitExceeded { .. }
            | Self::Assemble(_) => PullErrorKind::Refused,
            Self::Stopped | Self::Abandoned => PullErrorKind::Stopped,
        }
    }

    /// Reports whether the registry limits the rate of requests.
    pub fn is_rate_limited(&self) -> bool {
        let (Self::Registry { source, .. }
        | Self::Layer { source: UnpackError::Stream(StreamFault::Registry(source)), .. }) = self
        else {
            return false;
        };
        source.kind() == RegistryErrorKind::RateLimited
    }

    /// Returns the class of the failure, for exit codes.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::RemovesNothing { .. }
            | Self::Emptied { .. }
            | Self::Conflict { .. }
            | Self::Filtered { .. }
            | Self::Platform { .. }
            | Self::Plan { source: PlanError::NoMediaType { .. }, .. }
            | Self::Registry { source: RegistryError::Misconfigured { .. }, .. } => ErrorClass::BadInput,
            _ => match self.kind() {
                PullErrorKind::Corrupt | PullErrorKind::Refused => ErrorClass::Refused,
                _ => ErrorClass::Failed,
            },
        }
    }
}

/// Returns the error of a registry that did not serve a manifest, with the possible causes if no host has the digest. A
/// pinned digest was there when its tag was resolved, so "not found" alone does not say what happened.
pub fn registry_reason(error: &RegistryError) -> String {
    match error.kind() {
        RegistryErrorKind::NotFound => format!(
            "{error}. No host of the registry has this digest. Either it was deleted or garbage-collected, or a \
             pull-through cache imports it only when its tag is requested, or these credentials cannot see it. Pull the \
             tag through the cache, or push the artifact again; if the tag has moved, create the pod again"
        ),
        _ => error.with_advice(),
    }
}

fn registry_error_kind(error: &RegistryError) -> PullErrorKind {
    match error {
        RegistryError::NotFound { .. } | RegistryError::Redirected { status: 404, .. } => {
            PullErrorKind::NotFound
        }
        RegistryError::Refused { .. }
        | RegistryError::Redirected { .. }
        | RegistryError::Misconfigured { .. }
        | RegistryError::NotAllowed { .. } => PullErrorKind::Denied,
        RegistryError::Untruthful { .. } => PullErrorKind::Corrupt,
        RegistryError::TooLarge { .. } | RegistryError::Invalid { .. } => PullErrorKind::Refused,
        RegistryError::RateLimited { .. }
        | RegistryError::Unavailable { .. }
        | RegistryError::Unreachable { .. }
        | RegistryError::Certificate { .. }
        | RegistryError::Authentication { .. }
        | RegistryError::Stalled { .. } => PullErrorKind::Unavailable,
    }
}

fn disk_error_kind(error: &DiskError) -> PullErrorKind {
    if error.is_full() { PullErrorKind::DiskFull } else { PullErrorKind::Internal }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_that_no_host_has_is_explained() {
        let reference: PinnedReference =
            format!("registry.example/app@sha256:{}", "ab".repeat(32)).parse().unwrap();
        let message =
            |source| PullError::Registry { reference: reference.clone().into(), source }.to_string();
        let missing =
            message(RegistryError::NotFound { at: "GET x".into(), words: "MANIFEST_UNKNOWN".into() });
        for part in
            ["not found: MANIFEST_UNKNOWN", "garbage-collected", "pull-through cache", "create the pod again"]
        {
            assert!(missing.contains(part), "{missing}");
        }
        let denied = message(RegistryError::Refused { at: "GET x".into(), status: 403, words: "no".into() });
        assert!(
            denied
                .ends_with("GET x: refused with 403: no. Use credentials that can pull from this repository"),
            "{denied}"
        );
    }
}
