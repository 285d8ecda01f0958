//! Registry clients, and what several subcommands do with them: resolve a tag, pin a recipe.

use std::sync::Arc;
use std::time::Duration;

use oras_csi_core::credentials::Administrator;
use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::{PinnedRecipe, Recipe};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::registry::http::{HttpRegistry, Settings};
use oras_csi_core::registry::observer::NoRequestObserver;
use oras_csi_core::registry::{Access, Keyring, Publisher, Registry, RequestObserver};

use crate::exit_status::{ExitStatus, Failure};

/// The longest `Retry-After` of a registry that an interactive client waits for. It is shorter than the time after
/// which the webhook's resolver counts a registry as stalled, so that the caller gets the registry's 429 and its wait.
const MAX_INTERACTIVE_RETRY_WAIT: Duration = Duration::from_secs(1);

/// How long callers of an interactive client wait for one request. It is shorter than the time that the webhook has for a
/// review (8 s of the 10 s in the chart), so that the registry is asked in time after a mirror that does not answer, and
/// the denial says which of them failed.
const CALLER_DEADLINE: Duration = Duration::from_secs(6);
/// The time for a connection of an interactive client. A connection that takes longer must fail while a caller waits.
const INTERACTIVE_CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Returns an anonymous client for requests that a caller waits for: admission, `render`, `explain`.
pub(crate) fn interactive_client(hosts: &HostsConfig) -> Arc<HttpRegistry> {
    observed_interactive_client(hosts, Arc::new(NoRequestObserver))
}

/// Returns the same client with an observer.
pub(crate) fn observed_interactive_client(
    hosts: &HostsConfig,
    observer: Arc<dyn RequestObserver>,
) -> Arc<HttpRegistry> {
    let settings = Settings::default()
        .with_max_retry_wait(MAX_INTERACTIVE_RETRY_WAIT)
        .with_caller_deadline(CALLER_DEADLINE)
        .with_connect_timeout(INTERACTIVE_CONNECT_TIMEOUT)
        .with_observer(observer);
    Arc::new(HttpRegistry::new(hosts.clone(), settings))
}

/// Returns an anonymous client for pulls and pushes, which take long and wait as long as the registry demands.
pub(crate) fn transfer_client(hosts: &HostsConfig) -> Arc<HttpRegistry> {
    observed_transfer_client(hosts, Arc::new(NoRequestObserver))
}

/// Returns the same client with an observer.
pub(crate) fn observed_transfer_client(
    hosts: &HostsConfig,
    observer: Arc<dyn RequestObserver>,
) -> Arc<HttpRegistry> {
    Arc::new(HttpRegistry::new(hosts.clone(), Settings::default().with_observer(observer)))
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    /// Starts a registry that has every tag.
    fn start_registry() -> std::io::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let host = listener.local_addr()?.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\nContent-Length: 2\r\n\
             Docker-Content-Digest: {}\r\nConnection: close\r\n\r\n",
            Digest::sha256_of(b"{}")
        );
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(head.as_bytes());
            }
        });
        Ok(host)
    }

    /// A webhook has 8 s for a review, and a pod can need several requests.
    #[tokio::test]
    async fn a_mirror_that_does_not_answer_leaves_time_for_the_registry()
    -> Result<(), Box<dyn std::error::Error>> {
        let (registry, mirror) = (start_registry()?, TcpListener::bind("127.0.0.1:0")?);
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("_default"))?;
        let toml = format!("server = \"http://{registry}\"\n[host.\"http://{}\"]\n", mirror.local_addr()?);
        std::fs::write(folder.path().join("_default/hosts.toml"), toml)?;
        let client = interactive_client(&HostsConfig::load(Some(folder.path()))?);
        let started = Instant::now();
        for number in 0..20 {
            client.resolve(&format!("registry.example/app:{number}").parse()?).await?;
        }
        // The mirror costs half of the caller's time, once. Without these rules it costs 30 s for each request.
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        Ok(())
    }
}
