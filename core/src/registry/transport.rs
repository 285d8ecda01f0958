//! One request, from address to answer: clients, redirects, deadlines, and errors in words.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::guard::{Forbidden, GuardedResolver, Named, Names, ProxyHosts};
use super::hosts::{Endpoint, TlsFiles, authority};
use super::proxy::{Proxies, Proxy};
use super::{RegistryError, tls};
use crate::display::Printable;

/// How many configurations keep their connections.
const MOST_CLIENTS: usize = 64;
/// How many requests one origin may have under way, bodies among them: what a registry's own limits bear, and few
/// enough for the file handles of a process.
const MOST_AT_ONCE: usize = 64;
/// How many origins are remembered that nothing is asked of.
const MOST_ORIGINS: usize = 1_024;

/// What is being asked, for errors: the method and the address without its query, where presigned
/// addresses carry their secret.
#[derive(Clone, Debug)]
pub(super) struct Place(Printable);

impl Place {
    pub(super) fn new(method: &Method, url: &Url) -> Self {
        let mut shown = url.clone();
        shown.set_query(None);
        shown.set_fragment(None);
        // These fail only for addresses that cannot have a user.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        Self(format!("{method} {shown}").into())
    }

    /// Something that is not an address: a registry, before it is asked.
    pub(super) fn named(name: &str) -> Self {
        Self(name.into())
    }

    pub(super) fn at(&self) -> Printable {
        self.0.clone()
    }

    pub(super) fn untruthful(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::Untruthful { at: self.at(), words: words.into() }
    }

    pub(super) fn invalid(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::Invalid { at: self.at(), words: words.into() }
    }

    pub(super) fn not_allowed(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::NotAllowed { at: self.at(), words: words.into() }
    }

    pub(super) fn misconfigured(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::Misconfigured { at: self.at(), words: words.into() }
    }

    pub(super) fn unreachable(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::Unreachable { at: self.at(), words: words.into() }
    }

    pub(super) fn stalled(&self, what: &'static str, after: Duration) -> RegistryError {
        RegistryError::Stalled { at: self.at(), what: what.into(), after }
    }

    /// An error of the HTTP client, by its cause.
    pub(super) fn failed(&self, error: &reqwest::Error) -> RegistryError {
        if let Some(forbidden) = cause::<Forbidden>(error) {
            return self.not_allowed(forbidden.to_string());
        }
        let advice = match cause::<rustls::Error>(error) {
            Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
                " (the certificate's authority is not known here: name it as `ca` in the registry's hosts.toml)"
            }
            Some(rustls::Error::AlertReceived(
                rustls::AlertDescription::CertificateRequired
                | rustls::AlertDescription::BadCertificate
                | rustls::AlertDescription::UnknownCA,
            )) => {
                " (it wants a client certificate that it knows: name one as `client` in the registry's hosts.toml)"
            }
            Some(rustls::Error::InvalidMessage(_)) => {
                " (no TLS there: if it is plain http, write server = \"http://HOST:PORT\" in the registry's hosts.toml)"
            }
            _ => "",
        };
        self.unreachable(causes(error) + advice)
    }
}

/// What led to an error of the HTTP client, without the address that it was about.
pub(super) fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut words = String::new();
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        // hyper-util puts a frame of its own around the cause.
        if !words.contains(&text) && !text.starts_with("client error (") {
            words = if words.is_empty() { text } else { format!("{words}: {text}") };
        }
        next = error.source();
    }
    if words.is_empty() { "the request failed".to_owned() } else { words }
}

/// The first cause of type `T`; an `io::Error` hides the error that it was made of.
fn cause<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(inner) = inner {
            let inner: &(dyn StdError + 'static) = inner;
            if let Some(found) = cause::<T>(inner) {
                return Some(found);
            }
        }
        next = error.source();
    }
    None
}

/// Whether asking the same again cannot help: a certificate does not become right.
pub(super) fn is_final(error: &reqwest::Error) -> bool {
    cause::<Forbidden>(error).is_some() || cause::<rustls::Error>(error).is_some()
}

/// Decimal digits and nothing else.
pub(super) fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// `scheme://host[:port]`
pub(super) fn origin(url: &Url) -> String {
    format!("{}://{}", url.scheme(), authority(url))
}

/// How long a connection and an answer's headers may take, and how deep redirects go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) connect: Duration,
    pub(super) answer: Duration,
    pub(super) redirects: u8,
}

/// A request. GET and HEAD may be redirected; one with a body, which may carry a secret, may not.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    /// Sent to every host.
    pub(super) headers: HeaderMap,
    /// Sent to the origin of `url` only.
    pub(super) authorization: Option<HeaderValue>,
    /// A form (`application/x-www-form-urlencoded`).
    pub(super) form: Option<Bytes>,
    /// Content to be kept, whose type is among `headers`.
    pub(super) body: Option<Bytes>,
    /// Whose configuration is used. Its headers and its client certificate go to its own origin only.
    pub(super) endpoint: &'a Endpoint,
    /// Addresses that are dialled whatever they are.
    pub(super) named: &'a Named,
    pub(super) deadline: Instant,
}

