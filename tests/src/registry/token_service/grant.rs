//! The tokens of a token service: signed access tokens and refresh tokens.

use std::collections::HashMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use super::super::tls::Identity;
use super::request::Asked;
use super::{ISSUER, NAME, Rules, Tenant};

/// distribution accepts a token this much longer than its lifetime (`token.Leeway`).
const LEEWAY: u64 = 60;

/// The key that signs tokens.
pub(super) struct Keys {
    header: Header,
    key: EncodingKey,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    pub(super) fn new(identity: &Identity) -> Self {
        let certificate = CertificateDer::from_pem_file(identity.certificate()).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(identity.key()).expect("a key");
        let mut header = Header::new(Algorithm::ES256);
        header.x5c = Some(vec![STANDARD.encode(&certificate)]);
        Self { header, key: EncodingKey::from_ec_der(key.secret_der()) }
    }
}

/// The refresh tokens of users.
#[derive(Debug, Default)]
pub(super) struct Grants {
    refresh_tokens: HashMap<String, String>,
    given: u64,
}

impl Grants {
    pub(super) fn refresh_token(&mut self, user: &str) -> String {
        let token = format!("refresh-{}-{user}", self.refresh_tokens.len());
        self.refresh_tokens.insert(token.clone(), user.to_owned());
        token
    }

    pub(super) fn user(&self, refresh_token: &str) -> Option<&str> {
        self.refresh_tokens.get(refresh_token).map(String::as_str)
    }

    /// Issues a token with the requested permissions that the tenant has. Fewer are no failure: the registry refuses then.
    pub(super) fn answer(
        &mut self,
        rules: &Rules,
        keys: &Keys,
        asked: &Asked,
        tenant: Option<&Tenant>,
    ) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        self.given += 1;
        let access: Vec<Value> =
            asked.note.scopes.iter().filter_map(|scope| access(rules, scope, tenant)).collect();
        let claims = json!({
            "iss": ISSUER,
            "sub": tenant.map_or("", |tenant| tenant.user.as_str()),
            "aud": NAME,
            "iat": now - LEEWAY,
            "nbf": now - LEEWAY,
            "exp": now + rules.lifetime.as_secs() - LEEWAY,
            "jti": self.given.to_string(),
            "access": access,
        });
        let token = encode(&keys.header, &claims, &keys.key).expect("it can be signed");
        // The names in Docker's specifications for GET and for POST.
        let mut answer = json!({"access_token": token});
        if asked.note.method == "GET" {
            answer["token"] = answer["access_token"].clone();
        } else {
            answer["scope"] = json!(asked.note.scopes.join(" "));
        }
        if let Some(seconds) = rules.told {
            answer["expires_in"] = json!(seconds);
        }
        if let (true, Some(tenant)) = (asked.offline, tenant) {
            answer["refresh_token"] = json!(self.refresh_token(&tenant.user));
        }
        answer
    }
}

/// `access` for a scope `repository:NAME:ACTION,ACTION`.
fn access(rules: &Rules, scope: &str, tenant: Option<&Tenant>) -> Option<Value> {
    let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
    let below = |path: &String| path.is_empty() || name == path || name.starts_with(&format!("{path}/"));
    let owned = tenant.is_some_and(|tenant| tenant.repositories.iter().any(below));
    let public = rules.public.iter().any(below);
    let actions: Vec<&str> =
        actions.split(',').filter(|&action| owned || (public && action == "pull")).collect();
    (!actions.is_empty()).then(|| json!({"type": "repository", "name": name, "actions": actions}))
}
