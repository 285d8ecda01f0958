//! The address guard: the network addresses that a registry must not send the client to.
//!
//! Both programs run where the node's own services listen and where a cloud's metadata service gives credentials to
//! every local process. A registry in a reference, a redirect and a token realm may point there, by name or by
//! number. So the guard checks the address that is dialled, after the name is resolved. Private networks are allowed,
//! because registries are often there. An administrator opens a forbidden address for one registry by setting its
//! host and port as `server` or `[host]` of that registry's `hosts.toml`.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use url::{Host, Url};

use super::address::without_brackets;

/// The error for an address that is not dialled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host} is {what}, which is not dialed unless an administrator allows it: set server = \
     \"http://HOST:PORT\" (or https) in the registry's hosts.toml"
)]
pub struct Forbidden {
    host: String,
    what: &'static str,
}

impl Forbidden {
    /// Returns the message for an address that the registry named, in a redirect or as its token service.
    pub(crate) fn named_by_registry(&self) -> String {
        let Self { host, what } = self;
        format!(
            "{host} is {what}, which is not dialed: the registry must name an address that other machines can reach in \
             its redirects and as its token service"
        )
    }
}

/// Returns what kind of forbidden address this is, or `None` if it is allowed. An IPv6 address that embeds an IPv4
/// address (mapped, NAT64, 6to4, Teredo, ISATAP) counts as that IPv4 address.
pub fn forbidden(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => forbidden_v4(address),
        IpAddr::V6(address) => forbidden_v6(address),
    }
}

fn forbidden_v4(address: Ipv4Addr) -> Option<&'static str> {
    const METADATA: &str = "a cloud's metadata address";
    match address.octets() {
        // AWS, Azure, GCP and others; AWS containers; Alibaba; Oracle Classic; Azure's wire server.
        [169, 254, 169, 254]
        | [169, 254, 170, 2]
        | [100, 100, 100, 200]
        | [192, 0, 0, 192]
        | [168, 63, 129, 16] => Some(METADATA),
        [0, ..] => Some("an unspecified address"),
        [127, ..] => Some("a loopback address"),
        [169, 254, ..] => Some("a link-local address"),
        [224..=239, ..] => Some("a multicast address"),
        [240..=255, ..] => Some("a reserved address"),
        _ => None,
    }
}

fn forbidden_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => return Some("an unspecified address"),
        [0, 0, 0, 0, 0, 0, 0, 1] => return Some("a loopback address"),
        // AWS; GCP.
        [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254] => {
            return Some("a cloud's metadata address");
        }
        [0xfe80..=0xfebf, ..] => return Some("a link-local address"),
        [0xff00..=0xffff, ..] => return Some("a multicast address"),
        _ => {}
    }
    embedded_ipv4(segments).into_iter().flatten().find_map(forbidden_v4)
}

/// Returns the IPv4 addresses that an IPv6 address embeds.
fn embedded_ipv4(segments: [u16; 8]) -> [Option<Ipv4Addr>; 2] {
    let at = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // ::a.b.c.d (RFC 4291, 2.5.5.1), ::ffff:a.b.c.d (2.5.5.2), ::ffff:0:a.b.c.d (RFC 7915),
        // 64:ff9b::a.b.c.d (RFC 6052), 6to4 (RFC 3056), ISATAP (RFC 5214, 6.1).
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..]
        | [_, _, _, _, 0 | 0x0200, 0x5efe, high, low] => [at(high, low), None],
        // 64:ff9b:1::/48 (RFC 8215) with prefixes of 48 and of 96 bits (RFC 6052, 2.2).
        [0x64, 0xff9b, 1, first, second, third, high, low] => {
            let [_, c] = second.to_be_bytes();
            let [d, _] = third.to_be_bytes();
            [at(first, u16::from_be_bytes([c, d])), at(high, low)]
        }
        // Teredo (RFC 4380, 4): the bits of the client's address are inverted.
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            [at(!high, !low), at(server_high, server_low)]
        }
        _ => [None, None],
    }
}

/// The hosts and ports that an administrator set for one registry. Whatever they resolve to may be dialled. Other ports
/// of these hosts are not included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AllowedAddresses(BTreeSet<(String, u16)>);

