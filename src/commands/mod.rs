//! The subcommands, one file or folder each.

pub(crate) mod completion;
#[cfg(feature = "node")]
pub(crate) mod driver;
pub(crate) mod explain;
pub(crate) mod patch;
#[cfg(feature = "node")]
pub(crate) mod pull;
pub(crate) mod recipe;
pub(crate) mod render;
pub(crate) mod status;
#[cfg(feature = "node")]
pub(crate) mod store;
pub(crate) mod webhook;
pub(crate) mod why;
