//! The hosts that an administrator trusts in addition to the defaults.
//!
//! They are in a table of `hosts.toml` that only this project reads; containerd and other readers ignore it:
//!
//! ```toml
//! [oras-csi]
//! token_realms = ["auth.example.org"]         # more token services that get the registry's credentials
//! redirects = ["**.storage.example.org"]      # the only redirect targets; without the key: any host
//! credentials_for = ["https://mirror:5000"]   # [host] entries that get the registry's credentials as well
//! foreign_layers = ["cdn.example.org"]        # hosts from which `urls` of a layer are fetched; without the key: none
//! ```
//!
//! Hosts are patterns as in policies, `HOST[:PORT]`. Ports are exact; without a port, it is 443.

use toml::{Table, Value};
use url::Url;

use crate::pattern::RegistryPattern;
use crate::reference::RegistryHost;

/// The name of the table.
pub(super) const TABLE: &str = "oras-csi";

/// The hosts that are trusted with credentials, redirects or foreign layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    realms: Vec<RegistryPattern>,
    redirects: Option<Vec<RegistryPattern>>,
    foreign: Vec<RegistryPattern>,
    /// The keys of `[host]` tables whose endpoints get credentials.
    pub(super) credentials_for: Vec<String>,
}

/// An invalid key and what is wrong with its value.
pub(super) type KeyProblem = (String, String);

impl Trust {
    /// Reads the table, if the file has it.
    pub(super) fn read(root: &Table) -> Result<Self, KeyProblem> {
        let table = match root.get(TABLE) {
            None => return Ok(Self::default()),
            Some(Value::Table(table)) => table,
            Some(_) => return Err((TABLE.to_owned(), format!("it must be a table: write [{TABLE}]"))),
        };
        // No other program reads this table, so an unknown key is a typo.
        let known = ["token_realms", "redirects", "credentials_for", "foreign_layers"];
        if let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) {
            return Err((
                format!("{TABLE}.{key}"),
                format!("unknown key: it is none of {}", known.join(", ")),
            ));
        }
        Ok(Self {
            realms: hosts(table, "token_realms")?.unwrap_or_default(),
            redirects: hosts(table, "redirects")?,
            foreign: hosts(table, "foreign_layers")?.unwrap_or_default(),
            credentials_for: strings(table, "credentials_for")?.unwrap_or_default(),
        })
    }

    /// Reports whether a token realm gets credentials.
    pub(crate) fn is_trusted_realm(&self, url: &Url) -> bool {
        matches_any(&self.realms, url)
    }

    /// Reports whether a redirect to that address is followed.
    pub(crate) fn is_redirect_allowed(&self, url: &Url) -> bool {
        self.redirects.as_ref().is_none_or(|hosts| matches_any(hosts, url))
    }

    /// Reports whether a layer may be fetched from that address.
    pub(crate) fn is_foreign_source(&self, url: &Url) -> bool {
        matches_any(&self.foreign, url)
    }
}

fn matches_any(hosts: &[RegistryPattern], url: &Url) -> bool {
    let Some((host, port)) = url.host_str().zip(url.port_or_known_default()) else { return false };
    let host = format!("{host}:{port}").parse::<RegistryHost>();
    host.is_ok_and(|host| hosts.iter().any(|pattern| pattern.matches_registry(&host)))
}

fn strings(table: &Table, key: &str) -> Result<Option<Vec<String>>, KeyProblem> {
    let invalid =
        || (format!("{TABLE}.{key}"), "it must be a list of strings: write them in quotes".to_owned());
    let Some(value) = table.get(key) else { return Ok(None) };
    let items = value.as_array().ok_or_else(invalid)?;
    items
        .iter()
        .map(|item| item.as_str().map(str::to_owned))
        .collect::<Option<_>>()
        .map(Some)
        .ok_or_else(invalid)
}

fn hosts(table: &Table, key: &str) -> Result<Option<Vec<RegistryPattern>>, KeyProblem> {
    let Some(strings) = strings(table, key)? else { return Ok(None) };
    let invalid = |problem: String| (format!("{TABLE}.{key}"), problem);
    let host = |text: String| {
        let pattern = text.parse::<RegistryPattern>().map_err(|error| invalid(error.to_string()))?;
        if pattern.is_whole_registry() {
            Ok(pattern)
        } else {
            Err(invalid(format!("\"{text}\" has a path: write HOST or HOST:PORT")))
        }
    };
    strings.into_iter().map(host).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Trust, KeyProblem> {
        Trust::read(&text.parse().unwrap())
    }

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_are_trusted_as_the_table_says() {
        let trust = read(
            "[oras-csi]\ntoken_realms = [\"auth.example.org\", \"10.0.0.7:5001\"]\nredirects = [\"**.s3.example.org\"]\n\
             foreign_layers = [\"cdn.example.org\"]",
        )
        .unwrap();
        assert!(trust.is_trusted_realm(&url("https://auth.example.org/token")));
        assert!(trust.is_trusted_realm(&url("http://10.0.0.7:5001/token")));
        assert!(!trust.is_trusted_realm(&url("https://auth.example.org:444/token")));
        assert!(!trust.is_trusted_realm(&url("http://auth.example.org/token")), "port 80");
        assert!(!trust.is_trusted_realm(&url("https://auth.example.org.evil.example/token")));
        assert!(trust.is_redirect_allowed(&url("https://a.b.s3.example.org/x")));
        assert!(!trust.is_redirect_allowed(&url("https://evil.example/x")));
        assert!(trust.is_foreign_source(&url("https://cdn.example.org/l")));
        let default = read("server = \"https://x\"").unwrap();
        assert!(default.is_redirect_allowed(&url("https://evil.example/x")));
        assert!(!default.is_foreign_source(&url("https://cdn.example.org/l")));
        assert!(!default.is_trusted_realm(&url("https://x/token")));
    }

    #[test]
    fn errors_name_the_key() {
        for (text, key, message) in [
            ("oras-csi = 1", "oras-csi", "table"),
            ("[oras-csi]\nrealms = []", "oras-csi.realms", "is none of"),
            ("[oras-csi]\nredirects = \"x\"", "oras-csi.redirects", "list"),
            ("[oras-csi]\nredirects = [1]", "oras-csi.redirects", "list"),
            ("[oras-csi]\ntoken_realms = [\"https://x\"]", "oras-csi.token_realms", "https://x"),
            ("[oras-csi]\ntoken_realms = [\"ghcr.io/acme\"]", "oras-csi.token_realms", "has a path"),
        ] {
            let (found, problem) = read(text).unwrap_err();
            assert!(found == key && problem.contains(message), "{text}: {found}: {problem}");
        }
    }
}
