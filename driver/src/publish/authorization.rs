//! Checks whether a pod is allowed to pull the content that it mounts.
//!
//! Content in the store is shared by all pods of the node; the permission to read it is not, and a mount from the store
//! needs no registry. So before every new mount the driver asks the registry: with the pod's Secret, then with the
//! administrator's credentials, then anonymously. A positive answer is cached for ten minutes. An anonymous one counts
//! for every pod, one for the administrator's credentials for every pod of the node, and one for a Secret for every pod
//! with the same credentials. While the registry is unreachable, a positive answer stays valid for the grace time, for
//! the same credentials and the same reference. It never covers content that the registry has not allowed before
//! (docs/design.md, "Driver: publish").
//!
//! Architecture Invariant: the cache is in memory only and holds fingerprints of credentials, never secrets. A restart
//! clears it. A denied pod gets the same message whether the content is in the store or not.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use oras_csi_core::credentials::{Credential, DockerConfig, Fingerprint};
use oras_csi_core::display::Shown;
use oras_csi_core::reference::PinnedReference;
use oras_csi_core::registry::Source;
use oras_csi_store::PullErrorKind;
use oras_csi_store::pull::{Fetcher, PullError, registry_reason};
use tokio::time::{Instant, timeout};

use super::{AuthorizationGrace, PublishRequest};

/// How long a positive answer of a registry is cached.
const CACHE_TIME: Duration = Duration::from_mins(10);
/// How long the driver waits for a registry if an earlier positive answer is still within the grace time.
const TIMEOUT_WITHIN_GRACE: Duration = Duration::from_secs(5);
/// How many references of one volume are checked in parallel.
const MAX_PARALLEL_CHECKS: usize = 8;
/// How many answers are cached.
const MAX_CACHED: usize = 16_384;
/// How many credentials of one Secret are part of its fingerprint. The registry client tries fewer.
const MAX_CREDENTIALS: usize = 16;

/// Why a pod cannot mount content: its pull permission was denied, or cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizationError {
    /// The registry accepted no credentials, or does not have the artifact.
    #[error("{pod} cannot pull {reference}: {}", reason(.source))]
    Rejected {
        /// The pod.
        pod: PodName,
        /// The artifact.
        reference: Box<PinnedReference>,
        /// The registry's answer.
        source: Arc<PullError>,
    },
    /// The registry is unreachable, and no earlier positive answer is within the grace time.
    #[error(
        "cannot check whether {pod} is allowed to pull {reference}: {}. {}. Retrying.", reason(.source),
        earlier_permission(.confirmed.as_ref(), *.grace)
    )]
    Unreachable {
        /// The pod.
        pod: PodName,
        /// The artifact.
        reference: Box<PinnedReference>,
        /// Why the registry did not answer.
        source: Arc<PullError>,
        /// How long ago the registry last accepted these credentials.
        confirmed: Option<Duration>,
        /// How old that answer may be.
        grace: AuthorizationGrace,
    },
}

/// The pod of a request, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    namespace: Shown,
    name: Option<Shown>,
}

impl PodName {
    /// The pod `name` of `namespace`. Kubelet's attributes contain both; other callers may send the namespace only.
    pub fn new(namespace: &str, name: Option<&str>) -> Self {
        Self { namespace: namespace.into(), name: name.filter(|name| !name.is_empty()).map(Shown::new) }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "pod {}/{name}", self.namespace),
            None => write!(f, "the pod in namespace {}", self.namespace),
        }
    }
}

/// The reason of a failed check. The reference is in the message already, so only the registry's part is repeated.
fn reason(error: &PullError) -> String {
    match error {
        PullError::Registry { source, .. } => registry_reason(source),
        other => other.to_string(),
    }
}

