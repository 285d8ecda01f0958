//! Errors of a push.

use std::path::PathBuf;

use crate::display::Printable;
use crate::manifest::MAX_ENTRIES;
use crate::registry::error::RegistryError;

/// How often the index under a referrers tag is written while other clients write it as well.
pub(super) const MAX_INDEX_WRITES: u32 = 8;

/// Why an artifact was not pushed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// A request to the registry failed.
    #[error("cannot push {what} to {to}: {source}")]
    Registry {
        /// The blob or manifest.
        what: Printable,
        /// The repository.
        to: Printable,
        /// The error of the request.
        source: RegistryError,
    },
    /// The target reference has a digest.
    #[error(
        "cannot push to {0}: a push makes the digest. Remove the digest and write a tag or only the repository"
    )]
    Digest(Printable),
    /// A file to push cannot be read.
    #[error("cannot read {} to push it: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        reason: String,
    },
    /// Other clients overwrote the referrers index each time.
    #[error(
        "pushed {pushed}, but cannot add it to the list of referrers {tag}: other clients overwrote the list \
         {MAX_INDEX_WRITES} times in a row. Push again to add it"
    )]
    Contended {
        /// The referrers tag.
        tag: Printable,
        /// The manifest that is not in the list.
        pushed: Printable,
    },
    /// The referrers index is full.
    #[error(
        "cannot add to the list of referrers of {0}: it already has more than {MAX_ENTRIES} manifests. Delete some of \
         them first"
    )]
    TooMany(Printable),
}
