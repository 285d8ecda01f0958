//! Asking one registry: its endpoints in turn, tokens where they are wanted, and again where it may help.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;
use url::Url;

use super::Inner;
use crate::credentials::Credential;
use crate::manifest::Descriptor;
use crate::reference::RegistryHost;
use crate::registry::auth::{Asker, Challenge, Problem, Realm, Secrets, Token, Wanted, basic};
use crate::registry::body::{self, Patience};
use crate::registry::guard::Named;
use crate::registry::hosts::authority;
use crate::registry::retry;
use crate::registry::transport::{Answer, Call, Failure, Place, origin};
use crate::registry::{Endpoint, HostsError, RegistryError};

/// How many of a descriptor's `urls` are tried.
const MOST_FOREIGN: usize = 4;

/// What an endpoint must be configured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Capability {
    Pull,
    Resolve,
    Push,
}

/// One request of a registry.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) method: Method,
    pub(super) target: Target,
    pub(super) headers: HeaderMap,
    /// What is to be kept.
    pub(super) body: Option<Bytes>,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// Behind the repository, perhaps with a query: `manifests/v1`.
    Below(String),
    /// An address of the endpoint's own origin, which it gave.
    At(Url),
}

impl Wish {
    /// Reads what is behind the repository.
    pub(super) fn read(method: Method, path: &str, headers: HeaderMap) -> Self {
        Self { method, target: Target::Below(path.to_owned()), headers, body: None }
    }

    /// What a token must allow for it.
    fn actions(&self) -> &'static str {
        if matches!(self.method, Method::GET | Method::HEAD) { "pull" } else { "pull,push" }
    }
}

/// A registry's endpoints as they are configured right now, for one request of ours.
pub(super) struct Route {
    registry: RegistryHost,
    repository: String,
    endpoints: Vec<Endpoint>,
    named: Named,
    credential: Credential,
    /// Tokens and passwords that were sent on the way.
    sent: Mutex<Vec<HeaderValue>>,
    deadline: Instant,
}

/// Takes our secrets out of what a registry said.
pub(super) struct Discretion {
    secrets: Secrets,
    /// How the addresses begin that we made ourselves.
    own: Vec<String>,
}

/// One endpoint's turn.
pub(super) struct Turn<'a> {
    route: &'a Route,
    endpoint: &'a Endpoint,
    last: bool,
    pub(super) deadline: Instant,
}

impl Route {
    /// The registry itself, for errors before anything is asked.
    pub(super) fn place(&self) -> Place {
        Place::named(&format!("{}/{}", self.registry, self.repository))
    }

    /// What keeps the secrets of this request so far out of errors.
    pub(super) fn discretion(&self) -> Discretion {
        let mut secrets = Secrets::of(&self.credential);
        for header in self.sent.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            secrets.add_header(header);
        }
        let mut own = vec![format!("{}/{}", self.registry, self.repository)];
        for endpoint in &self.endpoints {
            secrets.add_headers(endpoint.headers());
            own.push(format!("{}/{}/", endpoint.base().as_str().trim_end_matches('/'), self.repository));
        }
        Discretion { secrets, own }
    }

    fn is_sent(&self, authorization: &HeaderValue) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if !sent.contains(authorization) {
            sent.push(authorization.clone());
        }
    }

    /// The endpoints in order, each with its share of the time: one that is not the last may use half of
    /// what is left, so that a mirror that stalls leaves time for the next.
    pub(super) fn turns(&self, capability: Capability) -> impl Iterator<Item = Turn<'_>> {
        let able = move |endpoint: &&Endpoint| match capability {
            Capability::Pull => endpoint.pulls(),
            Capability::Resolve => endpoint.pulls() && endpoint.resolves(),
            Capability::Push => endpoint.pushes(),
        };
        let count = self.endpoints.iter().filter(able).count();
        self.endpoints.iter().filter(able).enumerate().map(move |(position, endpoint)| {
            let last = position + 1 == count;
            let now = Instant::now();
            let left = self.deadline.saturating_duration_since(now);
            let deadline = if last { self.deadline } else { now + left / 2 };
            Turn { route: self, endpoint, last, deadline }
        })
    }

    /// The error when no endpoint has answered. Any failure of a mirror leads to the next, as in
    /// containerd: one that has less, wants credentials or lies is one that does not help. The last one's
    /// error counts, the others' are logged.
    pub(super) fn outcome(&self, errors: Vec<RegistryError>, capability: Capability) -> RegistryError {
        let discretion = self.discretion();
        let mut errors = errors.into_iter().map(|error| discretion.keep(error)).rev();
        let last = errors.next();
        for error in errors.rev() {
            tracing::warn!(registry = %self.registry, %error, "a mirror did not help");
        }
        last.unwrap_or_else(|| {
            let wanted = match capability {
                Capability::Pull => "pull",
                Capability::Resolve => "pull and resolve",
                Capability::Push => "push",
            };
            self.place().not_allowed(format!("its hosts.toml has no host with the capability to {wanted}"))
        })
    }
}

