//! Parses references and recipes of the command line. A host with a hosts.toml is a registry even if its name has no dot.

use oras_csi_core::recipe::WrittenRecipe;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::hosts::HostsConfig;

use crate::exit_status::Failure;

/// Parses a reference.
pub(crate) fn parse_reference(text: &str, hosts: &HostsConfig) -> Result<Reference, Failure> {
    Reference::parse_with_known_hosts(text, &|host| hosts.is_configured(host)).map_err(Failure::bad_input)
}

/// Parses a recipe in YAML or canonical JSON.
pub(crate) fn parse_recipe(text: &str, hosts: &HostsConfig) -> Result<WrittenRecipe, Failure> {
    WrittenRecipe::from_yaml(text, &|host| hosts.is_configured(host)).map_err(Failure::bad_input)
}
