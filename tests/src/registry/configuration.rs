//! Configuration files of distribution registries.

use std::path::Path;

use serde_json::{Value, json};

use super::tls::{Authority, Identity};
use super::token_service::TokenService;

/// The configuration of a distribution registry. Default: plain HTTP without authentication.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    tls: Option<Identity>,
    clients: Option<Authority>,
    auth: Auth,
    remote: Option<String>,
    prefix: Option<String>,
}

#[derive(Clone, Debug, Default)]
enum Auth {
    #[default]
    Open,
    Htpasswd(String),
    Token(Value),
}

impl Configuration {
    /// Uses TLS with this certificate.
    #[must_use]
    pub fn with_tls(mut self, server: &Identity) -> Self {
        self.tls = Some(server.clone());
        self
    }

    /// Requires a client certificate of this authority; needs [`Self::with_tls`].
    #[must_use]
    pub fn with_client_authority(mut self, authority: &Authority) -> Self {
        self.clients = Some(authority.clone());
        self
    }

    /// Requires one of these users and their passwords, with Basic authentication.
    #[must_use]
    pub fn with_htpasswd(mut self, users: &[(&str, &str)]) -> Self {
        // The lowest cost of bcrypt, because each request is checked.
        let hash = |password: &str| bcrypt::hash(password, 4).expect("a hash");
        let lines = users.iter().map(|(user, password)| format!("{user}:{}\n", hash(password)));
        self.auth = Auth::Htpasswd(lines.collect());
        self
    }

    /// Requires a token of this service.
    #[must_use]
    pub fn with_tokens(mut self, service: &TokenService) -> Self {
        self.auth = Auth::Token(json!({
            "realm": service.realm(),
            "service": service.name(),
            "issuer": service.issuer(),
            "rootcertbundle": service.authority().certificate(),
        }));
        self
    }

    /// A pull-through mirror of the registry at this address.
    #[must_use]
    pub fn with_remote(mut self, url: &str) -> Self {
        self.remote = Some(url.to_owned());
        self
    }

    /// The API below a path, `/mirror/v2/` for `/mirror/`.
    #[must_use]
    pub fn with_prefix(mut self, path: &str) -> Self {
        self.prefix = Some(path.to_owned());
        self
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The file's text. JSON, which is YAML.
    pub(super) fn text(&self, folder: &Path, address: &str, port: u16) -> String {
        let mut http = json!({"addr": format!("{address}:{port}")});
        if let Some(server) = &self.tls {
            http["tls"] = json!({"certificate": server.certificate(), "key": server.key()});
        }
        if let Some(authority) = &self.clients {
            http["tls"]["clientcas"] = json!([authority.certificate()]);
        }
        if let Some(prefix) = &self.prefix {
            http["prefix"] = json!(prefix);
        }
        let mut all = json!({
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": folder.join("data")}, "delete": {"enabled": true}},
            "http": http,
        });
        match &self.auth {
            Auth::Open => {}
            Auth::Htpasswd(lines) => {
                let file = folder.join("htpasswd");
                std::fs::write(&file, lines).expect("writes");
                all["auth"] = json!({"htpasswd": {"realm": "registry", "path": file}});
            }
            Auth::Token(token) => all["auth"] = json!({"token": token}),
        }
        if let Some(url) = &self.remote {
            all["proxy"] = json!({"remoteurl": url});
        }
        all.to_string()
    }
}
