//! Decides which token services get credentials.
//!
//! A registry names the token service, and a token request contains the password. The registry is not trusted with
//! that choice. Credentials go only to the registry's own host, to hosts of the same registrable domain
//! (registry.gitlab.com and gitlab.com, registry-1.docker.io and auth.docker.io; the public suffix list says which
//! domains have one owner), and to `token_realms` of the administrator. From all other token services, an anonymous
//! token is requested.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::credentials::Credential;
use crate::reference::RegistryHost;
use crate::registry::hosts::Endpoint;

/// The suffix of a cluster with the default domain. The namespaces of one cluster have different owners.
const CLUSTER_SUFFIX: &str = ".cluster.local";
/// The labels of services and of pods: `NAME.NAMESPACE.svc.DOMAIN`, `ADDRESS.NAMESPACE.pod.DOMAIN` (Kubernetes, "DNS for
/// Services and Pods"). DOMAIN is the choice of each cluster, and of a set of clusters (KEP-1645), so it decides nothing.
const CLUSTER_LABELS: [&str; 2] = ["svc", "pod"];
/// How many labels are at least before one of [`CLUSTER_LABELS`]: the name and the namespace.
const LABELS_BEFORE: usize = 2;

/// A token service that an endpoint of a registry names.
pub(in crate::registry) struct Realm<'a> {
    pub(in crate::registry) url: &'a Url,
    pub(in crate::registry) endpoint: &'a Endpoint,
    pub(in crate::registry) registry: &'a RegistryHost,
}

impl Realm<'_> {
    /// Reports whether the token service gets the registry's credentials.
    pub(in crate::registry) fn is_trusted(&self) -> bool {
        let Some(realm) = self.url.host_str() else { return false };
        let hosts = [self.endpoint.base().host_str(), Some(self.registry.host())];
        hosts.into_iter().flatten().any(|host| have_same_owner(realm, host))
            || self.endpoint.trust().is_trusted_realm(self.url)
    }
}

/// Reports whether two hosts are equal or have the same registrable domain.
fn have_same_owner(one: &str, other: &str) -> bool {
    if one.eq_ignore_ascii_case(other) {
        return true;
    }
    match (registrable_domain(one), registrable_domain(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

/// Returns the registrable domain of a host name. IP addresses, names without a dot, and services and pods of a cluster,
/// have none.
fn registrable_domain(host: &str) -> Option<String> {
    let host = host.to_ascii_lowercase();
    // A name with a dot at its end is the same name (RFC 1034, section 3.1).
    let host = host.strip_suffix('.').unwrap_or(&host);
    let is_name = matches!(Host::parse(host), Ok(Host::Domain(_)));
    if !is_name || is_in_cluster(host) {
        return None;
    }
    oras_csi_public_suffix::registrable_domain(host).map(str::to_owned)
}

/// Reports whether a name is one of a service or of a pod, whatever the domain of the cluster is.
fn is_in_cluster(host: &str) -> bool {
    host.ends_with(CLUSTER_SUFFIX)
        || host.split('.').skip(LABELS_BEFORE).any(|label| CLUSTER_LABELS.contains(&label))
}

/// Returns `Authorization: Basic` (RFC 7617) for a credential with a user name and a password.
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
    #[case("auth.team-b.svc.corp.local", "registry.team-a.svc.corp.local", false)]
    #[case("registry.team-a.svc.corp.local", "registry.team-a.svc.corp.local", true)]
    #[case("auth.team-b.svc.corp.example.com", "registry.corp.example.com", false)]
    #[case("10-0-0-7.team-b.pod.corp.local", "registry.corp.local", false)]
    #[case("a.auth.team-b.svc.corp.local", "registry.team-a.svc.corp.local", false)]
    #[case("auth.team-b.svc.clusterset.local", "registry.team-a.svc.clusterset.local", false)]
    #[case("auth.team-b.svc.cluster.local.", "registry.team-a.svc.cluster.local.", false)]
    #[case("auth.corp.local", "registry.corp.local", true)]
    #[case("auth.svc.example.com", "registry.svc.example.com", true)]
    #[case("gitlab.com.", "registry.gitlab.com", true)]
    fn hosts_have_the_same_owner(#[case] realm: &str, #[case] registry: &str, #[case] same: bool) {
        assert_eq!(have_same_owner(realm, registry), same);
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
