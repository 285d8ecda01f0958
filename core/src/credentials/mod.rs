//! Credentials for registries, and the places where an administrator keeps them.
//!
//! [`DockerConfig`] parses pull secrets and docker's `config.json`. [`Helpers`] runs docker's credential helpers, and
//! [`Providers`] runs kubelet's credential providers. [`Administrator`] uses all three in order. All of them select the
//! credentials for a repository by kubelet's rule ([`MatchImage`]).
//!
//! Architecture Invariant: no secret is ever shown. A [`SecretText`] has no `Display`, and its `Debug` shows nothing. No
//! error quotes the content of a file or the output of a program. Messages of serde are left out as well, because they
//! repeat values.

mod administrator;
mod config_file;
mod credential;
mod credential_cache;
mod docker_config;
mod helper;
mod keyring;
mod match_image;
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