impl AllowedAddresses {
    pub(crate) fn new<'a>(urls: impl IntoIterator<Item = &'a Url>) -> Self {
        Self(urls.into_iter().filter_map(host_and_port).collect())
    }

    pub(crate) fn contains(&self, url: &Url) -> bool {
        host_and_port(url).is_some_and(|address| self.0.contains(&address))
    }

    /// Adds the port of `url`, if its host is already included with another port.
    pub(crate) fn with_port_of(&self, url: &Url) -> Self {
        let is_known = |host: &String| self.0.iter().any(|(known, _)| known == host);
        let mut extended = self.clone();
        extended.0.extend(host_and_port(url).filter(|(host, _)| is_known(host)));
        extended
    }

    /// Checks the URL itself, because address literals are dialled without a resolver. `proxies` are the hosts of the
    /// proxies, which the resolver does not check; a registry must not send the client to them.
    pub(crate) fn check(&self, url: &Url, proxies: &ProxyHosts) -> Result<(), Forbidden> {
        let what = match url.host() {
            Some(Host::Ipv4(address)) => forbidden_v4(address),
            Some(Host::Ipv6(address)) => forbidden_v6(address),
            Some(Host::Domain(name)) if proxies.contains(name) => Some("the proxy's own host"),
            Some(Host::Domain(_)) => None,
            None => Some("no host"),
        };
        let host = url.host_str().unwrap_or_default();
        match what {
            Some(what) if !self.contains(url) => Err(Forbidden { host: host.to_owned(), what }),
            _ => Ok(()),
        }
    }
}

fn host_and_port(url: &Url) -> Option<(String, u16)> {
    Some((normalize(url.host_str()?), url.port_or_known_default()?))
}

/// The hosts of the proxies that the administrator configured.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProxyHosts(Arc<BTreeSet<String>>);

impl ProxyHosts {
    pub(crate) fn new(hosts: impl IntoIterator<Item = String>) -> Self {
        Self(Arc::new(hosts.into_iter().map(|host| normalize(&host)).collect()))
    }

    fn contains(&self, host: &str) -> bool {
        self.0.contains(&normalize(host))
    }
}

/// Returns a host in lower case, without the brackets of an IPv6 address and without a trailing dot.
fn normalize(host: &str) -> String {
    let host = without_brackets(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Resolves host names.
#[async_trait]
pub trait HostResolver: fmt::Debug + Send + Sync + 'static {
    /// Returns the addresses of a host. The ports are ignored.
    async fn resolve_host(&self, host: &str) -> io::Result<Vec<SocketAddr>>;
}

/// Resolves host names with the system's resolver.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

#[async_trait]
impl HostResolver for SystemResolver {
    async fn resolve_host(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.collect())
    }
}

/// A resolver that leaves out forbidden addresses.
#[derive(Clone)]
pub(crate) struct GuardedResolver {
    resolver: Arc<dyn HostResolver>,
    /// Whether the administrator named the address, so that forbidden addresses stay in.
    is_named: bool,
    proxies: ProxyHosts,
}

impl GuardedResolver {
    pub(crate) fn new(resolver: Arc<dyn HostResolver>, is_named: bool, proxies: ProxyHosts) -> Self {
        Self { resolver, is_named, proxies }
    }

    /// Returns the addresses of `host` that may be dialled.
    pub(crate) async fn addresses(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        let found = self.resolver.resolve_host(host).await?;
        let policy = if self.is_named || self.proxies.contains(host) { Policy::All } else { Policy::Guarded };
        select(host, found, policy).map_err(io::Error::other)
    }
}

impl fmt::Debug for GuardedResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuardedResolver")
    }
}

/// Which addresses of a host may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    All,
    Guarded,
}

