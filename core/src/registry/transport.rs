//! Sends one HTTP request: connection pools, redirects, timeouts, and errors with their cause.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use reqwest::{Body, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;
use url::Url;

use super::address::origin;
use super::connection::{ConnectTimeout, Connector};
use super::error::RegistryError;
use super::guard::{AllowedAddresses, Forbidden, GuardedResolver, HostResolver, ProxyHosts};
use super::hosts::{Endpoint, TlsFiles};
use super::interim::TooManyInterimAnswers;
use super::proxy::{Proxies, Proxy};
use super::request_label::RequestLabel;
use super::request_span;
use super::tls::{self, PeerRole};

/// The value of `User-Agent`.
pub(super) const USER_AGENT: &str = concat!("oras-csi/", env!("CARGO_PKG_VERSION"));

/// What a request waits for in vain: a connection, or one of the requests that may be in progress.
pub(super) const NO_CONNECTION: &str = "connection";
pub(super) const NO_SLOT: &str = "free request slot";
/// How long a connection without a request stays open.
const IDLE_CONNECTION: Duration = Duration::from_secs(90);
/// How many client configurations keep their connections.
const MAX_CLIENTS: usize = 64;
/// How many requests to one origin may be in progress, including their response bodies. Registries accept this many,
/// and it keeps the number of open files of the process low.
const MAX_REQUESTS_PER_ORIGIN: usize = 64;
/// Above this number, origins without a request in progress are forgotten.
const MAX_ORIGINS: usize = 1_024;

/// Converts an error of the HTTP client into a [`RegistryError`] with its cause and, where known, the fix.
pub(super) fn client_error(label: &RequestLabel, error: &(dyn StdError + 'static)) -> RegistryError {
    if let Some(too_many) = find_cause::<TooManyInterimAnswers>(error) {
        return label.untruthful(too_many.to_string());
    }
    if let Some(forbidden) = find_cause::<Forbidden>(error) {
        return label.not_allowed(forbidden.to_string());
    }
    let Some(tls) = find_cause::<rustls::Error>(error) else { return label.unreachable(causes(error)) };
    match certificate_advice(tls) {
        Some(advice) => label.certificate(causes(error) + advice),
        // During a handshake, the server speaks no TLS or another version of it. Later, the network changed bytes.
        None if is_connecting(error) => match tls {
            rustls::Error::InvalidMessage(_) => label.certificate(causes(error) + NO_TLS),
            rustls::Error::PeerIncompatible(_)
            | rustls::Error::AlertReceived(
                rustls::AlertDescription::HandshakeFailure | rustls::AlertDescription::ProtocolVersion,
            ) => label.certificate(causes(error) + OTHER_TLS),
            _ => label.unreachable(causes(error)),
        },
        None => label.unreachable(causes(error)),
    }
}

/// Reports whether the connection failed, and not a request on it.
fn is_connecting(error: &(dyn StdError + 'static)) -> bool {
    find_cause::<hyper_util::client::legacy::Error>(error)
        .is_some_and(hyper_util::client::legacy::Error::is_connect)
}

/// What to do if the server answers in another protocol than TLS.
const NO_TLS: &str = " (the server does not speak TLS: for plain http, set server = \"http://HOST:PORT\" in the \
                      registry's hosts.toml)";

/// What to do if the server and the client have no version or cipher suite of TLS in common.
const OTHER_TLS: &str =
    " (the server must support TLS 1.2 or 1.3 with a current cipher suite: update it or its configuration)";

/// Returns what to do after an error about a certificate. Returns `None` for other errors of TLS.
fn certificate_advice(error: &rustls::Error) -> Option<&'static str> {
    use rustls::{AlertDescription as Alert, CertificateError as Problem};
    match error {
        rustls::Error::InvalidCertificate(problem) => Some(match problem {
            Problem::Expired | Problem::ExpiredContext { .. } => {
                " (the server's certificate has expired: renew it, and check the clock of this machine)"
            }
            Problem::NotValidYet | Problem::NotValidYetContext { .. } => {
                " (the server's certificate is not valid yet: check the clocks of the server and of this machine)"
            }
            Problem::NotValidForName | Problem::NotValidForNameContext { .. } => {
                " (the server's certificate is for another name: request the registry by a name of the certificate, or \
                 renew the certificate with this name)"
            }
            Problem::UnknownIssuer => {
                " (the certificate authority is unknown: set the server's own certificate, or its authority, as `ca` in \
                 the registry's hosts.toml)"
            }
            Problem::BadSignature => {
                " (the certificate was not signed by the authority of this name that the client has: set the present \
                 authority as `ca` in the registry's hosts.toml)"
            }
            problem if tls::is_ca_certificate(problem) => {
                " (the server's certificate is one of an authority, CA:TRUE, as `openssl req -x509` makes it: set this \
                 certificate as `ca` in the registry's hosts.toml, or issue one for a server)"
            }
            _ => " (the server's certificate cannot be used: issue a new one for a server)",
        }),
        rustls::Error::AlertReceived(
            Alert::CertificateRequired | Alert::BadCertificate | Alert::UnknownCA,
        ) => Some(
            " (the registry requires a client certificate that it accepts: set one as `client` in the registry's \
             hosts.toml)",
        ),
        _ => None,
    }
}

/// Joins the causes of an error of the HTTP client, without the URL of the request.
pub(super) fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut joined = String::new();
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        // hyper-util wraps the cause in an error without information.
        if !joined.contains(&text) && !text.starts_with("client error (") {
            joined = if joined.is_empty() { text } else { format!("{joined}: {text}") };
        }
        next = error.source();
    }
    if joined.is_empty() { "the request failed".to_owned() } else { joined }
}

