//! `--plain-http`: for trying a command against a registry without TLS.

use clap::Args;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::hosts::HostsConfig;

/// Allows plain HTTP to the registries that the command line or the recipe names.
#[derive(Debug, Args)]
pub(crate) struct PlainHttpOption {
    /// Use plain HTTP for the registries that are named on the command line or in the recipe, at any address. For
    /// manual tests only; in production configure hosts.toml (--certs-dir).
    #[arg(long)]
    plain_http: bool,
}

impl PlainHttpOption {
    /// Adds the named registries to the configuration as plain HTTP, if the flag is set.
    pub(crate) fn apply<'a>(
        &self,
        mut hosts: HostsConfig,
        named: impl IntoIterator<Item = &'a Reference>,
    ) -> HostsConfig {
        if self.plain_http {
            for reference in named {
                hosts = hosts.with_plain_http(reference.registry().clone());
            }
        }
        hosts
    }
}
