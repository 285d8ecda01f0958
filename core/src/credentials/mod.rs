//! Credentials: whose name a registry is asked in, and where an administrator keeps them.
//!
//! [`DockerConfig`] reads what pull secrets and docker's `config.json` hold, [`Helpers`] runs docker's
//! credential helpers, [`Providers`] kubelet's credential providers; [`Administrator`] asks all three in
//! order. Which credential is for which repository is kubelet's rule in all of them ([`MatchImage`]).
//!
//! Architecture Invariant: no secret is ever shown. A [`SecretText`] has no `Display`, its `Debug` says
//! nothing, and no error quotes what a file or a program said: neither serde's messages, which repeat
//! values, nor the output of a helper.

mod administrator;
mod config_file;
mod credential;
mod docker_config;
mod duration;
mod helper;
mod keyring;
mod match_image;
mod memory;
mod process;
mod provider;

#[cfg(test)]
mod tests;

pub use self::administrator::{Administrator, AdministratorSettings, Found, Problem, ProviderFiles};
pub use self::config_file::ConfigFileError;
pub use self::credential::{Credential, CredentialError, Fingerprint, SecretText};
pub use self::docker_config::{DockerConfig, DockerConfigError, EntryError, EntryProblem, HelperChoice};
pub use self::helper::{HelperError, HelperName, HelperNameError, Helpers};
pub use self::match_image::{MatchImage, MatchImageError};
pub use self::process::ProcessError;
pub use self::provider::{ProviderConfigError, ProviderError, Providers};
