//! Errors about manifests and indexes.

use super::MAX_ENTRIES;
use crate::digest::Digest;
use crate::display::Printable;
use crate::platform::Platform;

/// The error for bytes that are not an accepted manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The bytes have another digest than the one that was requested.
    #[error("the bytes have the digest {actual}, but {expected} was requested")]
    Digest {
        /// The digest that was requested.
        expected: Digest,
        /// The sha256 digest of the bytes that were received.
        actual: Digest,
    },
    /// The bytes are not JSON, or an object has the same name twice.
    #[error("the manifest is not valid JSON: {0}")]
    Json(Printable),
    /// The media type is neither that of an image nor that of an index.
    #[error("the manifest has the media type \"{0}\", which is not supported")]
    Unsupported(Printable),
    /// The `Content-Type`, `mediaType` and the fields of the manifest contradict each other.
    #[error("the manifest is ambiguous: {0}")]
    Ambiguous(Printable),
    /// A field is missing or has an invalid value.
    #[error("the manifest's {field} {problem}")]
    Field {
        /// The path of the field, for example `layers[3].digest`.
        field: Printable,
        /// What is wrong with it.
        problem: Printable,
    },
    /// The manifest has more layers, or the index more manifests, than are accepted.
    #[error("the manifest has {count} {what}: the maximum is {MAX_ENTRIES}")]
    TooMany {
        /// `layers` or `manifests`.
        what: &'static str,
        /// The number of entries.
        count: usize,
    },
}

/// The error for an index from which no manifest can be selected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// The index has no manifest for the platform.
    #[error("has no manifest for {platform}; it has {available}")]
    NoPlatform {
        /// The platform that was requested.
        platform: Platform,
        /// The platforms of the index.
        available: Printable,
    },
    /// The index has several manifests, and none of them states a platform.
    #[error("has {count} manifests that state no platform")]
    NoPlatformStated {
        /// The number of manifests without a platform.
        count: usize,
    },
}

impl SelectError {
    /// What an index without entries has.
    pub(super) const NO_MANIFESTS: &'static str = "no manifests";

    /// Returns what to do, as a sentence without its period.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NoPlatform { available, .. } if available.as_str() == Self::NO_MANIFESTS => {
                "Push it again with its manifests"
            }
            Self::NoPlatform { .. } => {
                "Request a platform that it has, push a manifest for this platform, or use a node of a platform that it has"
            }
            Self::NoPlatformStated { .. } => "Write the digest of one of them in the reference",
        }
    }
}
