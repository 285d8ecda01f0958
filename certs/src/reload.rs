//! Following what is kept: a look at the contents every few seconds, never inotify (kubelet replaces a
//! mounted Secret by swapping the `..data` symlink, which a watch on the file sees once or not at all).
//!
//! Each look asks what the folder or Secret means ([`crate::contents`]) and which certificate follows
//! from it. One that cannot be served leaves the last good one in place, and readiness says why. Renewal
//! goes by the wall clock, so a machine that was suspended renews at the first look after it wakes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bundle::Bundle;
use crate::clock::{Clock, human};
use crate::contents::{Beside, Kept, KeptAuthority, RawPair};
use crate::error::Error;
use crate::issue::Authority;
use crate::keep::Keeper;
use crate::leaf::Leaf;
use crate::settings::{Issuance, Names};
use crate::store::{CertificateStore, Serving};
use crate::trust::{Live, trusts};

/// How often a folder or Secret that changes under our hands is read again before giving up.
pub(crate) const TRIES: u32 = 5;
/// How long to wait between two such tries: enough for somebody to write the second of two files.
pub(crate) const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Keeps a [`CertificateStore`] in step with a [`Keeper`].
pub(crate) struct Reloader {
    keeper: Keeper,
    names: Names,
    issuance: Issuance,
    clock: Clock,
    store: Arc<CertificateStore>,
    publication: Publication,
    /// Our CA, as last read: it can be put back, and can sign while the API server is away.
    authority: Option<Arc<Authority>>,
    /// A certificate that is not served yet, because clients do not trust its CA yet.
    held: Option<Held>,
    /// Whether the folder could not be written, so that our certificate is in memory only.
    unkept: bool,
}

/// The way to and from those who keep the `caBundle` of webhook configurations.
#[derive(Default)]
pub(crate) struct Publication {
    /// What shall be in them.
    pub(crate) wanted: watch::Sender<Bundle>,
    /// What is in the one that has to trust a certificate before it is served, if there is one.
    pub(crate) live: Option<watch::Receiver<Live>>,
}

struct Held {
    leaf: Leaf,
    settling: bool,
}

struct Candidate {
    leaf: Leaf,
    bundle: Bundle,
}

impl Reloader {
    /// A reloader that has not looked yet.
    pub(crate) fn new(
        keeper: Keeper,
        names: Names,
        issuance: Issuance,
        clock: Clock,
        publication: Publication,
    ) -> Self {
        let store = Arc::default();
        Self {
            keeper,
            names,
            issuance,
            clock,
            store,
            publication,
            authority: None,
            held: None,
            unkept: false,
        }
    }

    /// What it keeps in step.
    pub(crate) fn store(&self) -> Arc<CertificateStore> {
        Arc::clone(&self.store)
    }

