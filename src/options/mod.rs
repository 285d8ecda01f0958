//! Flags that several subcommands share.

pub(crate) mod admission;
pub(crate) mod cluster;
pub(crate) mod limits;
pub(crate) mod output;
pub(crate) mod plain_http;
pub(crate) mod policy;
pub(crate) mod registry;
pub(crate) mod storage;
