//! The entry point: from settings to certificates that background tasks keep up to date.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bundle_reconciler::{BundleReconciler, ObservedConfiguration, check_trust, log_untrusted};
use crate::ca_storage::{CaFolder, CaSecret, CaStorage};
use crate::clock::{Clock, rfc3339, unix_seconds};
use crate::error::Error;
use crate::readiness::{Check, Expiry, Readiness};
use crate::reload::{MAX_TRIES, Publication, RETRY_DELAY, Reloader};
use crate::settings::{Issuance, Settings, Source};
use crate::store::CertificateStore;
use crate::tls_config;

/// How often the first refresh is tried while the API server cannot be reached.
const START_TRIES: u32 = 6;
/// The delay after the first try. It doubles with each further try: 15 s in all.
const START_RETRY: Duration = Duration::from_millis(500);

/// The certificates of a server. Background tasks keep them up to date. Cheap to clone.
#[derive(Clone)]
pub struct Certificates {
    config: Arc<ServerConfig>,
    store: Arc<CertificateStore>,
    observed: Option<watch::Receiver<ObservedConfiguration>>,
    clock: Clock,
}

/// Loads or creates the certificate, and spawns background tasks on `tasks` that keep it up to date until `shutdown`.
///
/// Returns when there is a certificate to serve; [`Certificates::readiness`] reports whether the API server trusts it
/// already. With [`Issuance::External`] it also returns without a certificate. If the API server cannot be reached, the
/// first refresh is retried for about 15 seconds.
///
/// # Errors
/// [`Error::NoClient`] if a Secret or a webhook configuration is named without `client`, [`Error::Stopped`] if `shutdown`
/// comes first, and other errors if the stored certificate cannot be served or the folder or Secret cannot be read or
/// written.
pub async fn start(
    settings: Settings,
    client: Option<kube::Client>,
    shutdown: CancellationToken,
    tasks: &TaskTracker,
) -> Result<Certificates, Error> {
    start_with_clock(settings, client, shutdown, tasks, Clock::system()).await
}

/// Does what [`start`] does, with the clock of a test.
pub(crate) async fn start_with_clock(
    settings: Settings,
    client: Option<kube::Client>,
    shutdown: CancellationToken,
    tasks: &TaskTracker,
    clock: Clock,
) -> Result<Certificates, Error> {
    let Settings { source, names, issuance, webhook_configuration, validating_webhook_configuration, poll } =
        settings;
    let client_for = |what| client.clone().ok_or(Error::NoClient { what });
    let storage = match source {
        Source::Folder(path) => CaStorage::Folder(CaFolder::new(path)),
        Source::Secret { namespace, name } => {
            let client = client_for("storing certificates in a Secret")?;
            CaStorage::Secret(Box::new(CaSecret::new(client, &namespace, &name)))
        }
    };
    let desired = watch::Sender::default();
    let api = || client_for("writing the caBundle of a webhook configuration");
    let mutating: Option<(BundleReconciler<MutatingWebhookConfiguration>, _)> = match &webhook_configuration {
        Some(name) => Some(BundleReconciler::new(api()?, name, desired.subscribe(), poll, clock.clone())),
        None => None,
    };
    let validating: Option<(BundleReconciler<ValidatingWebhookConfiguration>, _)> =
        match &validating_webhook_configuration {
            Some(name) => Some(BundleReconciler::new(api()?, name, desired.subscribe(), poll, clock.clone())),
            None => None,
        };
    let observed = mutating.as_ref().map(|(_, observed)| observed.clone());
    let publication = Publication { desired, observed: observed.clone() };
    let mut reloader = Reloader::new(storage, names, issuance, clock.clone(), publication);
    first_refresh(&mut reloader, issuance, &shutdown).await?;

    let store = reloader.store();
    let config = tls_config::server_config(store.clone())?;
    tasks.spawn(reloader.run(poll, shutdown.clone()));
    if let Some((reconciler, _)) = mutating {
        tasks.spawn(reconciler.run(shutdown.clone()));
    }
    if let Some((reconciler, observed)) = validating {
        tasks.spawn(reconciler.run(shutdown.clone()));
        tasks.spawn(log_untrusted(observed, Arc::clone(&store), clock.clone(), poll, shutdown));
    }
    Ok(Certificates { config, store, observed, clock })
}

async fn first_refresh(
    reloader: &mut Reloader,
    issuance: Issuance,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let mut tries = 1;
    let mut partial_reads = 1;
    loop {
        let Some(result) = shutdown.run_until_cancelled(reloader.refresh()).await else {
            return Err(Error::Stopped);
        };
        match result {
            Err(error @ Error::NoCertificateYet { .. }) if issuance == Issuance::External => {
                reloader.record_failure(&error);
                return Ok(());
            }
            Err(error) if error.is_transient() && tries < START_TRIES => {
                tracing::warn!(%error, "cannot load the serving certificate; retrying");
                let wait = START_RETRY * 2u32.pow(tries - 1);
                if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                    return Err(Error::Stopped);
                }
                tries += 1;
            }
            // Another process may be about to write the second of two files.
            Err(error) if error.may_be_partial_update() && partial_reads < MAX_TRIES => {
                tokio::time::sleep(RETRY_DELAY).await;
                partial_reads += 1;
            }
            result => return result,
        }
    }
}

impl Certificates {
    /// Returns a configuration with TLS 1.3 and 1.2 for HTTP/2 and HTTP/1.1, without client certificates. It can be used for
    /// the life of the process: each handshake gets the present certificate.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Checks whether clients can reach the server over TLS now. It takes about 0.1 ms and does no I/O.
    pub fn readiness(&self) -> Readiness {
        let now = self.clock.now();
        let problem = self.store.problem();
        let Some(serving) = self.store.serving() else {
            let reason = problem.unwrap_or_else(|| "no certificate is loaded yet".to_owned());
            let trust = Check::failed("there is no certificate to trust yet");
            return Readiness { certificate: Check::failed(reason), trust, not_after: None };
        };
        let validity = serving.leaf.validity();
        let not_after = rfc3339(validity.not_after());
        let suffix = problem.map(|problem| format!("; {problem}")).unwrap_or_default();
        let certificate = if validity.contains(now) {
            Check::passed(format!("loaded, valid until {not_after}{suffix}"))
        } else {
            Check::failed(format!("the certificate is not valid now: it is valid until {not_after}{suffix}"))
        };
        let trust = match &self.observed {
            Some(observed) => check_trust(&observed.borrow(), serving.leaf.chain(), now),
            None => Check::passed("no webhook configuration is named"),
        };
        Readiness { certificate, trust, not_after: Some(validity.not_after()) }
    }

    /// Returns the CAs that clients should trust, as PEM, or `None` for an external certificate without `ca.crt`. A new CA is
    /// included before a certificate of it is served.
    pub fn ca_bundle_pem(&self) -> Option<String> {
        let bundle = self.store.ca_bundle();
        (!bundle.is_empty()).then(|| bundle.pem())
    }

    /// Returns when the certificates expire.
    pub fn expiry(&self) -> Expiry {
        let serving = self.store.serving();
        Expiry {
            leaf: serving.as_ref().map(|serving| unix_seconds(serving.leaf.validity().not_after())),
            authority: serving.and_then(|serving| serving.authority_not_after).map(unix_seconds),
        }
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("expiry", &self.expiry()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "certificates_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "validating_tests.rs"]
mod validating_tests;
