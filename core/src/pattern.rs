//! Patterns over registries and repositories, matched on parsed parts and never as a string prefix.

use std::fmt;
use std::str::FromStr;

use crate::display::{Shown, string_serde};
use crate::reference::host::{DOCKER_HUB, DOCKER_HUB_ALIASES, HTTPS_PORT, speaks_for_itself};
use crate::reference::{HostError, RegistryHost, is_repository_segment};

/// `HOST[:PORT][/PATH]`: `*` stands for one whole segment (a label of the host, a segment of the path), `**`
/// for any number of them; a path that ends in `**` needs at least one segment there. A pattern with no path
/// is every repository of the host. Ports are exact, where none is written it is 443.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryPattern {
    host: HostPattern,
    path: Option<Vec<Segment>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum HostPattern {
    Exact(RegistryHost),
    /// Labels from left to right, and the port.
    Labels(Vec<Segment>, u16),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Segment {
    Literal(String),
    One,
    Any,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing was written, or an empty segment.
    #[error("\"{0}\" is not a registry pattern: write HOST, HOST/** or HOST/TEAM/*, with no empty segment")]
    Empty(Shown),
    /// The host is none.
    #[error("\"{pattern}\": {source}")]
    Host {
        /// The whole text.
        pattern: Shown,
        /// What is wrong with the host.
        source: HostError,
    },
    /// `team-*` and the like.
    #[error(
        "\"{pattern}\": \"{segment}\" mixes a wildcard with text: * and ** stand for whole segments only"
    )]
    Mixed {
        /// The whole text.
        pattern: Shown,
        /// The segment that is wrong.
        segment: Shown,
    },
    /// `https://ghcr.io` and the like.
    #[error("\"{0}\" begins with a scheme: leave it out, and write HOST or HOST/PATH")]
    Scheme(Shown),
    /// A wildcard in brackets.
    #[error(
        "\"{0}\": no wildcard stands for a part of an IPv6 address: write each address, as [2001:db8::1]:5000"
    )]
    Ipv6(Shown),
    /// A wildcard in front of a number.
    #[error(
        "\"{0}\" names nothing: a host that ends in a number is an IPv4 address, where wildcards stand at the end, as \
         10.0.0.*"
    )]
    Number(Shown),
    /// A first segment that may be a host, or a repository of Docker Hub.
    #[error(
        "\"{pattern}\" is ambiguous: write {}docker.io/{path} for Docker Hub's",
        .host.as_ref().map(|host| format!("{host} for that host, or ")).unwrap_or_default()
    )]
    Ambiguous {
        /// The whole text.
        pattern: Shown,
        /// The reading as a host, with a port that makes it one, where it can be a host at all.
        host: Option<Shown>,
        /// The reading as a repository of Docker Hub.
        path: Shown,
    },
    /// A wildcard for nothing but other names of Docker Hub, which is compared by its own.
    #[error("\"{0}\" names nothing: {hub} is a name of docker.io, so write docker.io", hub = .1)]
    HubAlias(Shown, &'static str),
    /// What no repository has, a tag or a digest among them.
    #[error(
        "\"{pattern}\": \"{segment}\" is no segment of a repository (a-z 0-9, and . _ - in between); a pattern has \
         neither tag nor digest"
    )]
    Segment {
        /// The whole text.
        pattern: Shown,
        /// The segment that is wrong.
        segment: Shown,
    },
}

impl RegistryPattern {
    /// Whether the repository of that registry is one that the pattern names.
    pub fn matches(&self, registry: &RegistryHost, repository: &str) -> bool {
        // Docker Hub's library/NAME is also NAME.
        let short = repository.strip_prefix("library/").filter(|_| registry.is_docker_hub());
        let spellings = [Some(repository), short].into_iter().flatten();
        let named = |segments: &Vec<Segment>| {
            spellings.clone().any(|name| match_segments(segments, &name.split('/').collect::<Vec<_>>()))
        };
        self.host.matches(registry) && self.path.as_ref().is_none_or(named)
    }

    /// Whether it names some repository of that registry.
    pub fn matches_registry(&self, registry: &RegistryHost) -> bool {
        self.host.matches(registry)
    }

    /// Whether it names every repository of the registries that it names.
    pub fn is_host_alone(&self) -> bool {
        self.path.is_none()
    }
}

