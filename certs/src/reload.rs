//! Reading the folder or Secret every few seconds, and never with inotify: kubelet replaces a mounted Secret by swapping the
//! `..data` symlink, which a watch on the file reports once or not at all.
//!
//! Each refresh interprets the entries ([`crate::entries`]) and decides which certificate to serve. If that certificate
//! cannot be served, the last valid one stays in use and readiness reports the reason. Renewal depends on the wall clock, so
//! a machine that was suspended renews the certificate at the first refresh after it wakes up.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::bundle_reconciler::{ObservedConfiguration, is_trusted};
use crate::ca_bundle::CaBundle;
use crate::ca_storage::CaStorage;
use crate::clock::{Clock, rfc3339};
use crate::entries::{RawPair, Stored, StoredCa, StoredLeaf};
use crate::error::Error;
use crate::leaf::Leaf;
use crate::settings::{Issuance, Names};
use crate::store::{CertificateStore, Serving};

/// How often a folder or Secret that other processes are changing is read before the refresh fails.
pub(crate) const MAX_TRIES: u32 = 5;
/// The delay between two such tries: long enough for another process to write the second of two files.
pub(crate) const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Keeps a [`CertificateStore`] up to date with a [`CaStorage`].
pub(crate) struct Reloader {
    storage: CaStorage,
    names: Names,
    issuance: Issuance,
    clock: Clock,
    store: Arc<CertificateStore>,
    publication: Publication,
    /// The CA as it was last read. It can be stored again, and can sign while the API server cannot be reached.
    authority: Option<Arc<Authority>>,
    /// A certificate that is not served yet, because clients do not trust its CA yet.
    pending: Option<PendingLeaf>,
    /// Whether the folder could not be written, so that the certificate is only in memory.
    is_only_in_memory: bool,
}

/// The connection to the reconcilers of the `caBundle` of webhook configurations.
#[derive(Default)]
pub(crate) struct Publication {
    /// The bundle to write.
    pub(crate) desired: watch::Sender<CaBundle>,
    /// The configuration that must trust a certificate before it is served, if there is one.
    pub(crate) observed: Option<watch::Receiver<ObservedConfiguration>>,
}

struct PendingLeaf {
    leaf: Leaf,
    /// Whether the configuration trusts it already.
    is_trusted: bool,
}

struct Candidate {
    leaf: Leaf,
    bundle: CaBundle,
}

impl Reloader {
    /// Makes a reloader that has not read anything yet.
    pub(crate) fn new(
        storage: CaStorage,
        names: Names,
        issuance: Issuance,
        clock: Clock,
        publication: Publication,
    ) -> Self {
        let store = Arc::default();
        Self {
            storage,
            names,
            issuance,
            clock,
            store,
            publication,
            authority: None,
            pending: None,
            is_only_in_memory: false,
        }
    }

    /// Returns the store that it keeps up to date.
    pub(crate) fn store(&self) -> Arc<CertificateStore> {
        Arc::clone(&self.store)
    }

