//! The endpoints of a registry for one operation.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use tokio::time::Instant;
use url::Url;

use super::attempts::{Attempts, EndpointTimeouts};
use super::failed_endpoints::FailedEndpoints;
use crate::credentials::Credential;
use crate::display::Shown;
use crate::manifest::Descriptor;
use crate::reference::RegistryHost;
use crate::registry::address::{authority, origin};
use crate::registry::auth::{Realm, Requester, Secrets};
use crate::registry::error::RegistryError;
use crate::registry::guard::AllowedAddresses;
use crate::registry::hosts::Endpoint;
use crate::registry::request_label::RequestLabel;

/// How many `urls` of a descriptor are tried.
const MAX_FOREIGN_URLS: usize = 4;

/// The capability that an endpoint must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Capability {
    Pull,
    Resolve,
    Push,
}

/// A request to a registry.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) method: Method,
    pub(super) target: Target,
    pub(super) headers: HeaderMap,
    /// The content to store.
    pub(super) content: Option<Bytes>,
}

/// The address of a request.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// The root of the API, `/v2/` (OCI distribution-spec, "Determining Support").
    ApiRoot,
    /// A path below the repository, perhaps with a query: `manifests/v1`.
    Repository(String),
    /// An address of the endpoint's own origin, which the endpoint returned.
    Url(Url),
}

impl Operation {
    /// Creates a request that reads a path below the repository.
    pub(super) fn read(method: Method, path: &str, headers: HeaderMap) -> Self {
        Self { method, target: Target::Repository(path.to_owned()), headers, content: None }
    }

    /// Returns the actions that a token must allow.
    pub(super) fn actions(&self) -> &'static str {
        match self.target {
            Target::Repository(_) | Target::Url(_) if matches!(self.method, Method::GET | Method::HEAD) => {
                "pull"
            }
            _ => "pull,push",
        }
    }
}

/// The endpoints of a registry as they are configured now, for one operation.
pub(super) struct Route {
    pub(super) registry: RegistryHost,
    pub(super) repository: String,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) allowed: AllowedAddresses,
    pub(super) credential: Credential,
    /// The tokens and passwords that were sent during the operation.
    pub(super) sent: Mutex<Vec<HeaderValue>>,
    /// The endpoints that did not answer, of all operations.
    pub(super) failed: Arc<FailedEndpoints>,
    pub(super) timeouts: EndpointTimeouts,
    pub(super) started: Instant,
    pub(super) deadline: Instant,
}

/// Removes the client's secrets from errors.
pub(super) struct Redactor {
    secrets: Secrets,
    /// The beginnings of the URLs that the client made itself.
    own_urls: Vec<String>,
}

/// One endpoint of a route, with its share of the time.
pub(super) struct Attempt<'a> {
    pub(super) route: &'a Route,
    pub(super) endpoint: &'a Endpoint,
    /// The position of the endpoint in the order of the file.
    pub(super) position: usize,
    /// Whether no other endpoint is expected to answer, so that failed requests are repeated.
    pub(super) is_last: bool,
    /// The time for a connection, unless the endpoint has a `dial_timeout`.
    pub(super) connect_timeout: Duration,
    pub(super) started: Instant,
    pub(super) deadline: Instant,
}

impl Route {
    /// Labels the repository, for errors before the first request.
    pub(super) fn label(&self) -> RequestLabel {
        RequestLabel::from_name(&format!("{}/{}", self.registry, self.repository))
    }

    /// Returns a redactor for the secrets that were sent so far.
    pub(super) fn redactor(&self) -> Redactor {
        let mut secrets = Secrets::from_credential(&self.credential);
        for header in self.sent.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            secrets.add_header(header);
        }
        let mut own_urls = vec![format!("{}/{}", self.registry, self.repository)];
        for endpoint in &self.endpoints {
            secrets.add_headers(endpoint.headers());
            own_urls.push(format!("{}/{}/", endpoint.base().as_str().trim_end_matches('/'), self.repository));
        }
        Redactor { secrets, own_urls }
    }

    /// Remembers an `Authorization` header, so that errors do not contain it.
    pub(super) fn record_sent(&self, authorization: &HeaderValue) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if !sent.contains(authorization) {
            sent.push(authorization.clone());
        }
    }

    /// Returns the endpoints with a capability, in the order in which they are tried.
    pub(super) fn attempts(&self, capability: Capability) -> Attempts<'_> {
        Attempts::new(self, capability)
    }

    /// Returns until when the caller waits, if that is shorter than the operation may take.
    pub(super) fn callers_deadline(&self) -> Option<Instant> {
        self.timeouts.caller.map(|caller| (self.started + caller).min(self.deadline))
    }
}

impl Redactor {
    /// Removes the secrets from an error. The part of a URL that the client made itself stays, because a password may
    /// equal the name of a repository.
    pub(super) fn redact(&self, error: RegistryError) -> RegistryError {
        let redact_request = |at: &str| {
            let address = at.find(' ').map_or(0, |space| space + 1);
            let own = self.own_urls.iter().find(|own| at[address..].starts_with(own.as_str()));
            let (kept, rest) = at.split_at(own.map_or(0, |own| address + own.len()));
            format!("{kept}{}", self.secrets.redact(rest))
        };
        error.map_text(redact_request, |message| self.secrets.redact(message))
    }
}

