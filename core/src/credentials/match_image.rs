//! Selects the repositories of a credential: the keys of docker's `auths` and of kubelet's credential providers.
//!
//! The rules are kubelet's (kubernetes, pkg/credentialprovider/keyring.go, `Add` and `URLsMatch`): the scheme and a
//! leading `/v1/` or `/v2/` of the path are ignored; `*` matches any text inside one label of the host; the port is
//! exact; the path is a prefix.
//!
//! Two rules are stricter than kubelet's, which would send a credential to another owner: a path ends at a segment
//! (`example.org/acme` does not match `example.org/acmeevil`), and a key with a user name or a query is invalid. One rule
//! is more lenient: hosts are compared in canonical form, so that upper case, `:443`, forms of IPv6 addresses and the
//! aliases of docker.io make no difference.

use std::fmt;
use std::str::FromStr;

use crate::display::Shown;
use crate::reference::{HostError, RegistryHost};

/// The maximum length of a key in bytes.
const MAX_LEN: usize = 1024;
const MAX_WILDCARDS: usize = 16;

/// A key that selects registries and repositories.
///
/// ```
/// use oras_csi_core::credentials::MatchImage;
///
/// let key: MatchImage = "*.example.org/acme".parse()?;
/// assert!(key.matches(&"eu.example.org".parse()?, "acme/model"));
/// assert!(!key.matches(&"eu.example.org".parse()?, "acmeevil/model"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchImage {
    host: Host,
    path: String,
    text: String,
    is_alias: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Exact(RegistryHost),
    Labels { labels: Vec<String>, port: Option<u16> },
}

/// Why a key is invalid. The message does not contain the key if it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatchImageError {
    /// It has blanks, control characters, `%`, `?` or `#`.
    #[error("it has characters that a registry or repository name must not have")]
    Characters,
    /// It has an `@`: the text before it may be a password.
    #[error("it has an \"@\": write the host without a user name")]
    UserInfo,
    /// Its scheme is neither `https://` nor `http://`.
    #[error("it has a scheme other than https and http")]
    Scheme,
    /// Its host is invalid.
    #[error("{0}")]
    Host(HostError),
    /// Its host pattern is invalid.
    #[error("\"{0}\" is not a valid host pattern: * matches text inside one label, as in *.example.org:5000")]
    Pattern(Shown),
    /// Its path is not the beginning of a repository name.
    #[error(
        "\"{0}\" is not the beginning of a repository name (only a-z 0-9 . _ - and /; * is allowed in hosts only)"
    )]
    Path(Shown),
    /// It has more than 1,024 bytes or more than 16 wildcards.
    #[error("it is too long: at most {MAX_LEN} bytes and {MAX_WILDCARDS} wildcards are allowed")]
    TooLong,
}

