//! Errors of a push.

use std::path::PathBuf;

use crate::display::Printable;
use crate::manifest::MAX_ENTRIES;
use crate::registry::error::RegistryError;

/// How often the index under a referrers tag is written while other clients write it as well.
pub(super) const MAX_INDEX_WRITES: u32 = 8;

/// Returns what to do after a failed request of a push.
fn advice(error: &RegistryError) -> &'static str {
    match error {
        RegistryError::Refused { status: 401 | 403, .. } => {
            ". Use credentials that can push to this repository"
        }
        RegistryError::NotFound { .. } => ". Create the repository first, if the registry does not create it",
        _ => "",
    }
}

/// Why an artifact was not pushed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// A request to the registry failed.
    #[error("cannot push {what} to {to}: {source}{}", advice(.source))]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_push_says_what_to_do() {
        let (at, words) = (|| Printable::new("PUT x"), || Printable::new("no"));
        for (source, end) in [
            (
                RegistryError::Refused { at: at(), status: 403, words: words() },
                "no. Use credentials that can push to this repository",
            ),
            (
                RegistryError::NotFound { at: at(), words: words() },
                "no. Create the repository first, if the registry does not create it",
            ),
            (RegistryError::Unavailable { at: at(), status: 500, words: words() }, "failed with 500: no"),
        ] {
            let error = PublishError::Registry { what: "the manifest".into(), to: "r.io/a".into(), source };
            assert!(error.to_string().ends_with(end), "{error}");
        }
    }
}
