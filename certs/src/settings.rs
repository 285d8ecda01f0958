//! What a caller decides.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;

use crate::error::Error;

/// How often the folder or Secret is read again, unless [`Settings::poll`] says otherwise.
pub const DEFAULT_POLL: Duration = Duration::from_secs(10);

/// The names under which clients reach the server. A certificate that does not cover every one of them
/// is not served, so list what clients use and no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    dns: Vec<String>,
    ips: Vec<IpAddr>,
}

impl Names {
    /// DNS names (no wildcards) and IP addresses; at least one in all.
    ///
    /// # Errors
    /// [`Error::InvalidName`] for what is no DNS name, [`Error::NoNames`] when there is none at all.
    pub fn new<D>(
        dns: impl IntoIterator<Item = D>,
        ips: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Self, Error>
    where
        D: Into<String>,
    {
        let mut names =
            Self { dns: dns.into_iter().map(Into::into).collect(), ips: ips.into_iter().collect() };
        for name in &mut names.dns {
            name.make_ascii_lowercase();
            if !matches!(ServerName::try_from(name.as_str()), Ok(ServerName::DnsName(_))) {
                return Err(Error::InvalidName { name: name.clone() });
            }
        }
        names.dns.sort_unstable();
        names.dns.dedup();
        names.ips.sort_unstable();
        names.ips.dedup();
        if names.dns.is_empty() && names.ips.is_empty() {
            return Err(Error::NoNames);
        }
        Ok(names)
    }

    /// The one name by which the API server dials a Service: `NAME.NAMESPACE.svc`.
    ///
    /// # Errors
    /// [`Error::InvalidName`] where name and namespace make no DNS name.
    pub fn of_service(name: &str, namespace: &str) -> Result<Self, Error> {
        Self::new([format!("{name}.{namespace}.svc")], [])
    }

    /// The DNS names, in lower case, sorted.
    pub fn dns(&self) -> &[String] {
        &self.dns
    }

    /// The IP addresses, sorted.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Every name in the form that rustls checks.
    pub(crate) fn server_names(&self) -> impl Iterator<Item = ServerName<'_>> {
        let dns = self.dns.iter().filter_map(|name| ServerName::try_from(name.as_str()).ok());
        dns.chain(self.ips.iter().map(|ip| ServerName::from(*ip)))
    }
}

/// Where certificates are kept, or come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder with `ca.crt`, `ca.key`, `tls.crt`, `tls.key` and perhaps `ca-previous.crt`. Made, 0700,
    /// where it is missing. A mounted Secret will do.
    Folder(PathBuf),
    /// A Secret with the same entries, read through the API server.
    Secret {
        /// The Secret's namespace.
        namespace: String,
        /// The Secret's name.
        name: String,
    },
}

/// Who makes the certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Issuance {
    /// What is in the [`Source`] decides: a `tls.crt` and `tls.key` that are not from our own CA are
    /// somebody else's and served as they are; where there is nothing, a CA is made and kept there.
    #[default]
    Automatic,
    /// Always somebody else (cert-manager, a person). Nothing is ever written to the [`Source`], and while
    /// there is no `tls.crt` and `tls.key` yet, [`start`](crate::start) succeeds and readiness says what
    /// is awaited. For a Secret that cert-manager fills after the webhook has started.
    External,
}

/// All that [`start`](crate::start) needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) source: Source,
    pub(crate) names: Names,
    pub(crate) issuance: Issuance,
    pub(crate) webhook_configuration: Option<String>,
    pub(crate) validating_webhook_configuration: Option<String>,
    pub(crate) poll: Duration,
}

impl Settings {
    /// Certificates kept in `source` for a server called `names`; automatic issuance, no webhook
    /// configuration, [`DEFAULT_POLL`].
    pub fn new(source: Source, names: Names) -> Self {
        Self {
            source,
            names,
            issuance: Issuance::default(),
            webhook_configuration: None,
            validating_webhook_configuration: None,
            poll: DEFAULT_POLL,
        }
    }

    /// Who makes the certificate.
    #[must_use]
    pub fn issuance(mut self, issuance: Issuance) -> Self {
        self.issuance = issuance;
        self
    }

    /// The MutatingWebhookConfiguration whose `caBundle` shall be kept in step. Without one, trust is
    /// somebody else's business and readiness does not ask for it.
    #[must_use]
    pub fn webhook_configuration(mut self, name: Option<impl Into<String>>) -> Self {
        self.webhook_configuration = name.map(Into::into);
        self
    }

    /// The ValidatingWebhookConfiguration whose `caBundle` shall be kept in step too. For one that can be
    /// done without (`failurePolicy: Ignore`): neither readiness nor a new certificate waits for it, and
    /// the log says why while it is missing or does not trust the certificate.
    #[must_use]
    pub fn validating_webhook_configuration(mut self, name: Option<String>) -> Self {
        self.validating_webhook_configuration = name;
        self
    }

    /// How often the folder or Secret is read again; at least 10 ms.
    #[must_use]
    pub fn poll(mut self, every: Duration) -> Self {
        self.poll = every.max(Duration::from_millis(10));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::wildcard("*.example.org")]
    #[case::address("10.0.0.1")]
    #[case::empty("")]
    #[case::space("a b")]
    fn what_is_no_dns_name_is_refused_by_name(#[case] name: &str) {
        let error = Names::new([name], []).unwrap_err();
        assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
    }

    #[test]
    fn names_are_folded_and_not_empty() {
        assert!(matches!(Names::new(Vec::<String>::new(), []), Err(Error::NoNames)));
        let names = Names::new(["B.x", "a.x", "b.x"], []).unwrap();
        assert_eq!(names.dns(), ["a.x", "b.x"]);
        assert_eq!(Names::of_service("hook", "oras").unwrap().dns(), ["hook.oras.svc"]);
    }
}