/// Returns the first cause of type `T`. `source` of an `io::Error` skips the error that it wraps, so that one is
/// searched as well.
fn find_cause<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(inner) = inner {
            let inner: &(dyn StdError + 'static) = inner;
            if let Some(found) = find_cause::<T>(inner) {
                return Some(found);
            }
        }
        next = error.source();
    }
    None
}

/// Reports whether a retry cannot help: a forbidden address, a certificate or a server that breaks the rules of HTTP stays
/// as it is.
fn is_permanent(error: &(dyn StdError + 'static)) -> bool {
    find_cause::<Forbidden>(error).is_some()
        || find_cause::<rustls::Error>(error).is_some()
        || find_cause::<TooManyInterimAnswers>(error).is_some()
}

/// The timeout of response headers, and the maximum number of redirects.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransportLimits {
    pub(super) header_timeout: Duration,
    pub(super) redirects: u8,
}

/// The body of a request.
#[derive(Clone, Debug)]
pub(super) enum RequestBody {
    /// A form (`application/x-www-form-urlencoded`), which may hold a secret.
    Form(Bytes),
    /// Content to store. Its media type is among the headers.
    Content(Bytes),
}

/// A request. Only a request without a body is redirected, because a body may hold a secret.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    /// Headers that are sent to every host.
    pub(super) headers: HeaderMap,
    /// `Authorization`, which is sent to the origin of `url` only.
    pub(super) authorization: Option<HeaderValue>,
    pub(super) body: Option<RequestBody>,
    /// The endpoint with the TLS settings. Its headers and client certificates are sent to its own origin only.
    pub(super) endpoint: &'a Endpoint,
    /// Addresses that may be dialled although the guard forbids them.
    pub(super) allowed: &'a AllowedAddresses,
    /// The time for a connection, unless the endpoint has a `dial_timeout`.
    pub(super) connect_timeout: Duration,
    pub(super) deadline: Instant,
}

/// A response and the request that it answers.
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) label: RequestLabel,
    /// Whether the response comes from another origin than the one that was asked.
    pub(super) redirected: bool,
    /// The proxy through which the answer came and which could read and replace it. `None` for https, which is tunneled.
    pub(super) proxy: Option<String>,
    /// The permit for one of the requests that the origin may have in progress.
    pub(super) permit: OwnedSemaphorePermit,
}

/// What a caller may do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryAdvice {
    /// The same request fails again.
    Never,
    /// The same request may succeed.
    Retry,
    /// A presigned address has expired: the same request leads to a new one.
    RetryForNewAddress,
}

/// Why there is no response.
pub(super) struct Failure {
    pub(super) error: RegistryError,
    pub(super) advice: RetryAdvice,
}

impl Failure {
    pub(super) fn permanent(error: RegistryError) -> Self {
        Self { error, advice: RetryAdvice::Never }
    }

    pub(super) fn retryable(error: RegistryError) -> Self {
        Self { error, advice: RetryAdvice::Retry }
    }
}

