//! The subcommands, one file or folder each.

#[cfg(feature = "node")]
pub(crate) mod driver;
pub(crate) mod explain;
pub(crate) mod patch;
#[cfg(feature = "node")]
pub(crate) mod pull;
pub(crate) mod recipe;
pub(crate) mod render;
#[cfg(feature = "node")]
pub(crate) mod store;
pub(crate) mod webhook;