impl Discretion {
    /// The error without our secrets. What was asked of the registry stays: a password may be the name of an artifact.
    pub(super) fn keep(&self, error: RegistryError) -> RegistryError {
        let asked = |at: &str| {
            let address = at.find(' ').map_or(0, |space| space + 1);
            let own = self.own.iter().find(|own| at[address..].starts_with(own.as_str()));
            let (kept, told) = at.split_at(own.map_or(0, |own| address + own.len()));
            format!("{kept}{}", self.secrets.hide(told))
        };
        error.reworded(asked, |words| self.secrets.hide(words))
    }
}

impl Turn<'_> {
    fn url(&self, target: &Target) -> Url {
        let path = match target {
            Target::At(url) => return url.clone(),
            Target::Below(path) => path.as_str(),
        };
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let mut url = self.endpoint.base().clone();
        let root = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{root}/{}/{path}", self.route.repository));
        url.set_query(query);
        if self.endpoint.is_mirror() {
            url.query_pairs_mut().append_pair("ns", &self.route.registry.to_string());
        }
        url
    }

    /// The address that an answer names for what comes next: one of the endpoint's own origin, or none.
    pub(super) fn own_address(&self, asked: &Url, text: &str) -> Option<Url> {
        let next = asked.join(text).ok()?;
        let is_own = origin(&next) == origin(self.endpoint.base())
            && next.username().is_empty()
            && next.password().is_none();
        is_own.then_some(next)
    }

    /// Where something behind the repository is.
    pub(super) fn address(&self, path: &str) -> Url {
        self.url(&Target::Below(path.to_owned()))
    }

    /// A mirror does not get what was meant for the registry.
    fn credential(&self) -> &Credential {
        const NOBODY: &Credential = &Credential::Anonymous;
        if self.endpoint.takes_credentials() { &self.route.credential } else { NOBODY }
    }

    fn shows_credentials_to(&self, realm: &Url) -> bool {
        Realm { url: realm, endpoint: self.endpoint, registry: &self.route.registry }.is_trusted()
    }

    /// Says that somebody's credentials were not shown to a realm, if so.
    fn withheld(&self, realm: &Url) -> Option<String> {
        if *self.credential() == Credential::Anonymous || self.shows_credentials_to(realm) {
            return None;
        }
        Some(format!(
            "the credentials for {} were not shown to {}, which is of another domain: an administrator can write \
             token_realms = [\"{}\"] under [oras-csi] in the registry's hosts.toml",
            self.route.registry,
            origin(realm),
            authority(realm)
        ))
    }

    /// The `urls` of a descriptor that the administrator lets be fetched.
    pub(super) fn foreign_sources(&self, blob: &Descriptor) -> Vec<Url> {
        let urls = blob.urls().iter().take(MOST_FOREIGN).filter_map(|url| Url::parse(url).ok());
        let is_fetched = |url: &Url| {
            let plain = url.username().is_empty() && url.password().is_none();
            plain
                && (url.scheme() == "https" || (url.scheme() == "http" && self.endpoint.is_plain_http()))
                && self.endpoint.trust().is_foreign_source(url)
        };
        urls.filter(is_fetched).collect()
    }

    fn asker(&self) -> Asker {
        Asker {
            origin: origin(self.endpoint.base()),
            repository: self.route.repository.clone(),
            credential: self.credential().clone(),
        }
    }
}

