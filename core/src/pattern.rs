//! Patterns over registries and repositories (docs/design.md, "Policy"). They are matched on parsed components, never
//! as string prefixes.

use std::fmt;
use std::str::FromStr;

use crate::display::{Shown, string_serde};
use crate::reference::host::{DOCKER_HUB, DOCKER_HUB_ALIASES, HTTPS_PORT, is_unambiguous_host};
use crate::reference::{HostError, RegistryHost, is_repository_segment};

/// A pattern over registries and repositories, `HOST[:PORT][/PATH]`.
///
/// `*` matches one complete segment (a label of the host or a segment of the path), `**` matches any number of
/// segments. At the beginning and at the end, `**` matches at least one segment. A pattern without a path matches every
/// repository of the host. The port must be equal; without a port it is 443.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryPattern {
    host: HostPattern,
    path: Option<Vec<Segment>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum HostPattern {
    Exact(RegistryHost),
    /// The labels from left to right, and the port.
    Labels(Vec<Segment>, u16),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Segment {
    Literal(String),
    One,
    Any,
}

/// The error for a text that is not a [`RegistryPattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The text, or a segment of it, is empty.
    #[error("\"{0}\" is not a registry pattern: write HOST, HOST/** or HOST/TEAM/*, without empty segments")]
    Empty(Shown),
    /// The host is invalid.
    #[error("\"{pattern}\": {source}")]
    Host {
        /// The complete text.
        pattern: Shown,
        /// The error of the host.
        source: HostError,
    },
    /// A segment mixes a wildcard with text, for example `team-*`.
    #[error("\"{pattern}\": \"{segment}\" mixes a wildcard with text: * and ** must be complete segments")]
    Mixed {
        /// The complete text.
        pattern: Shown,
        /// The invalid segment.
        segment: Shown,
    },
    /// The text has a scheme, for example `https://ghcr.io`.
    #[error("\"{0}\" begins with a scheme: remove it and write HOST or HOST/PATH")]
    Scheme(Shown),
    /// There is a wildcard in brackets.
    #[error(
        "\"{0}\": a wildcard cannot stand for a part of an IPv6 address: write each address, for example [2001:db8::1]:5000"
    )]
    Ipv6(Shown),
    /// The host has a wildcard before a number.
    #[error(
        "\"{0}\" matches nothing: a host that ends in a number is an IPv4 address, which can have wildcards only at the end, \
         for example 10.0.0.*"
    )]
    Number(Shown),
    /// The first segment can be a host or a part of a repository of Docker Hub.
    #[error(
        "\"{pattern}\" is ambiguous: write {}docker.io/{path} for the repository of Docker Hub",
        .host.as_ref().map(|host| format!("{host} for that host, or ")).unwrap_or_default()
    )]
    Ambiguous {
        /// The complete text.
        pattern: Shown,
        /// The pattern for a host, with a port that marks it. `None` when the segment is not a valid host.
        host: Option<Shown>,
        /// The path of the pattern for a repository of Docker Hub.
        path: Shown,
    },
    /// The wildcard matches only aliases of Docker Hub, but references have its canonical name.
    #[error("\"{0}\" matches nothing: {hub} is an alias of docker.io, so write docker.io", hub = .1)]
    HubAlias(Shown, &'static str),
    /// A segment cannot occur in a repository, for example because it has a tag or a digest.
    #[error(
        "\"{pattern}\": \"{segment}\" is not a segment of a repository: write a-z and 0-9, with . _ - inside; a \
         pattern has neither a tag nor a digest"
    )]
    Segment {
        /// The complete text.
        pattern: Shown,
        /// The invalid segment.
        segment: Shown,
    },
}

impl RegistryPattern {
    /// Reports whether the pattern matches a repository of a registry.
    pub fn matches(&self, registry: &RegistryHost, repository: &str) -> bool {
        // On Docker Hub, library/NAME is also NAME.
        let short = repository.strip_prefix("library/").filter(|_| registry.is_docker_hub());
        let spellings = [Some(repository), short].into_iter().flatten();
        let matches_path = |segments: &Vec<Segment>| {
            spellings.clone().any(|name| match_segments(segments, &name.split('/').collect::<Vec<_>>()))
        };
        self.host.matches(registry) && self.path.as_ref().is_none_or(matches_path)
    }

    /// Reports whether the pattern matches at least some repositories of a registry.
    pub fn matches_registry(&self, registry: &RegistryHost) -> bool {
        self.host.matches(registry)
    }

