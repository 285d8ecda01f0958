//! Registry clients, and what several subcommands do with them: resolve a tag, pin a recipe.

use std::sync::Arc;
use std::time::Duration;

use oras_csi_core::credentials::Administrator;
use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::{PinnedRecipe, Recipe};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::registry::http::{HttpRegistry, Settings};
use oras_csi_core::registry::{Access, Keyring, Publisher, Registry};

use crate::exit_status::{ExitStatus, Failure};

/// The longest `Retry-After` of a registry that an interactive client waits for. It is shorter than the time after
/// which the webhook's resolver counts a registry as stalled, so that the caller gets the registry's 429 and its wait.
const MAX_INTERACTIVE_RETRY_WAIT: Duration = Duration::from_secs(1);

/// Returns an anonymous client for requests that a caller waits for: admission, `render`, `explain`.
pub(crate) fn interactive_client(hosts: &HostsConfig) -> Arc<HttpRegistry> {
    let settings = Settings::default().with_max_retry_wait(MAX_INTERACTIVE_RETRY_WAIT);
    Arc::new(HttpRegistry::new(hosts.clone(), settings))
}

/// Returns an anonymous client for pulls and pushes, which take long and wait as long as the registry demands.
pub(crate) fn transfer_client(hosts: &HostsConfig) -> Arc<HttpRegistry> {
    Arc::new(HttpRegistry::new(hosts.clone(), Settings::default()))
}

/// Returns the client with these credentials.
pub(crate) fn with_credentials(
    registry: Arc<dyn Registry>,
    credentials: Option<Administrator>,
) -> Arc<Access> {
    Arc::new(Access::new(registry, Arc::new(Keyring::new(credentials))))
}

/// Returns a publisher, which pushes artifacts with these credentials.
pub(crate) fn publisher(registry: Arc<HttpRegistry>, credentials: Option<Administrator>) -> Publisher {
    Publisher::new(registry, Arc::new(Keyring::new(credentials)))
}

/// Returns the digest of the reference, or the one that its tag has at the registry.
pub(crate) async fn resolve_digest(
    registry: &dyn Registry,
    reference: &Reference,
) -> Result<Digest, Failure> {
    if let Some(digest) = reference.digest() {
        return Ok(digest.clone());
    }
    match registry.resolve(reference).await {
        Ok(found) => Ok(found.digest().clone()),
        Err(error) => {
            let status = ExitStatus::from(error.kind());
            Err(Failure::new(status, error.with_advice()).at(format_args!("cannot resolve {reference}")))
        }
    }
}

/// Resolves each tag of a recipe.
pub(crate) async fn pin_recipe(registry: &dyn Registry, recipe: &Recipe) -> Result<PinnedRecipe, Failure> {
    let mut digests = Vec::new();
    for reference in recipe.references() {
        digests.push(resolve_digest(registry, reference).await?);
    }
    let mut digests = digests.into_iter();
    recipe.pin(|reference| {
        digests.next().ok_or_else(|| Failure::failed(format!("{reference} was not resolved")))
    })
}