impl Inner {
    /// Looks the registry up: a file may have changed since the last time.
    pub(super) async fn route(
        &self,
        registry: &RegistryHost,
        repository: &str,
        credential: &Credential,
    ) -> Result<Route, RegistryError> {
        let deadline = Instant::now() + self.settings.metadata;
        let place = Place::named(&format!("{registry}/{repository}"));
        let endpoints = if self.hosts.reads_files() {
            let (hosts, registry) = (self.hosts.clone(), registry.clone());
            let read = tokio::task::spawn_blocking(move || hosts.endpoints(&registry)).await;
            read.map_err(|error| place.not_allowed(error.to_string()))?
        } else {
            self.hosts.endpoints(registry)
        };
        let endpoints = endpoints.map_err(|error: HostsError| place.misconfigured(error.to_string()))?;
        let named = endpoints.iter().filter(|endpoint| endpoint.is_named());
        let named = Named::new(named.map(Endpoint::base));
        let (registry, repository, credential) =
            (registry.clone(), repository.to_owned(), credential.clone());
        let sent = Mutex::default();
        Ok(Route { registry, repository, endpoints, named, credential, sent, deadline })
    }

    /// Asks until there is an answer: with a token where one is wanted, and up to `tries` times the last
    /// endpoint. `path` comes behind the repository: `manifests/v1`.
    pub(super) async fn ask(
        &self,
        turn: &Turn<'_>,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        self.grant(turn, &Wish::read(method.clone(), path, headers.clone())).await
    }

    /// The same of any request: all of them may be made twice.
    pub(super) async fn grant(&self, turn: &Turn<'_>, wish: &Wish) -> Result<Answer, RegistryError> {
        let (mut done, mut asked_in_all) = (0, Duration::ZERO);
        loop {
            done += 1;
            let (failure, asked) = match self.once(turn, wish).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            asked_in_all = asked_in_all.saturating_add(asked.unwrap_or_default());
            if asked_in_all > self.settings.longest_wait {
                return Err(failure.error);
            }
            // What a mirror redirects to may be good for a while only.
            let tries = if failure.stale { self.settings.tries } else { self.tries(turn) };
            if !failure.again || done >= tries || !self.wait(turn, done, asked, &failure.error).await {
                return Err(failure.error);
            }
        }
    }

    /// How often an endpoint is asked: a mirror once, and then the next.
    pub(super) fn tries(&self, turn: &Turn<'_>) -> u32 {
        if turn.last { self.settings.tries } else { 1 }
    }

    /// Waits before the next try, as long as the registry asks or as is usual; not if it would be too late then.
    pub(super) async fn wait(
        &self,
        turn: &Turn<'_>,
        done: u32,
        asked: Option<Duration>,
        error: &RegistryError,
    ) -> bool {
        let pause = retry::pause(done, asked);
        if Instant::now() + pause >= turn.deadline {
            return false;
        }
        let error = turn.route.discretion().keep(error.clone());
        tracing::debug!(%error, ?pause, "asking again");
        tokio::time::sleep(pause).await;
        true
    }