/// Everything by which HTTP clients differ.
#[derive(PartialEq, Eq, Hash, Clone)]
struct ClientKey {
    tls: TlsFiles,
    role: PeerRole,
    connect_timeout: Duration,
    /// Whether an administrator named the address, so that it may be a forbidden one.
    is_named: bool,
    proxy: Option<Proxy>,
}

#[derive(Clone)]
struct PooledClient {
    client: Client<Connector, Body>,
    connector: Connector,
    can_verify: bool,
}

/// The HTTP clients by configuration. A changed configuration gets new connections, and hosts with different
/// configurations share none.
pub(super) struct Transport {
    clients: Mutex<HashMap<ClientKey, PooledClient>>,
    proxies: Proxies,
    proxy_hosts: ProxyHosts,
    resolver: Arc<dyn HostResolver>,
    limits: TransportLimits,
    /// The requests in progress of each origin.
    origins: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Transport {
    pub(super) fn new(limits: TransportLimits, proxies: Proxies, resolver: Arc<dyn HostResolver>) -> Self {
        Self {
            clients: Mutex::default(),
            proxy_hosts: ProxyHosts::new(proxies.hosts()),
            proxies,
            resolver,
            limits,
            origins: Mutex::default(),
        }
    }

    /// Reports whether requests to `url` go directly to its host, without a proxy of the environment.
    pub(super) fn is_direct(&self, url: &Url) -> bool {
        matches!(self.proxies.proxy_for(url), Ok(None))
    }

    /// Returns the proxy that sees a request, without its user and password.
    fn visible_proxy(&self, url: &Url) -> Option<String> {
        let proxy = self.proxies.proxy_for(url).ok().flatten()?;
        (url.scheme() == "http").then(|| proxy.shown())
    }

    /// Returns the resolver for the host of a direct connection.
    pub(super) fn guarded_resolver(&self, is_named: bool) -> GuardedResolver {
        GuardedResolver::new(Arc::clone(&self.resolver), is_named, ProxyHosts::default())
    }

    /// Checks an address literal or a proxy's host name; see [`AllowedAddresses::check`].
    pub(super) fn check(&self, allowed: &AllowedAddresses, url: &Url) -> Result<(), Forbidden> {
        allowed.check(url, &self.proxy_hosts)
    }

    /// Waits until the origin may have one more request in progress.
    async fn acquire_permit(
        &self,
        url: &Url,
        label: &RequestLabel,
        deadline: Instant,
    ) -> Result<OwnedSemaphorePermit, Failure> {
        let origin = origin(url);
        let semaphore = {
            let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
            if origins.len() >= MAX_ORIGINS {
                origins.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
            }
            let new = || Arc::new(Semaphore::new(MAX_REQUESTS_PER_ORIGIN));
            Arc::clone(origins.entry(origin).or_insert_with(new))
        };
        let started = Instant::now();
        if let Ok(Ok(permit)) = timeout_at(deadline, semaphore.acquire_owned()).await {
            return Ok(permit);
        }
        let what = format!("{NO_SLOT} (too many requests to that host are in progress)");
        Err(Failure::retryable(label.stalled(what, started.elapsed())))
    }

    /// Sends the request and follows redirects (RFC 9110, 15.4). Each address is checked before it is dialled, https
    /// never becomes http, and credentials stay with the origin that they were meant for.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Answer, Failure> {
        let endpoint_origin = origin(call.endpoint.base());
        let mut url = call.url;
        let first_origin = origin(&url);
        // Once another origin was involved, nothing secret is sent any more, not even to the first origin: the other
        // one could send the client back to an address of its choice.
        let mut redirected = false;
        for hop_number in 0..=self.limits.redirects {
            let is_first = hop_number == 0;
            let label = if is_first {
                RequestLabel::new(&call.method, &url)
            } else {
                RequestLabel::of_redirect(&call.method, &url)
            };
            let role = if !redirected && first_origin == endpoint_origin {
                PeerRole::Endpoint
            } else {
                PeerRole::RedirectTarget
            };
            let mut headers = call.headers.clone();
            // Without this header, a server may encode the body (RFC 9110, 12.5.3), which would have another digest.
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if role == PeerRole::Endpoint {
                headers.extend(call.endpoint.headers().clone());
            }
            if let Some(authorization) = call.authorization.as_ref().filter(|_| !redirected) {
                headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            let permit = self.acquire_permit(&url, &label, call.deadline).await?;
            let connect_timeout = call.endpoint.dial_timeout().unwrap_or(call.connect_timeout);
            let hop = Hop {
                method: &call.method,
                url: &url,
                headers,
                body: call.body.as_ref(),
                role,
                connect_timeout,
            };
            let span = request_span::begin(&call.method, &url, is_first);
            let sent = self.send_hop(hop, &label, call.endpoint, call.allowed, call.deadline);
            let response = sent.instrument(span.clone()).await;
            request_span::record(&span, response.as_ref().map_err(|failure| &failure.error));
            let response = response?;
            if !is_redirect(response.status()) {
                let proxy = self.visible_proxy(&url);
                return Ok(Answer { response, label, redirected, proxy, permit });
            }
            match call.body {
                None => {}
                Some(RequestBody::Form(_)) => {
                    let message = "redirected a request that contains a secret, which is not followed: the registry must name the \
                         final address of its token service";
                    return Err(Failure::permanent(label.not_allowed(message)));
                }
                Some(RequestBody::Content(_)) => {
                    let message =
                        "redirected a write request, which is not followed: push to the final address";
                    return Err(Failure::permanent(label.not_allowed(message)));
                }
            }
            url = redirect_target(&url, &response, &label).map_err(Failure::permanent)?;
            redirected = redirected || origin(&url) != first_origin;
            if redirected && !call.endpoint.trust().is_redirect_allowed(&url) {
                let message = format!(
                    "redirected to {}, which is none of the hosts in `redirects` of the registry's hosts.toml: add it there if the \
                     registry's content is there",
                    origin(&url)
                );
                return Err(Failure::permanent(label.not_allowed(message)));
            }
        }
        let message = format!(
            "more than {} redirects: check the registry, and any proxy in front of it",
            self.limits.redirects
        );
        Err(Failure::permanent(RequestLabel::of_redirect(&call.method, &url).not_allowed(message)))
    }

    async fn send_hop(
        &self,
        hop: Hop<'_>,
        label: &RequestLabel,
        endpoint: &Endpoint,
        allowed: &AllowedAddresses,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        let checked = self.check(allowed, hop.url);
        let not_allowed = |forbidden: &Forbidden| match hop.role {
            PeerRole::Endpoint => label.not_allowed(forbidden.to_string()),
            PeerRole::RedirectTarget => label.not_allowed(forbidden.named_by_registry()),
        };
        checked.map_err(|forbidden| Failure::permanent(not_allowed(&forbidden)))?;
        let proxy = self.proxies.proxy_for(hop.url);
        let proxy = proxy.map_err(|message| Failure::permanent(label.misconfigured(message.clone())))?;
        let connect_timeout = hop.connect_timeout;
        let key = ClientKey {
            tls: endpoint.tls().clone(),
            role: hop.role,
            connect_timeout,
            is_named: allowed.contains(hop.url),
            proxy: proxy.cloned(),
        };
        let is_https = hop.url.scheme() == "https";
        let pooled = self.client(key, is_https).await;
        let pooled = pooled.map_err(|message| Failure::permanent(label.misconfigured(message)))?;
        if is_https && !pooled.can_verify {
            let message = "no certificate authority is known (looked in SSL_CERT_FILE and /etc/ssl/certs): mount \
                           the system's CA certificates, or set `ca` in the registry's hosts.toml";
            return Err(Failure::permanent(label.certificate(message)));
        }
        let uri = hop.url.as_str().parse::<Uri>().map_err(|error| {
            Failure::permanent(label.untruthful(format!("the address is not valid in a request: {error}")))
        })?;
        let mut headers = hop.headers;
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        if let Some(authorization) = pooled.connector.proxy_authorization(&uri) {
            headers.insert(header::PROXY_AUTHORIZATION, authorization);
        }
        let body = match hop.body {
            None => Body::default(),
            Some(RequestBody::Form(form)) => {
                let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
                headers.insert(header::CONTENT_TYPE, form_type);
                Body::from(form.clone())
            }
            Some(RequestBody::Content(content)) => Body::from(content.clone()),
        };
        let mut request = Request::new(body);
        *request.method_mut() = hop.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let started = Instant::now();
        let until = deadline.min(started + self.limits.header_timeout);
        match timeout_at(until, pooled.client.request(request)).await {
            Ok(Ok(response)) => Ok(Response::from(response.map(Body::wrap))),
            Ok(Err(error)) if is_connect_timeout(&error) => {
                Err(Failure::retryable(label.stalled(through_proxy(proxy, NO_CONNECTION), connect_timeout)))
            }
            Ok(Err(error)) => {
                let failed = match find_cause::<Forbidden>(&error) {
                    Some(forbidden) => not_allowed(forbidden),
                    None => client_error(label, &error),
                };
                let failed = failed.map_text(str::to_owned, |message| through_proxy(proxy, message));
                Err(if is_permanent(&error) {
                    Failure::permanent(failed)
                } else {
                    Failure::retryable(failed)
                })
            }
            Err(_) => Err(Failure::retryable(label.stalled("answer", until - started))),
        }
    }

    /// Returns the client for a configuration. A client without certificate authorities is built again when it is
    /// needed for https, because the CA certificates may have been mounted since.
    async fn client(&self, key: ClientKey, is_https: bool) -> Result<PooledClient, String> {
        let known = self.clients.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(pooled) = known.filter(|pooled| pooled.can_verify || !is_https) {
            return Ok(pooled);
        }
        // The resolver asks for the proxy's host only if the connection goes to a proxy.
        let proxy_hosts = if key.proxy.is_some() { self.proxy_hosts.clone() } else { ProxyHosts::default() };
        let resolver = GuardedResolver::new(Arc::clone(&self.resolver), key.is_named, proxy_hosts);
        // Reads the system's CA certificates, which must not block a runtime thread.
        let job = move || build_client(&key, resolver).map(|pooled| (key, pooled));
        let built = tokio::task::spawn_blocking(job).await;
        let (key, pooled) = built.map_err(|error| format!("cannot set up the HTTP client: {error}"))??;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, pooled.clone());
        Ok(pooled)
    }
}

