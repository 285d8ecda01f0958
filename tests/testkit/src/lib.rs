//! Servers in memory that the tests, the demo and the fuzz targets share.
//!
//! | module | what it is |
//! |---|---|
//! | `api_server` | a Kubernetes API server for clients of the crate `kube`; feature `api-server` |
//! | `client` | a registry in this process that implements the client trait of core; feature `client` |
//! | [`registry`] | an OCI registry over HTTP that works as the distribution specification says |
//! | [`scripted`] | HTTP servers and a registry that send what a test tells them to, valid or not |

#[cfg(feature = "api-server")]
pub mod api_server;
#[cfg(feature = "client")]
pub mod client;
pub mod digest;
pub mod registry;
pub mod scripted;
