//! Why a recipe did not become a tree.

use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::{ManifestError, SelectError};
use oras_csi_core::path::Glob;
use oras_csi_core::reference::PinnedReference;
use oras_csi_core::registry::RegistryError;

use crate::content::blob_reader::StreamFault;
use crate::disk::DiskError;
use crate::error_class::{ErrorClass, PullErrorKind};
use crate::unpack::error::UnpackError;
use crate::unpack::graft::GraftError;
use crate::unpack::plan::PlanError;

/// Which reference an error is about; boxed, since errors are carried through every call.
type Of = Box<PinnedReference>;

/// Why a recipe did not become a tree. Each says which reference.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry did not give the manifest.
    #[error("the manifest of {reference} could not be fetched: {source}")]
    Registry {
        /// Of what.
        reference: Of,
        /// Why.
        source: RegistryError,
    },
    /// The manifest cannot be read.
    #[error("the manifest of {reference} is refused: {source}")]
    Manifest {
        /// Of what.
        reference: Of,
        /// Why.
        source: ManifestError,
    },
    /// An index entry says another size than the manifest has.
    #[error("the manifest {reference} has {found} bytes, and the index that names it says {wanted}")]
    ManifestSize {
        /// Of what.
        reference: Of,
        /// What the index says.
        wanted: u64,
        /// What came.
        found: u64,
    },
    /// No manifest for the platform.
    #[error("{reference} is an index, and {source}")]
    Platform {
        /// Of what.
        reference: Of,
        /// What there is.
        source: SelectError,
    },
    /// An index within an index: the webhook, which looks at all that a node may mount, looks no deeper either.
    #[error(
        "{reference} is an index whose manifest for the platform is an index again: name that one, or a manifest"
    )]
    Nested {
        /// Of what.
        reference: Of,
    },
    /// The manifest gives no files.
    #[error("{reference} cannot be mounted: {source}")]
    Plan {
        /// Of what.
        reference: Of,
        /// Why.
        source: PlanError,
    },
    /// A layer could not be fetched, or is refused.
    #[error("layer {layer} of {reference}: {source}")]
    Layer {
        /// Of what.
        reference: Of,
        /// Which layer.
        layer: Digest,
        /// Why.
        source: UnpackError,
    },
    /// Two steps, one path.
    #[error(
        "\"{path}\" is given by two steps of the recipe, {first} and {second}: give one of them a path of its own, or leave the file out with exclude"
    )]
    Conflict {
        /// The path in the volume.
        path: String,
        /// The earlier step.
        first: Of,
        /// The later one.
        second: Of,
    },
    /// One artifact, one path twice.
    #[error("{reference} has layers that do not fit together: {source}")]
    Layers {
        /// Of what.
        reference: Of,
        /// What collides.
        source: GraftError,
    },
    /// The filters of a step leave nothing.
    #[error("the filters of the step leave nothing of {reference}: {filters}")]
    Filtered {
        /// Of what.
        reference: Of,
        /// The filters.
        filters: String,
    },
    /// Archives without a single entry.
    #[error("{reference} has nothing in it to mount: its archives are empty")]
    Empty {
        /// Of what.
        reference: Of,
    },
    /// A `remove` with no effect.
    #[error(
        "the step \"remove: {glob}\" matches nothing that the steps before it lay down: correct it, or write what may or may not be there as exclude of the step that brings it"
    )]
    RemovesNothing {
        /// What it says.
        glob: Glob,
    },
    /// Later steps take away all that a step lays down.
    #[error(
        "nothing is left at \"{path}\" in the volume, where the recipe lays {reference}: later steps remove, hide or replace all of it"
    )]
    Emptied {
        /// Of what.
        reference: Of,
        /// Where.
        path: String,
    },
    /// A limit on the whole.
    #[error("{reference} is refused: {source}")]
    TooMuch {
        /// With what the limit is passed.
        reference: Of,
        /// The limit.
        source: GraftError,
    },
    /// The tree cannot be put together, by no artifact's fault.
    #[error("the volume cannot be put together: {0}")]
    Whole(GraftError),
    /// The store's disk, before anything is fetched.
    #[error("no room for {reference} and all that is mounted with it: {source}")]
    Room {
        /// The first of what is asked for.
        reference: Of,
        /// How much there is.
        source: DiskError,
    },
    /// The store's disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The driver is going down.
    #[error("the pull was given up because the driver stops; it starts again with the next attempt")]
    Stopped,
}

impl PullError {
    /// What it means.
    pub fn kind(&self) -> PullErrorKind {
        match self {
            Self::Registry { source, .. } => of_registry(source),
            Self::Layer { source, .. } => match source {
                UnpackError::Stream(fault) => match fault {
                    StreamFault::Registry(error) => of_registry(error),
                    StreamFault::Stopped => PullErrorKind::Stopped,
                    StreamFault::Size { .. } | StreamFault::Digest { .. } => PullErrorKind::Corrupt,
                    StreamFault::Unpacked { .. } => PullErrorKind::Refused,
                    StreamFault::Disk(error) => of_disk(error),
                },
                UnpackError::Disk(error) => of_disk(error),
                UnpackError::ContentDigest { .. } => PullErrorKind::Corrupt,
                _ => PullErrorKind::Refused,
            },
            Self::Layers { source: GraftError::Disk(error), .. }
            | Self::Room { source: error, .. }
            | Self::Disk(error) => of_disk(error),
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
            | Self::TooMuch { .. }
            | Self::Whole(_) => PullErrorKind::Refused,
            Self::Stopped => PullErrorKind::Stopped,
        }
    }

    /// What kind of failure it is, for a program's exit status.
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

fn of_registry(error: &RegistryError) -> PullErrorKind {
    match error {
        RegistryError::NotFound { .. } => PullErrorKind::NotFound,
        RegistryError::Refused { .. }
        | RegistryError::Misconfigured { .. }
        | RegistryError::NotAllowed { .. } => PullErrorKind::Denied,
        RegistryError::Untruthful { .. } => PullErrorKind::Corrupt,
        RegistryError::TooLarge { .. } | RegistryError::Invalid { .. } => PullErrorKind::Refused,
        RegistryError::RateLimited { .. }
        | RegistryError::Unavailable { .. }
        | RegistryError::Unreachable { .. }
        | RegistryError::Stalled { .. } => PullErrorKind::Unavailable,
    }
}

fn of_disk(error: &DiskError) -> PullErrorKind {
    if error.is_full() { PullErrorKind::DiskFull } else { PullErrorKind::Internal }
}
