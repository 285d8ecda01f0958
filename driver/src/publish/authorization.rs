//! Whether a pod may have the bytes that it names: shared bytes, separate rights.
//!
//! What one pod had fetched is there for all, and mounting it takes no registry. So before every new mount the
//! registry is asked, in the name of the pod's own Secret, of the administrator and of nobody, in this order. That one
//! of them was let in is remembered for ten minutes: nobody's right is everybody's, the administrator's is that of
//! every pod of the node, a Secret's is that of whoever brings the same credentials. Where the registry cannot be
//! reached, what was confirmed within a grace time still counts, for the same credentials and the same reference; it
//! gives nobody what he never had.
//!
//! Architecture Invariant: what is remembered is in memory alone: fingerprints, never a secret, and nothing of it
//! survives the process. A pod that is refused hears the same words whether the bytes are there or not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use oras_csi_core::credentials::{Credential, DockerConfig, Fingerprint};
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::reference::PinnedReference;
use oras_csi_core::registry::Source;
use oras_csi_store::PullErrorKind;
use oras_csi_store::pull::{Fetcher, PullError};
use tokio::time::{Instant, timeout};

/// How long a registry's yes is remembered.
const REMEMBERED: Duration = Duration::from_mins(10);
/// How long a registry has to say anything where its last yes still counts if it does not.
const SHORT: Duration = Duration::from_secs(5);
/// How many references of one volume are asked about at once.
const AT_ONCE: usize = 8;
/// Most that is remembered.
const MOST: usize = 16_384;
/// More credentials of one Secret than are ever tried.
const MOST_CREDENTIALS: usize = 16;

/// Why a pod is not given what it names.
#[derive(Debug, thiserror::Error)]
pub enum RightError {
    /// No credential was let in, or the registry gives no such thing.
    #[error("{0}")]
    Refused(Arc<PullError>),
    /// The registry says nothing.
    #[error(
        "whether the pod may have it cannot be asked: {source}; {}. It is tried again", said(.confirmed.as_ref(), .grace)
    )]
    NotAsked {
        /// What became of the question.
        source: Arc<PullError>,
        /// When it was last answered with yes.
        confirmed: Option<Duration>,
        /// How old such an answer may be.
        grace: Duration,
    },
}

fn said(confirmed: Option<&Duration>, grace: &Duration) -> String {
    let grace = grace.as_secs();
    match confirmed {
        None => "these credentials were not let in since the driver started".to_owned(),
        Some(since) => {
            let since = since.as_secs();
            format!("they were let in {since} s ago, and that counts for {grace} s (--rights-grace)")
        }
    }
}