fn earlier_permission(confirmed: Option<&Duration>, grace: AuthorizationGrace) -> String {
    match confirmed {
        None => "These credentials were not accepted since the driver started".to_owned(),
        Some(since) => format!(
            "These credentials were last accepted {} s ago, and that permission was valid for {} s (--rights-grace)",
            since.as_secs(),
            grace.0.as_secs()
        ),
    }
}

/// The clients to which a positive answer applies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Grantee {
    /// Every pod: the registry accepts anonymous pulls.
    Anonymous,
    /// Every pod of this node: the registry accepts the administrator's credentials.
    Administrator,
    /// Every pod with these credentials for the repository.
    Credentials(Vec<Fingerprint>),
}

/// A positive answer: these clients are allowed to pull this artifact.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Permission {
    grantee: Grantee,
    reference: PinnedReference,
}

/// Asks whether one pod is allowed to pull one artifact.
#[derive(Clone, Debug)]
struct PermissionCheck {
    pod: PodName,
    /// The clients that the pod can act as, in the order in which they are tried: the pod's own credentials first.
    grantees: [Grantee; 3],
    reference: PinnedReference,
}

/// The failure of the last check, shared by all callers that waited for it.
type Failure = Option<(Instant, Arc<PullError>)>;

/// Caches which pull permissions registries confirmed.
#[derive(Debug)]
pub(super) struct Authorizer {
    grace: AuthorizationGrace,
    confirmed: Mutex<HashMap<Permission, Instant>>,
    in_flight: Mutex<HashMap<Permission, Weak<tokio::sync::Mutex<Failure>>>>,
}

impl Authorizer {
    /// Creates an empty cache. An answer of age `grace` is still valid while the registry is unreachable.
    pub(super) fn new(grace: AuthorizationGrace) -> Self {
        Self { grace, confirmed: Mutex::default(), in_flight: Mutex::default() }
    }

    /// Checks whether the pod of `request` is allowed to pull everything in its recipe. `fetcher` must have the
    /// credentials of the request.
    pub(super) async fn check(
        &self,
        fetcher: &Fetcher,
        request: &PublishRequest,
    ) -> Result<(), AuthorizationError> {
        let mut references: Vec<&PinnedReference> = request.recipe().references().collect();
        references.sort_unstable();
        references.dedup();
        let checks = references.into_iter().map(|reference| async move {
            let query = async {
                fetcher.check_pull_permission(reference).await?;
                Ok(fetcher.accepted_credential(reference))
            };
            let check = PermissionCheck {
                pod: request.pod(),
                grantees: grantees(request.secret(), reference),
                reference: reference.clone(),
            };
            self.authorize(&check, query).await
        });
        let checks: Vec<_> = checks.collect();
        stream::iter(checks).buffer_unordered(MAX_PARALLEL_CHECKS).try_for_each(|()| async { Ok(()) }).await
    }

