//! The entry: from settings to certificates that look after themselves.

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

use crate::clock::{Clock, human, unix};
use crate::error::Error;
use crate::keep::{Folder, Keeper, SecretKeeper};
use crate::readiness::{Check, Expiry, Readiness};
use crate::reload::{BETWEEN_TRIES, Publication, Reloader, TRIES};
use crate::settings::{Issuance, Settings, Source};
use crate::store::CertificateStore;
use crate::tls;
use crate::trust::{Live, TrustKeeper, judge, tell};

/// How often the first look is tried while the API server is away.
const FIRST_TRIES: u32 = 6;
/// How long to wait after the first of them; doubled after each further one: 15 s in all.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The certificates of a server, kept in step by background tasks. Cheap to clone.
#[derive(Clone)]
pub struct Certificates {
    config: Arc<ServerConfig>,
    store: Arc<CertificateStore>,
    live: Option<watch::Receiver<Live>>,
    clock: Clock,
}

/// Loads or makes the certificate, and keeps it in step from then on: tasks on `tasks` that end with
/// `shutdown`.
///
/// Returns as soon as there is a certificate to serve; whether the API server trusts it yet is for
/// [`Certificates::readiness`] to say. With [`Issuance::External`] it returns before there is one. While the
/// API server is away the first look is tried again for some 15 seconds.
///
/// # Errors
/// [`Error::NoClient`] where a Secret or a webhook configuration is named without `client`;
/// [`Error::Stopped`] when `shutdown` comes first; any other for what is kept but cannot be served, and
/// for a folder or Secret that cannot be read or written.
pub async fn start(
    settings: Settings,
    client: Option<kube::Client>,
    shutdown: CancellationToken,
    tasks: &TaskTracker,
) -> Result<Certificates, Error> {
    start_with_clock(settings, client, shutdown, tasks, Clock::system()).await
}

/// [`start`] at a time of a test's choice.
pub(crate) async fn start_with_clock(
    settings: Settings,
    client: Option<kube::Client>,
    shutdown: CancellationToken,
    tasks: &TaskTracker,
    clock: Clock,
) -> Result<Certificates, Error> {
    let Settings { source, names, issuance, webhook_configuration, validating_webhook_configuration, poll } =
        settings;
    let need = |what| client.clone().ok_or(Error::NoClient { what });
    let keeper = match source {
        Source::Folder(path) => Keeper::Folder(Folder::new(path)),
        Source::Secret { namespace, name } => {
            let client = need("keeping certificates in a Secret")?;
            Keeper::Secret(Box::new(SecretKeeper::new(client, &namespace, &name)))
        }
    };
    let wanted = watch::Sender::default();
    let cluster = || need("keeping the caBundle of a webhook configuration in step");
    let mutating: Option<(TrustKeeper<MutatingWebhookConfiguration>, _)> = match &webhook_configuration {
        Some(name) => Some(TrustKeeper::new(cluster()?, name, wanted.subscribe(), poll, clock.clone())),
        None => None,
    };
    let validating: Option<(TrustKeeper<ValidatingWebhookConfiguration>, _)> =
        match &validating_webhook_configuration {
            Some(name) => Some(TrustKeeper::new(cluster()?, name, wanted.subscribe(), poll, clock.clone())),
            None => None,
        };
    let live = mutating.as_ref().map(|(_, live)| live.clone());
    let publication = Publication { wanted, live: live.clone() };
    let mut reloader = Reloader::new(keeper, names, issuance, clock.clone(), publication);
    first_look(&mut reloader, issuance, &shutdown).await?;

    let store = reloader.store();
    let config = tls::server_config(store.clone())?;
    tasks.spawn(reloader.run(poll, shutdown.clone()));
    if let Some((keeper, _)) = mutating {
        tasks.spawn(keeper.run(shutdown.clone()));
    }
    if let Some((keeper, live)) = validating {
        tasks.spawn(keeper.run(shutdown.clone()));
        tasks.spawn(tell(live, Arc::clone(&store), clock.clone(), poll, shutdown));
    }
    Ok(Certificates { config, store, live, clock })
}

async fn first_look(
    reloader: &mut Reloader,
    issuance: Issuance,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let mut tries = 1;
    let mut glances = 1;
    loop {
        let Some(looked) = shutdown.run_until_cancelled(reloader.look()).await else {
            return Err(Error::Stopped);
        };
        match looked {
            Err(error @ Error::Absent { .. }) if issuance == Issuance::External => {
                reloader.report(&error);
                return Ok(());
            }
            Err(error) if error.is_transient() && tries < FIRST_TRIES => {
                tracing::warn!(%error, "trying again");
                let wait = FIRST_WAIT * 2u32.pow(tries - 1);
                if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                    return Err(Error::Stopped);
                }
                tries += 1;
            }
            // Somebody may be about to write the second of two files.
            Err(error) if error.is_half_done() && glances < TRIES => {
                tokio::time::sleep(BETWEEN_TRIES).await;
                glances += 1;
            }
            result => return result,
        }
    }
}

impl Certificates {
    /// TLS 1.3 and 1.2 for HTTP/2 and HTTP/1.1, without client certificates. Stays valid for the life of
    /// the process: each handshake gets the certificate of its moment.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Whether clients can reach the server over TLS now. Some 0.1 ms of arithmetic, no I/O.
    pub fn readiness(&self) -> Readiness {
        let now = self.clock.now();
        let problem = self.store.problem();
        let Some(serving) = self.store.serving() else {
            let reason = problem.unwrap_or_else(|| "no certificate is loaded yet".to_owned());
            let trust = Check::failed("there is no certificate to trust yet");
            return Readiness { certificate: Check::failed(reason), trust, not_after: None };
        };
        let validity = serving.leaf.validity();
        let not_after = human(validity.not_after());
        let but = problem.map(|problem| format!("; {problem}")).unwrap_or_default();
        let certificate = if validity.contains(now) {
            Check::passed(format!("loaded, good until {not_after}{but}"))
        } else {
            Check::failed(format!("good until {not_after}, which is not now{but}"))
        };
        let trust = match &self.live {
            Some(live) => judge(&live.borrow(), serving.leaf.chain(), now),
            None => Check::passed("no webhook configuration to keep in step"),
        };
        Readiness { certificate, trust, not_after: Some(validity.not_after()) }
    }

    /// The CAs that clients should trust, as PEM; none where somebody else issues the certificate and
    /// gives no `ca.crt`. May be ahead of what is served, since a new CA has to be trusted first.
    pub fn ca_bundle_pem(&self) -> Option<String> {
        let wanted = self.store.wanted();
        (!wanted.is_empty()).then(|| wanted.pem())
    }

    /// When the certificates run out, to be read at each scrape.
    pub fn expiry(&self) -> Expiry {
        let serving = self.store.serving();
        Expiry {
            leaf: serving.as_ref().map(|serving| unix(serving.leaf.validity().not_after())),
            authority: serving.and_then(|serving| serving.authority_not_after).map(unix),
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
