//! The registry in a reference: `host[:port]`.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::display::{Shown, string_serde};

/// The canonical name of Docker Hub.
pub(crate) const DOCKER_HUB: &str = "docker.io";
/// Other names of Docker Hub that clients use.
pub(crate) const DOCKER_HUB_ALIASES: [&str; 3] =
    ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];
pub(crate) const HTTPS_PORT: u16 = 443;
const MAX_NAME_LEN: usize = 253;
const MAX_LABEL_LEN: usize = 63;

/// A registry, `host[:port]`, in canonical form.
///
/// The host is in lower case, an IPv6 address is written as in RFC 5952 and in brackets, the aliases of Docker Hub
/// become `docker.io`, and `:443` is left out after a name with a dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryHost {
    host: String,
    port: Option<u16>,
}

/// The error for a text that is not the `host[:port]` of a registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// There is no host before the port or the path.
    #[error("the registry's host is empty")]
    Empty,
    /// A label is invalid (RFC 1123, section 2.1).
    #[error(
        "\"{0}\" is not a host name: write labels of a-z, 0-9 and \"-\" (inside a label), at most 63 characters each, separated \
         by single dots, without a dot at the end"
    )]
    Name(Shown),
    /// URL parsers read the name as an IPv4 address in an unusual form.
    #[error(
        "\"{0}\" is an IPv4 address for some programs only: write four decimal numbers, for example 10.0.0.7"
    )]
    Number(Shown),
    /// The text in brackets is not an IPv6 address (RFC 3986, section 3.2.2). Zones are not accepted.
    #[error("\"{0}\" is not an IPv6 address in brackets: write it as [2001:db8::1] or [2001:db8::1]:5000")]
    Ipv6(Shown),
    /// The IPv6 address stands for an IPv4 address: a connection goes to that address, which policies know by its IPv4
    /// form only.
    #[error("\"{0}\" is an IPv6 form of an IPv4 address: write the IPv4 address, for example 10.0.0.7")]
    EmbedsIpv4(Shown),
    /// The text after the colon is not a number from 1 to 65535.
    #[error("\"{0}\" is not a port: write a number from 1 to 65535 after the colon of the host")]
    Port(Shown),
}

impl RegistryHost {
    /// Returns the host without the port: a name in lower case, an IPv4 address, or an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port that is written. `None` means 443, or the port in the administrator's `hosts.toml`.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns the port for comparisons: 443 when no port is written.
    pub fn effective_port(&self) -> u16 {
        self.port.unwrap_or(HTTPS_PORT)
    }

    /// Reports whether this is Docker Hub, where a repository of one segment is under `library/`.
    pub fn is_docker_hub(&self) -> bool {
        self.port.is_none() && self.host == DOCKER_HUB
    }

    /// Returns Docker Hub.
    pub(super) fn docker_hub() -> Self {
        Self { host: DOCKER_HUB.to_owned(), port: None }
    }

    /// Adds `:443` to a host name that has neither a dot nor a port, because it would be ambiguous in a reference.
    pub(super) fn unambiguous(self) -> Self {
        let ambiguous = self.port.is_none() && !is_unambiguous_host(&self.host);
        Self { port: if ambiguous { Some(HTTPS_PORT) } else { self.port }, ..self }
    }
}

/// Reports whether the first segment of a reference can only be a host: it has a dot, a port or brackets, or is
/// `localhost`.
pub(crate) fn is_unambiguous_host(segment: &str) -> bool {
    segment.contains(['.', ':', '[']) || segment.eq_ignore_ascii_case("localhost")
}

impl FromStr for RegistryHost {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let (host, port) = split_port(text)?;
        let host = if host.starts_with('[') { ipv6(host)? } else { name_or_ipv4(host)? };
        let port = port.map(parse_port).transpose()?;
        let port = port.filter(|port| *port != HTTPS_PORT || !host.contains('.'));
        if port.is_none() && DOCKER_HUB_ALIASES.contains(&host.as_str()) {
            return Ok(Self::docker_hub());
        }
        Ok(Self { host, port })
    }
}

fn split_port(text: &str) -> Result<(&str, Option<&str>), HostError> {
    if text.starts_with('[') {
        let end = text.find(']').ok_or_else(|| HostError::Ipv6(text.into()))?;
        let (host, rest) = text.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(HostError::Ipv6(text.into())),
        };
    }
    match text.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(HostError::Ipv6(text.into())),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, HostError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(HostError::Port(text.into())),
    }
}

fn ipv6(bracketed: &str) -> Result<String, HostError> {
    let inner = bracketed.trim_start_matches('[').trim_end_matches(']');
    match inner.parse::<Ipv6Addr>() {
        Ok(address) if embeds_ipv4(address) => Err(HostError::EmbedsIpv4(bracketed.into())),
        Ok(address) if bracketed.len() == inner.len() + 2 => Ok(format!("[{address}]")),
        _ => Err(HostError::Ipv6(bracketed.into())),
    }
}

