//! Pushes through oci-client and without it: requests, credentials, redirects and addresses.

use std::sync::Arc;

use rstest::rstest;

use super::*;
use crate::credentials::Credential;
use crate::registry::http::route::Capability;
use crate::registry::http::write::{Blob, BlobContent};
use crate::registry::{
    Anonymous, Artifact, Candidate, Content, Credentials, Layer, Publication, PublishError, Publisher,
    Source, tls,
};

/// `alice:secret`
const ALICE: &str = "Basic YWxpY2U6c2VjcmV0";

struct Alice;

#[async_trait::async_trait]
impl Credentials for Alice {
    async fn candidates(&self, _: &crate::reference::RegistryHost, _: &str) -> Vec<Candidate> {
        let credential = Credential::basic("alice".to_owned(), "secret".to_owned()).unwrap();
        vec![Candidate::new(Source::Administrator, credential)]
    }
}

/// Accepts uploads. `location` is the address of an upload for a request.
async fn upload_server(location: impl Fn(&Request) -> String + Send + Sync + 'static) -> Server {
    Server::start(move |request| respond(request, &location(request))).await
}

fn respond(request: &Request, location: &str) -> Vec<Part> {
    match request.method.as_str() {
        "POST" => answer(202, &[("Location", location)], b""),
        "PUT" => answer(201, &[("Location", "/v2/team/app/done")], b""),
        "GET" if request.target == "/v2/" => answer(200, &[], b"{}"),
        _ => answer(404, &[], b""),
    }
}

fn own_location(_: &Request) -> String {
    "/v2/team/app/blobs/uploads/1?state=x".to_owned()
}

async fn push(
    client: HttpRegistry,
    credentials: Arc<dyn Credentials>,
    to: &Reference,
) -> Result<PinnedReference, PublishError> {
    let layer = Layer::new("text/plain", Content::Bytes("hello".into()));
    let publication = Publication::of_artifact(Artifact::new("application/vnd.example", vec![layer]));
    Publisher::new(Arc::new(client), credentials).publish(to, to.tag(), &publication).await?.into_listed()
}

fn blob(bytes: &'static [u8]) -> Blob {
    let (digest, size) = (Digest::sha256_of(bytes), bytes.len() as u64);
    Blob { digest, size, content: BlobContent::Bytes(bytes.into()) }
}

#[tokio::test]
async fn oci_client_pushes_blobs_and_manifests() {
    let server = upload_server(own_location).await;
    let client = client(&server);
    let to = reference(&server);
    let route = client.inner.route(to.registry(), to.repository(), &client.credential).await.unwrap();
    let attempt = route.attempts(Capability::Push).next().unwrap();
    // Without CA certificates on this machine, oci-client cannot be used.
    let can_use = !tls::system_roots().is_empty();
    for content in [b"hello".as_slice(), b""] {
        let pushed = client.inner.push_blob_with_oci_client(&attempt, &blob(content)).await.unwrap();
        assert_eq!(pushed, can_use);
    }
    let manifest = bytes::Bytes::from_static(b"{}");
    for name in ["v1".to_owned(), Digest::sha256_of(b"{}").to_string()] {
        let push =
            client.inner.push_manifest_with_oci_client(&attempt, &name, media::OCI_MANIFEST, &manifest);
        assert_eq!(push.await.unwrap(), can_use, "{name}");
    }
}

#[tokio::test]
async fn a_push_sends_blobs_then_the_manifest() {
    let server = upload_server(own_location).await;
    let pushed = push(client(&server), Arc::new(Anonymous), &reference(&server)).await.unwrap();
    let requests = server.requests();
    let puts: Vec<_> = requests.iter().filter(|request| request.method == "PUT").collect();
    assert_eq!(puts.iter().map(|put| put.body.as_str()).take(2).collect::<Vec<_>>(), ["{}", "hello"]);
    assert!(puts[1].target.contains("state=x&digest=sha256"), "{}", puts[1].target);
    assert_eq!(puts[2].target, "/v2/team/app/manifests/v1");
    assert_eq!(puts[2].header("content-type"), media::OCI_MANIFEST);
    assert_eq!(*pushed.digest(), Digest::sha256_of(puts[2].body.as_bytes()));
    assert_eq!(puts.len(), 3);
}

