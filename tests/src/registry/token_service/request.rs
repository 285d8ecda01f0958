//! Token requests and their credentials.

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::Tenant;
use super::grant::Grants;

/// A recorded request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// GET or POST.
    pub method: &'static str,
    /// Whether there was an Authorization header.
    pub authorization: bool,
    /// `grant_type` of a POST.
    pub grant: Option<String>,
    /// The user name of the request, valid or not.
    pub user: Option<String>,
    /// `scope`, each.
    pub scopes: Vec<String>,
    /// The status of the answer.
    pub status: u16,
}

/// A parsed request.
pub(super) struct Asked {
    pub(super) note: TokenRequest,
    proof: Proof,
    /// Whether a refresh token is requested.
    pub(super) offline: bool,
}

enum Proof {
    Anonymous,
    Password(String, String),
    Refresh(String),
    Unreadable,
}

/// Credentials of no tenant.
pub(super) struct Denied;

impl Denied {
    pub(super) fn body() -> Value {
        json!({"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]})
    }
}

impl Asked {
    pub(super) fn by_get(headers: &HeaderMap, query: &str) -> Self {
        let fields = Fields::new(query.as_bytes());
        let authorization = headers.get(header::AUTHORIZATION);
        let proof = match authorization.map(|value| basic(value.to_str().unwrap_or_default())) {
            None => Proof::Anonymous,
            Some(Some((user, password))) => Proof::Password(user, password),
            Some(None) => Proof::Unreadable,
        };
        let note = proof.note("GET", authorization.is_some(), None, fields.scopes());
        Self { note, proof, offline: fields.get("offline_token").as_deref() == Some("true") }
    }

    /// RFC 6749, sections 4.3 and 6, as Docker's "OAuth2 Token Authentication" has them.
    pub(super) fn by_post(headers: &HeaderMap, form: &[u8]) -> Self {
        let fields = Fields::new(form);
        let grant = fields.get("grant_type");
        let proof = match grant.as_deref() {
            Some("password") => match (fields.get("username"), fields.get("password")) {
                (Some(user), Some(password)) => Proof::Password(user, password),
                _ => Proof::Unreadable,
            },
            Some("refresh_token") => fields.get("refresh_token").map_or(Proof::Unreadable, Proof::Refresh),
            _ => Proof::Unreadable,
        };
        let note = proof.note("POST", headers.contains_key(header::AUTHORIZATION), grant, fields.scopes());
        let offline = fields.get("access_type").as_deref() == Some("offline")
            || note.grant.as_deref() == Some("refresh_token");
        Self { note, proof, offline }
    }

    /// Returns the tenant. Anonymous requests are not denied.
    pub(super) fn who<'a>(
        &self,
        tenants: &'a [Tenant],
        grants: &Grants,
    ) -> Result<Option<&'a Tenant>, Denied> {
        let found = match &self.proof {
            Proof::Anonymous => return Ok(None),
            Proof::Password(user, password) => {
                tenants.iter().find(|tenant| tenant.user == *user && tenant.password == *password)
            }
            Proof::Refresh(token) => {
                let user = grants.user(token);
                tenants.iter().find(|tenant| Some(tenant.user.as_str()) == user)
            }
            Proof::Unreadable => None,
        };
        found.map(Some).ok_or(Denied)
    }
}

impl Proof {
    fn note(
        &self,
        method: &'static str,
        authorization: bool,
        grant: Option<String>,
        scopes: Vec<String>,
    ) -> TokenRequest {
        let user = if let Self::Password(user, _) = self { Some(user.clone()) } else { None };
        TokenRequest { method, authorization, grant, user, scopes, status: 0 }
    }
}

fn basic(value: &str) -> Option<(String, String)> {
    let (scheme, encoded) = value.split_once(' ')?;
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    scheme.eq_ignore_ascii_case("basic").then(|| (user.to_owned(), password.to_owned()))
}

/// A query or a form.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn new(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    /// `scope` can occur several times, and can have several values.
    fn scopes(&self) -> Vec<String> {
        let values = self.0.iter().filter(|(key, _)| key == "scope");
        values.flat_map(|(_, value)| value.split(' ')).map(str::to_owned).collect()
    }
}
