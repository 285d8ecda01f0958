//! Sends a request to one endpoint: with a token if the endpoint requires one, and again if that may help.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;
use url::Url;

use super::client::Inner;
use super::route::{Attempt, Operation, Route, Target};
use crate::credentials::Credential;
use crate::reference::RegistryHost;
use crate::registry::auth::{Challenge, ChallengeProblem, Challenges, Requester, Token, basic};
use crate::registry::body::{self, ErrorMessage, ReadTimeouts};
use crate::registry::error::{RegistryError, RegistryErrorKind};
use crate::registry::guard::AllowedAddresses;
use crate::registry::hosts::{Endpoint, HostsError};
use crate::registry::request_label::RequestLabel;
use crate::registry::retry;
use crate::registry::transport::{Answer, Call, Failure, RequestBody, RetryAdvice};

/// A failure, and how long the registry asks to wait.
pub(super) type FailedTry = (Failure, Option<Duration>);

impl Inner {
    /// Looks up the endpoints of a registry. The files are read each time, because they may have changed.
    pub(super) async fn route(
        &self,
        registry: &RegistryHost,
        repository: &str,
        credential: &Credential,
    ) -> Result<Route, RegistryError> {
        let started = Instant::now();
        let deadline = started + self.settings.metadata_timeout;
        let label = RequestLabel::from_name(&format!("{registry}/{repository}"));
        let endpoints = if self.hosts.reads_files() {
            let (hosts, registry) = (self.hosts.clone(), registry.clone());
            let read = tokio::task::spawn_blocking(move || hosts.endpoints(&registry)).await;
            read.map_err(|error| {
                label.unreachable(format!("reading the registry configuration stopped: {error}"))
            })?
        } else {
            self.hosts.endpoints(registry)
        };
        let endpoints = endpoints.map_err(|error: HostsError| label.misconfigured(error.to_string()))?;
        let named = endpoints.iter().filter(|endpoint| endpoint.is_named());
        let allowed = AllowedAddresses::new(named.map(Endpoint::base));
        let (registry, repository, credential) =
            (registry.clone(), repository.to_owned(), credential.clone());
        let (sent, failed) = (Mutex::default(), Arc::clone(&self.failed));
        let timeouts = self.settings.endpoint_timeouts();
        Ok(Route {
            registry,
            repository,
            endpoints,
            allowed,
            credential,
            sent,
            failed,
            timeouts,
            started,
            deadline,
        })
    }

    /// Sends a request without a body to a path below the repository, such as `manifests/v1`.
    pub(super) async fn get(
        &self,
        attempt: &Attempt<'_>,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        self.request(attempt, &Operation::read(method.clone(), path, headers.clone())).await
    }

    /// Sends a request and retries it as often as the settings allow. All requests of this client may be repeated.
    pub(super) async fn request(
        &self,
        attempt: &Attempt<'_>,
        operation: &Operation,
    ) -> Result<Answer, RegistryError> {
        self.request_until_failed(attempt, operation).await.map_err(|(failure, _)| failure.error)
    }

    /// As [`Self::request`]. A failure has the wait that the registry asked for last.
    pub(super) async fn request_until_failed(
        &self,
        attempt: &Attempt<'_>,
        operation: &Operation,
    ) -> Result<Answer, FailedTry> {
        let (mut tries, mut total_wait) = (0, Duration::ZERO);
        loop {
            tries += 1;
            let started = Instant::now();
            let (failure, requested_wait) = match self.try_once(attempt, operation).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            self.report_failure(attempt.route, &failure.error);
            total_wait = total_wait.saturating_add(requested_wait.unwrap_or_default());
            if total_wait > self.settings.max_retry_wait {
                return Err((failure, requested_wait));
            }
            let max_tries = match failure.advice {
                RetryAdvice::Never => return Err((failure, requested_wait)),
                RetryAdvice::Retry => self.max_tries(attempt),
                // A mirror may redirect to an address that has expired, so it is tried again as well.
                RetryAdvice::RetryForNewAddress => self.settings.tries,
            };
            if tries >= max_tries
                || !attempt.can_repeat(started.elapsed())
                || !self.wait(attempt, tries, requested_wait, &failure.error).await
            {
                return Err((failure, requested_wait));
            }
        }
    }

    /// Returns how often an endpoint is tried. A mirror is tried once, and then the next endpoint.
    pub(super) fn max_tries(&self, attempt: &Attempt<'_>) -> u32 {
        if attempt.is_last { self.settings.tries } else { 1 }
    }

    /// Waits before the next try. Returns false without waiting if the deadline would then have passed.
    pub(super) async fn wait(
        &self,
        attempt: &Attempt<'_>,
        tries: u32,
        requested: Option<Duration>,
        error: &RegistryError,
    ) -> bool {
        let delay = retry::delay(tries, requested);
        if Instant::now() + delay >= attempt.deadline {
            return false;
        }
        let error = attempt.route.redactor().redact(error.clone());
        tracing::debug!(%error, ?delay, "retrying a request to a registry");
        tokio::time::sleep(delay).await;
        true
    }