/// An answer, and where it came from.
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) place: Place,
    /// Whether somebody else answers than was asked.
    pub(super) redirected: bool,
    /// One of the requests that its host may have at a time.
    pub(super) permit: OwnedSemaphorePermit,
}

/// Why there is no answer, and whether to try again.
pub(super) struct Failure {
    pub(super) error: RegistryError,
    pub(super) again: bool,
    /// An address that was good for a while is not any more: asking anew gives another.
    pub(super) stale: bool,
}

impl Failure {
    pub(super) fn last(error: RegistryError) -> Self {
        Self { error, again: false, stale: false }
    }

    pub(super) fn again(error: RegistryError) -> Self {
        Self { error, again: true, stale: false }
    }
}

#[derive(PartialEq, Eq, Hash, Clone)]
struct ClientKey {
    tls: TlsFiles,
    own: bool,
    connect: Duration,
    /// Whether an administrator named the address, which may be any then.
    named: bool,
    proxy: Option<Proxy>,
}

#[derive(Clone)]
struct Pooled {
    client: Client,
    can_verify: bool,
}

/// Clients by configuration: one that changes gets new connections, and none is shared between hosts
/// that are configured differently.
pub(super) struct Transport {
    clients: Mutex<HashMap<ClientKey, Pooled>>,
    proxies: Proxies,
    proxy_hosts: ProxyHosts,
    names: Arc<dyn Names>,
    bounds: Bounds,
    /// What each origin has under way.
    origins: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Transport {
    pub(super) fn new(bounds: Bounds, proxies: Proxies, names: Arc<dyn Names>) -> Self {
        Self {
            clients: Mutex::default(),
            proxy_hosts: ProxyHosts::new(proxies.hosts()),
            proxies,
            names,
            bounds,
            origins: Mutex::default(),
        }
    }

    /// Waits until an origin may be asked one thing more.
    async fn permit(
        &self,
        url: &Url,
        place: &Place,
        until: Instant,
    ) -> Result<OwnedSemaphorePermit, Failure> {
        let origin = origin(url);
        let semaphore = {
            let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
            if origins.len() >= MOST_ORIGINS {
                origins.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
            }
            Arc::clone(origins.entry(origin).or_insert_with(|| Arc::new(Semaphore::new(MOST_AT_ONCE))))
        };
        let started = Instant::now();
        if let Ok(Ok(permit)) = timeout_at(until, semaphore.acquire_owned()).await {
            return Ok(permit);
        }
        let waited = started.elapsed();
        let error = place.stalled("turn (too many requests to that host are under way)", waited);
        Err(Failure::again(error))
    }

    /// Sends the request and follows redirects (RFC 9110, 15.4): each address is checked before it is
    /// asked, https never becomes http, and what authorises us stays with the origin it was meant for.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Answer, Failure> {
        let home = origin(call.endpoint.base());
        let mut url = call.url;
        let asked = origin(&url);
        // Once it has left, it stays out: another host could send it back to an address of its choice.
        let mut redirected = false;
        for _ in 0..=self.bounds.redirects {
            let place = Place::new(&call.method, &url);
            let own = !redirected && asked == home;
            let mut headers = call.headers.clone();
            if own {
                headers.extend(call.endpoint.headers().clone());
            }
            if let Some(authorization) = call.authorization.as_ref().filter(|_| !redirected) {
                headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            let permit = self.permit(&url, &place, call.deadline).await?;
            let (form, body) = (call.form.as_ref(), call.body.as_ref());
            let hop = Hop { method: &call.method, url: &url, headers, form, body, own, place: &place };
            let response = self.hop(hop, call.endpoint, call.named, call.deadline).await?;
            if !is_redirect(response.status()) {
                return Ok(Answer { response, place, redirected, permit });
            }
            if call.form.is_some() {
                let words = "redirected with a secret in the request, which is not followed";
                return Err(Failure::last(place.not_allowed(words)));
            }
            if call.body.is_some() {
                let words = "redirected while it is written to, which is not followed";
                return Err(Failure::last(place.not_allowed(words)));
            }
            url = next_url(&url, &response, &place).map_err(Failure::last)?;
            redirected = redirected || origin(&url) != asked;
            if redirected && !call.endpoint.trust().is_followed(&url) {
                let words = format!(
                    "redirected to {}, which is none of the hosts that the registry's hosts.toml has as redirects",
                    origin(&url)
                );
                return Err(Failure::last(place.not_allowed(words)));
            }
        }
        let words = format!("more than {} redirects", self.bounds.redirects);
        Err(Failure::last(Place::new(&call.method, &url).not_allowed(words)))
    }

    async fn hop(
        &self,
        hop: Hop<'_>,
        endpoint: &Endpoint,
        named: &Named,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        let place = hop.place;
        let checked = named.check(hop.url, &self.proxy_hosts);
        checked.map_err(|forbidden| Failure::last(place.not_allowed(forbidden.to_string())))?;
        let proxy = self.proxies.of(hop.url);
        let proxy = proxy.map_err(|words| Failure::last(place.misconfigured(words.clone())))?;
        let connect = endpoint.dial_timeout().unwrap_or(self.bounds.connect);
        let key = ClientKey {
            tls: endpoint.tls().clone(),
            own: hop.own,
            connect,
            named: named.has(hop.url),
            proxy: proxy.cloned(),
        };
        let https = hop.url.scheme() == "https";
        let pooled = self.client(&key, https).map_err(|words| Failure::last(place.misconfigured(words)))?;
        if https && !pooled.can_verify {
            let words = "no certificate authority is known here (SSL_CERT_FILE, /etc/ssl/certs): mount the \
                         system's CA certificates, or name one as `ca` in the registry's hosts.toml";
            return Err(Failure::last(place.unreachable(words)));
        }
        let mut request = pooled.client.request(hop.method.clone(), hop.url.clone()).headers(hop.headers);
        if let Some(form) = hop.form {
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            request = request.header(header::CONTENT_TYPE, kind).body(form.clone());
        }
        if let Some(body) = hop.body {
            request = request.body(body.clone());
        }
        let started = Instant::now();
        let until = deadline.min(started + self.bounds.answer);
        match timeout_at(until, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() && error.is_timeout() => {
                let what = through(proxy, "connection").into();
                Err(Failure::again(RegistryError::Stalled { at: place.at(), what, after: connect }))
            }
            Ok(Err(error)) => {
                let failed = place.failed(&error).reworded(str::to_owned, |words| through(proxy, words));
                Err(if is_final(&error) { Failure::last(failed) } else { Failure::again(failed) })
            }
            Err(_) => Err(Failure::again(place.stalled("answer", until - started))),
        }
    }

    /// The client for a configuration. One without authorities is made anew where they are needed: they
    /// may have been mounted by then.
    fn client(&self, key: &ClientKey, https: bool) -> Result<Pooled, String> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pooled) = clients.get(key).filter(|pooled| pooled.can_verify || !https) {
            return Ok(pooled.clone());
        }
        let tls = tls::configure(&key.tls, key.own).map_err(|error| error.to_string())?;
        // Only on the way to a proxy is its host asked for.
        let proxies = if key.proxy.is_some() { self.proxy_hosts.clone() } else { ProxyHosts::default() };
        let mut builder = Client::builder()
            .user_agent(concat!("oras-csi/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls.config)
            .http1_only()
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(key.connect)
            .tcp_nodelay(true)
            .dns_resolver(GuardedResolver::new(Arc::clone(&self.names), key.named, proxies))
            .no_proxy();
        if let Some(proxy) = &key.proxy {
            let wrong = |error| format!("the proxy {}: {}", proxy.shown(), causes(&error));
            builder = builder.proxy(reqwest::Proxy::all(proxy.url().clone()).map_err(wrong)?);
        }
        let client = builder.build().map_err(|error| format!("the HTTP client cannot be set up: {error}"))?;
        if clients.len() >= MOST_CLIENTS {
            clients.clear();
        }
        let pooled = Pooled { client, can_verify: tls.can_verify };
        clients.insert(key.clone(), pooled.clone());
        Ok(pooled)
    }
}

/// What failed, and the proxy between.
fn through(proxy: Option<&Proxy>, what: &str) -> String {
    match proxy {
        Some(proxy) => format!("{what} through the proxy {}", proxy.shown()),
        None => what.to_owned(),
    }
}

struct Hop<'a> {
    method: &'a Method,
    url: &'a Url,
    headers: HeaderMap,
    form: Option<&'a Bytes>,
    body: Option<&'a Bytes>,
    own: bool,
    place: &'a Place,
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn next_url(url: &Url, response: &Response, place: &Place) -> Result<Url, RegistryError> {
    let location = response.headers().get(header::LOCATION);
    let location = location.ok_or_else(|| place.untruthful("a redirect without a Location"))?;
    let location =
        location.to_str().map_err(|_| place.untruthful("a redirect to something that is not a URL"))?;
    let next = url
        .join(location)
        .map_err(|error| place.untruthful(format!("a redirect to something that is not a URL ({error})")))?;
    match (url.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => {
            let to = origin(&next);
            return Err(place.not_allowed(format!("redirected from https to {to}, which is not followed")));
        }
        _ => {
            let scheme = next.scheme();
            return Err(
                place.not_allowed(format!("redirected to a \"{scheme}\" address, which is not followed"))
            );
        }
    }
    if !next.username().is_empty() || next.password().is_some() {
        return Err(place.not_allowed("redirected to an address with a user in it, which is not followed"));
    }
    Ok(next)
}
