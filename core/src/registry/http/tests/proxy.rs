//! Answers of a proxy that look like those of a registry.

use rstest::rstest;

use super::*;
use crate::registry::proxy::Proxies;

/// Requests a tag of a plain http registry through a proxy, which sends this answer.
async fn error_through_proxy(reply: Vec<Part>) -> (RegistryError, String) {
    let proxy = Server::start(move |_| reply.clone()).await;
    let url = format!("http://alice:hunter2@{}", proxy.host());
    let proxies = Proxies::read(|name| (name == "HTTP_PROXY").then(|| url.clone()));
    let reference: Reference = "registry.example:5000/team/app:v1".parse().unwrap();
    let hosts = HostsConfig::load(None).unwrap().with_plain_http(reference.registry().clone());
    let error = HttpRegistry::with_proxies(hosts, settings(), proxies).resolve(&reference).await.unwrap_err();
    assert_eq!(proxy.requests()[0].target, "http://registry.example:5000/v2/team/app/manifests/v1");
    assert!(!error.to_string().contains("hunter2") && !error.to_string().contains("alice"), "{error}");
    assert!(!error.to_string().contains("YWxpY2U6aHVudGVyMg"), "{error}");
    (error, format!("the proxy http://{}", proxy.host()))
}

/// The registry never sees such a request, so the advice to name a Secret would be wrong.
#[rstest]
#[case::requires_a_password(answer(407, &[("Proxy-Authenticate", "Basic realm=\"x\"")], b""), "requires a user and a password")]
#[case::refuses(answer(403, &[("Via", "1.1 squid")], b"<html>blocked</html>"), "answered 403, and not the registry")]
#[case::repeats_its_password(answer(403, &[], b"no: Basic YWxpY2U6aHVudGVyMg=="), "answered 403, and not the registry")]
#[tokio::test]
async fn a_refusal_of_a_proxy_names_the_proxy(#[case] reply: Vec<Part>, #[case] expected: &str) {
    let (error, proxy) = error_through_proxy(reply).await;
    assert_eq!(error.kind(), Kind::Misconfigured, "{error}");
    assert!(error.to_string().contains(&proxy) && error.to_string().contains(expected), "{error}");
}

/// A registry behind a proxy can refuse as well.
#[rstest]
#[case::with_codes(answer(403, &[], br#"{"errors":[{"code":"DENIED","message":"no"}]}"#))]
#[case::with_a_challenge(answer(403, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""))]
#[case::with_its_version(answer(403, &[("Docker-Distribution-Api-Version", "registry/2.0")], b"no"))]
#[tokio::test]
async fn a_refusal_of_a_registry_behind_a_proxy_is_the_registrys(#[case] reply: Vec<Part>) {
    let (error, _) = error_through_proxy(reply).await;
    assert_eq!(error.kind(), Kind::Refused, "{error}");
}