    /// One try: with what was wanted the last time, if anything was; on 401 with what is wanted now.
    async fn once(&self, turn: &Turn<'_>, wish: &Wish) -> Result<Answer, (Failure, Option<Duration>)> {
        let asker = turn.asker();
        let token = self.tokens.known(&asker);
        let known = match &asker.credential {
            Credential::RegistryToken(secret) => bearer(secret.expose()),
            _ if token.is_some() => token.as_ref().map(Token::header),
            credential if self.tokens.takes_basic(&asker) => basic(credential),
            _ => None,
        };
        let send = async |authorization: Option<HeaderValue>| {
            if let Some(authorization) = &authorization {
                turn.route.is_sent(authorization);
            }
            let call = Call {
                method: wish.method.clone(),
                url: turn.url(&wish.target),
                headers: wish.headers.clone(),
                authorization,
                form: None,
                body: wish.body.clone(),
                endpoint: turn.endpoint,
                named: &turn.route.named,
                deadline: turn.deadline,
            };
            self.transport.send(call).await.map_err(|failure| (failure, None))
        };
        let ranged = wish.headers.contains_key(header::RANGE);
        let answer = send(known.clone()).await?;
        // Somebody else's challenge is not for us: only who was asked may want to know who asks.
        if answer.response.status() != StatusCode::UNAUTHORIZED || answer.redirected {
            return self.judged(answer, ranged, turn).await;
        }
        if matches!(asker.credential, Credential::RegistryToken(_)) {
            return self.judged(answer, ranged, turn).await;
        }
        let scope = format!("repository:{}:{}", turn.route.repository, wish.actions());
        let wanted = Wanted::from_headers(answer.response.headers(), &scope, turn.endpoint.is_plain_http());
        let password =
            basic(&asker.credential).filter(|password| wanted.basic && known.as_ref() != Some(password));
        let authorization = match &wanted.bearer {
            Some(challenge) => {
                // The token may be had from the same host: whoever kept its turn would wait for itself.
                drop(answer);
                match self.tokens.for_challenge(&asker, challenge, token.as_ref()) {
                    Some(token) => token.header(),
                    None => match (self.token(turn, &asker, challenge).await, &password) {
                        (Ok(token), _) => token.header(),
                        // Whoever takes both is asked for the other.
                        (Err(_), Some(password)) => password.clone(),
                        (Err((failure, wait)), None) => {
                            let words = turn.withheld(&challenge.realm).unwrap_or_default();
                            let error =
                                if words.is_empty() { failure.error } else { failure.error.because(&words) };
                            return Err((Failure { error, ..failure }, wait));
                        }
                    },
                }
            }
            None => match (&password, wanted.problem) {
                (Some(password), _) => {
                    drop(answer);
                    password.clone()
                }
                (None, Some(problem)) => {
                    let error = match problem {
                        Problem::Unreadable(words) => answer.place.invalid(words),
                        Problem::NotAllowed(words) => answer.place.not_allowed(words),
                    };
                    return Err((Failure::last(error), None));
                }
                (None, None) => return self.judged(answer, ranged, turn).await,
            },
        };
        let is_password = Some(&authorization) == password.as_ref();
        let answer = send(Some(authorization)).await?;
        if is_password && answer.response.status() != StatusCode::UNAUTHORIZED {
            self.tokens.remember_basic(&asker);
        }
        let withheld = wanted.bearer.and_then(|challenge| turn.withheld(&challenge.realm));
        self.judged(answer, ranged, turn).await.map_err(|(failure, asked)| match withheld {
            Some(words) => (Failure { error: failure.error.because(&words), ..failure }, asked),
            None => (failure, asked),
        })
    }

    /// A token: by GET with a password or for anybody, by POST with a refresh token (distribution, "Token
    /// Authentication Specification" and "OAuth2 Token Authentication"). A password goes by POST where the service
    /// does not know GET.
    async fn token(
        &self,
        turn: &Turn<'_>,
        asker: &Asker,
        challenge: &Challenge,
    ) -> Result<Token, (Failure, Option<Duration>)> {
        let last = |error: RegistryError| (Failure::last(error), None);
        let url = &challenge.realm;
        let nobody = Credential::Anonymous;
        let credential = if turn.shows_credentials_to(url) { &asker.credential } else { &nobody };
        let answer = match challenge.form(credential) {
            Some(form) if matches!(credential, Credential::RefreshToken(_)) => {
                self.token_request(turn, url.clone(), None, Some(form)).await
            }
            form => {
                let answer = self.token_request(turn, challenge.url(), basic(credential), None).await;
                match (answer, form) {
                    (Err((failure, _)), Some(form)) if knows_no_get(&failure.error) => {
                        self.token_request(turn, url.clone(), None, Some(form)).await
                    }
                    (answer, _) => answer,
                }
            }
        };
        let Answer { response, place, permit: _permit, .. } = answer?;
        let limit = self.settings.limits.token();
        let body = body::read(response, &place, "a token", limit, self.patience(turn.deadline)).await;
        let body =
            body.map_err(
                |error| {
                    if body::broke_off(&error) { (Failure::again(error), None) } else { last(error) }
                },
            )?;
        let token = Token::from_answer(&body, std::time::Instant::now());
        let token = token.map_err(|words| last(place.invalid(words)))?;
        self.tokens.keep(asker, challenge, &token);
        Ok(token)
    }