    /// Reports whether the pattern has no path and so matches every repository of its registries.
    pub fn is_whole_registry(&self) -> bool {
        self.path.is_none()
    }
}

impl HostPattern {
    /// Fails on a wildcard that matches aliases of Docker Hub, but not its canonical name.
    fn check_hub(&self, pattern: &str) -> Result<(), PatternError> {
        let Self::Labels(labels, HTTPS_PORT) = self else { return Ok(()) };
        let matches = |host: &str| match_segments(labels, &host.split('.').collect::<Vec<_>>());
        match DOCKER_HUB_ALIASES.into_iter().find(|alias| matches(alias)) {
            Some(alias) if !matches(DOCKER_HUB) => Err(PatternError::HubAlias(pattern.into(), alias)),
            _ => Ok(()),
        }
    }

    fn matches(&self, registry: &RegistryHost) -> bool {
        match self {
            Self::Exact(host) => {
                host.host() == registry.host() && host.effective_port() == registry.effective_port()
            }
            Self::Labels(labels, port) => {
                let host = registry.host().split('.').collect::<Vec<_>>();
                *port == registry.effective_port() && match_segments(labels, &host)
            }
        }
    }
}

/// Matches segments. `**` matches one or more segments at the beginning and at the end, zero or more in between.
fn match_segments(pattern: &[Segment], parts: &[&str]) -> bool {
    // reachable[i]: the segments of the pattern so far can match exactly the first i parts.
    let mut reachable = vec![false; parts.len() + 1];
    reachable[0] = true;
    for (position, segment) in pattern.iter().enumerate() {
        let outer = position == 0 || position + 1 == pattern.len();
        let mut next = vec![false; parts.len() + 1];
        for (matched, _) in reachable.iter().enumerate().filter(|(_, reached)| **reached) {
            match segment {
                Segment::Literal(text) => {
                    if parts.get(matched) == Some(&text.as_str()) {
                        next[matched + 1] = true;
                    }
                }
                Segment::One => {
                    if matched < parts.len() {
                        next[matched + 1] = true;
                    }
                }
                Segment::Any => next[(matched + usize::from(outer)).min(parts.len() + 1)..].fill(true),
            }
        }
        reachable = next;
    }
    reachable[parts.len()]
}

impl FromStr for RegistryPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (host, path) = match text.split_once('/') {
            Some((host, path)) => (host, Some(path)),
            None => (text, None),
        };
        if host.is_empty() {
            return Err(PatternError::Empty(text.into()));
        }
        if text.contains("://") {
            return Err(PatternError::Scheme(text.into()));
        }
        if !host.contains('*') && !is_unambiguous_host(host) {
            return Err(ambiguous(text, host, path));
        }
        let host = parse_host(text, host)?;
        host.check_hub(text)?;
        let mut path = path.map(|path| parse_path(text, path)).transpose()?;
        let hub = matches!(&host, HostPattern::Exact(host) if host.is_docker_hub());
        if let (true, Some([Segment::Literal(name)])) = (hub, path.as_deref()) {
            path = Some(vec![Segment::Literal("library".to_owned()), Segment::Literal(name.clone())]);
        }
        Ok(Self { host, path })
    }
}

/// Returns the error for a pattern whose first segment is not certainly a host: both possible patterns, or the error
/// that both would have.
fn ambiguous(pattern: &str, host: &str, path: Option<&str>) -> PatternError {
    let lower = host.to_ascii_lowercase();
    let parsed = lower.parse::<RegistryHost>();
    if let (Err(source), false) = (&parsed, is_repository_segment(&lower)) {
        return PatternError::Host {
            pattern: pattern.into(),
            source: with_written_host(source.clone(), host),
        };
    }
    if let Some(Err(error)) = path.map(|path| parse_path(pattern, path)) {
        return error;
    }
    let suffix = path.map(|path| format!("/{path}")).unwrap_or_default();
    PatternError::Ambiguous {
        pattern: pattern.into(),
        host: parsed.is_ok().then(|| Shown::new(&format!("{lower}:443{suffix}"))),
        path: Shown::new(&format!("{lower}{suffix}")),
    }
}

/// Puts the host as the user wrote it into an error about a modified host.
fn with_written_host(error: HostError, host: &str) -> HostError {
    match error {
        HostError::Name(_) => HostError::Name(host.into()),
        HostError::Port(_) => HostError::Port(host.rsplit(':').next().unwrap_or(host).into()),
        other => other,
    }
}