/// Who was let in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Anybody,
    Administrator,
    /// Whoever has these credentials for the repository.
    Credentials(Vec<Fingerprint>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Right {
    holder: Holder,
    reference: PinnedReference,
}

/// A question that was not answered with yes, for all who had it at that time.
type Failure = Option<(Instant, Arc<PullError>)>;

/// What registries said.
#[derive(Debug)]
pub(super) struct Rights {
    grace: Duration,
    confirmed: Mutex<HashMap<Right, Instant>>,
    asking: Mutex<HashMap<Right, Weak<tokio::sync::Mutex<Failure>>>>,
}

impl Rights {
    /// An answer may be so old where the registry gives none.
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, confirmed: Mutex::default(), asking: Mutex::default() }
    }

    /// Whether whoever has `secret` may have all that a recipe names; `fetcher` asks in the same name.
    pub(super) async fn check(
        &self,
        fetcher: &Fetcher,
        secret: Option<&Arc<DockerConfig>>,
        recipe: &PinnedRecipe,
    ) -> Result<(), RightError> {
        let mut references: Vec<&PinnedReference> = recipe.references().collect();
        references.sort_unstable();
        references.dedup();
        let questions = references.into_iter().map(|reference| async move {
            let ask = async {
                fetcher.check_pull_permission(reference).await?;
                Ok(fetcher.accepted_credential(reference))
            };
            self.may_have(&holders(secret, reference), reference, ask).await
        });
        let questions: Vec<_> = questions.collect();
        stream::iter(questions).buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) }).await
    }

    /// Whether one of these may have it: by what is remembered, else by `ask`, which says who was let in.
    async fn may_have(
        &self,
        holders: &[Holder; 3],
        reference: &PinnedReference,
        ask: impl Future<Output = Result<Option<Source>, PullError>>,
    ) -> Result<(), RightError> {
        let began = Instant::now();
        if self.age(holders, reference).is_some_and(|age| age < REMEMBERED) {
            return Ok(());
        }
        let turn = self.turn(&Right { holder: holders[0].clone(), reference: reference.clone() });
        let mut failure = turn.lock().await;
        // Somebody with the same credentials asked meanwhile.
        let age = self.age(holders, reference);
        if age.is_some_and(|age| age < REMEMBERED) {
            return Ok(());
        }
        let counts = age.filter(|age| *age < self.grace);
        let told = failure.as_ref().filter(|(when, _)| *when >= began).map(|(_, error)| error.clone());
        let error = if let Some(error) = told {
            error
        } else {
            let asked = match counts {
                Some(_) => timeout(SHORT, ask).await.ok(),
                None => Some(ask.await),
            };
            match asked {
                Some(Ok(let_in)) => {
                    self.confirm(holders, let_in.as_ref(), reference);
                    return Ok(());
                }
                Some(Err(error)) => {
                    let error = Arc::new(error);
                    *failure = Some((Instant::now(), error.clone()));
                    error
                }
                None => {
                    tracing::warn!(%reference, "the registry is silent; what it said before still counts");
                    return Ok(());
                }
            }
        };
        match (error.kind(), counts) {
            (PullErrorKind::Unavailable, Some(age)) => {
                tracing::warn!(%reference, %error, seconds = age.as_secs(), "the registry cannot be asked; what it said before still counts");
                Ok(())
            }
            (PullErrorKind::Unavailable, None) => {
                Err(RightError::NotAsked { source: error, confirmed: age, grace: self.grace })
            }
            (PullErrorKind::Denied | PullErrorKind::NotFound, _) => {
                self.forget(holders, reference);
                Err(RightError::Refused(error))
            }
            _ => Err(RightError::Refused(error)),
        }
    }

    /// One question at a time of the same credentials about the same thing.
    fn turn(&self, right: &Right) -> Arc<tokio::sync::Mutex<Failure>> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.retain(|_, turn| turn.strong_count() > 0);
        asking.get(right).and_then(Weak::upgrade).unwrap_or_else(|| {
            let turn = Arc::default();
            asking.insert(right.clone(), Arc::downgrade(&turn));
            turn
        })
    }

    /// How long ago the youngest yes is that one of these has.
    fn age(&self, holders: &[Holder; 3], reference: &PinnedReference) -> Option<Duration> {
        let confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |holder: &Holder| {
            confirmed.get(&Right { holder: holder.clone(), reference: reference.clone() }).copied()
        };
        holders.iter().filter_map(of).max().map(|when| when.elapsed())
    }

    fn confirm(&self, holders: &[Holder; 3], let_in: Option<&Source>, reference: &PinnedReference) {
        let holder = match let_in {
            Some(Source::Anonymous) => Holder::Anybody,
            Some(Source::Administrator) => Holder::Administrator,
            // Where nobody says who was let in, it counts for these very credentials.
            Some(Source::VolumeSecret | Source::Secret(_)) | None => holders[0].clone(),
        };
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        if confirmed.len() >= MOST {
            let longest = REMEMBERED.max(self.grace);
            confirmed.retain(|_, when| when.elapsed() < longest);
        }
        if confirmed.len() >= MOST {
            // Whoever is forgotten is asked again.
            let mut times: Vec<Instant> = confirmed.values().copied().collect();
            let (_, middle, _) = times.select_nth_unstable(MOST / 2);
            let middle = *middle;
            confirmed.retain(|_, when| *when > middle);
        }
        confirmed.insert(Right { holder, reference: reference.clone() }, Instant::now());
    }

    fn forget(&self, holders: &[Holder; 3], reference: &PinnedReference) {
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        for holder in holders {
            confirmed.remove(&Right { holder: holder.clone(), reference: reference.clone() });
        }
    }
}

/// In whose name somebody with this Secret asks for a reference: its own first.
fn holders(secret: Option<&Arc<DockerConfig>>, reference: &PinnedReference) -> [Holder; 3] {
    let credentials =
        secret.map(|secret| secret.credentials_for(reference.registry(), reference.repository()));
    let credentials = credentials.unwrap_or_default();
    let prints = credentials.iter().take(MOST_CREDENTIALS).map(Credential::fingerprint);
    [Holder::Credentials(prints.collect()), Holder::Administrator, Holder::Anybody]
}

#[cfg(test)]
mod tests {
    use oras_csi_core::registry::RegistryError;

    use super::*;

    fn reference(name: &str) -> PinnedReference {
        format!("registry.example/{name}@sha256:{}", "ab".repeat(32)).parse().unwrap()
    }

    /// In the name of a Secret with these credentials.
    fn of(user: &str) -> [Holder; 3] {
        let credential = Credential::basic(user.to_owned(), "password".to_owned()).unwrap();
        [Holder::Credentials(vec![credential.fingerprint()]), Holder::Administrator, Holder::Anybody]
    }

    fn unreachable() -> PullError {
        let source = RegistryError::Unreachable { at: "HEAD x".into(), words: "refused".into() };
        PullError::Registry { reference: reference("x").into(), source }
    }