impl Attempt<'_> {
    pub(super) fn url(&self, target: &Target) -> Url {
        let path = match target {
            Target::Url(url) => return url.clone(),
            Target::ApiRoot => "",
            Target::Repository(path) => path.as_str(),
        };
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let mut url = self.endpoint.base().clone();
        let root = url.path().trim_end_matches('/').to_owned();
        match target {
            Target::ApiRoot => url.set_path(&format!("{root}/")),
            _ => url.set_path(&format!("{root}/{}/{path}", self.route.repository)),
        }
        url.set_query(query);
        if self.endpoint.is_mirror() {
            url.query_pairs_mut().append_pair("ns", &self.route.registry.to_string());
        }
        url
    }

    /// Resolves a `Location` or `Link` of a response. Returns `None` if it leads to another origin.
    pub(super) fn same_origin_url(&self, requested: &Url, text: &str) -> Option<Url> {
        let next = requested.join(text).ok()?;
        let is_own = origin(&next) == origin(self.endpoint.base())
            && next.username().is_empty()
            && next.password().is_none();
        is_own.then_some(next)
    }

    /// Returns the same attempt with a part of the remaining time, so that a server that stalls leaves time for others.
    pub(super) fn with_share_of_time(&self, parts: usize) -> Attempt<'_> {
        let now = Instant::now();
        let remaining = self.deadline.saturating_duration_since(now);
        let share = remaining / u32::try_from(parts.max(1)).unwrap_or(u32::MAX);
        Attempt { deadline: now + share, ..*self }
    }

    /// Reports whether a request that took `time` can be repeated while the caller waits. Without this rule, the caller
    /// would only learn that the registry did not answer in time.
    pub(super) fn can_repeat(&self, time: Duration) -> bool {
        self.route.callers_deadline().is_none_or(|deadline| Instant::now() + time < deadline)
    }

    /// Returns the same attempt without retries.
    pub(super) fn without_retries(&self) -> Attempt<'_> {
        Attempt { is_last: false, ..*self }
    }

    /// Returns the URL of a path below the repository.
    pub(super) fn repository_url(&self, path: &str) -> Url {
        self.url(&Target::Repository(path.to_owned()))
    }

    /// Returns the credential for the endpoint. A mirror does not get the registry's credential.
    pub(super) fn credential(&self) -> &Credential {
        const ANONYMOUS: &Credential = &Credential::Anonymous;
        if self.endpoint.receives_credentials() { &self.route.credential } else { ANONYMOUS }
    }

    /// Reports whether a token service gets the credential.
    pub(super) fn trusts_realm(&self, realm: &Url) -> bool {
        Realm { url: realm, endpoint: self.endpoint, registry: &self.route.registry }.is_trusted()
    }

    /// Explains that the credential was not sent to a token service, if that is so.
    pub(super) fn withheld_credentials_message(&self, realm: &Url) -> Option<String> {
        if *self.credential() == Credential::Anonymous || self.trusts_realm(realm) {
            return None;
        }
        Some(format!(
            "the credentials for {} were not sent to the token service {}, which is in another domain: an administrator \
             can allow it with token_realms = [\"{}\"] under [oras-csi] in the registry's hosts.toml",
            self.route.registry,
            origin(realm),
            authority(realm)
        ))
    }

    /// Returns the `urls` of a descriptor from which the administrator allows downloads.
    pub(super) fn foreign_urls(&self, blob: &Descriptor) -> Vec<Url> {
        let urls = blob.urls().iter().take(MAX_FOREIGN_URLS).filter_map(|url| Url::parse(url).ok());
        let is_allowed = |url: &Url| {
            url.username().is_empty()
                && url.password().is_none()
                && (url.scheme() == "https" || (url.scheme() == "http" && self.endpoint.is_plain_http()))
                && self.endpoint.trust().is_foreign_source(url)
        };
        urls.filter(is_allowed).collect()
    }

    pub(super) fn requester(&self) -> Requester {
        Requester {
            origin: origin(self.endpoint.base()),
            repository: self.route.repository.clone(),
            credential: self.credential().clone(),
        }
    }
}

/// Explains that a blob is a foreign layer, if its descriptor names URLs.
pub(super) fn foreign_note(blob: &Descriptor) -> Option<String> {
    let first = blob.urls().first()?;
    let host = Url::parse(first).ok().filter(Url::has_host).map(|url| authority(&url));
    Some(match host {
        Some(host) => format!(
            "it is a foreign layer, which its descriptor offers at {}: an administrator can allow that host in \
             foreign_layers under [oras-csi] in hosts.toml, or push the layer to the registry",
            Shown::new(&host)
        ),
        None => "it is a foreign layer, and the URLs of its descriptor are not valid".to_owned(),
    })
}