fn select(host: &str, found: Vec<SocketAddr>, policy: Policy) -> Result<Vec<SocketAddr>, Forbidden> {
    if policy == Policy::All {
        return Ok(found);
    }
    let first_forbidden = found.iter().find_map(|address| forbidden(address.ip()));
    let allowed: Vec<_> = found.into_iter().filter(|address| forbidden(address.ip()).is_none()).collect();
    match first_forbidden {
        Some(what) if allowed.is_empty() => Err(Forbidden { host: host.to_owned(), what }),
        _ => Ok(allowed),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("127.0.0.1")]
    #[case("127.255.0.1")]
    #[case("0.0.0.0")]
    #[case("0.1.2.3")]
    #[case("169.254.169.254")]
    #[case("169.254.1.1")]
    #[case("100.100.100.200")]
    #[case("168.63.129.16")]
    #[case("224.0.0.1")]
    #[case("255.255.255.255")]
    #[case("::")]
    #[case("::1")]
    #[case("fe80::1")]
    #[case("febf::1")]
    #[case("ff02::1")]
    #[case("fd00:ec2::254")]
    #[case("::ffff:169.254.169.254")]
    #[case("::ffff:127.0.0.1")]
    #[case("::127.0.0.1")]
    #[case("::ffff:0:127.0.0.1")]
    #[case("64:ff9b::169.254.169.254")]
    #[case("64:ff9b:1::169.254.169.254")]
    #[case("64:ff9b:1:a9fe:a9:fe00::")]
    #[case("2002:7f00:1::")]
    #[case("2002:a9fe:a9fe::1")]
    #[case("2001:0:808:808:0:0:80ff:fffe")]
    #[case("fd00::5efe:127.0.0.1")]
    fn is_forbidden(#[case] address: &str) {
        assert!(forbidden(address.parse().unwrap()).is_some());
    }

    #[rstest]
    #[case("10.0.0.1")]
    #[case("172.16.0.1")]
    #[case("192.168.1.1")]
    #[case("100.64.0.1")]
    #[case("140.82.121.34")]
    #[case("2606:50c0::1")]
    #[case("fd12:3456::1")]
    #[case("::ffff:10.0.0.1")]
    #[case("64:ff9b::8.8.8.8")]
    #[case("2002:808:808::1")]
    fn is_allowed(#[case] address: &str) {
        assert_eq!(forbidden(address.parse().unwrap()), None);
    }

    #[rstest]
    #[case("http://127.0.0.1/x", false)]
    #[case("http://2130706433/x", false)]
    #[case("http://0x7f.1/x", false)]
    #[case("http://[::ffff:7f00:1]/x", false)]
    #[case("http://named.example/x", true)]
    #[case("http://169.254.1.7:5000/x", true)]
    #[case("http://169.254.1.7:5001/x", false)]
    #[case("http://169.254.1.7/x", false)]
    #[case("https://[fe80::7]/x", true)]
    #[case("https://[fe80::7]:443/x", true)]
    #[case("http://[fe80::7]/x", false)]
    #[case("http://proxy.example/x", false)]
    #[case("http://PROXY.example./x", false)]
    #[case("http://localhost/x", true)]
    fn address_literals_in_urls_are_checked(#[case] url: &str, #[case] is_allowed: bool) {
        let urls = ["http://169.254.1.7:5000/v2", "https://[fe80::7]/v2", "http://named.example/v2"];
        let urls = urls.map(|url| url.parse::<Url>().unwrap());
        let allowed = AllowedAddresses::new(&urls);
        let proxies = ProxyHosts::new(["proxy.example".to_owned()]);
        assert_eq!(allowed.check(&url.parse().unwrap(), &proxies).is_ok(), is_allowed);
    }

    #[test]
    fn another_port_is_added_only_for_a_host_that_is_included() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        let allowed = AllowedAddresses::new([&url("http://127.0.0.1:5000/v2")]);
        assert!(
            allowed
                .with_port_of(&url("http://127.0.0.1:5001/token"))
                .contains(&url("http://127.0.0.1:5001/x"))
        );
        assert_eq!(allowed.with_port_of(&url("http://127.0.0.2:5001/token")), allowed);
    }

    #[test]
    fn only_the_allowed_addresses_of_a_name_are_dialled() {
        let both: Vec<SocketAddr> = vec!["127.0.0.1:0".parse().unwrap(), "10.0.0.1:0".parse().unwrap()];
        assert_eq!(select("x", both.clone(), Policy::Guarded).unwrap(), both[1..]);
        assert_eq!(select("x", both.clone(), Policy::All).unwrap(), both);
        let error = select("x", both[..1].to_vec(), Policy::Guarded).unwrap_err();
        assert!(error.to_string().contains("x is a loopback address"), "{error}");
        assert!(select("x", Vec::new(), Policy::Guarded).unwrap().is_empty());
    }
}
