//! What an administrator lets a registry name, beside what is let by default.
//!
//! A table of our own in `hosts.toml`, which containerd and other readers of the file pass over:
//!
//! ```toml
//! [oras-csi]
//! token_realms = ["auth.example.org"]         # more hosts that may see the registry's credentials
//! redirects = ["**.storage.example.org"]      # the only hosts that are followed to; left out: any
//! credentials_for = ["https://mirror:5000"]   # a [host] that gets the registry's credentials, too
//! foreign_layers = ["cdn.example.org"]        # hosts from which `urls` of a layer are fetched; left out: none
//! ```
//!
//! Hosts are patterns as in policies, `HOST[:PORT]`: ports are exact, 443 where none is written.

use toml::{Table, Value};
use url::Url;

use crate::pattern::RegistryPattern;
use crate::reference::RegistryHost;

/// The table's name.
pub(super) const TABLE: &str = "oras-csi";

/// Hosts by what they are trusted with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    realms: Vec<RegistryPattern>,
    redirects: Option<Vec<RegistryPattern>>,
    foreign: Vec<RegistryPattern>,
    /// Keys of `[host]` tables.
    pub(super) credentials_for: Vec<String>,
}

/// A key that is wrong, and how.
pub(super) type Wrong = (String, String);

impl Trust {
    /// Reads the table of the file's root, if it is there.
    pub(super) fn read(root: &Table) -> Result<Self, Wrong> {
        let table = match root.get(TABLE) {
            None => return Ok(Self::default()),
            Some(Value::Table(table)) => table,
            Some(_) => return Err((TABLE.to_owned(), format!("write it as a table, [{TABLE}]"))),
        };
        // Nobody else reads this table, so a key that we do not know is a typo.
        let known = ["token_realms", "redirects", "credentials_for", "foreign_layers"];
        if let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) {
            return Err((format!("{TABLE}.{key}"), format!("is none of {}", known.join(", "))));
        }
        Ok(Self {
            realms: hosts(table, "token_realms")?.unwrap_or_default(),
            redirects: hosts(table, "redirects")?,
            foreign: hosts(table, "foreign_layers")?.unwrap_or_default(),
            credentials_for: texts(table, "credentials_for")?.unwrap_or_default(),
        })
    }

    /// Whether a token realm may see credentials.
    pub(crate) fn is_realm(&self, url: &Url) -> bool {
        has(&self.realms, url)
    }

    /// Whether a redirect to that address is followed.
    pub(crate) fn is_followed(&self, url: &Url) -> bool {
        self.redirects.as_ref().is_none_or(|hosts| has(hosts, url))
    }

    /// Whether a layer may be fetched from that address.
    pub(crate) fn is_foreign_source(&self, url: &Url) -> bool {
        has(&self.foreign, url)
    }
}

fn has(hosts: &[RegistryPattern], url: &Url) -> bool {
    let Some((host, port)) = url.host_str().zip(url.port_or_known_default()) else { return false };
    let host = format!("{host}:{port}").parse::<RegistryHost>();
    host.is_ok_and(|host| hosts.iter().any(|pattern| pattern.matches_registry(&host)))
}

fn texts(table: &Table, key: &str) -> Result<Option<Vec<String>>, Wrong> {
    let wrong = || (format!("{TABLE}.{key}"), "write a list of texts in quotes".to_owned());
    let Some(value) = table.get(key) else { return Ok(None) };
    let items = value.as_array().ok_or_else(wrong)?;
    items
        .iter()
        .map(|item| item.as_str().map(str::to_owned))
        .collect::<Option<_>>()
        .map(Some)
        .ok_or_else(wrong)
}

fn hosts(table: &Table, key: &str) -> Result<Option<Vec<RegistryPattern>>, Wrong> {
    let Some(texts) = texts(table, key)? else { return Ok(None) };
    let wrong = |words: String| (format!("{TABLE}.{key}"), words);
    let host = |text: String| {
        let pattern = text.parse::<RegistryPattern>().map_err(|error| wrong(error.to_string()))?;
        if pattern.is_whole_registry() {
            Ok(pattern)
        } else {
            Err(wrong(format!("\"{text}\" has a path: write HOST or HOST:PORT")))
        }
    };
    texts.into_iter().map(host).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Trust, Wrong> {
        Trust::read(&text.parse().unwrap())
    }

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn says_which_hosts_are_trusted_with_what() {
        let trust = read(
            "[oras-csi]\ntoken_realms = [\"auth.example.org\", \"10.0.0.7:5001\"]\nredirects = [\"**.s3.example.org\"]\n\
             foreign_layers = [\"cdn.example.org\"]",
        )
        .unwrap();
        assert!(trust.is_realm(&url("https://auth.example.org/token")));
        assert!(trust.is_realm(&url("http://10.0.0.7:5001/token")));
        assert!(!trust.is_realm(&url("https://auth.example.org:444/token")));
        assert!(!trust.is_realm(&url("http://auth.example.org/token")), "port 80");
        assert!(!trust.is_realm(&url("https://auth.example.org.evil.example/token")));
        assert!(trust.is_followed(&url("https://a.b.s3.example.org/x")));
        assert!(!trust.is_followed(&url("https://evil.example/x")));
        assert!(trust.is_foreign_source(&url("https://cdn.example.org/l")));
        let default = read("server = \"https://x\"").unwrap();
        assert!(default.is_followed(&url("https://evil.example/x")));
        assert!(!default.is_foreign_source(&url("https://cdn.example.org/l")));
        assert!(!default.is_realm(&url("https://x/token")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, key, words) in [
            ("oras-csi = 1", "oras-csi", "table"),
            ("[oras-csi]\nrealms = []", "oras-csi.realms", "is none of"),
            ("[oras-csi]\nredirects = \"x\"", "oras-csi.redirects", "list"),
            ("[oras-csi]\nredirects = [1]", "oras-csi.redirects", "list"),
            ("[oras-csi]\ntoken_realms = [\"https://x\"]", "oras-csi.token_realms", "https://x"),
            ("[oras-csi]\ntoken_realms = [\"ghcr.io/acme\"]", "oras-csi.token_realms", "has a path"),
        ] {
            let (found, problem) = read(text).unwrap_err();
            assert!(found == key && problem.contains(words), "{text}: {found}: {problem}");
        }
    }
}