    /// Answers one check from the cache, otherwise with `query`, which returns the credentials that were accepted.
    async fn authorize(
        &self,
        check: &PermissionCheck,
        query: impl Future<Output = Result<Option<Source>, PullError>>,
    ) -> Result<(), AuthorizationError> {
        let began = Instant::now();
        if self.age(check).is_some_and(|age| age < CACHE_TIME) {
            return Ok(());
        }
        let query_lock = self.query_lock(&check.permission(&check.grantees[0]));
        let mut failure = query_lock.lock().await;
        // Another call with the same credentials may have asked in the meantime.
        let age = self.age(check);
        if age.is_some_and(|age| age < CACHE_TIME) {
            return Ok(());
        }
        let valid_age = age.filter(|age| *age < self.grace.0);
        let shared = failure.as_ref().filter(|(when, _)| *when >= began).map(|(_, error)| error.clone());
        let error = if let Some(error) = shared {
            error
        } else {
            let answer = match valid_age {
                Some(_) => timeout(TIMEOUT_WITHIN_GRACE, query).await.ok(),
                None => Some(query.await),
            };
            match answer {
                Some(Ok(accepted)) => {
                    self.confirm(check, accepted.as_ref());
                    return Ok(());
                }
                Some(Err(error)) => {
                    let error = Arc::new(error);
                    *failure = Some((Instant::now(), error.clone()));
                    error
                }
                None => {
                    tracing::warn!(
                        pod = %check.pod, reference = %check.reference, timeout = TIMEOUT_WITHIN_GRACE.as_secs(),
                        "the registry did not answer in time; its last positive answer stays valid"
                    );
                    return Ok(());
                }
            }
        };
        let (pod, reference) = (check.pod.clone(), Box::new(check.reference.clone()));
        match (error.kind(), valid_age) {
            (PullErrorKind::Unavailable, Some(age)) => {
                tracing::warn!(
                    pod = %check.pod, reference = %check.reference, %error, seconds = age.as_secs(),
                    "the registry is unreachable; its last positive answer stays valid"
                );
                Ok(())
            }
            (PullErrorKind::Unavailable, None) => Err(AuthorizationError::Unreachable {
                pod,
                reference,
                source: error,
                confirmed: age,
                grace: self.grace,
            }),
            (PullErrorKind::Denied | PullErrorKind::NotFound, _) => {
                self.revoke(check);
                Err(AuthorizationError::Rejected { pod, reference, source: error })
            }
            _ => Err(AuthorizationError::Rejected { pod, reference, source: error }),
        }
    }

    /// The lock that admits one query at a time for the same credentials and the same artifact.
    fn query_lock(&self, permission: &Permission) -> Arc<tokio::sync::Mutex<Failure>> {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        in_flight.retain(|_, lock| lock.strong_count() > 0);
        in_flight.get(permission).and_then(Weak::upgrade).unwrap_or_else(|| {
            let lock = Arc::default();
            in_flight.insert(permission.clone(), Arc::downgrade(&lock));
            lock
        })
    }

    /// The age of the newest positive answer that applies to this check.
    fn age(&self, check: &PermissionCheck) -> Option<Duration> {
        let confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        let answers =
            check.grantees.iter().filter_map(|grantee| confirmed.get(&check.permission(grantee)).copied());
        answers.max().map(|when| when.elapsed())
    }

    /// Caches a positive answer for the clients to which it applies.
    fn confirm(&self, check: &PermissionCheck, accepted: Option<&Source>) {
        let grantee = match accepted {
            Some(Source::Anonymous) => &Grantee::Anonymous,
            Some(Source::Administrator) => &Grantee::Administrator,
            // If it is unknown which credentials were accepted, the answer applies only to exactly these.
            Some(Source::VolumeSecret | Source::Secret(_)) | None => &check.grantees[0],
        };
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        if confirmed.len() >= MAX_CACHED {
            let longest = CACHE_TIME.max(self.grace.0);
            confirmed.retain(|_, when| when.elapsed() < longest);
        }
        if confirmed.len() >= MAX_CACHED {
            // Evict the older half: those permissions are checked again.
            let mut times: Vec<Instant> = confirmed.values().copied().collect();
            let (_, middle, _) = times.select_nth_unstable(MAX_CACHED / 2);
            let middle = *middle;
            confirmed.retain(|_, when| *when > middle);
        }
        confirmed.insert(check.permission(grantee), Instant::now());
    }

    /// Removes all cached answers that apply to this check.
    fn revoke(&self, check: &PermissionCheck) {
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        for grantee in &check.grantees {
            confirmed.remove(&check.permission(grantee));
        }
    }
}

impl PermissionCheck {
    fn permission(&self, grantee: &Grantee) -> Permission {
        Permission { grantee: grantee.clone(), reference: self.reference.clone() }
    }
}

