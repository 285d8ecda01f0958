//! Asking one registry: its endpoints in turn, tokens where they are wanted, and again where it may help.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;
use url::Url;

use super::Inner;
use crate::reference::RegistryHost;
use crate::registry::auth::{Asker, Challenge, Credential, Token, Wanted};
use crate::registry::body::{self, Patience};
use crate::registry::guard::Named;
use crate::registry::retry;
use crate::registry::transport::{Answer, Call, Failure, Place, origin};
use crate::registry::{Endpoint, HostsError, RegistryError};

/// What an endpoint must be configured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Capability {
    Pull,
    Resolve,
}

/// A registry's endpoints as they are configured right now, for one request of ours.
pub(super) struct Route {
    registry: RegistryHost,
    repository: String,
    endpoints: Vec<Endpoint>,
    named: Named,
    credential: Credential,
    deadline: Instant,
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

    /// The endpoints in order, each with its share of the time: one that is not the last may use half of
    /// what is left, so that a mirror that stalls leaves time for the next.
    pub(super) fn turns(&self, capability: Capability) -> impl Iterator<Item = Turn<'_>> {
        let able = move |endpoint: &&Endpoint| {
            endpoint.pulls() && (capability == Capability::Pull || endpoint.resolves())
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
        let mut errors = errors.into_iter().rev();
        let last = errors.next();
        for error in errors.rev() {
            tracing::warn!(registry = %self.registry, %error, "a mirror did not help");
        }
        last.unwrap_or_else(|| {
            let wanted = match capability {
                Capability::Pull => "pull",
                Capability::Resolve => "pull and resolve",
            };
            self.place().not_allowed(format!("its hosts.toml has no host with the capability to {wanted}"))
        })
    }
}

impl Turn<'_> {
    fn url(&self, path: &str) -> Url {
        let mut url = self.endpoint.base().clone();
        let root = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{root}/{}/{path}", self.route.repository));
        if self.endpoint.is_mirror() {
            url.query_pairs_mut().append_pair("ns", &self.route.registry.to_string());
        }
        url
    }

    fn asker(&self) -> Asker {
        Asker {
            origin: origin(self.endpoint.base()),
            repository: self.route.repository.clone(),
            credential: self.route.credential.clone(),
        }
    }
}

impl Inner {
    /// Looks the registry up: a file may have changed since the last time.
    pub(super) async fn route(
        &self,
        registry: &RegistryHost,
        repository: &str,
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
        let endpoints = endpoints.map_err(|error: HostsError| place.not_allowed(error.to_string()))?;
        let named = endpoints.iter().filter(|endpoint| endpoint.is_named());
        let named = Named::new(named.filter_map(|endpoint| endpoint.base().host_str().map(str::to_owned)));
        let credential = self.credentials.credential(registry).await;
        let (registry, repository) = (registry.clone(), repository.to_owned());
        Ok(Route { registry, repository, endpoints, named, credential, deadline })
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
        let tries = if turn.last { self.settings.tries } else { 1 };
        let mut done = 0;
        loop {
            done += 1;
            let (failure, asked) = match self.once(turn, method, path, headers).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if !failure.again || done >= tries {
                return Err(failure.error);
            }
            let Some(pause) = retry::pause(done, asked) else { return Err(failure.error) };
            if Instant::now() + pause >= turn.deadline {
                return Err(failure.error);
            }
            tracing::debug!(error = %failure.error, ?pause, "asking again");
            tokio::time::sleep(pause).await;
        }
    }

    /// One try: the token that we have, if any; on 401 the token that is asked for.
    async fn once(
        &self,
        turn: &Turn<'_>,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, (Failure, Option<Duration>)> {
        let asker = turn.asker();
        let token = self.tokens.known(&asker);
        let call = |authorization: Option<HeaderValue>| Call {
            method: method.clone(),
            url: turn.url(path),
            headers: headers.clone(),
            authorization,
            endpoint: turn.endpoint,
            named: &turn.route.named,
            deadline: turn.deadline,
        };
        let ranged = headers.contains_key(header::RANGE);
        let known = token.as_ref().map(Token::header);
        let answer = self.transport.send(call(known)).await.map_err(|failure| (failure, None))?;
        if answer.response.status() != StatusCode::UNAUTHORIZED {
            return self.judged(answer, ranged, turn).await;
        }
        let scope = format!("repository:{}:pull", turn.route.repository);
        match Wanted::from_headers(answer.response.headers(), &scope) {
            Wanted::Bearer(challenge) => {
                let token = match self.tokens.for_challenge(&asker, &challenge, token.as_ref()) {
                    Some(token) => token,
                    None => self.token(turn, &asker, &challenge).await?,
                };
                let answer = self.transport.send(call(Some(token.header()))).await;
                self.judged(answer.map_err(|failure| (failure, None))?, ranged, turn).await
            }
            Wanted::Credential(_) => self.judged(answer, ranged, turn).await,
            Wanted::Unreadable(words) => {
                Err((Failure { error: answer.place.invalid(words), again: false }, None))
            }
        }
    }

    /// A token for anybody, by GET ("Token Authentication Specification").
    async fn token(
        &self,
        turn: &Turn<'_>,
        asker: &Asker,
        challenge: &Challenge,
    ) -> Result<Token, (Failure, Option<Duration>)> {
        let url = challenge.url();
        let place = Place::new(&Method::GET, &url);
        let last = |error: RegistryError| (Failure { error, again: false }, None);
        let secure = !turn.endpoint.is_plain_http();
        if !matches!(url.scheme(), "http" | "https") || (secure && url.scheme() != "https") {
            let words = format!("{} names a token realm that is not https", asker.origin);
            return Err(last(place.not_allowed(words)));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(last(place.not_allowed("a token realm with a user in it")));
        }
        let call = Call {
            method: Method::GET,
            url,
            headers: HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("application/json"))]),
            authorization: None,
            endpoint: turn.endpoint,
            named: &turn.route.named,
            deadline: turn.deadline,
        };
        let answer = self.transport.send(call).await.map_err(|failure| (failure, None))?;
        let Answer { response, place } = self.judged(answer, false, turn).await?;
        let limit = self.settings.limits.token();
        let body = body::read(response, &place, "a token", limit, self.patience(turn.deadline)).await;
        let token = Token::from_answer(&body.map_err(last)?, std::time::Instant::now());
        let token = token.map_err(|words| last(place.invalid(words)))?;
        self.tokens.keep(asker, challenge, &token);
        Ok(token)
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
        let at = answer.place.at();
        let patience = self.patience(turn.deadline);
        let words = body::words(answer.response, self.settings.limits.error(), patience).await;
        let status = status.as_u16();
        let error = match status {
            404 => RegistryError::NotFound { at, words },
            429 => RegistryError::RateLimited { at, retry_after: asked, words },
            408 | 500..=599 => RegistryError::Unavailable { at, status, words },
            401 if words.is_empty() => {
                let words = "it wants credentials, and none were given".into();
                RegistryError::Refused { at, status, words }
            }
            300..=399 => {
                return Err((
                    Failure { error: answer.place.untruthful(format!("status {status}")), again: false },
                    None,
                ));
            }
            _ => RegistryError::Refused { at, status, words },
        };
        let again = matches!(status, 408 | 429 | 500 | 502..=504 | 507..=599);
        Err((Failure { error, again }, asked))
    }
}