    fn denied() -> PullError {
        let source = RegistryError::Refused { at: "HEAD x".into(), status: 403, words: "no".into() };
        PullError::Registry { reference: reference("x").into(), source }
    }

    async fn nobody_asks() -> Result<Option<Source>, PullError> {
        std::future::ready(()).await;
        panic!("it is remembered")
    }

    const OF_VOLUME: Result<Option<Source>, PullError> = Ok(Some(Source::VolumeSecret));

    #[tokio::test(start_paused = true)]
    async fn a_yes_is_remembered_for_its_holder_for_ten_minutes() {
        let rights = Rights::new(Duration::from_hours(1));
        let x = reference("x");
        rights.may_have(&of("a"), &x, async { OF_VOLUME }).await.unwrap();
        tokio::time::advance(Duration::from_secs(599)).await;
        rights.may_have(&of("a"), &x, nobody_asks()).await.unwrap();
        // Of another holder, or about something else, it says nothing.
        let error = rights.may_have(&of("b"), &x, async { Err(denied()) }).await.unwrap_err();
        assert!(
            matches!(&error, RightError::Refused(error) if error.kind() == PullErrorKind::Denied),
            "{error}"
        );
        rights.may_have(&of("a"), &reference("y"), async { Err(denied()) }).await.unwrap_err();
        tokio::time::advance(Duration::from_secs(1)).await;
        rights.may_have(&of("a"), &x, async { Err(denied()) }).await.unwrap_err();
        // A right that was taken away is not remembered for the time when nobody can be asked.
        let error = rights.may_have(&of("a"), &x, async { Err(unreachable()) }).await.unwrap_err();
        assert!(matches!(error, RightError::NotAsked { confirmed: None, .. }), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_anybody_may_read_everybody_may() {
        for let_in in [Source::Anonymous, Source::Administrator] {
            let rights = Rights::new(Duration::ZERO);
            rights.may_have(&of("a"), &reference("x"), async { Ok(Some(let_in)) }).await.unwrap();
            rights.may_have(&of("b"), &reference("x"), nobody_asks()).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_a_yes_counts_for_the_grace_time() {
        for (grace, minutes, counts) in [(60, 59, true), (60, 60, false), (0, 9, true), (0, 11, false)] {
            let rights = Rights::new(Duration::from_mins(grace));
            let x = reference("x");
            rights.may_have(&of("a"), &x, async { OF_VOLUME }).await.unwrap();
            tokio::time::advance(Duration::from_mins(minutes)).await;
            let answer = rights.may_have(&of("a"), &x, async { Err(unreachable()) }).await;
            assert_eq!(answer.is_ok(), counts, "{grace} {minutes}: {answer:?}");
            if let Err(error) = answer {
                let text = error.to_string();
                assert!(
                    text.contains("refused; they were let in") && text.contains("--rights-grace"),
                    "{text}"
                );
            }
            // It gives nobody what he never had.
            let error = rights.may_have(&of("b"), &x, async { Err(unreachable()) }).await.unwrap_err();
            assert!(error.to_string().contains("were not let in since the driver started"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_silent_holds_nobody_up_who_was_let_in() {
        let rights = Rights::new(Duration::from_hours(1));
        let x = reference("x");
        rights.may_have(&of("a"), &x, async { OF_VOLUME }).await.unwrap();
        tokio::time::advance(Duration::from_mins(20)).await;
        let began = Instant::now();
        rights.may_have(&of("a"), &x, std::future::pending()).await.unwrap();
        assert!(began.elapsed() <= Duration::from_secs(6));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_at_the_same_time_asks_once() {
        let asked = std::sync::atomic::AtomicUsize::new(0);
        for (answer, is_yes) in [(true, true), (false, false)] {
            let rights = Rights::new(Duration::ZERO);
            let (x, of_a) = (reference("x"), of("a"));
            asked.store(0, std::sync::atomic::Ordering::SeqCst);
            let ask = || async {
                asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                if answer { OF_VOLUME } else { Err(unreachable()) }
            };
            let all = (0..100).map(|_| rights.may_have(&of_a, &x, ask()));
            let all = futures_util::future::join_all(all).await;
            assert!(all.iter().all(|answer| answer.is_ok() == is_yes));
            assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let rights = Rights::new(Duration::ZERO);
        for number in 0..MOST + 10 {
            let of = [Holder::Anybody, Holder::Administrator, Holder::Anybody];
            rights.confirm(&of, Some(&Source::Anonymous), &reference(&format!("x{number}")));
            if number % 64 == 0 {
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        }
        assert!(rights.confirmed.lock().unwrap().len() <= MOST);
        rights.may_have(&of("a"), &reference(&format!("x{}", MOST + 9)), nobody_asks()).await.unwrap();
    }
}