impl MatchImage {
    /// Reports whether the key selects `repository` of `registry`.
    pub fn matches(&self, registry: &RegistryHost, repository: &str) -> bool {
        let host = match &self.host {
            Host::Exact(host) => is_same_host(host, registry),
            Host::Labels { labels, port } => {
                let parts = registry.host().split('.').collect::<Vec<_>>();
                port.unwrap_or(443) == registry.effective_port()
                    && labels.len() == parts.len()
                    && labels.iter().zip(parts).all(|(glob, part)| matches_glob(glob, part))
            }
        };
        let is_below = |path: &str| {
            repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        host && (self.path.is_empty() || is_below(&self.path))
    }

    /// Returns the registry if the key names exactly one and no path. The keys of docker's `credHelpers` have this form.
    pub(super) fn registry(&self) -> Option<&RegistryHost> {
        match &self.host {
            Host::Exact(host) if self.path.is_empty() => Some(host),
            _ => None,
        }
    }

    /// Compares keys as kubelet does, in reverse order of their text: a longer path comes first, and a name comes before a
    /// wildcard. docker.io comes before its aliases.
    pub(super) fn compare_specificity(&self, other: &Self) -> std::cmp::Ordering {
        other.text.cmp(&self.text).then(self.is_alias.cmp(&other.is_alias))
    }
}

/// Reports whether two hosts are the same registry: the same name and the same port, whether it is written or not.
pub(super) fn is_same_host(one: &RegistryHost, other: &RegistryHost) -> bool {
    one.host() == other.host() && one.effective_port() == other.effective_port()
}

/// Returns a key for a message, without the parts that may be a password.
pub(super) fn redacted_key(key: &str) -> Shown {
    let end = key.find(['?', '#']).unwrap_or(key.len());
    let (kept, cut) = key.split_at(end);
    let begin = kept.rfind('@').map_or(String::new(), |_| "…@".to_owned());
    let name = kept.rsplit('@').next().unwrap_or(kept);
    // A password may contain these characters itself. Then no part is known to be a host name.
    if cut.contains('@') {
        return Shown::new("…");
    }
    Shown::new(&format!("{begin}{name}{}", if cut.is_empty() { "" } else { "…" }))
}

/// Reports whether `text` matches `glob`, in which `*` matches any text.
fn matches_glob(glob: &str, text: &str) -> bool {
    let mut pieces = glob.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces = pieces.collect::<Vec<_>>();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        let Some(found) = rest.find(piece) else { return false };
        rest = &rest[found + piece.len()..];
    }
    rest.ends_with(last)
}

fn parse_labels(text: &str) -> Result<Host, MatchImageError> {
    let invalid = || MatchImageError::Pattern(text.into());
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => {
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse::<u16>().ok().filter(|port| digits && *port > 0);
            (host, Some(port.ok_or_else(invalid)?))
        }
        None => (text, None),
    };
    if host.matches('*').count() > MAX_WILDCARDS {
        return Err(MatchImageError::TooLong);
    }
    let labels = host.to_ascii_lowercase().split('.').map(str::to_owned).collect::<Vec<_>>();
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'*');
    if labels.iter().all(|label| !label.is_empty() && label.bytes().all(known)) {
        Ok(Host::Labels { labels, port: port.filter(|port| *port != 443) })
    } else {
        Err(invalid())
    }
}

fn parse_path(path: &str) -> Result<String, MatchImageError> {
    let known =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    // kubelet's `Add` ignores docker's API version before the path.
    let rest = path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let is_valid = |segment: &str| {
        !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(known)
    };
    if rest.is_empty() || rest.split('/').all(is_valid) {
        Ok(rest.to_owned())
    } else {
        Err(MatchImageError::Path(path.into()))
    }
}

impl FromStr for MatchImage {
    type Err = MatchImageError;

    fn from_str(text: &str) -> Result<Self, MatchImageError> {
        if text.len() > MAX_LEN {
            return Err(MatchImageError::TooLong);
        }
        if text.contains('@') {
            return Err(MatchImageError::UserInfo);
        }
        if text.bytes().any(|byte| !byte.is_ascii_graphic() || b"%?#\\".contains(&byte)) {
            return Err(MatchImageError::Characters);
        }
        let rest = match text.split_once("://") {
            Some((scheme, rest))
                if ["https", "http"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) =>
            {
                rest
            }
            Some(_) => return Err(MatchImageError::Scheme),
            None => text,
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = parse_path(path)?;
        let host = if authority.contains('*') {
            parse_labels(authority)?
        } else {
            Host::Exact(authority.parse().map_err(MatchImageError::Host)?)
        };
        let name = match &host {
            Host::Exact(host) => host.to_string(),
            Host::Labels { labels, port } => {
                let port = port.map_or(String::new(), |port| format!(":{port}"));
                format!("{}{port}", labels.join("."))
            }
        };
        let is_hub = matches!(&host, Host::Exact(host) if host.is_docker_hub());
        let is_alias = is_hub && !authority.to_ascii_lowercase().starts_with("docker.io");
        let text = if path.is_empty() { name } else { format!("{name}/{path}") };
        Ok(Self { host, path, text, is_alias })
    }
}

impl fmt::Display for MatchImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
