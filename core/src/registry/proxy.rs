//! The proxies of the environment: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`.
//!
//! The variables are read as Go programs read them (golang.org/x/net/http/httpproxy), because other registry clients
//! are Go programs: the upper-case name comes first, and loopback addresses are never proxied. `ALL_PROXY` is not
//! supported. Unlike in Go, an invalid proxy address is an error: a request that must go through a proxy never goes
//! past it silently.

use std::net::IpAddr;

use url::Url;

use super::address;
use crate::display::Printable;

/// The proxies of an environment and the hosts that are reached without one.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    http: Setting,
    https: Setting,
    except: Vec<Exception>,
}

/// The address of a proxy. It may contain a password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Proxy(Url);

#[derive(Debug, Default)]
enum Setting {
    #[default]
    Unset,
    Proxy(Proxy),
    Invalid(Printable),
}

/// An entry of `NO_PROXY`.
#[derive(Debug, PartialEq, Eq)]
enum Exception {
    All,
    Network(IpAddr, u8),
    Address(IpAddr, Option<String>),
    /// A domain suffix that begins with a dot, and whether the domain without the dot matches as well.
    Domain {
        suffix: String,
        itself: bool,
        port: Option<String>,
    },
}

impl Proxy {
    /// Returns the URL, for the HTTP client.
    pub(super) fn url(&self) -> &Url {
        &self.0
    }

    /// Returns the address without user and password.
    pub(super) fn shown(&self) -> String {
        address::origin(&self.0)
    }

    pub(super) fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Proxies {
    /// Reads the environment of this process.
    pub(super) fn from_environment() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Reads the variables that `variable` returns.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &'static str| {
            let lower = name.to_ascii_lowercase();
            let values = [name, &lower].into_iter().filter_map(&variable);
            values.map(|text| text.trim().to_owned()).find(|text| !text.is_empty())
        };
        let setting =
            |name: &'static str| value(name).map_or(Setting::Unset, |text| parse_proxy(name, &text));
        let (mut http, https) = (setting("HTTP_PROXY"), setting("HTTPS_PROXY"));
        // In a CGI program, HTTP_PROXY is the client's `Proxy` header.
        if variable("REQUEST_METHOD").is_some() && !matches!(http, Setting::Unset) {
            http = Setting::Invalid(
                "HTTP_PROXY is not used in a CGI program (REQUEST_METHOD is set): unset one of them".into(),
            );
        }
        if matches!(https, Setting::Unset) && value("ALL_PROXY").is_some() {
            tracing::warn!("ALL_PROXY is not supported and has no effect: set HTTPS_PROXY and HTTP_PROXY");
        }
        let except = value("NO_PROXY").unwrap_or_default();
        Self { http, https, except: except.split(',').filter_map(parse_exception).collect() }
    }

    /// Returns the host names of all proxies.
    pub(super) fn hosts(&self) -> impl Iterator<Item = String> {
        [&self.http, &self.https].into_iter().filter_map(|setting| match setting {
            Setting::Proxy(proxy) => Some(proxy.host().to_owned()),
            _ => None,
        })
    }

    /// Returns the proxy for a URL, or why the configured proxy is invalid.
    pub(super) fn proxy_for(&self, url: &Url) -> Result<Option<&Proxy>, &Printable> {
        let setting = if url.scheme() == "https" { &self.https } else { &self.http };
        match setting {
            Setting::Proxy(proxy) if self.is_used_for(url) => Ok(Some(proxy)),
            Setting::Invalid(message) if self.is_used_for(url) => Err(message),
            _ => Ok(None),
        }
    }

    fn is_used_for(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let host = address::without_brackets(&host);
        let port = url.port_or_known_default().unwrap_or_default().to_string();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        let is_loopback = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        !is_loopback && !self.except.iter().any(|exception| exception.matches(host, address, &port))
    }
}

impl Exception {
    fn matches(&self, host: &str, address: Option<IpAddr>, port: &str) -> bool {
        let is_port = |only: &Option<String>| only.as_deref().is_none_or(|only| only == port);
        match self {
            Self::All => true,
            Self::Network(network, bits) => {
                address.is_some_and(|address| is_within(address, *network, *bits))
            }
            Self::Address(exempt, port) => address == Some(*exempt) && is_port(port),
            Self::Domain { suffix, itself, port } => {
                (host.ends_with(suffix) || (*itself && host == &suffix[1..])) && is_port(port)
            }
        }
    }
}

/// Parses an entry of `NO_PROXY`. Returns `None` for an entry without a meaning, which Go ignores as well.
fn parse_exception(entry: &str) -> Option<Exception> {
    let entry = entry.trim().to_ascii_lowercase();
    if entry == "*" {
        return Some(Exception::All);
    }
    if let Some((address, bits)) = entry.split_once('/')
        && let (Ok(address), Ok(bits)) = (address.parse::<IpAddr>(), bits.parse::<u8>())
    {
        return (bits <= if address.is_ipv4() { 32 } else { 128 })
            .then_some(Exception::Network(address, bits));
    }
    let (host, port) = match entry.rsplit_once(':') {
        // An entry with several colons and no brackets is an IPv6 address.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port.to_owned())),
        _ => (entry.as_str(), None),
    };
    let host = address::without_brackets(host);
    if host.is_empty() {
        return None;
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(Exception::Address(address.to_canonical(), port));
    }
    let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
    let itself = !host.starts_with('.');
    let suffix = if itself { format!(".{host}") } else { host.to_owned() };
    Some(Exception::Domain { suffix, itself, port })
}