    /// Refreshes every `poll` until `shutdown`.
    pub(crate) async fn run(mut self, poll: Duration, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(poll);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            // A refresh can be interrupted at any point: files and Secrets change in one step.
            let Some(result) = shutdown.run_until_cancelled(self.refresh()).await else { return };
            if let Err(error) = result {
                self.record_failure(&error);
            }
        }
    }

    /// Records why the last refresh failed, and logs it once.
    pub(crate) fn record_failure(&self, error: &Error) {
        if self.store.set_problem(Some(error.to_string())) {
            let place = self.storage.place();
            if let Some(serving) = self.store.serving() {
                let until = rfc3339(serving.leaf.validity().not_after());
                tracing::warn!(%error, %place, %until, "cannot load the serving certificate; the last valid one stays in use");
            } else {
                tracing::warn!(%error, %place, "cannot load the serving certificate; there is none yet");
            }
        }
    }

    /// Refreshes once: reads the entries, creates what is missing, renews what is due, and serves what is new.
    pub(crate) async fn refresh(&mut self) -> Result<(), Error> {
        let now = self.clock.now();
        match self.candidate(now).await {
            Ok(candidate) => {
                self.publish_and_serve(candidate, now);
                Ok(())
            }
            Err(error) => {
                self.renew_without_storage(now)?;
                Err(error)
            }
        }
    }

    async fn candidate(&mut self, now: SystemTime) -> Result<Candidate, Error> {
        let place = self.storage.place();
        for attempt in 0..MAX_TRIES {
            if attempt > 1 {
                tokio::time::sleep(RETRY_DELAY).await;
            }
            match self.storage.read().await?.interpret(&place, self.issuance, now)? {
                Stored::External { pair, bundle } => {
                    let candidate = self.external(&pair, bundle, now)?;
                    self.authority = None;
                    return Ok(candidate);
                }
                Stored::Authority(stored) => return self.issued(*stored, now).await,
                Stored::Nothing => {
                    let was_external = self.store.serving().is_some() && self.authority.is_none();
                    if was_external {
                        return Err(Error::NoCertificateYet { place });
                    }
                    // A CA that was removed is stored again, because clients trust it.
                    let proposed = match &self.authority {
                        Some(authority) => Arc::clone(authority),
                        None => Arc::new(Authority::generate(now)?),
                    };
                    self.storage.store_ca(&proposed, now).await?;
                }
            }
        }
        Err(Error::Contended { place, tries: MAX_TRIES })
    }

    fn external(&self, pair: &RawPair, bundle: CaBundle, now: SystemTime) -> Result<Candidate, Error> {
        let place = self.storage.place();
        let leaf = Leaf::parse(&place, &pair.certificate, &pair.key, &self.names, now)?;
        if self.publication.observed.is_some()
            && !bundle.is_empty()
            && let Err(reason) = bundle.verify_chain(leaf.chain(), now)
        {
            return Err(Error::NotTrusted { place, reason });
        }
        Ok(Candidate { leaf, bundle })
    }

    async fn issued(&mut self, stored: StoredCa, now: SystemTime) -> Result<Candidate, Error> {
        let StoredCa { authority, bundle, leaf } = stored;
        let authority = Arc::new(authority);
        self.authority = Some(Arc::clone(&authority));
        let stored = match leaf {
            StoredLeaf::Foreign(pair) => return self.external(&pair, bundle, now),
            StoredLeaf::Ours(pair) => pair,
            StoredLeaf::Nothing => None,
        };
        let leaf = match &self.storage {
            CaStorage::Folder(folder) => {
                let place = self.storage.place();
                let read = stored
                    .as_ref()
                    .map(|pair| Leaf::parse(&place, &pair.certificate, &pair.key, &self.names, now))
                    .transpose();
                // The certificate in memory stays in use while another process is in the middle of a renewal or uses
                // other names, and while the folder cannot be written.
                let stays = read.is_err() || self.is_only_in_memory;
                match (read, self.current_leaf(&authority, now)) {
                    (Ok(Some(leaf)), _) if !leaf.is_due(now) => leaf,
                    (_, Some(leaf)) if stays => leaf,
                    _ => {
                        let (folder, names) = (folder.clone(), self.names.clone());
                        let renewed =
                            tokio::task::spawn_blocking(move || folder.renew(&authority, &names, now))
                                .await??;
                        self.is_only_in_memory = !renewed.is_stored;
                        renewed.leaf
                    }
                }
            }
            CaStorage::Secret(_) => match self.current_leaf(&authority, now) {
                Some(leaf) => leaf,
                None => self.issue_leaf(&authority, now)?,
            },
        };
        Ok(Candidate { leaf, bundle })
    }

    /// Returns a certificate of `authority` that is in memory and not due for renewal.
    fn current_leaf(&self, authority: &Authority, now: SystemTime) -> Option<Leaf> {
        let serving = self.store.serving().map(|serving| serving.leaf.clone());
        let pending = self.pending.as_ref().map(|pending| pending.leaf.clone());
        [pending, serving]
            .into_iter()
            .flatten()
            .find(|leaf| leaf.is_from(authority.certificate()) && !leaf.is_due(now))
    }

    fn issue_leaf(&self, authority: &Authority, now: SystemTime) -> Result<Leaf, Error> {
        let issued = authority.issue(&self.names, now)?;
        let (certificate, key) = (issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes());
        Leaf::parse(&self.storage.place(), certificate, key, &self.names, now)
    }

    /// Renews the certificate with the CA in memory while the folder or Secret cannot be read.
    fn renew_without_storage(&mut self, now: SystemTime) -> Result<(), Error> {
        let (Some(authority), Some(serving)) = (&self.authority, self.store.serving()) else { return Ok(()) };
        if serving.leaf.is_due(now)
            && serving.leaf.is_from(authority.certificate())
            && authority.validity().contains(now)
        {
            let leaf = self.issue_leaf(authority, now)?;
            self.serve(leaf, serving.authority_not_after, now);
        }
        Ok(())
    }

    /// Publishes the CAs of the candidate, and serves its certificate when clients trust it. That is at once if the
    /// certificate in use is not trusted either. Otherwise it is one refresh after the configuration was first seen to trust
    /// it, so that every API server has read the configuration.
    fn publish_and_serve(&mut self, candidate: Candidate, now: SystemTime) {
        let Candidate { leaf, bundle } = candidate;
        let authority_not_after = bundle.not_after();
        if self.store.ca_bundle() != bundle {
            self.store.set_ca_bundle(bundle.clone());
        }
        let pending = self.pending.take();
        let serving = self.store.serving();
        self.publication.desired.send_if_modified(|desired| {
            let is_new = *desired != bundle;
            if is_new {
                *desired = bundle;
            }
            is_new
        });
        if let Some(observed) = &self.publication.observed {
            let observed = observed.borrow();
            if let Some(serving) = &serving
                && serving.leaf != leaf
                && is_trusted(&observed, serving.leaf.chain(), now)
            {
                let trusted = is_trusted(&observed, leaf.chain(), now);
                let was_untrusted = pending.is_some_and(|pending| !pending.is_trusted);
                if !trusted || was_untrusted {
                    let message = "a new certificate is not served until the caBundle of the webhook configuration trusts it";
                    if self.store.set_problem(Some(message.to_owned())) {
                        tracing::info!(place = %self.storage.place(), "{message}");
                    }
                    self.pending = Some(PendingLeaf { leaf, is_trusted: trusted });
                    return;
                }
            }
        }
        self.store.set_problem(None);
        match serving {
            Some(serving) if serving.leaf == leaf && serving.authority_not_after == authority_not_after => {}
            _ => self.serve(leaf, authority_not_after, now),
        }
    }

    fn serve(&self, leaf: Leaf, authority_not_after: Option<SystemTime>, now: SystemTime) {
        let until = rfc3339(leaf.validity().not_after());
        let days = leaf.remaining(now).as_secs() / (24 * 3600);
        tracing::info!(place = %self.storage.place(), %until, days, "loaded the serving certificate");
        self.store.serve(Serving { leaf, authority_not_after });
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