fn parse_host(pattern: &str, text: &str) -> Result<HostPattern, PatternError> {
    let host_error = |source| PatternError::Host { pattern: pattern.into(), source };
    if !text.contains('*') {
        return text.parse().map(HostPattern::Exact).map_err(host_error);
    }
    // The labels are checked, and the port is parsed, on a name in which each wildcard is replaced by a normal label.
    let replaced = text
        .split_inclusive(['.', ':'])
        .map(|label| label.replacen("**", "x", 1).replacen('*', "x", 1))
        .collect::<String>();
    let checked = replaced.parse::<RegistryHost>().map_err(|error| match error {
        HostError::Ipv6(_) => PatternError::Ipv6(pattern.into()),
        HostError::Number(_) => PatternError::Number(pattern.into()),
        other => host_error(with_written_host(other, text)),
    })?;
    let labels = text.split(':').next().unwrap_or(text);
    let labels = labels
        .split('.')
        .map(|label| {
            wildcard(pattern, label)
                .map(|found| found.unwrap_or_else(|| Segment::Literal(label.to_ascii_lowercase())))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(HostPattern::Labels(labels, checked.effective_port()))
}

fn parse_path(pattern: &str, path: &str) -> Result<Vec<Segment>, PatternError> {
    path.split('/')
        .map(|segment| {
            if let Some(found) = wildcard(pattern, segment)? {
                return Ok(found);
            }
            if segment.is_empty() {
                Err(PatternError::Empty(pattern.into()))
            } else if is_repository_segment(segment) {
                Ok(Segment::Literal(segment.to_owned()))
            } else {
                Err(PatternError::Segment { pattern: pattern.into(), segment: segment.into() })
            }
        })
        .collect()
}

/// Parses a segment that is a wildcard; returns `None` for a segment without one.
fn wildcard(pattern: &str, segment: &str) -> Result<Option<Segment>, PatternError> {
    match segment {
        "*" => Ok(Some(Segment::One)),
        "**" => Ok(Some(Segment::Any)),
        other if other.contains('*') => {
            Err(PatternError::Mixed { pattern: pattern.into(), segment: segment.into() })
        }
        _ => Ok(None),
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Literal(text) => text,
            Self::One => "*",
            Self::Any => "**",
        })
    }
}

impl fmt::Display for RegistryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            HostPattern::Exact(host) => write!(f, "{host}")?,
            HostPattern::Labels(labels, port) => {
                let labels = labels.iter().map(Segment::to_string).collect::<Vec<_>>();
                f.write_str(&labels.join("."))?;
                if *port != 443 {
                    write!(f, ":{port}")?;
                }
            }
        }
        for segment in self.path.iter().flatten() {
            write!(f, "/{segment}")?;
        }
        Ok(())
    }
}