fn build_client(key: &ClientKey, resolver: GuardedResolver) -> Result<PooledClient, String> {
    let tls = tls::configure(&key.tls, key.role).map_err(|error| error.to_string())?;
    let connector = Connector::new(resolver, tls.config, key.proxy.as_ref(), USER_AGENT, key.connect_timeout);
    let client = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_CONNECTION)
        .build(connector.clone());
    Ok(PooledClient { client, connector, can_verify: tls.can_verify })
}

/// Reports whether a connection took too long: by the time for the whole connection, or for one address of it.
fn is_connect_timeout(error: &hyper_util::client::legacy::Error) -> bool {
    let is_timeout =
        || find_cause::<io::Error>(error).is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
    error.is_connect() && (find_cause::<ConnectTimeout>(error).is_some() || is_timeout())
}

/// Adds the proxy, if there is one, to a description of what failed.
fn through_proxy(proxy: Option<&Proxy>, what: &str) -> String {
    match proxy {
        Some(proxy) => format!("{what} through the proxy {}", proxy.shown()),
        None => what.to_owned(),
    }
}

/// One request of a chain of redirects.
struct Hop<'a> {
    method: &'a Method,
    url: &'a Url,
    headers: HeaderMap,
    body: Option<&'a RequestBody>,
    role: PeerRole,
    connect_timeout: Duration,
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Returns a header as text, also with characters outside ASCII. Servers write file names into a URL as they are.
pub(super) fn utf8_text(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

fn redirect_target(url: &Url, response: &Response, label: &RequestLabel) -> Result<Url, RegistryError> {
    let location = response.headers().get(header::LOCATION);
    let location = location.ok_or_else(|| label.untruthful("a redirect without a Location header"))?;
    let location =
        utf8_text(location).ok_or_else(|| label.untruthful("a redirect whose Location is not a URL"))?;
    let next = url
        .join(location)
        .map_err(|error| label.untruthful(format!("a redirect whose Location is not a URL ({error})")))?;
    match (url.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => {
            let target = origin(&next);
            return Err(
                label.not_allowed(format!(
                    "redirected from https to {target}, which is not followed: the registry must redirect to https"
                ))
            );
        }
        _ => {
            let scheme = next.scheme();
            return Err(
                label.not_allowed(format!(
                    "redirected to a \"{scheme}\" address, which is not followed: the registry must redirect to https"
                ))
            );
        }
    }
    if !next.username().is_empty() || next.password().is_some() {
        let message = "redirected to an address with a user or a password in it, which is not followed: the registry must \
                       redirect to an address without them";
        return Err(label.not_allowed(message));
    }
    Ok(next)
}
