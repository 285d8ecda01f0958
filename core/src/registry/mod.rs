//! The client for OCI registries: one trait for reading, the HTTP client behind it, and the publisher.
//!
//! The webhook and the driver see [`Registry`]: it resolves a tag to a digest, fetches a verified manifest for a
//! digest, and streams a bounded blob. [`HttpRegistry`] implements it over the network, configured by containerd's
//! `certs.d` ([`HostsConfig`]). [`Access`] tries several credentials in order. [`Publisher`] pushes artifacts.
//!
//! Architecture Invariant: a registry is not trusted. Response bodies are bounded while they are read. Manifests are
//! hashed before they are parsed. Headers are compared with the request. Redirects and token realms are followed
//! only to addresses that [`guard`] allows. Text of a registry passes [`Printable`](crate::display::Printable)
//! before it reaches an error.

#![cfg_attr(test, allow(clippy::expect_used, clippy::panic, clippy::unwrap_used))]

pub mod access;
pub mod api;
pub mod error;
pub mod guard;
pub mod hosts;
pub mod http;
pub mod limits;
pub mod observer;
pub mod publish;

mod address;
mod auth;
mod body;
mod connection;
mod interim;
mod proxy;
mod request_label;
mod request_span;
mod retry;
mod tls;
mod transport;
mod tunnel;

pub use self::access::{Access, Anonymous, Candidate, Credentials, Keyring, Source};
pub use self::api::{BlobStream, Registry};
pub use self::error::{RegistryError, RegistryErrorKind};
pub use self::hosts::{Endpoint, HostsConfig, HostsError};
pub use self::http::{HttpRegistry, Settings};
pub use self::limits::Limits;
pub use self::observer::RequestObserver;
pub use self::publish::{Artifact, Content, Layer, Publication, PublishError, Published, Publisher};