#[rstest]
#[case::bearer(true)]
#[case::basic(false)]
#[tokio::test]
async fn a_push_authenticates_as_the_registry_requires(#[case] has_tokens: bool) {
    let server = Server::start(move |request| {
        let authorization = request.header("authorization").to_owned();
        if request.target.starts_with("/token") {
            assert_eq!(authorization, ALICE);
            let push = request.target.contains("pull%2Cpush");
            return answer(200, &[], if push { br#"{"token":"push"}"# } else { br#"{"token":"pull"}"# });
        }
        let needed = if matches!(request.method.as_str(), "GET" | "HEAD") { "pull" } else { "push" };
        let challenge = if has_tokens {
            // As ghcr.io, with the scope of a placeholder repository for the root of the API.
            let root = if request.target == "/v2/" { ",scope=\"repository:user/image:pull\"" } else { "" };
            format!("Bearer realm=\"http://{}/token\"{root}", request.header("host"))
        } else {
            "Basic realm=\"x\"".to_owned()
        };
        let is_accepted = if has_tokens {
            authorization == "Bearer push" || authorization == format!("Bearer {needed}")
        } else {
            authorization == ALICE
        };
        if is_accepted {
            respond(request, &own_location(request))
        } else {
            answer(401, &[("WWW-Authenticate", &challenge)], b"")
        }
    })
    .await;
    push(client(&server), Arc::new(Alice), &reference(&server)).await.unwrap();
    let requests = server.requests();
    let count = |method: &str| requests.iter().filter(|request| request.method == method).count();
    assert_eq!(count("PUT"), 3);
    if !tls::system_roots().is_empty() {
        assert_eq!(count("POST"), 2, "oci-client has the authorization from the beginning");
    }
    assert!(!requests.iter().any(|request| request.target.contains("user%2Fimage")));
}

/// Neither client sends anything to the other server, and no credential leaves the registry.
#[rstest]
#[case::upload(true)]
#[case::redirect(false)]
#[tokio::test]
async fn a_push_does_not_leave_the_registry(#[case] is_location: bool) {
    let other = Server::start(|_| answer(201, &[("Location", "/x")], b"")).await;
    let away = format!("http://{}/v2/team/app/blobs/uploads/1", other.host());
    let server = Server::start(move |request| match request.method.as_str() {
        "POST" if is_location => answer(202, &[("Location", &away)], b""),
        "POST" => answer(307, &[("Location", &away)], b""),
        _ => respond(request, ""),
    })
    .await;
    let toml =
        format!("server = \"http://{}\"\n{}", server.host(), push_only(&format!("http://{}", other.host())));
    let (client, _folder) =
        client_with(&toml.replace("capabilities = [\"push\"]", "capabilities = [\"pull\"]"));
    let error = push(client, Arc::new(Anonymous), &"registry.example/team/app:v1".parse().unwrap())
        .await
        .unwrap_err();
    let PublishError::Registry { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), Kind::NotAllowed, "{error}");
    assert!(error.to_string().contains("not followed"), "{error}");
    assert_eq!(other.lines(), [""; 0]);
}

#[tokio::test]
async fn a_push_to_a_forbidden_address_is_rejected() {
    let server = upload_server(own_location).await;
    let registry = HttpRegistry::new(HostsConfig::load(None).unwrap(), settings());
    for host in ["127.0.0.1", "localhost"] {
        let to: Reference = format!("{host}:{}/team/app:v1", server.port).parse().unwrap();
        let error = push(registry.clone(), Arc::new(Anonymous), &to).await.unwrap_err();
        let PublishError::Registry { source, .. } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), Kind::NotAllowed, "{error}");
    }
    assert_eq!(server.lines(), [""; 0]);
}

#[tokio::test]
async fn a_push_that_is_refused_has_the_registrys_message() {
    let server = Server::start(|request| match request.method.as_str() {
        "POST" => answer(403, &[], br#"{"errors":[{"code":"DENIED","message":"read only"}]}"#),
        _ => respond(request, ""),
    })
    .await;
    let error =
        push(client(&server), Arc::new(Anonymous), &reference(&server)).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot push the blob sha256:"), "{error}");
    assert!(error.contains("refused with 403: DENIED: read only; asked with no credentials"), "{error}");
}