    async fn token_request(
        &self,
        turn: &Turn<'_>,
        url: Url,
        authorization: Option<HeaderValue>,
        form: Option<Bytes>,
    ) -> Result<Answer, (Failure, Option<Duration>)> {
        // A registry's token service may be at any port of its own host; where that one sends us, may not.
        let named = turn.route.named.with_port_of(&url);
        let call = Call {
            method: if form.is_some() { Method::POST } else { Method::GET },
            url,
            headers: HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("application/json"))]),
            authorization,
            form,
            body: None,
            endpoint: turn.endpoint,
            named: &named,
            deadline: turn.deadline,
        };
        let answer = self.transport.send(call).await.map_err(|failure| (failure, None))?;
        self.judged(answer, false, turn).await
    }

    /// GET of an address that is not the registry's.
    pub(super) async fn elsewhere(
        &self,
        turn: &Turn<'_>,
        url: Url,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        let call = Call {
            method: Method::GET,
            url,
            headers: headers.clone(),
            authorization: None,
            form: None,
            body: None,
            endpoint: turn.endpoint,
            named: &turn.route.named,
            deadline: turn.deadline,
        };
        let ranged = headers.contains_key(header::RANGE);
        let answer = self.transport.send(call).await.map_err(|failure| failure.error)?;
        self.judged(answer, ranged, turn).await.map_err(|(failure, _)| failure.error)
    }

    pub(super) fn patience(&self, deadline: Instant) -> Patience {
        Patience { idle: self.settings.idle, whole: self.settings.metadata, deadline }
    }

    /// An answer that is one, or what its status means.
    async fn judged(
        &self,
        answer: Answer,
        ranged: bool,
        turn: &Turn<'_>,
    ) -> Result<Answer, (Failure, Option<Duration>)> {
        let status = answer.response.status();
        if status.is_success() || (ranged && status == StatusCode::RANGE_NOT_SATISFIABLE) {
            return Ok(answer);
        }
        let asked = retry::retry_after(answer.response.headers(), SystemTime::now());
        let (at, redirected) = (answer.place.at(), answer.redirected);
        let patience = self.patience(turn.deadline);
        let words = body::words(answer.response, self.settings.limits.error(), patience).await;
        let status = status.as_u16();
        let error = match status {
            404 => RegistryError::NotFound { at, words },
            429 => RegistryError::RateLimited { at, retry_after: asked, words },
            408 | 500..=599 => RegistryError::Unavailable { at, status, words },
            401 if words.is_empty() && *turn.credential() == Credential::Anonymous => {
                let words = "it wants credentials, and none were given".into();
                RegistryError::Refused { at, status, words }
            }
            300..=399 => {
                return Err((Failure::last(answer.place.untruthful(format!("status {status}"))), None));
            }
            _ => RegistryError::Refused { at, status, words },
        };
        // An address of a storage service runs out; the registry gives another.
        let stale = redirected && matches!(status, 400 | 401 | 403 | 404 | 410);
        let again = stale || matches!(status, 408 | 429 | 500 | 502..=504 | 507..=599);
        Err((Failure { error, again, stale }, asked))
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Whether a token service does not know GET.
fn knows_no_get(error: &RegistryError) -> bool {
    matches!(error, RegistryError::NotFound { .. } | RegistryError::Refused { status: 405, .. })
}