/// The clients that a pod with this Secret can act as for a reference. The Secret comes first.
fn grantees(secret: Option<&Arc<DockerConfig>>, reference: &PinnedReference) -> [Grantee; 3] {
    let credentials =
        secret.map(|secret| secret.credentials_for(reference.registry(), reference.repository()));
    let credentials = credentials.unwrap_or_default();
    let fingerprints = credentials.iter().take(MAX_CREDENTIALS).map(Credential::fingerprint);
    [Grantee::Credentials(fingerprints.collect()), Grantee::Administrator, Grantee::Anonymous]
}

#[cfg(test)]
mod tests {
    use oras_csi_core::registry::RegistryError;

    use super::*;

    fn reference(name: &str) -> PinnedReference {
        format!("registry.example/{name}@sha256:{}", "ab".repeat(32)).parse().unwrap()
    }

    /// A check for a pod whose Secret has the credentials of this user.
    fn check(user: &str, reference: &PinnedReference) -> PermissionCheck {
        let credential = Credential::basic(user.to_owned(), "password".to_owned()).unwrap();
        let own = Grantee::Credentials(vec![credential.fingerprint()]);
        PermissionCheck {
            pod: PodName::new("team", Some("web")),
            grantees: [own, Grantee::Administrator, Grantee::Anonymous],
            reference: reference.clone(),
        }
    }

    fn unreachable() -> PullError {
        let source = RegistryError::Unreachable { at: "HEAD x".into(), words: "refused".into() };
        PullError::Registry { reference: reference("x").into(), source }
    }

    fn denied() -> PullError {
        let source = RegistryError::Refused { at: "HEAD x".into(), status: 403, words: "no".into() };
        PullError::Registry { reference: reference("x").into(), source }
    }

