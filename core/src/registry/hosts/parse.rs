//! Parses one folder of `certs.d`: `hosts.toml`, or certificates in Docker's layout.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};
use url::Url;

use super::endpoint::{Capabilities, Endpoint, Pem, TlsFiles};
use super::error::HostsError;
use super::trust::{self, Trust};
use crate::go_duration;
use crate::reference::RegistryHost;
use crate::registry::address::without_user;

/// The name of the configuration file.
pub(super) const FILE: &str = "hosts.toml";
/// The maximum size of a configuration or certificate file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads the endpoints of one folder. Returns them with the unknown keys of the file.
pub(super) fn read(
    folder: &Path,
    registry: &RegistryHost,
    server: Endpoint,
) -> Result<(Vec<Endpoint>, Vec<String>), HostsError> {
    let path = folder.join(FILE);
    match read_file(&path) {
        Ok(bytes) if bytes.is_empty() => read_docker_layout(folder, server),
        Ok(bytes) => File { path, folder, registry }.endpoints(&bytes, &server),
        Err(error) if error.kind() == io::ErrorKind::NotFound => read_docker_layout(folder, server),
        Err(error) => Err(HostsError::File { path, reason: error.to_string() }),
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes, the limit")));
    }
    Ok(bytes)
}

fn read_pem(path: PathBuf) -> Result<Pem, HostsError> {
    match read_file(&path) {
        Ok(bytes) => Ok(Pem { path, bytes: bytes.into() }),
        Err(error) => Err(HostsError::File { path, reason: error.to_string() }),
    }
}

/// Reads a folder without `hosts.toml`: `*.crt` are authorities, `NAME.cert` with `NAME.key` is a client certificate.
fn read_docker_layout(folder: &Path, server: Endpoint) -> Result<(Vec<Endpoint>, Vec<String>), HostsError> {
    let failed = |error: io::Error| HostsError::File { path: folder.to_owned(), reason: error.to_string() };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.path());
    }
    names.sort();
    let mut tls = TlsFiles::default();
    for path in names.into_iter().filter(|path| path.is_file()) {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.ca.push(read_pem(path)?),
            Some("cert") => {
                let key = path.with_extension("key");
                let certificate = read_pem(path)?;
                let key = if key.exists() { read_pem(key)? } else { certificate.clone() };
                tls.client.push((certificate, key));
            }
            _ => {}
        }
    }
    Ok((vec![Endpoint { tls, ..server }], Vec::new()))
}

struct File<'a> {
    path: PathBuf,
    folder: &'a Path,
    registry: &'a RegistryHost,
}

/// A table of the file, with the prefix of its keys.
struct Section<'a> {
    prefix: String,
    table: &'a Table,
}

