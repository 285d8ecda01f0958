//! Flags that several subcommands share.

pub(crate) mod admission;
pub(crate) mod cluster;
#[cfg(feature = "node")]
pub(crate) mod limits;
pub(crate) mod output;
pub(crate) mod plain_http;
pub(crate) mod policy;
pub(crate) mod registry;
#[cfg(feature = "node")]
pub(crate) mod storage;
pub(crate) mod traces;
