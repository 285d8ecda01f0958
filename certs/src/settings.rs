//! The settings of this crate.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;

use crate::error::Error;

/// How often the folder or Secret is read, unless [`Settings::poll`] sets another interval.
pub const DEFAULT_POLL: Duration = Duration::from_secs(10);

/// The names under which clients reach the server. A certificate that does not cover all of them is not served, so list only
/// names that clients use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    dns: Vec<String>,
    ips: Vec<IpAddr>,
}

impl Names {
    /// Makes names from DNS names (without wildcards) and IP addresses. There must be at least one.
    ///
    /// # Errors
    /// [`Error::InvalidName`] for a name that is not a DNS name, [`Error::NoNames`] if there is no name.
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

    /// Makes the name under which the API server calls a Service: `NAME.NAMESPACE.svc`.
    ///
    /// # Errors
    /// [`Error::InvalidName`] if name and namespace do not make a DNS name.
    pub fn of_service(name: &str, namespace: &str) -> Result<Self, Error> {
        Self::new([format!("{name}.{namespace}.svc")], [])
    }

    /// Returns the DNS names, in lower case and sorted.
    pub fn dns(&self) -> &[String] {
        &self.dns
    }

    /// Returns the IP addresses, sorted.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Returns every name in the form that rustls checks.
    pub(crate) fn server_names(&self) -> impl Iterator<Item = ServerName<'_>> {
        let dns = self.dns.iter().filter_map(|name| ServerName::try_from(name.as_str()).ok());
        dns.chain(self.ips.iter().map(|ip| ServerName::from(*ip)))
    }
}

/// Where certificates are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder with `ca.crt`, `ca.key`, `tls.crt`, `tls.key` and optionally `ca-previous.crt`. It is created with mode 0700 if
    /// it is missing. It can be a mounted Secret.
    Folder(PathBuf),
    /// A Secret with the same entries, read through the API server.
    Secret {
        /// The namespace of the Secret.
        namespace: String,
        /// The name of the Secret.
        name: String,
    },
}

/// Who issues the certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Issuance {
    /// The contents of the [`Source`] decide. A `tls.crt` and `tls.key` that the CA in the source did not sign are external
    /// and served as they are. If there is nothing, a CA is created and stored there.
    #[default]
    Automatic,
    /// Always another tool, such as cert-manager, or a person. Nothing is ever written to the [`Source`]. While there is no
    /// `tls.crt` and `tls.key`, [`start`](crate::start) succeeds and readiness reports that they are missing. For a Secret
    /// that cert-manager fills after the start of the webhook.
    External,
}

/// The settings for [`start`](crate::start).
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
    /// Makes settings for certificates in `source` that cover `names`, with automatic issuance, without a webhook
    /// configuration, and with [`DEFAULT_POLL`].
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

    /// Sets who issues the certificate.
    #[must_use]
    pub fn issuance(mut self, issuance: Issuance) -> Self {
        self.issuance = issuance;
        self
    }

    /// Sets the MutatingWebhookConfiguration whose `caBundle` is written. Without one, readiness does not check whether the
    /// API server trusts the certificate.
    #[must_use]
    pub fn webhook_configuration(mut self, name: Option<impl Into<String>>) -> Self {
        self.webhook_configuration = name.map(Into::into);
        self
    }

    /// Sets the ValidatingWebhookConfiguration whose `caBundle` is written as well. It is for optional webhooks
    /// (`failurePolicy: Ignore`): neither readiness nor a new certificate waits for it. The log reports if it is missing or
    /// does not trust the certificate.
    #[must_use]
    pub fn validating_webhook_configuration(mut self, name: Option<String>) -> Self {
        self.validating_webhook_configuration = name;
        self
    }

    /// Sets how often the folder or Secret is read, at least 10 ms.
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
    fn the_error_for_an_invalid_name_has_the_name(#[case] name: &str) {
        let error = Names::new([name], []).unwrap_err();
        assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
    }

    #[test]
    fn names_are_in_lower_case_and_not_empty() {
        assert!(matches!(Names::new(Vec::<String>::new(), []), Err(Error::NoNames)));
        let names = Names::new(["B.x", "a.x", "b.x"], []).unwrap();
        assert_eq!(names.dns(), ["a.x", "b.x"]);
        assert_eq!(Names::of_service("hook", "oras").unwrap().dns(), ["hook.oras.svc"]);
    }
}
