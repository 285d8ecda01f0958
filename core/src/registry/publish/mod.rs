//! Pushes artifacts: patches, recipes and files.
//!
//! [`Publisher`] is the only code that pushes. It pushes the blobs of a [`Publication`], then its manifest, each with the
//! first credential that the registry accepts. The uploads go through oci-client; the parts that cannot are listed in
//! the modules `http::write` and `http::oci_push`.
//!
//! A manifest with a `subject` must be found through the referrers of that subject (OCI distribution-spec 1.1, "Pushing
//! Manifests with Subject"). oci-client has no support for this. If the registry has no referrers API, [`Publisher`]
//! updates the index under the referrers tag itself, with a check and a retry for concurrent writers.

mod artifact;
mod error;
mod publication;
mod publisher;

pub use self::artifact::{Artifact, Content, Layer};
pub use self::error::PublishError;
pub use self::publication::Publication;
pub use self::publisher::{Published, Publisher};
