//! [`Registry`](super::Registry) over HTTP (OCI distribution-spec 1.1).
//!
//! Reading uses hyper-util's client and not oci-client, because the registries are not trusted: oci-client 0.18 reads
//! manifests, tokens and errors without a limit, follows redirects by reqwest's default (to any address, and from https
//! to http), and has no deadlines, retries or mirrors. Pushing uses oci-client; see the module `oci_push`.

mod attempts;
mod client;
mod failed_endpoints;
mod links;
mod oci_push;
mod read;
mod referrers;
mod request;
mod response;
mod route;
mod settings;
#[cfg(test)]
mod tests;
mod write;

pub use self::client::HttpRegistry;
pub(in crate::registry) use self::referrers::referrers_tag;
pub use self::settings::Settings;
pub(in crate::registry) use self::write::{Blob, BlobContent};
