//! The subcommands, one file or folder each.

pub(crate) mod completion;
pub(crate) mod driver;
pub(crate) mod explain;
pub(crate) mod patch;
pub(crate) mod pull;
pub(crate) mod recipe;
pub(crate) mod render;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod webhook;
pub(crate) mod why;
