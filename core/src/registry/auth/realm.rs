//! Whose token service gets credentials.
//!
//! A registry names the address at which tokens are to be had, and is not trusted with the choice: what is
//! asked for there shows a password. It goes to the registry's own host, to its siblings of one registrable
//! domain (registry.gitlab.com and gitlab.com, registry-1.docker.io and auth.docker.io: the public suffix list
//! knows which domains belong to one owner), and where the administrator says so. Everybody else is asked for a
//! token for nobody.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::credentials::Credential;
use crate::reference::RegistryHost;
use crate::registry::Endpoint;

/// Kubernetes' services: namespaces of one cluster have different owners.
const CLUSTER: [&str; 2] = [".svc", ".cluster.local"];

/// Where tokens are to be had, as one endpoint of a registry says.
pub(in crate::registry) struct Realm<'a> {
    pub(in crate::registry) url: &'a Url,
    pub(in crate::registry) endpoint: &'a Endpoint,
    pub(in crate::registry) registry: &'a RegistryHost,
}

impl Realm<'_> {
    /// Whether it may see the registry's credentials.
    pub(in crate::registry) fn is_trusted(&self) -> bool {
        let Some(realm) = self.url.host_str() else { return false };
        let own = [self.endpoint.base().host_str(), Some(self.registry.host())];
        own.into_iter().flatten().any(|host| belong_together(realm, host))
            || self.endpoint.trust().is_realm(self.url)
    }
}

/// Whether two hosts are one, or of one registrable domain.
fn belong_together(one: &str, other: &str) -> bool {
    if one.eq_ignore_ascii_case(other) {
        return true;
    }
    match (domain(one), domain(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

/// The registrable domain of a name; addresses, names without a dot and services of a cluster have none.
fn domain(host: &str) -> Option<String> {
    let host = host.to_ascii_lowercase();
    let is_name = matches!(Host::parse(&host), Ok(Host::Domain(_)));
    if !is_name || CLUSTER.iter().any(|suffix| host.ends_with(suffix)) {
        return None;
    }
    psl::domain_str(&host).map(str::to_owned)
}

/// `Authorization: Basic` (RFC 7617), where the credential has a user name and a password.
pub(in crate::registry) fn basic(credential: &Credential) -> Option<HeaderValue> {
    let Credential::Basic { username, password, .. } = credential else { return None };
    let plain = Zeroizing::new(format!("{}:{}", username.expose(), password.expose()));
    let encoded = Zeroizing::new(STANDARD.encode(plain.as_bytes()));
    let mut header = HeaderValue::from_str(&format!("Basic {}", encoded.as_str())).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ghcr.io", "ghcr.io", true)]
    #[case("auth.docker.io", "registry-1.docker.io", true)]
    #[case("gitlab.com", "registry.gitlab.com", true)]
    #[case("gitlab.corp.internal", "registry.gitlab.corp.internal", true)]
    #[case("GITLAB.com", "registry.gitlab.com", true)]
    #[case("gitlab.com.evil.example", "registry.gitlab.com", false)]
    #[case("evilgitlab.com", "registry.gitlab.com", false)]
    #[case("evil.co.uk", "registry.co.uk", false)]
    #[case("evil.github.io", "registry.github.io", false)]
    #[case("a.s3.amazonaws.com", "b.s3.amazonaws.com", false)]
    #[case("10.0.0.8", "10.0.0.7", false)]
    #[case("10.0.0.7", "10.0.0.7", true)]
    #[case("[2001:db8::1]", "[2001:db8::2]", false)]
    #[case("auth", "registry", false)]
    #[case("io", "ghcr.io", false)]
    #[case("auth.team-b.svc.cluster.local", "registry.team-a.svc.cluster.local", false)]
    #[case("auth.team-b.svc", "registry.team-a.svc", false)]
    fn hosts_of_one_owner(#[case] realm: &str, #[case] registry: &str, #[case] together: bool) {
        assert_eq!(belong_together(realm, registry), together);
    }

    #[test]
    fn a_password_is_encoded_and_hidden() {
        let credential = Credential::basic("Aladdin".to_owned(), "open sesame".to_owned()).unwrap();
        let header = basic(&credential).unwrap();
        assert_eq!(header.as_bytes(), b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(!format!("{header:?}").contains("QWxh"));
        assert_eq!(basic(&Credential::Anonymous), None);
    }
}
