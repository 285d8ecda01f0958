//! A token service like those of Docker Hub, GitLab and Harbor: tokens by GET with or without Basic, and by POST
//! (OAuth2), for several tenants with different permissions.
//!
//! It records every request, so that a test can check to which address credentials were sent.

mod grant;
mod request;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawForm, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use self::grant::{Grants, Keys};
pub use self::request::TokenRequest;
use self::request::{Asked, Denied};
use super::served::Served;
use super::tls::{Authority, Identity};

const NAME: &str = "registry.test";
const ISSUER: &str = "tokens.test";

/// The rules of a token service.
#[derive(Clone, Debug)]
pub struct Rules {
    tenants: Vec<Tenant>,
    public: Vec<String>,
    lifetime: Duration,
    told: Option<u64>,
    tls: Option<Identity>,
    realm: Option<String>,
    refuses_post: bool,
}

#[derive(Clone, Debug)]
struct Tenant {
    user: String,
    password: String,
    repositories: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            tenants: Vec::new(),
            public: Vec::new(),
            lifetime: Duration::from_mins(5),
            told: Some(300),
            tls: None,
            realm: None,
            refuses_post: false,
        }
    }
}

impl Rules {
    /// Adds a tenant with pull and push permission below these paths (`team-a`; an empty path is every repository).
    #[must_use]
    pub fn with_tenant(mut self, user: &str, password: &str, repositories: &[&str]) -> Self {
        let repositories = repositories.iter().map(|&path| path.to_owned()).collect();
        self.tenants.push(Tenant { user: user.to_owned(), password: password.to_owned(), repositories });
        self
    }

    /// Removes a tenant.
    #[must_use]
    pub fn without_tenant(mut self, user: &str) -> Self {
        self.tenants.retain(|tenant| tenant.user != user);
        self
    }

    /// Anonymous clients can pull below this path.
    #[must_use]
    pub fn with_public(mut self, repositories: &str) -> Self {
        self.public.push(repositories.to_owned());
        self
    }

    /// Sets the lifetime of tokens, which they announce (`expires_in`).
    #[must_use]
    pub fn with_lifetime(mut self, seconds: u64) -> Self {
        self.lifetime = Duration::from_secs(seconds);
        self.told = Some(seconds);
        self
    }

    /// Sets a wrong `expires_in`, or omits it.
    #[must_use]
    pub fn with_told_lifetime(mut self, seconds: Option<u64>) -> Self {
        self.told = seconds;
        self
    }

    /// Uses TLS with this certificate.
    #[must_use]
    pub fn with_tls(mut self, server: &Identity) -> Self {
        self.tls = Some(server.clone());
        self
    }

    /// The realm that challenges name, where it is not the service's own address: another name for it, say
    /// `https://auth.registry.test/token`.
    #[must_use]
    pub fn with_realm(mut self, url: &str) -> Self {
        self.realm = Some(url.to_owned());
        self
    }

    /// Supports only GET, as services from before OAuth2: POST is answered with 404.
    #[must_use]
    pub fn without_post(mut self) -> Self {
        self.refuses_post = true;
        self
    }
}

/// A token service that runs until it is dropped.
#[derive(Debug)]
pub struct TokenService {
    served: Served,
    shared: Arc<Shared>,
    authority: Authority,
}

#[derive(Debug)]
struct Shared {
    rules: Mutex<Rules>,
    keys: Keys,
    grants: Mutex<Grants>,
    requests: Mutex<Vec<TokenRequest>>,
}

impl TokenService {
    /// Starts one at a free port of 127.0.0.1.
    pub fn start(rules: Rules) -> Self {
        let authority = Authority::new("token service");
        let keys = Keys::new(&authority.server(&[ISSUER]));
        let tls = rules.tls.as_ref().map(Identity::server_config);
        let rules = Mutex::new(rules);
        let shared = Arc::new(Shared { rules, keys, grants: Mutex::default(), requests: Mutex::default() });
        let router = Router::new()
            .route("/token", get(by_get).post(by_post))
            .with_state(shared.clone())
            .into_make_service();
        let served = Served::start(async move |listener| {
            let ended = match tls {
                None => {
                    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                    axum::serve(listener, router).await
                }
                Some(config) => {
                    let config = axum_server::tls_rustls::RustlsConfig::from_config(config);
                    let server = axum_server::from_tcp_rustls(listener, config).expect("a server");
                    server.serve(router).await
                }
            };
            ended.expect("it serves");
        });
        Self { served, shared, authority }
    }

    /// Changes the rules for new tokens. Issued tokens stay valid until they expire.
    pub fn change(&self, change: impl FnOnce(Rules) -> Rules) {
        let mut rules = self.shared.rules();
        *rules = change(rules.clone());
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.served.address().to_string()
    }

    /// Returns the realm of challenges.
    pub fn realm(&self) -> String {
        let rules = self.shared.rules();
        let scheme = if rules.tls.is_some() { "https" } else { "http" };
        rules.realm.clone().unwrap_or_else(|| format!("{scheme}://{}/token", self.host()))
    }

    /// `service` of a challenge.
    pub fn name(&self) -> &'static str {
        NAME
    }

    /// `iss` of a token.
    pub fn issuer(&self) -> &'static str {
        ISSUER
    }

    /// Returns the authority of the token-signing certificate.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Returns a refresh token for a tenant, as `docker login` stores it.
    pub fn refresh_token(&self, user: &str) -> String {
        self.shared.grants.lock().expect("no panic").refresh_token(user)
    }

    /// Returns all requests so far, including refused ones.
    pub fn requests(&self) -> Vec<TokenRequest> {
        self.shared.requests.lock().expect("no panic").clone()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        self.shared.requests.lock().expect("no panic").clear();
    }
}

async fn by_get(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    shared.answer(Asked::by_get(&headers, query.as_deref().unwrap_or_default()))
}

async fn by_post(State(shared): State<Arc<Shared>>, headers: HeaderMap, RawForm(form): RawForm) -> Response {
    if shared.rules().refuses_post {
        let mut note = Asked::by_post(&headers, &form).note;
        note.status = StatusCode::NOT_FOUND.as_u16();
        shared.requests.lock().expect("no panic").push(note);
        return StatusCode::NOT_FOUND.into_response();
    }
    shared.answer(Asked::by_post(&headers, &form))
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().expect("no panic")
    }

    fn answer(&self, asked: Asked) -> Response {
        let rules = self.rules();
        let mut grants = self.grants.lock().expect("no panic");
        let who = asked.who(&rules.tenants, &grants);
        let (status, body) = match who {
            Ok(tenant) => (StatusCode::OK, grants.answer(&rules, &self.keys, &asked, tenant)),
            Err(Denied) => (StatusCode::UNAUTHORIZED, Denied::body()),
        };
        let mut note = asked.note;
        note.status = status.as_u16();
        self.requests.lock().expect("no panic").push(note);
        (status, axum::Json(body)).into_response()
    }
}