fn is_within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let (address, network, length) = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (u128::from(address.to_bits()), u128::from(network.to_bits()), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (address.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    bits == 0 || (address ^ network) >> (length - u32::from(bits)) == 0
}

fn parse_proxy(name: &str, text: &str) -> Setting {
    let absolute = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    match Url::parse(&absolute) {
        // The HTTP client would go past a proxy whose address it cannot parse, such as http://${PROXY_HOST}:3128.
        Ok(url)
            if matches!(url.scheme(), "http" | "https")
                && url.host_str().is_some()
                && url.as_str().parse::<http::Uri>().is_ok() =>
        {
            Setting::Proxy(Proxy(url))
        }
        _ => {
            let shown = address::without_user(text);
            let message = format!(
                "{name} is \"{shown}\", which is not an http or https proxy address: write http://HOST:PORT"
            );
            Setting::Invalid(message.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::read(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn is_used(no_proxy: &str, url: &str) -> bool {
        let proxies = proxies(&[
            ("HTTP_PROXY", "http://proxy:3128"),
            ("HTTPS_PROXY", "proxy:3128"),
            ("NO_PROXY", no_proxy),
        ]);
        proxies.proxy_for(&url.parse().unwrap()).unwrap().is_some()
    }

    /// The cases of Go's `TestUseProxy`, and some more.
    #[rstest]
    #[case("", "https://example.com/", true)]
    #[case("", "https://localhost/", false)]
    #[case("", "http://127.0.0.1:80/", false)]
    #[case("", "http://127.0.1.1/", false)]
    #[case("", "https://[::1]/", false)]
    #[case("", "https://[2001:db8::1]/", true)]
    #[case("example.com", "https://example.com/", false)]
    #[case("example.com", "https://www.example.com/", false)]
    #[case("example.com", "https://EXAMPLE.com:5000/", false)]
    #[case("example.com", "https://notexample.com/", true)]
    #[case(".example.com", "https://example.com/", true)]
    #[case(".example.com", "https://www.example.com/", false)]
    #[case("*.example.com", "https://www.example.com/", false)]
    #[case("*.example.com", "https://example.com/", true)]
    #[case("example.com:5000", "https://example.com:5000/", false)]
    #[case("example.com:5000", "https://www.example.com:5000/", false)]
    #[case("example.com:5000", "https://example.com/", true)]
    #[case("example.com:443", "https://example.com/", false)]
    #[case("example.com:443", "http://example.com/", true)]
    #[case("10.0.0.7", "https://10.0.0.7:5000/", false)]
    #[case("10.0.0.7:5000", "https://10.0.0.7:5000/", false)]
    #[case("10.0.0.7:5000", "https://10.0.0.7/", true)]
    #[case("10.0.0.0/8", "https://10.1.2.3/", false)]
    #[case("10.0.0.0/8", "https://11.1.2.3/", true)]
    #[case("0.0.0.0/0", "https://11.1.2.3/", false)]
    #[case("10.0.0.0/99", "https://10.1.2.3/", true)]
    #[case("2001:db8::/32", "https://[2001:db8::1]/", false)]
    #[case("[2001:db8::1]", "https://[2001:db8::1]/", false)]
    #[case("2001:db8::1", "https://[2001:db8::1]/", false)]
    #[case("[2001:db8::1]:5000", "https://[2001:db8::1]:5000/", false)]
    #[case("[2001:db8::1]:5000", "https://[2001:db8::1]/", true)]
    #[case("*", "https://10.0.0.7/", false)]
    #[case("*", "https://example.com/", false)]
    #[case("a.test, * ", "http://example.com/", false)]
    #[case(",:80,.", "https://example.com/", true)]
    fn no_proxy_exempts_hosts(#[case] no_proxy: &str, #[case] url: &str, #[case] used: bool) {
        assert_eq!(is_used(no_proxy, url), used);
    }

    #[test]
    fn upper_case_wins_and_each_scheme_has_its_own_proxy() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        let shown =
            |proxies: &Proxies, target: &str| proxies.proxy_for(&url(target)).unwrap().map(Proxy::shown);
        let both = proxies(&[("https_proxy", "http://low:1"), ("HTTPS_PROXY", "http://u:hunter2@up:1")]);
        assert_eq!(shown(&both, "https://x/").as_deref(), Some("http://up:1"));
        assert_eq!(shown(&both, "http://x/"), None);
        assert!(!format!("{both:?}").contains("hunter2"));
        assert_eq!(both.hosts().collect::<Vec<_>>(), ["up"]);
        let low = proxies(&[("HTTP_PROXY", " "), ("http_proxy", "low:1")]);
        assert_eq!(shown(&low, "http://x/").as_deref(), Some("http://low:1"));
        let all = proxies(&[("ALL_PROXY", "http://all:1")]);
        assert_eq!(shown(&all, "https://x/"), None);
    }

    #[rstest]
    #[case("ftp://proxy:21")]
    #[case("socks5://proxy:1080")]
    #[case("http://")]
    #[case("http://a b")]
    #[case("http://user:hunter2@a b")]
    fn an_invalid_proxy_fails_only_the_requests_that_would_use_it(#[case] text: &str) {
        let invalid = proxies(&[("HTTPS_PROXY", text), ("NO_PROXY", "fine.test")]);
        let message = invalid.proxy_for(&"https://example.com/".parse().unwrap()).unwrap_err().as_str();
        assert!(message.starts_with("HTTPS_PROXY is ") && !message.contains("hunter2"), "{message}");
        assert!(invalid.proxy_for(&"https://fine.test/".parse().unwrap()).unwrap().is_none());
        assert!(invalid.proxy_for(&"http://example.com/".parse().unwrap()).unwrap().is_none());
        let cgi = proxies(&[("HTTP_PROXY", "http://x"), ("REQUEST_METHOD", "GET")]);
        assert!(cgi.proxy_for(&"http://example.com/".parse().unwrap()).is_err());
    }
}