    /// The tag was resolved at admission, so the event must say why the digest can be missing at the node.
    #[tokio::test]
    async fn a_digest_that_no_host_has_is_explained() {
        let authorizer = Authorizer::new(AuthorizationGrace(Duration::from_hours(1)));
        let source = RegistryError::NotFound { at: "HEAD x".into(), words: "".into() };
        let missing = PullError::Registry { reference: reference("x").into(), source };
        let error =
            authorizer.authorize(&check("a", &reference("x")), async { Err(missing) }).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("pull-through cache imports it only when its tag is requested"), "{text}");
        assert!(text.contains("pod team/web cannot pull registry.example/x@sha256:"), "{text}");
    }

    async fn no_query() -> Result<Option<Source>, PullError> {
        std::future::ready(()).await;
        panic!("the answer is cached")
    }

    const ACCEPTED_SECRET: Result<Option<Source>, PullError> = Ok(Some(Source::VolumeSecret));

    #[test]
    fn a_failed_pull_says_what_to_do() {
        use crate::publish::PublishError;

        let text = |error: PullError| PublishError::Pull(Arc::new(error)).to_string();
        assert!(text(unreachable()).ends_with("HEAD x: refused. Retrying."), "{}", text(unreachable()));
        let denied = text(denied());
        assert!(denied.ends_with("403: no. Use credentials that can pull from this repository"), "{denied}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_permission_is_cached_for_the_same_credentials_for_ten_minutes() {
        let authorizer = Authorizer::new(AuthorizationGrace(Duration::from_hours(1)));
        let x = reference("x");
        authorizer.authorize(&check("a", &x), async { ACCEPTED_SECRET }).await.unwrap();
        tokio::time::advance(Duration::from_secs(599)).await;
        authorizer.authorize(&check("a", &x), no_query()).await.unwrap();
        // It does not apply to other credentials, nor to another artifact.
        let error = authorizer.authorize(&check("b", &x), async { Err(denied()) }).await.unwrap_err();
        assert!(
            matches!(&error, AuthorizationError::Rejected { source, .. } if source.kind() == PullErrorKind::Denied),
            "{error}"
        );
        authorizer.authorize(&check("a", &reference("y")), async { Err(denied()) }).await.unwrap_err();
        tokio::time::advance(Duration::from_secs(1)).await;
        authorizer.authorize(&check("a", &x), async { Err(denied()) }).await.unwrap_err();
        // A revoked permission does not count while the registry is unreachable.
        let error = authorizer.authorize(&check("a", &x), async { Err(unreachable()) }).await.unwrap_err();
        assert!(matches!(error, AuthorizationError::Unreachable { confirmed: None, .. }), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_permission_without_pod_credentials_applies_to_every_pod() {
        for accepted in [Source::Anonymous, Source::Administrator] {
            let authorizer = Authorizer::new(AuthorizationGrace(Duration::ZERO));
            authorizer.authorize(&check("a", &reference("x")), async { Ok(Some(accepted)) }).await.unwrap();
            authorizer.authorize(&check("b", &reference("x")), no_query()).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_permission_stays_valid_for_the_grace_time_while_the_registry_is_unreachable() {
        for (grace, minutes, is_valid) in [(60, 59, true), (60, 60, false), (0, 9, true), (0, 11, false)] {
            let authorizer = Authorizer::new(AuthorizationGrace(Duration::from_mins(grace)));
            let x = reference("x");
            authorizer.authorize(&check("a", &x), async { ACCEPTED_SECRET }).await.unwrap();
            tokio::time::advance(Duration::from_mins(minutes)).await;
            let answer = authorizer.authorize(&check("a", &x), async { Err(unreachable()) }).await;
            assert_eq!(answer.is_ok(), is_valid, "{grace} {minutes}: {answer:?}");
            if let Err(error) = answer {
                let text = error.to_string();
                assert!(
                    text.contains("refused. These credentials were last accepted")
                        && text.contains("--rights-grace"),
                    "{text}"
                );
            }
            // It does not apply to credentials that were never accepted.
            let error =
                authorizer.authorize(&check("b", &x), async { Err(unreachable()) }).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "cannot check whether pod team/web is allowed to pull {x}: HEAD x: refused. These credentials were not \
                     accepted since the driver started. Retrying."
                )
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_registry_delays_an_authorized_pod_by_a_few_seconds_only() {
        let authorizer = Authorizer::new(AuthorizationGrace(Duration::from_hours(1)));
        let x = reference("x");
        authorizer.authorize(&check("a", &x), async { ACCEPTED_SECRET }).await.unwrap();
        tokio::time::advance(Duration::from_mins(20)).await;
        let began = Instant::now();
        authorizer.authorize(&check("a", &x), std::future::pending()).await.unwrap();
        assert!(began.elapsed() <= Duration::from_secs(6));
    }

    #[tokio::test(start_paused = true)]
    async fn simultaneous_checks_share_one_query() {
        let queries = std::sync::atomic::AtomicUsize::new(0);
        for (answer, is_allowed) in [(true, true), (false, false)] {
            let authorizer = Authorizer::new(AuthorizationGrace(Duration::ZERO));
            let check = check("a", &reference("x"));
            queries.store(0, std::sync::atomic::Ordering::SeqCst);
            let query = || async {
                queries.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                if answer { ACCEPTED_SECRET } else { Err(unreachable()) }
            };
            let all = (0..100).map(|_| authorizer.authorize(&check, query()));
            let all = futures_util::future::join_all(all).await;
            assert!(all.iter().all(|answer| answer.is_ok() == is_allowed));
            assert_eq!(queries.load(std::sync::atomic::Ordering::SeqCst), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_cached_permissions_is_bounded() {
        let authorizer = Authorizer::new(AuthorizationGrace(Duration::ZERO));
        for number in 0..MAX_CACHED + 10 {
            authorizer.confirm(&check("a", &reference(&format!("x{number}"))), Some(&Source::Anonymous));
            if number % 64 == 0 {
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        }
        assert!(authorizer.confirmed.lock().unwrap().len() <= MAX_CACHED);
        let newest = reference(&format!("x{}", MAX_CACHED + 9));
        authorizer.authorize(&check("a", &newest), no_query()).await.unwrap();
    }
}