    /// Looks every `poll` until `shutdown`.
    pub(crate) async fn run(mut self, poll: Duration, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(poll);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            // A look that is cut short leaves nothing half done: files and Secrets change in one step.
            let Some(result) = shutdown.run_until_cancelled(self.look()).await else { return };
            if let Err(error) = result {
                self.report(&error);
            }
        }
    }

    /// Notes why the last look came to nothing, and logs it once.
    pub(crate) fn report(&self, error: &Error) {
        if self.store.note(Some(error.to_string())) {
            let place = self.keeper.place();
            if let Some(serving) = self.store.serving() {
                let until = human(serving.leaf.validity().not_after());
                tracing::warn!(%error, %place, %until, "the last good certificate stays");
            } else {
                tracing::warn!(%error, %place, "no certificate yet");
            }
        }
    }

    /// Looks once: reads what is kept, makes what is missing, renews what is due, serves what is new.
    pub(crate) async fn look(&mut self) -> Result<(), Error> {
        let now = self.clock.now();
        match self.candidate(now).await {
            Ok(candidate) => {
                self.offer(candidate, now);
                Ok(())
            }
            Err(error) => {
                self.renew_without_keeper(now)?;
                Err(error)
            }
        }
    }

    async fn candidate(&mut self, now: SystemTime) -> Result<Candidate, Error> {
        let place = self.keeper.place();
        for attempt in 0..TRIES {
            if attempt > 1 {
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            match self.keeper.read().await?.meaning(&place, self.issuance, now)? {
                Kept::External { pair, bundle } => {
                    let candidate = self.external(&pair, bundle, now)?;
                    self.authority = None;
                    return Ok(candidate);
                }
                Kept::Authority(kept) => return self.own(*kept, now).await,
                Kept::Nothing => {
                    let foreign = self.store.serving().is_some() && self.authority.is_none();
                    if foreign {
                        return Err(Error::Absent { place });
                    }
                    // A CA that somebody removed is put back: clients trust it.
                    let proposed = match &self.authority {
                        Some(authority) => Arc::clone(authority),
                        None => Arc::new(Authority::generate(now)?),
                    };
                    self.keeper.establish(&proposed, now).await?;
                }
            }
        }
        Err(Error::Contended { place, tries: TRIES })
    }

    fn external(&self, pair: &RawPair, bundle: Bundle, now: SystemTime) -> Result<Candidate, Error> {
        let place = self.keeper.place();
        let leaf = Leaf::parse(&place, &pair.certificate, &pair.key, &self.names, now)?;
        if self.publication.live.is_some()
            && !bundle.is_empty()
            && let Err(reason) = bundle.vouches_for(leaf.chain(), now)
        {
            return Err(Error::NotTrusted { place, reason });
        }
        Ok(Candidate { leaf, bundle })
    }

    async fn own(&mut self, kept: KeptAuthority, now: SystemTime) -> Result<Candidate, Error> {
        let KeptAuthority { authority, bundle, beside } = kept;
        let authority = Arc::new(authority);
        self.authority = Some(Arc::clone(&authority));
        let beside = match beside {
            Beside::Foreign(pair) => return self.external(&pair, bundle, now),
            Beside::Ours(pair) => pair,
            Beside::Nothing => None,
        };
        let leaf = match &self.keeper {
            Keeper::Folder(folder) => {
                let place = self.keeper.place();
                let read = beside
                    .as_ref()
                    .map(|pair| Leaf::parse(&place, &pair.certificate, &pair.key, &self.names, now))
                    .transpose();
                // What is in memory stays while another process is in the middle of a renewal or has other
                // names than we have, and where nothing can be written.
                let stays = read.is_err() || self.unkept;
                match (read, self.in_hand(&authority, now)) {
                    (Ok(Some(leaf)), _) if !leaf.is_due(now) => leaf,
                    (_, Some(leaf)) if stays => leaf,
                    _ => {
                        let (folder, names) = (folder.clone(), self.names.clone());
                        let renewed =
                            tokio::task::spawn_blocking(move || folder.renew(&authority, &names, now))
                                .await??;
                        self.unkept = !renewed.kept;
                        renewed.leaf
                    }
                }
            }
            Keeper::Secret(_) => match self.in_hand(&authority, now) {
                Some(leaf) => leaf,
                None => self.mint(&authority, now)?,
            },
        };
        Ok(Candidate { leaf, bundle })
    }

    /// A certificate of `authority` that is in memory and not due.
    fn in_hand(&self, authority: &Authority, now: SystemTime) -> Option<Leaf> {
        let serving = self.store.serving().map(|serving| serving.leaf.clone());
        let held = self.held.as_ref().map(|held| held.leaf.clone());
        [held, serving]
            .into_iter()
            .flatten()
            .find(|leaf| leaf.is_from(authority.certificate()) && !leaf.is_due(now))
    }

    fn mint(&self, authority: &Authority, now: SystemTime) -> Result<Leaf, Error> {
        let issued = authority.issue(&self.names, now)?;
        let (certificate, key) = (issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes());
        Leaf::parse(&self.keeper.place(), certificate, key, &self.names, now)
    }

    /// While what is kept cannot be read, our own CA in memory still signs.
    fn renew_without_keeper(&mut self, now: SystemTime) -> Result<(), Error> {
        let (Some(authority), Some(serving)) = (&self.authority, self.store.serving()) else { return Ok(()) };
        if serving.leaf.is_due(now)
            && serving.leaf.is_from(authority.certificate())
            && authority.validity().contains(now)
        {
            let leaf = self.mint(authority, now)?;
            self.serve(leaf, serving.authority_not_after, now);
        }
        Ok(())
    }

    /// Publishes the candidate's CAs, and serves it as soon as clients trust it: at once where nothing
    /// better is served, otherwise one look after the live configuration was first seen to trust it, so
    /// that every API server has read it too.
    fn offer(&mut self, candidate: Candidate, now: SystemTime) {
        let Candidate { leaf, bundle } = candidate;
        let authority_not_after = bundle.not_after();
        if self.store.wanted() != bundle {
            self.store.want(bundle.clone());
        }
        let held = self.held.take();
        let serving = self.store.serving();
        self.publication.wanted.send_if_modified(|wanted| {
            let news = *wanted != bundle;
            if news {
                *wanted = bundle;
            }
            news
        });
        if let Some(live) = &self.publication.live {
            let live = live.borrow();
            if let Some(serving) = &serving
                && serving.leaf != leaf
                && trusts(&live, serving.leaf.chain(), now)
            {
                let trusted = trusts(&live, leaf.chain(), now);
                let first_seen_trusted = held.is_some_and(|held| !held.settling);
                if !trusted || first_seen_trusted {
                    let word = "a new certificate is kept back until the caBundle of the webhook configuration trusts it";
                    if self.store.note(Some(word.to_owned())) {
                        tracing::info!(place = %self.keeper.place(), "{word}");
                    }
                    self.held = Some(Held { leaf, settling: trusted });
                    return;
                }
            }
        }
        self.store.note(None);
        match serving {
            Some(serving) if serving.leaf == leaf && serving.authority_not_after == authority_not_after => {}
            _ => self.serve(leaf, authority_not_after, now),
        }
    }

    fn serve(&self, leaf: Leaf, authority_not_after: Option<SystemTime>, now: SystemTime) {
        let until = human(leaf.validity().not_after());
        let days = leaf.remaining(now).as_secs() / (24 * 3600);
        tracing::info!(place = %self.keeper.place(), %until, days, "serving certificate loaded");
        self.store.serve(Serving { leaf, authority_not_after });
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
