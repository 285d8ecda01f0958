//! For which repositories a credential is: the keys of docker's `auths` and of kubelet's credential providers.
//!
//! The rules are kubelet's (kubernetes, pkg/credentialprovider/keyring.go, `Add` and `URLsMatch`): a scheme is
//! dropped, and a leading `/v1/` or `/v2/` of the path; `*` stands for any text inside one label of the host;
//! the port is exact; the path is a prefix. Stricter than kubelet where its rule would hand a credential to
//! somebody else: a path ends at a segment (`example.org/acme` is not for `example.org/acmeevil`), and a key
//! with a user name or a query is none. More lenient in one point: hosts are compared in their canonical form,
//! so that upper case, `:443`, spellings of IPv6 addresses and docker.io's aliases make no difference.

use std::fmt;
use std::str::FromStr;

use crate::display::Shown;
use crate::reference::{HostError, RegistryHost};

const LONGEST: usize = 1024;
const MOST_WILDCARDS: usize = 16;

/// A key: which registries and repositories it is for.
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

/// Why a text is no key. Says nothing of the text itself where that may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatchImageError {
    /// Blanks, control characters, `%`, or what begins a query.
    #[error("it has characters that no registry and no repository has")]
    Characters,
    /// Before the `@` there may be a password, and behind it another host than one would think.
    #[error("it has an \"@\": write the host without a user name")]
    UserInfo,
    /// Neither `https://` nor `http://`.
    #[error("it has a scheme other than https and http")]
    Scheme,
    /// The host part is not one.
    #[error("{0}")]
    Host(HostError),
    /// A host with `*` is wrong.
    #[error("\"{0}\" is no pattern over hosts: * stands for text inside one label, as *.example.org:5000")]
    Pattern(Shown),
    /// The path is no beginning of a repository.
    #[error(
        "\"{0}\" is no beginning of a repository (a-z 0-9 . _ - and / alone; * has a meaning in hosts only)"
    )]
    Path(Shown),
    /// More than 1,024 bytes, or more wildcards than anybody needs.
    #[error("it is too long")]
    TooLong,
}

impl MatchImage {
    /// Whether the credential under this key is for `repository` of `registry`.
    pub fn matches(&self, registry: &RegistryHost, repository: &str) -> bool {
        let host = match &self.host {
            Host::Exact(host) => is_same_host(host, registry),
            Host::Labels { labels, port } => {
                let parts = registry.host().split('.').collect::<Vec<_>>();
                port.unwrap_or(443) == registry.effective_port()
                    && labels.len() == parts.len()
                    && labels.iter().zip(parts).all(|(glob, part)| is_match(glob, part))
            }
        };
        let is_below = |path: &str| {
            repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        host && (self.path.is_empty() || is_below(&self.path))
    }

    /// The registry, where the key names exactly one and no path: what docker's `credHelpers` go by.
    pub(super) fn registry(&self) -> Option<&RegistryHost> {
        match &self.host {
            Host::Exact(host) if self.path.is_empty() => Some(host),
            _ => None,
        }
    }

    /// Sorts keys as kubelet does, in reverse order of their text: a path comes before what it begins with,
    /// and a name before a wildcard in its place. docker.io comes before its aliases.
    pub(super) fn order(&self, other: &Self) -> std::cmp::Ordering {
        other.text.cmp(&self.text).then(self.is_alias.cmp(&other.is_alias))
    }
}

/// Whether two hosts are one registry: the same name and the same port, written or not.
pub(super) fn is_same_host(one: &RegistryHost, other: &RegistryHost) -> bool {
    one.host() == other.host() && one.effective_port() == other.effective_port()
}

/// How a key is shown: what may be a password is cut away.
pub(super) fn shown_key(key: &str) -> Shown {
    let end = key.find(['?', '#']).unwrap_or(key.len());
    let (kept, cut) = key.split_at(end);
    let begin = kept.rfind('@').map_or(String::new(), |_| "…@".to_owned());
    let name = kept.rsplit('@').next().unwrap_or(kept);
    // A password may hold any of these characters itself: then nothing that is left is known to be a name.
    if cut.contains('@') {
        return Shown::new("…");
    }
    Shown::new(&format!("{begin}{name}{}", if cut.is_empty() { "" } else { "…" }))
}

/// Whether `*` in `glob`, which stands for any text, can be filled so that it is `text`.
fn is_match(glob: &str, text: &str) -> bool {
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
    let wrong = || MatchImageError::Pattern(text.into());
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => {
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse::<u16>().ok().filter(|port| digits && *port > 0);
            (host, Some(port.ok_or_else(wrong)?))
        }
        None => (text, None),
    };
    if host.matches('*').count() > MOST_WILDCARDS {
        return Err(MatchImageError::TooLong);
    }
    let labels = host.to_ascii_lowercase().split('.').map(str::to_owned).collect::<Vec<_>>();
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'*');
    if labels.iter().all(|label| !label.is_empty() && label.bytes().all(known)) {
        Ok(Host::Labels { labels, port: port.filter(|port| *port != 443) })
    } else {
        Err(wrong())
    }
}

fn parse_path(path: &str) -> Result<String, MatchImageError> {
    let known =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    // kubelet's `Add`: docker's API version in front of a path is none of it.
    let rest = path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let sound = |segment: &str| {
        !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(known)
    };
    if rest.is_empty() || rest.split('/').all(sound) {
        Ok(rest.to_owned())
    } else {
        Err(MatchImageError::Path(path.into()))
    }
}

impl FromStr for MatchImage {
    type Err = MatchImageError;

    fn from_str(text: &str) -> Result<Self, MatchImageError> {
        if text.len() > LONGEST {
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