/// Reports whether an IPv6 address stands for an IPv4 address: `::ffff:a.b.c.d` and `::a.b.c.d` (RFC 4291, section
/// 2.5.5), `::ffff:0:a.b.c.d` (RFC 7915), `64:ff9b::a.b.c.d` (RFC 6052 and RFC 8215).
fn embeds_ipv4(address: Ipv6Addr) -> bool {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => false,
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, ..] => true,
        _ => false,
    }
}

fn name_or_ipv4(text: &str) -> Result<String, HostError> {
    if text.is_empty() {
        return Err(HostError::Empty);
    }
    if text.len() > MAX_NAME_LEN || !text.split('.').all(is_label) {
        return Err(HostError::Name(text.into()));
    }
    let host = text.to_ascii_lowercase();
    if ends_in_a_number(&host) && host.parse::<Ipv4Addr>().is_err() {
        return Err(HostError::Number(text.into()));
    }
    Ok(host)
}

fn is_label(label: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !label.is_empty()
        && label.len() <= MAX_LABEL_LEN
        && label.bytes().all(is_allowed)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Reports whether a host "ends in a number" (WHATWG URL standard). URL parsers read such a host as an IPv4 address:
/// `0x7f.1` and `2130706433` would both connect to 127.0.0.1 under names that no policy lists.
fn ends_in_a_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or(host);
    last.bytes().all(|byte| byte.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

string_serde!(RegistryHost);

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ghcr.io", "ghcr.io")]
    #[case("GHCR.IO", "ghcr.io")]
    #[case("ghcr.io:443", "ghcr.io")]
    #[case("ghcr.io:0443", "ghcr.io")]
    #[case("ghcr.io:5000", "ghcr.io:5000")]
    #[case("kind-registry:5000", "kind-registry:5000")]
    #[case("team:443", "team:443")]
    #[case("localhost:443", "localhost:443")]
    #[case("10.0.0.7:5000", "10.0.0.7:5000")]
    #[case("10.0.0.7:443", "10.0.0.7")]
    #[case("[2001:DB8:0:0:0::1]:5000", "[2001:db8::1]:5000")]
    #[case("[::1]", "[::1]")]
    #[case("index.docker.io", "docker.io")]
    #[case("Registry-1.Docker.io:443", "docker.io")]
    #[case("index.docker.io:5000", "index.docker.io:5000")]
    fn has_one_canonical_form(#[case] text: &str, #[case] canonical: &str) {
        let host = text.parse::<RegistryHost>().map(|host| host.to_string());
        assert_eq!(host.as_deref(), Ok(canonical));
        assert_eq!(canonical.parse::<RegistryHost>().map(|host| host.to_string()).as_deref(), Ok(canonical));
    }

    #[rstest]
    #[case::empty("")]
    #[case::only_a_port(":5000")]
    #[case::trailing_dot("ghcr.io.")]
    #[case::two_dots("ghcr..io")]
    #[case::dash_first("-ghcr.io")]
    #[case::percent("ghcr%2eio")]
    #[case::underscore("my_registry.local")]
    #[case::other_script("ghcr。io")]
    #[case::userinfo("me@ghcr.io")]
    #[case::no_port("ghcr.io:")]
    #[case::port_zero("ghcr.io:0")]
    #[case::port_too_large("ghcr.io:65536")]
    #[case::port_with_sign("ghcr.io:+443")]
    #[case::two_ports("ghcr.io:443:443")]
    #[case::short_ipv4("127.1")]
    #[case::octal_ipv4("0177.0.0.1")]
    #[case::hexadecimal_ipv4("0x7f.1")]
    #[case::ipv4_as_one_number("2130706433:5000")]
    #[case::bare_ipv6("2001:db8::1")]
    #[case::zone("[fe80::1%eth0]")]
    #[case::open_bracket("[::1")]
    #[case::two_brackets("[[::1]]")]
    #[case::text_behind_bracket("[::1]x")]
    #[case::mapped_ipv4("[::ffff:10.0.0.7]:5000")]
    #[case::mapped_ipv4_in_hexadecimal("[::ffff:a00:7]")]
    #[case::compatible_ipv4("[::10.0.0.7]")]
    #[case::translated_ipv4("[64:ff9b::a00:7]")]
    #[case::no_ipv6("[ghcr.io]")]
    fn rejects_invalid_hosts(#[case] text: &str) {
        assert!(text.parse::<RegistryHost>().is_err(), "{:?}", text.parse::<RegistryHost>());
    }
}