    /// Returns the `Authorization` that the endpoint accepted last, if it has not expired.
    pub(super) fn known_authorization(&self, requester: &Requester) -> Option<HeaderValue> {
        match &requester.credential {
            Credential::RegistryToken(secret) => bearer(secret.expose()),
            credential => match self.tokens.known(requester) {
                Some(token) => Some(token.header()),
                None if self.tokens.accepts_basic(requester) => basic(credential),
                None => None,
            },
        }
    }

    /// Sends a request once with the authorization that was accepted last, and after a 401 with what the endpoint
    /// requires now.
    async fn try_once(&self, attempt: &Attempt<'_>, operation: &Operation) -> Result<Answer, FailedTry> {
        let requester = attempt.requester();
        // The root of the API accepts any token, so it is requested without one to get a challenge.
        let is_root = matches!(operation.target, Target::ApiRoot);
        let token = self.tokens.known(&requester).filter(|_| !is_root);
        let known = self.known_authorization(&requester).filter(|_| !is_root);
        let send = async |authorization: Option<HeaderValue>| {
            if let Some(authorization) = &authorization {
                attempt.route.record_sent(authorization);
            }
            let call = Call {
                method: operation.method.clone(),
                url: attempt.url(&operation.target),
                headers: operation.headers.clone(),
                authorization,
                body: operation.content.clone().map(RequestBody::Content),
                endpoint: attempt.endpoint,
                allowed: &attempt.route.allowed,
                connect_timeout: attempt.connect_timeout,
                deadline: attempt.deadline,
            };
            self.send(attempt, call).await.map_err(|failure| (failure, None))
        };
        let has_range = operation.headers.contains_key(header::RANGE);
        let answer = send(known.clone()).await?;
        // The challenge of a redirect target is ignored: only the endpoint itself may ask for credentials.
        if answer.response.status() != StatusCode::UNAUTHORIZED || answer.redirected {
            return self.check_status(answer, has_range, attempt).await;
        }
        if matches!(requester.credential, Credential::RegistryToken(_)) {
            return self.check_status(answer, has_range, attempt).await;
        }
        let scope = format!("repository:{}:{}", attempt.route.repository, operation.actions());
        let is_plain_http = attempt.endpoint.is_plain_http();
        let mut challenges = Challenges::from_headers(answer.response.headers(), &scope, is_plain_http);
        if is_root {
            // For the root of the API, some registries (ghcr.io) name the scope of a placeholder repository.
            challenges.bearer.iter_mut().for_each(|challenge| challenge.scope.clone_from(&scope));
        }
        let password = basic(&requester.credential)
            .filter(|password| challenges.basic && known.as_ref() != Some(password));
        let unsupported = challenges.unsupported_schemes();
        let mut realm = challenges.bearer.first().map(|challenge| &challenge.realm);
        let authorization = if challenges.bearer.is_empty() {
            match (&password, challenges.problem) {
                (Some(password), _) => {
                    drop(answer);
                    password.clone()
                }
                (None, Some(problem)) => {
                    let (ChallengeProblem::Unreadable(message) | ChallengeProblem::NotAllowed(message)) =
                        problem;
                    return Err((Failure::permanent(answer.label.authentication(message)), None));
                }
                (None, None) => {
                    let Some(message) = unsupported else {
                        return self.check_status(answer, has_range, attempt).await;
                    };
                    return Err((Failure::permanent(answer.label.authentication(message)), None));
                }
            }
        } else {
            // The token service may be the same host. With the permit held, the token request could wait without end.
            drop(answer);
            let granted = self.token_for(attempt, &requester, &challenges.bearer, token.as_ref()).await;
            match (granted, &password) {
                (Ok((token, challenge)), _) => {
                    realm = Some(&challenge.realm);
                    token.header()
                }
                // The registry accepts a password as well.
                (Err(_), Some(password)) => password.clone(),
                (Err(failed), None) => return Err(failed),
            }
        };
        let is_password = Some(&authorization) == password.as_ref();
        let answer = send(Some(authorization)).await?;
        if is_password && answer.response.status() != StatusCode::UNAUTHORIZED {
            self.tokens.remember_basic(&requester);
        }
        let withheld = realm.and_then(|realm| attempt.withheld_credentials_message(realm));
        self.check_status(answer, has_range, attempt).await.map_err(|(failure, wait)| match withheld {
            Some(message) => (Failure { error: failure.error.with_reason(&message), ..failure }, wait),
            None => (failure, wait),
        })
    }

