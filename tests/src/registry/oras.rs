//! The real `oras`.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::tls::Identity;
use crate::parts::testbed;
use crate::process::run;

/// Pushes files of `folder` with the real `oras` over plain http, and gives the manifest's digest.
pub fn push(reference: &str, folder: &Path, files: &[&str]) -> String {
    Oras::plain_http().push(reference, folder, files)
}

/// The real `oras`, with a configuration of its own.
pub fn oras() -> Command {
    let mut command = Command::new(testbed("oras"));
    command.env("DOCKER_CONFIG", "/nonexistent");
    command
}

/// Credentials for a registry in a docker config.
#[derive(Clone, Debug)]
pub enum Login {
    /// `auth`: a user's name and password.
    Password(String, String),
    /// `identitytoken`: what `docker login` keeps where a token service gives out refresh tokens.
    IdentityToken(String),
}

impl Login {
    /// A user's name and password.
    pub fn password(user: &str, password: &str) -> Self {
        Self::Password(user.to_owned(), password.to_owned())
    }

    /// The docker config (`config.json`, `.dockerconfigjson`) that has this login for `host`.
    pub fn docker_config(&self, host: &str) -> Value {
        let entry = match self {
            Self::Password(user, password) => {
                json!({"auth": STANDARD.encode(format!("{user}:{password}"))})
            }
            // Clients ask with POST only where no user is named, or the one that stands for "a token".
            Self::IdentityToken(token) => {
                json!({"auth": STANDARD.encode("00000000-0000-0000-0000-000000000000:"), "identitytoken": token})
            }
        };
        json!({"auths": {host: entry}})
    }
}

/// The real `oras` with flags for a registry, and with a docker config if it logs in.
#[derive(Debug, Default)]
pub struct Oras {
    flags: Vec<OsString>,
    docker_config: Option<tempfile::TempDir>,
    proxy: Option<String>,
}

impl Oras {
    /// Uses plain HTTP.
    pub fn plain_http() -> Self {
        Self { flags: vec!["--plain-http".into()], ..Self::default() }
    }

    /// Uses TLS and trusts this authority.
    pub fn trusting(authority: &Path) -> Self {
        Self { flags: vec!["--ca-file".into(), authority.into()], ..Self::default() }
    }

    /// Sends a client certificate.
    #[must_use]
    pub fn with_certificate(mut self, client: &Identity) -> Self {
        let flags: [&std::ffi::OsStr; 4] = [
            "--cert-file".as_ref(),
            client.certificate().as_os_str(),
            "--key-file".as_ref(),
            client.key().as_os_str(),
        ];
        self.flags.extend(flags.map(OsString::from));
        self
    }

    /// Logs in to `host` (as `127.0.0.1:5000`).
    #[must_use]
    pub fn with_login(mut self, host: &str, login: &Login) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let text = login.docker_config(host).to_string();
        std::fs::write(folder.path().join("config.json"), text).expect("writes");
        self.docker_config = Some(folder);
        self
    }

    /// Uses a forward proxy, except for local addresses.
    #[must_use]
    pub fn with_proxy(mut self, url: &str) -> Self {
        self.proxy = Some(url.to_owned());
        self
    }

    /// `oras`, the words, and the flags.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = oras();
        if let Some(folder) = &self.docker_config {
            command.env("DOCKER_CONFIG", folder.path());
        }
        if let Some(url) = &self.proxy {
            command.env("HTTP_PROXY", url).env("HTTPS_PROXY", url);
        }
        command.args(words).args(&self.flags);
        command
    }

    /// Pushes files of `folder` (a name, or `NAME:MEDIA_TYPE`), and gives the manifest's digest.
    pub fn push(&self, reference: &str, folder: &Path, files: &[&str]) -> String {
        let mut command = self.command(&["push", "--format", "json", reference]);
        command.args(files).current_dir(folder);
        let answer: Value = serde_json::from_str(&run(&mut command)).expect("oras answers in JSON");
        answer["digest"].as_str().expect("with a digest").to_owned()
    }

    /// Pulls into a folder.
    pub fn pull(&self, reference: &str, folder: &Path) -> Command {
        let mut command = self.command(&["pull", reference]);
        command.arg("-o").arg(folder);
        command
    }
}