string_serde!(RegistryPattern);

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::reference::Reference;

    #[rstest]
    #[case("ghcr.io", "ghcr.io/acme/model", true)]
    #[case("ghcr.io", "GHCR.io:443/acme/model", true)]
    #[case("ghcr.io:443", "ghcr.io/acme/model", true)]
    #[case("ghcr.io", "ghcr.io:5000/acme/model", false)]
    #[case("ghcr.io", "ghcr.io.evil.example/acme/model", false)]
    #[case("ghcr.io", "evil-ghcr.io/acme/model", false)]
    #[case("ghcr.io", "sub.ghcr.io/acme/model", false)]
    #[case("ghcr.io/acme/*", "ghcr.io/acme/model", true)]
    #[case("ghcr.io/acme/*", "ghcr.io/acme/model/deep", false)]
    #[case("ghcr.io/acme/*", "ghcr.io/acme-evil/model", false)]
    #[case("ghcr.io/acme/**", "ghcr.io/acme/model/deep", true)]
    #[case("ghcr.io/acme/**", "ghcr.io/acme", false)]
    #[case("ghcr.io/acme/**/x", "ghcr.io/acme/x", true)]
    #[case("ghcr.io/acme/**/x", "ghcr.io/acme/a/b/x", true)]
    #[case("ghcr.io/**", "ghcr.io/a", true)]
    #[case("ghcr.io/acme", "ghcr.io/acme/model", false)]
    #[case("docker.io/ubuntu", "ubuntu:20.04", true)]
    #[case("docker.io/library/*", "ubuntu", true)]
    #[case("index.docker.io/library/*", "registry-1.docker.io/library/ubuntu", true)]
    #[case("docker.io/library/*", "docker.io/acme/ubuntu", false)]
    #[case("*.acme.example", "a.acme.example/x", true)]
    #[case("*.acme.example", "a.b.acme.example/x", false)]
    #[case("*.acme.example", "acme.example/x", false)]
    #[case("**.acme.example", "a.b.acme.example/x", true)]
    #[case("**.acme.example", "acme.example/x", false)]
    #[case("*.acme.example:5000", "a.acme.example:5000/x", true)]
    #[case("*.acme.example:5000", "a.acme.example/x", false)]
    #[case("10.0.0.*:5000", "10.0.0.7:5000/x", true)]
    #[case("10.0.*", "10.0.0.7/x", false)]
    #[case("**", "10.0.0.1/x", true)]
    #[case("**", "[::1]/x/y", true)]
    #[case("**", "ghcr.io:5000/x", false)]
    #[case("kind-registry:5000/*", "kind-registry:5000/java-app", true)]
    #[case("kind-registry:443/*", "kind-registry:5000/java-app", false)]
    #[case("localhost", "localhost/java-app", true)]
    #[case("docker.io/*", "ubuntu", true)]
    #[case("docker.io/*", "docker.io/acme/ubuntu", false)]
    #[case("*.io/ubuntu", "ubuntu", true)]
    #[case("*.io/*", "docker.io/acme/ubuntu", false)]
    #[case("[2001:db8::1]:5000/**", "[2001:DB8:0::1]:5000/a", true)]
    #[case("[::1]", "[::1]:443/a", true)]
    fn matches_parsed_components(#[case] pattern: &str, #[case] reference: &str, #[case] expected: bool) {
        let pattern = pattern.parse::<RegistryPattern>().expect("a pattern");
        let reference = Reference::parse(reference).expect("a reference");
        assert_eq!(pattern.matches(reference.registry(), reference.repository()), expected);
        assert_eq!(pattern.to_string().parse(), Ok(pattern));
    }

    #[rstest]
    #[case("http://ghcr.io", "\"http://ghcr.io\" begins with a scheme: remove it")]
    #[case("https://ghcr.io/acme/**", "begins with a scheme")]
    #[case("ghcr.io:*", "\"ghcr.io:*\": \"*\" is not a port")]
    #[case("*.acme.example:*/x", "\"*\" is not a port")]
    #[case("[*]:5000", "a wildcard cannot stand for a part of an IPv6 address")]
    #[case("*.7:5000", "a host that ends in a number is an IPv4 address")]
    #[case("*.0.0.1", "a host that ends in a number is an IPv4 address")]
    #[case("*.foo_bar", "\"*.foo_bar\" is not a host name")]
    #[case("ghcr。io", "\"ghcr。io\" is not a host name")]
    #[case("team/..", "\"..\" is not a segment of a repository")]
    #[case("team/App", "\"App\" is not a segment of a repository")]
    #[case("Team/app", "write team:443/app for that host, or docker.io/team/app")]
    #[case("ubuntu", "write ubuntu:443 for that host, or docker.io/ubuntu")]
    #[case("team_a/x", "write docker.io/team_a/x")]
    fn an_error_shows_the_text_as_the_user_wrote_it(#[case] pattern: &str, #[case] words: &str) {
        let error = pattern.parse::<RegistryPattern>().unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("\"x") && !error.contains("\"\""), "{error}");
        for spelling in error.split("write ").skip(1).flat_map(|advice| advice.split(", or ")) {
            let spelling = spelling.split(' ').next().unwrap();
            if spelling.contains("443") || spelling.contains("docker.io") {
                assert!(spelling.parse::<RegistryPattern>().is_ok(), "{error}");
            }
        }
    }

    #[rstest]
    fn rejects_invalid_patterns(
        #[values(
            "",
            "/",
            "/acme",
            "ghcr.io/",
            "ghcr.io//x",
            "ghcr.io/team-*",
            "gh*.io",
            "ghcr.io/***",
            "ghcr.io/Acme",
            "ghcr.io/acme:v1",
            "ghcr.io/acme@sha256:00",
            "https://ghcr.io",
            "*.0.0.1",
            "ghcr.io.",
            "*.io:0",
            "ghcr.io/a%2fb",
            "ghcr.io/..",
            "ghcr.io/_x",
            "ghcr.io/a..b",
            "team/app",
            "ubuntu",
            "kind-registry/*",
            "*.docker.io",
            "**.docker.io/library/*",
            "*.hub.docker.com",
            "[::ffff:10.0.0.7]:5000"
        )]
        pattern: &str,
    ) {
        assert!(pattern.parse::<RegistryPattern>().is_err(), "{:?}", pattern.parse::<RegistryPattern>());
    }
}