    /// Returns a token of the first token service that gives one. If none does, returns the error of the first, or of
    /// the first whose error a retry may help.
    async fn token_for<'a>(
        &self,
        attempt: &Attempt<'_>,
        requester: &Requester,
        challenges: &'a [Challenge],
        refused: Option<&Token>,
    ) -> Result<(Token, &'a Challenge), FailedTry> {
        let mut first: Option<FailedTry> = None;
        for (position, challenge) in challenges.iter().enumerate() {
            if let Some(token) = self.tokens.for_challenge(requester, challenge, refused) {
                return Ok((token, challenge));
            }
            let share = attempt.with_share_of_time(challenges.len() - position);
            let (failure, wait) = match self.fetch_token(&share, requester, challenge).await {
                Ok(token) => return Ok((token, challenge)),
                Err(failed) => failed,
            };
            let error = match attempt.withheld_credentials_message(&challenge.realm) {
                Some(message) => failure.error.with_reason(&message),
                None => failure.error,
            };
            let failed = (Failure { error, ..failure }, wait);
            let can_be_retried = |failed: &FailedTry| failed.0.advice != RetryAdvice::Never;
            if first.as_ref().is_none_or(|first| !can_be_retried(first) && can_be_retried(&failed)) {
                first = Some(failed);
            }
        }
        let no_challenge = || attempt.route.label().authentication("no challenge to get a token for");
        Err(first.unwrap_or_else(|| (Failure::permanent(no_challenge()), None)))
    }

    /// Fetches a token: with GET for a password or anonymously, with POST for a refresh token (distribution, "Token
    /// Authentication Specification" and "OAuth2 Token Authentication"). A password is sent with POST if the token
    /// service does not support GET.
    async fn fetch_token(
        &self,
        attempt: &Attempt<'_>,
        requester: &Requester,
        challenge: &Challenge,
    ) -> Result<Token, FailedTry> {
        let permanent = |error: RegistryError| (Failure::permanent(error), None);
        let url = &challenge.realm;
        let anonymous = Credential::Anonymous;
        let credential = if attempt.trusts_realm(url) { &requester.credential } else { &anonymous };
        let answer = match challenge.token_form(credential) {
            Some(form) if matches!(credential, Credential::RefreshToken(_)) => {
                self.token_request(attempt, url.clone(), None, Some(form)).await
            }
            form => {
                let answer =
                    self.token_request(attempt, challenge.token_url(), basic(credential), None).await;
                match (answer, form) {
                    (Err((failure, _)), Some(form)) if is_get_unsupported(&failure.error) => {
                        self.token_request(attempt, url.clone(), None, Some(form)).await
                    }
                    (answer, _) => answer,
                }
            }
        };
        let answer = answer.map_err(|(failure, wait)| {
            (Failure { error: failure.error.of_token_service(), ..failure }, wait)
        });
        let Answer { response, label, permit: _permit, .. } = answer?;
        let (limit, note) = (self.settings.limits.token(), body::encoding_note(response.headers()));
        let body = body::read(response, &label, "a token", limit, self.read_timeouts(attempt.deadline)).await;
        let body = body.map_err(|error| {
            if body::is_interrupted(&error) {
                (Failure::retryable(error), None)
            } else {
                permanent(error.of_token_service())
            }
        })?;
        let token = Token::from_response(&body, std::time::Instant::now());
        let token = token.map_err(|message| permanent(label.authentication(format!("{message}{note}"))))?;
        self.tokens.insert(requester, challenge, &token);
        Ok(token)
    }

    async fn token_request(
        &self,
        attempt: &Attempt<'_>,
        url: Url,
        authorization: Option<HeaderValue>,
        form: Option<Bytes>,
    ) -> Result<Answer, FailedTry> {
        // The token service may use any port of the registry's own host. Its redirects may not.
        let allowed = attempt.route.allowed.with_port_of(&url);
        let call = Call {
            method: if form.is_some() { Method::POST } else { Method::GET },
            url,
            headers: HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("application/json"))]),
            authorization,
            body: form.map(RequestBody::Form),
            endpoint: attempt.endpoint,
            allowed: &allowed,
            connect_timeout: attempt.connect_timeout,
            deadline: attempt.deadline,
        };
        let answer = self.send(attempt, call).await.map_err(|failure| (failure, None))?;
        self.check_status(answer, false, attempt).await
    }

    /// Sends GET to an address of another origin, without credentials.
    pub(super) async fn get_foreign(
        &self,
        attempt: &Attempt<'_>,
        url: Url,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        let call = Call {
            method: Method::GET,
            url,
            headers: headers.clone(),
            authorization: None,
            body: None,
            endpoint: attempt.endpoint,
            allowed: &attempt.route.allowed,
            connect_timeout: attempt.connect_timeout,
            deadline: attempt.deadline,
        };
        let has_range = headers.contains_key(header::RANGE);
        let answer = match self.send(attempt, call).await {
            Ok(answer) => self.check_status(answer, has_range, attempt).await.map_err(|(failure, _)| failure),
            Err(failure) => Err(failure),
        };
        answer.map_err(|failure| failure.error).inspect_err(|error| self.report_failure(attempt.route, error))
    }

    /// Sends a request, and reports how long it took.
    async fn send(&self, attempt: &Attempt<'_>, call: Call<'_>) -> Result<Answer, Failure> {
        let started = Instant::now();
        let answer = self.transport.send(call).await;
        self.settings.observer.requested(&attempt.route.registry, started.elapsed());
        answer
    }

    /// Reports a failed request, or content that cannot be used.
    pub(super) fn report_failure(&self, route: &Route, error: &RegistryError) {
        self.settings.observer.failed(&route.registry, error.kind());
    }

    pub(super) fn read_timeouts(&self, deadline: Instant) -> ReadTimeouts {
        ReadTimeouts { idle: self.settings.idle_timeout, total: self.settings.metadata_timeout, deadline }
    }

    /// Returns a successful response, or the error that its status means.
    async fn check_status(
        &self,
        answer: Answer,
        has_range: bool,
        attempt: &Attempt<'_>,
    ) -> Result<Answer, FailedTry> {
        let status = answer.response.status();
        if status.is_success() || (has_range && status == StatusCode::RANGE_NOT_SATISFIABLE) {
            return Ok(answer);
        }
        let wait = retry::retry_after(answer.response.headers(), SystemTime::now());
        let (label, redirected, proxy) = (answer.label, answer.redirected, answer.proxy);
        let at = label.text();
        let is_registrys = is_answer_of_registry(answer.response.headers());
        let timeouts = self.read_timeouts(attempt.deadline);
        let message = body::error_message(answer.response, self.settings.limits.error(), timeouts).await;
        let ErrorMessage { words, has_codes } = message;
        let status = status.as_u16();
        let error = match status {
            // Only a proxy sends this status (RFC 9110, 15.5.8).
            407 => label.misconfigured(match proxy {
                Some(proxy) => format!(
                    "the proxy {proxy} requires a user and a password that it accepts: set them in HTTP_PROXY, or add \
                     the host to NO_PROXY"
                ),
                None => "a proxy before the registry requires a user and a password".to_owned(),
            }),
            403 if proxy.is_some() && !is_registrys && !has_codes => label.misconfigured(format!(
                // Its words may repeat its own password, which the administrator configured and the pod's owner must not see.
                "the proxy {} answered 403, and not the registry: allow the host at the proxy, or add it to NO_PROXY",
                proxy.unwrap_or_default()
            )),
            400..=499 if redirected && !matches!(status, 408 | 429) => {
                RegistryError::Redirected { at, status, words }
            }
            404 => RegistryError::NotFound { at, words },
            429 => RegistryError::RateLimited { at, retry_after: wait, words },
            408 | 500..=599 => RegistryError::Unavailable { at, status, words },
            401 if words.is_empty() && *attempt.credential() == Credential::Anonymous => {
                let words = "the registry requires credentials".into();
                RegistryError::Refused { at, status, words }
            }
            // Go programs and nginx answer plain HTTP at a port for TLS with 400.
            400 if attempt.endpoint.is_plain_http()
                && (words.is_empty() || words.as_str().contains("HTTPS server")) =>
            {
                const OTHER_PROTOCOL: &str = "if this port speaks TLS, set server = \"https://HOST:PORT\" in the registry's hosts.toml";
                RegistryError::Refused { at, status, words }.with_reason(OTHER_PROTOCOL)
            }
            300..=399 => {
                let error = label.untruthful(format!("unexpected status {status}"));
                return Err((Failure::permanent(error), None));
            }
            _ => RegistryError::Refused { at, status, words },
        };
        // A presigned address of a storage service expires; the registry returns a new one.
        let is_expired = redirected && matches!(status, 400 | 401 | 403 | 404 | 410);
        let advice = match status {
            _ if is_expired => RetryAdvice::RetryForNewAddress,
            408 | 429 | 500 | 502..=504 | 507..=599 => RetryAdvice::Retry,
            _ => RetryAdvice::Never,
        };
        Err((Failure { error, advice }, wait))
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Reports whether an answer has a header that only a registry or its token service sends, and not a proxy before it.
fn is_answer_of_registry(headers: &HeaderMap) -> bool {
    headers.contains_key(header::WWW_AUTHENTICATE) || headers.contains_key("docker-distribution-api-version")
}

/// Reports whether a token service does not support GET.
fn is_get_unsupported(error: &RegistryError) -> bool {
    error.kind() == RegistryErrorKind::NotFound || error.refusal() == Some(405)
}