impl HostPattern {
    /// Fails on a wildcard that has aliases of Docker Hub, and not the name that they are folded into.
    fn check_hub(&self, pattern: &str) -> Result<(), PatternError> {
        let Self::Labels(labels, HTTPS_PORT) = self else { return Ok(()) };
        let has = |host: &str| match_segments(labels, &host.split('.').collect::<Vec<_>>());
        match DOCKER_HUB_ALIASES.into_iter().find(|alias| has(alias)) {
            Some(alias) if !has(DOCKER_HUB) => Err(PatternError::HubAlias(pattern.into(), alias)),
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

/// `**` takes one segment or more at the end and in front, none or more in between.
fn match_segments(pattern: &[Segment], parts: &[&str]) -> bool {
    // reachable[i]: the pattern so far can have taken exactly the first i parts.
    let mut reachable = vec![false; parts.len() + 1];
    reachable[0] = true;
    for (position, segment) in pattern.iter().enumerate() {
        let outer = position == 0 || position + 1 == pattern.len();
        let mut next = vec![false; parts.len() + 1];
        for (taken, _) in reachable.iter().enumerate().filter(|(_, reached)| **reached) {
            match segment {
                Segment::Literal(text) => {
                    if parts.get(taken) == Some(&text.as_str()) {
                        next[taken + 1] = true;
                    }
                }
                Segment::One => {
                    if taken < parts.len() {
                        next[taken + 1] = true;
                    }
                }
                Segment::Any => next[(taken + usize::from(outer)).min(parts.len() + 1)..].fill(true),
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
        if !host.contains('*') && !speaks_for_itself(host) {
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

/// The two readings of a pattern whose host may be none, or what is wrong with both.
fn ambiguous(pattern: &str, host: &str, path: Option<&str>) -> PatternError {
    let lower = host.to_ascii_lowercase();
    let parsed = lower.parse::<RegistryHost>();
    if let (Err(source), false) = (&parsed, is_repository_segment(&lower)) {
        return PatternError::Host { pattern: pattern.into(), source: written(source.clone(), host) };
    }
    if let Some(Err(error)) = path.map(|path| parse_path(pattern, path)) {
        return error;
    }
    let behind = path.map(|path| format!("/{path}")).unwrap_or_default();
    PatternError::Ambiguous {
        pattern: pattern.into(),
        host: parsed.is_ok().then(|| Shown::new(&format!("{lower}:443{behind}"))),
        path: Shown::new(&format!("{lower}{behind}")),
    }
}

/// The same about the host as it is written, where another was parsed in its stead.
fn written(error: HostError, host: &str) -> HostError {
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
    // The labels are checked, and the port read, on a name in which each wildcard is an ordinary label.
    let standing_in = text
        .split_inclusive(['.', ':'])
        .map(|label| label.replacen("**", "x", 1).replacen('*', "x", 1))
        .collect::<String>();
    let checked = standing_in.parse::<RegistryHost>().map_err(|error| match error {
        HostError::Ipv6(_) => PatternError::Ipv6(pattern.into()),
        HostError::Number(_) => PatternError::Number(pattern.into()),
        other => host_error(written(other, text)),
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
    fn matches_parsed_parts(#[case] pattern: &str, #[case] reference: &str, #[case] expected: bool) {
        let pattern = pattern.parse::<RegistryPattern>().expect("a pattern");
        let reference = Reference::parse(reference).expect("a reference");
        assert_eq!(pattern.matches(reference.registry(), reference.repository()), expected);
        assert_eq!(pattern.to_string().parse(), Ok(pattern));
    }

    #[rstest]
    #[case("http://ghcr.io", "\"http://ghcr.io\" begins with a scheme: leave it out")]
    #[case("https://ghcr.io/acme/**", "begins with a scheme")]
    #[case("ghcr.io:*", "\"ghcr.io:*\": \"*\" is not a port")]
    #[case("*.acme.example:*/x", "\"*\" is not a port")]
    #[case("[*]:5000", "no wildcard stands for a part of an IPv6 address")]
    #[case("*.7:5000", "a host that ends in a number is an IPv4 address")]
    #[case("*.0.0.1", "a host that ends in a number is an IPv4 address")]
    #[case("*.foo_bar", "\"*.foo_bar\" is not a host name")]
    #[case("ghcr。io", "\"ghcr。io\" is not a host name")]
    #[case("team/..", "\"..\" is no segment of a repository")]
    #[case("team/App", "\"App\" is no segment of a repository")]
    #[case("Team/app", "write team:443/app for that host, or docker.io/team/app")]
    #[case("ubuntu", "write ubuntu:443 for that host, or docker.io/ubuntu")]
    #[case("team_a/x", "write docker.io/team_a/x")]
    fn an_error_says_what_was_written(#[case] pattern: &str, #[case] words: &str) {
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
    fn refuses(
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
