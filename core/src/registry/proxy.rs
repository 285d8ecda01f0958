//! Which requests go through a proxy: as Go's programs read the environment, which the other clients of registries
//! are (golang.org/x/net/http/httpproxy). `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, the upper case first; this machine
//! is never asked through one; `ALL_PROXY` does not count. Unlike Go, an address that is none is an error: what was to
//! go through a proxy does not silently go past it.

use std::net::IpAddr;

use url::Url;

use crate::display::Printable;

/// The proxies of an environment.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    http: Setting,
    https: Setting,
    except: Vec<Exception>,
}

/// Where a proxy is. Its address may have a password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Proxy(Url);

#[derive(Debug, Default)]
enum Setting {
    #[default]
    Unset,
    Proxy(Proxy),
    Wrong(Printable),
}

/// An entry of `NO_PROXY`.
#[derive(Debug, PartialEq, Eq)]
enum Exception {
    All,
    Network(IpAddr, u8),
    Address(IpAddr, Option<String>),
    /// What a name ends with, from its dot on, and whether the name without the dot is meant as well.
    Domain {
        suffix: String,
        itself: bool,
        port: Option<String>,
    },
}

impl Proxy {
    /// Its address, for the HTTP client.
    pub(super) fn url(&self) -> &Url {
        &self.0
    }

    /// Its address without user and password.
    pub(super) fn shown(&self) -> String {
        super::transport::origin(&self.0)
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
    /// Those of this process.
    pub(super) fn of_environment() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Those of an environment.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &'static str| {
            let lower = name.to_ascii_lowercase();
            let values = [name, &lower].into_iter().filter_map(&variable);
            values.map(|text| text.trim().to_owned()).find(|text| !text.is_empty())
        };
        let setting = |name: &'static str| value(name).map_or(Setting::Unset, |text| address(name, &text));
        let (mut http, https) = (setting("HTTP_PROXY"), setting("HTTPS_PROXY"));
        // A CGI program's HTTP_PROXY is what a client sent as the header Proxy.
        if variable("REQUEST_METHOD").is_some() && !matches!(http, Setting::Unset) {
            http =
                Setting::Wrong("HTTP_PROXY is not followed in a CGI program (REQUEST_METHOD is set)".into());
        }
        if matches!(https, Setting::Unset) && value("ALL_PROXY").is_some() {
            tracing::warn!("ALL_PROXY is not followed: set HTTPS_PROXY and HTTP_PROXY");
        }
        let except = value("NO_PROXY").unwrap_or_default();
        Self { http, https, except: except.split(',').filter_map(exception).collect() }
    }

    /// The hosts of all of them.
    pub(super) fn hosts(&self) -> impl Iterator<Item = String> {
        [&self.http, &self.https].into_iter().filter_map(|setting| match setting {
            Setting::Proxy(proxy) => Some(proxy.host().to_owned()),
            _ => None,
        })
    }

    /// The proxy for an address, or what is wrong with the one that is set.
    pub(super) fn of(&self, url: &Url) -> Result<Option<&Proxy>, &Printable> {
        let setting = if url.scheme() == "https" { &self.https } else { &self.http };
        match setting {
            Setting::Proxy(proxy) if self.is_used_for(url) => Ok(Some(proxy)),
            Setting::Wrong(words) if self.is_used_for(url) => Err(words),
            _ => Ok(None),
        }
    }

    fn is_used_for(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let host = without_brackets(&host);
        let port = url.port_or_known_default().unwrap_or_default().to_string();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        let here = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        !here && !self.except.iter().any(|exception| exception.has(host, address, &port))
    }
}

impl Exception {
    fn has(&self, host: &str, address: Option<IpAddr>, port: &str) -> bool {
        let of_port = |wanted: &Option<String>| wanted.as_deref().is_none_or(|wanted| wanted == port);
        match self {
            Self::All => true,
            Self::Network(network, bits) => {
                address.is_some_and(|address| is_within(address, *network, *bits))
            }
            Self::Address(one, wanted) => address == Some(*one) && of_port(wanted),
            Self::Domain { suffix, itself, port } => {
                (host.ends_with(suffix) || (*itself && host == &suffix[1..])) && of_port(port)
            }
        }
    }
}

/// One entry of `NO_PROXY`; none where it means nothing.
fn exception(entry: &str) -> Option<Exception> {
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
        // What has more colons and no brackets is an IPv6 address.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port.to_owned())),
        _ => (entry.as_str(), None),
    };
    let host = without_brackets(host);
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

fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn address(name: &str, text: &str) -> Setting {
    let absolute = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    match Url::parse(&absolute) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() => {
            Setting::Proxy(Proxy(url))
        }
        _ => {
            // What stands before the `@` may be a password.
            let shown =
                text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("…@{host}"));
            let words = format!(
                "{name} is \"{shown}\", which is no proxy that is known here: write http://HOST:PORT"
            );
            Setting::Wrong(words.into())
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
        proxies.of(&url.parse().unwrap()).unwrap().is_some()
    }

    /// The rows are those of Go's `TestUseProxy`, and what it has beyond.
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
    fn not_everything_goes_through_it(#[case] no_proxy: &str, #[case] url: &str, #[case] used: bool) {
        assert_eq!(is_used(no_proxy, url), used);
    }

    #[test]
    fn upper_case_comes_first_and_each_scheme_has_its_own() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        let shown = |proxies: &Proxies, of: &str| proxies.of(&url(of)).unwrap().map(Proxy::shown);
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
    fn what_is_no_proxy_is_told_where_it_would_be_used(#[case] text: &str) {
        let wrong = proxies(&[("HTTPS_PROXY", text), ("NO_PROXY", "fine.test")]);
        let words = wrong.of(&"https://example.com/".parse().unwrap()).unwrap_err().as_str();
        assert!(words.starts_with("HTTPS_PROXY is ") && !words.contains("hunter2"), "{words}");
        assert!(wrong.of(&"https://fine.test/".parse().unwrap()).unwrap().is_none());
        assert!(wrong.of(&"http://example.com/".parse().unwrap()).unwrap().is_none());
        let cgi = proxies(&[("HTTP_PROXY", "http://x"), ("REQUEST_METHOD", "GET")]);
        assert!(cgi.of(&"http://example.com/".parse().unwrap()).is_err());
    }
}