impl File<'_> {
    fn key_error(&self, key: String, problem: impl Into<String>) -> HostsError {
        HostsError::Key { path: self.path.clone(), key: key.into(), problem: problem.into().into() }
    }

    fn endpoints(&self, bytes: &[u8], server: &Endpoint) -> Result<(Vec<Endpoint>, Vec<String>), HostsError> {
        let not_toml = |reason: String| HostsError::Toml { path: self.path.clone(), reason: reason.into() };
        let text = std::str::from_utf8(bytes).map_err(|error| not_toml(error.to_string()))?;
        let root = text.parse::<Table>().map_err(|error| not_toml(error.to_string()))?;
        let mut unknown = Vec::new();
        let mut endpoints = Vec::new();
        let trust = Trust::read(&root).map_err(|(key, problem)| self.key_error(key, problem))?;
        let trust = Arc::new(trust);
        let hosts = match root.get("host") {
            None => &Table::new(),
            Some(Value::Table(hosts)) => hosts,
            Some(_) => {
                return Err(
                    self.key_error("host".into(), "it must be a table: write [host.\"https://mirror\"]")
                );
            }
        };
        for (url, section) in hosts {
            let prefix = format!("host.\"{}\"", without_user(url));
            let Value::Table(table) = section else {
                let problem = format!("it must be a table: write [{prefix}]");
                return Err(self.key_error(prefix, problem));
            };
            let section = Section { prefix, table };
            let base = self.address(&section.prefix, url, self.flag(&section, "override_path")?)?;
            let endpoint = self.endpoint(&section, Some(base), server, &mut unknown)?;
            let receives_credentials = !endpoint.mirror || trust.credentials_for.contains(url);
            endpoints.push(Endpoint { receives_credentials, trust: Arc::clone(&trust), ..endpoint });
        }
        if let Some(url) = trust.credentials_for.iter().find(|url| !hosts.contains_key(*url)) {
            let problem =
                format!("this file has no [host.\"{}\"]: add it or remove this entry", without_user(url));
            return Err(self.key_error(format!("{}.credentials_for", trust::TABLE), problem));
        }
        let section = Section { prefix: String::new(), table: &root };
        let base = match root.get("server") {
            None => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) => {
                Some(self.address("server", text, self.flag(&section, "override_path")?)?)
            }
            Some(_) => {
                return Err(self.key_error("server".into(), "it must be a string: write a URL in quotes"));
            }
        };
        let endpoint = self.endpoint(&section, base, server, &mut unknown)?;
        endpoints.push(Endpoint { trust, ..endpoint });
        Ok((endpoints, unknown))
    }

    /// Builds one endpoint. Without `base`, it is the registry's own address with the settings of the section.
    fn endpoint(
        &self,
        section: &Section<'_>,
        base: Option<Url>,
        server: &Endpoint,
        unknown: &mut Vec<String>,
    ) -> Result<Endpoint, HostsError> {
        for key in section.table.keys() {
            let root_only =
                section.prefix.is_empty() && matches!(key.as_str(), "server" | "host" | trust::TABLE);
            let known = matches!(
                key.as_str(),
                "capabilities"
                    | "ca"
                    | "client"
                    | "skip_verify"
                    | "override_path"
                    | "header"
                    | "dial_timeout"
            );
            // If the key were ignored, requests would go past the proxy.
            if key == "proxy" && section.table[key].as_str() != Some("") {
                let problem = "a proxy for one host is not supported: remove the key and set HTTPS_PROXY, HTTP_PROXY and \
                               NO_PROXY";
                return Err(self.key_error(section.key(key), problem));
            }
            if !root_only && !known {
                unknown.push(section.key(key));
            }
        }
        let tls = TlsFiles {
            ca: self.authorities(section)?,
            client: self.client(section)?,
            skip_verify: self.flag(section, "skip_verify")?,
        };
        let headers = self.headers(section)?;
        let dial_timeout = self.dial_timeout(section)?;
        let Some(base) = base else {
            return Ok(Endpoint { tls, headers, dial_timeout, ..server.clone() });
        };
        let mirror = Endpoint::is_mirror_of(&base, self.registry);
        let capabilities = self.capabilities(section)?;
        Ok(Endpoint { base, capabilities, tls, headers, dial_timeout, mirror, named: true, ..server.clone() })
    }

    /// Parses a URL as containerd does: https is the default scheme, and `/v2` is added unless `override_path` is set.
    fn address(&self, key: &str, text: &str, override_path: bool) -> Result<Url, HostsError> {
        let shown = without_user(text);
        let invalid = |problem: &str| self.key_error(key.to_owned(), format!("\"{shown}\" {problem}"));
        let absolute = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let mut url = Url::parse(&absolute).map_err(|error| invalid(&format!("is not a URL ({error})")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(invalid("is not an http or https address: write https://HOST:PORT"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(self.key_error(
                key.to_owned(),
                "contains a user or a password: remove it, and put credentials into the docker config",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("has a query or a fragment: remove it"));
        }
        let segments = url.path().split('/').filter(|segment| !segment.is_empty());
        let mut path = segments.fold(String::new(), |path, segment| format!("{path}/{segment}"));
        if !override_path && !path.ends_with("/v2") {
            path.push_str("/v2");
        }
        url.set_path(&path);
        Ok(url)
    }

    fn flag(&self, section: &Section<'_>, key: &str) -> Result<bool, HostsError> {
        match section.table.get(key) {
            None => Ok(false),
            Some(Value::Boolean(value)) => Ok(*value),
            Some(_) => Err(self.key_error(section.key(key), "it must be a boolean: write true or false")),
        }
    }

    fn strings(&self, section: &Section<'_>, key: &str) -> Result<Vec<String>, HostsError> {
        let problem = || {
            self.key_error(section.key(key), "it must be a string or a list of strings: write them in quotes")
        };
        match section.table.get(key) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(items)) => {
                let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or_else(problem)
            }
            Some(_) => Err(problem()),
        }
    }

    fn capabilities(&self, section: &Section<'_>) -> Result<Capabilities, HostsError> {
        let names = match section.table.get("capabilities") {
            Some(Value::String(_)) => {
                return Err(self.key_error(
                    section.key("capabilities"),
                    "it must be a list: write [\"pull\", \"resolve\"]",
                ));
            }
            _ => self.strings(section, "capabilities")?,
        };
        if names.is_empty() {
            return Ok(Capabilities::ALL);
        }
        let mut capabilities = Capabilities { pull: false, resolve: false, push: false };
        for name in names {
            match name.to_ascii_lowercase().as_str() {
                "pull" => capabilities.pull = true,
                "resolve" => capabilities.resolve = true,
                "push" => capabilities.push = true,
                "referrers" => {}
                _ => {
                    let problem = format!("\"{name}\" is unknown: write pull, resolve, push or referrers");
                    return Err(self.key_error(section.key("capabilities"), problem));
                }
            }
        }
        Ok(capabilities)
    }

    fn authorities(&self, section: &Section<'_>) -> Result<Vec<Pem>, HostsError> {
        let paths = self.strings(section, "ca")?;
        paths.iter().map(|path| read_pem(self.folder.join(path))).collect()
    }

    /// Reads `client`: a file with certificate and key, or a list of such files and of pairs whose second element may be
    /// empty (containerd, docs/hosts.md).
    fn client(&self, section: &Section<'_>) -> Result<Vec<(Pem, Pem)>, HostsError> {
        let form = "write \"both.pem\", [\"both.pem\"] or [[\"client.cert\", \"client.key\"]]";
        let invalid = || self.key_error(section.key("client"), form);
        let one = |value: &'_ Value| match value {
            Value::String(both) => Ok((both.clone(), String::new())),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(certificate), Value::String(key)] => Ok((certificate.clone(), key.clone())),
                _ => Err(invalid()),
            },
            _ => Err(invalid()),
        };
        let pairs: Vec<(String, String)> = match section.table.get("client") {
            None => Vec::new(),
            Some(Value::Array(items)) => items.iter().map(one).collect::<Result<_, _>>()?,
            Some(Value::String(both)) => vec![(both.clone(), String::new())],
            Some(_) => return Err(invalid()),
        };
        let file = |path: &str| read_pem(self.folder.join(path));
        let read = |(certificate, key): (String, String)| {
            let certificate = file(&certificate)?;
            let key = if key.is_empty() { certificate.clone() } else { file(&key)? };
            Ok((certificate, key))
        };
        pairs.into_iter().map(read).collect()
    }

    fn headers(&self, section: &Section<'_>) -> Result<HeaderMap, HostsError> {
        let mut headers = HeaderMap::new();
        let table = match section.table.get("header") {
            None => return Ok(headers),
            Some(Value::Table(table)) => table,
            Some(_) => {
                return Err(
                    self.key_error(section.key("header"), "it must be a table of header names and values")
                );
            }
        };
        let table = Section { prefix: section.key("header"), table };
        for name in table.table.keys() {
            // The value may be a secret, so no message contains it.
            let invalid = |problem: &str| self.key_error(table.key(name), problem);
            let parsed = name.parse::<HeaderName>().map_err(|_| invalid("it is not a valid header name"))?;
            for value in self.strings(&table, name)? {
                let mut value = HeaderValue::from_str(&value).map_err(|_| {
                    invalid("its value has a character that a header must not have (RFC 9110, 5.5)")
                })?;
                value.set_sensitive(true);
                headers.append(parsed.clone(), value);
            }
        }
        Ok(headers)
    }

    fn dial_timeout(&self, section: &Section<'_>) -> Result<Option<Duration>, HostsError> {
        let problem = || {
            self.key_error(
                section.key("dial_timeout"),
                "it must be a duration above zero: write \"10s\", \"1m30s\" or \"500ms\"",
            )
        };
        match section.table.get("dial_timeout") {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => go_duration::parse_positive(text).map(Some).ok_or_else(problem),
            Some(_) => Err(problem()),
        }
    }
}

impl Section<'_> {
    fn key(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }
}
