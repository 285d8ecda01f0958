use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use rstest::rstest;

use super::*;
use crate::credentials::{Administrator, AdministratorSettings, Credential, DockerConfig};
use crate::reference::RegistryHost;
use crate::registry::guard::HostResolver;
use crate::registry::{Access, Candidate, Credentials, Keyring, Source};

/// `alice:secret`
const ALICE: &str = "Basic YWxpY2U6c2VjcmV0";

fn alice() -> Credential {
    Credential::basic("alice".to_owned(), "secret".to_owned()).unwrap()
}

fn bob() -> Credential {
    Credential::basic("bob".to_owned(), "other".to_owned()).unwrap()
}

fn as_alice(client: &HttpRegistry) -> Arc<dyn Registry> {
    Arc::new(client.clone()).with_credential(alice())
}

/// Resolves every name to this machine.
#[derive(Debug)]
struct LoopbackResolver;

#[async_trait]
impl HostResolver for LoopbackResolver {
    async fn resolve_host(&self, _: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![([127, 0, 0, 1], 0).into()])
    }
}

/// A client for `registry.example` with additional tables of `hosts.toml`. All hosts are this machine.
fn named_client(server: &Server, more: &str) -> (HttpRegistry, TempDir) {
    let toml = format!("server = \"http://registry.example:{}\"\n{more}", server.port);
    client_with_settings(&toml, settings().with_resolver(Arc::new(LoopbackResolver)))
}

fn named() -> Reference {
    "registry.example/team/app:v1".parse().unwrap()
}

/// A registry that requires a user name and a password.
async fn basic_only() -> Server {
    Server::start(|request| match request.header("authorization") {
        ALICE => manifest_answer(),
        _ => answer(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
    })
    .await
}

/// A registry whose tokens come from `realm`. It accepts every token.
async fn token_registry(realm: String) -> Server {
    Server::start(move |request| {
        if request.header("authorization").starts_with("Bearer ") {
            return manifest_answer();
        }
        answer(401, &[("WWW-Authenticate", &format!("Bearer realm=\"{realm}\",service=\"r\""))], b"")
    })
    .await
}

async fn token_service() -> Server {
    Server::start(|_| answer(200, &[], br#"{"token":"t","expires_in":300}"#)).await
}

#[tokio::test]
async fn a_password_is_sent_after_a_challenge_and_then_with_every_request() {
    let server = basic_only().await;
    let client = as_alice(&client(&server));
    for _ in 0..2 {
        client.resolve(&reference(&server)).await.unwrap();
    }
    let sent: Vec<_> = server.requests().iter().map(|one| one.header("authorization").to_owned()).collect();
    assert_eq!(sent, ["", ALICE, ALICE]);
}

struct Both;

#[async_trait]
impl Credentials for Both {
    async fn candidates(&self, _: &RegistryHost, _: &str) -> Vec<Candidate> {
        vec![Candidate::new(Source::Secret("bobs".into()), bob()), Candidate::anonymous()]
    }
}

#[tokio::test]
async fn a_refusal_names_the_tried_credentials() {
    let server = basic_only().await;
    let anonymous = client(&server).resolve(&reference(&server)).await.unwrap_err();
    assert!(
        anonymous.to_string().contains("refused with 401: the registry requires credentials"),
        "{anonymous}"
    );
    let access = Access::new(Arc::new(client(&server)), Arc::new(Both));
    let error = access.resolve(&reference(&server)).await.unwrap_err();
    assert!(error.to_string().ends_with("asked with secret bobs, no credentials"), "{error}");
    assert!(!format!("{error:?}{error}").contains("other"));
}

#[tokio::test]
async fn credentials_are_tried_in_order_until_one_is_accepted() {
    struct Three(AtomicUsize);
    #[async_trait]
    impl Credentials for Three {
        async fn candidates(&self, _: &RegistryHost, _: &str) -> Vec<Candidate> {
            self.0.fetch_add(1, Ordering::SeqCst);
            let bobs = Candidate::new(Source::Secret("bobs".into()), bob());
            vec![bobs, Candidate::new(Source::Secret("alices".into()), alice()), Candidate::anonymous()]
        }
    }
    let server = basic_only().await;
    let access = Access::new(Arc::new(client(&server)), Arc::new(Three(AtomicUsize::new(0))));
    access.resolve(&reference(&server)).await.unwrap();
    let before = server.requests().len();
    access.resolve(&reference(&server)).await.unwrap();
    let after = &server.requests()[before..];
    assert_eq!(after.len(), 1, "the accepted credential is used first: {after:?}");
    assert_eq!(after[0].header("authorization"), ALICE);
}

#[tokio::test]
async fn a_token_service_on_the_registrys_host_gets_the_password() {
    let tokens = token_service().await;
    // Another port of the same host.
    let server = token_registry(format!("http://{}/token", tokens.host())).await;
    as_alice(&client(&server)).resolve(&reference(&server)).await.unwrap();
    assert_eq!(tokens.requests()[0].header("authorization"), ALICE);
    assert!(server.requests().iter().all(|request| !request.header("authorization").starts_with("Basic")));
}

#[tokio::test]
async fn a_token_service_of_the_same_domain_gets_the_password_and_another_does_not() {
    for (host, shown) in
        [("auth.registry.example", true), ("stranger.test", false), ("registry.example.evil.test", false)]
    {
        let tokens = token_service().await;
        let server = token_registry(format!("http://{host}:{}/token", tokens.port)).await;
        // The entry has no capability that is used: it only allows the address.
        let may = format!("[host.\"http://{host}:{}\"]\ncapabilities = [\"push\"]\n", tokens.port);
        let (client, _folder) = named_client(&server, &may);
        as_alice(&client).resolve(&named()).await.unwrap();
        assert_eq!(tokens.requests()[0].header("authorization"), if shown { ALICE } else { "" }, "{host}");
        // The administrator can allow it.
        let trusted = format!("{may}[oras-csi]\ntoken_realms = [\"{host}:{}\"]\n", tokens.port);
        let (client, _folder) = named_client(&server, &trusted);
        as_alice(&client).resolve(&named()).await.unwrap();
        assert_eq!(tokens.requests()[1].header("authorization"), ALICE, "{host}");
    }
}

#[tokio::test]
async fn a_refusal_explains_that_credentials_were_withheld() {
    let tokens = Server::start(|_| answer(401, &[], b"")).await;
    let server = token_registry(format!("http://stranger.test:{}/token", tokens.port)).await;
    let may = format!("[host.\"http://stranger.test:{}\"]\ncapabilities = [\"push\"]\n", tokens.port);
    let (client, _folder) = named_client(&server, &may);
    let error = as_alice(&client).resolve(&named()).await.unwrap_err().to_string();
    assert!(
        error.contains("were not sent to the token service http://stranger.test")
            && error.contains("token_realms"),
        "{error}"
    );
    assert!(
        !error.contains("secret")
            && tokens.requests().iter().all(|one| one.header("authorization").is_empty())
    );
}

#[tokio::test]
async fn a_refresh_token_is_sent_with_post() {
    let tokens = token_service().await;
    let server = token_registry(format!("http://{}/token", tokens.host())).await;
    let credential = Credential::refresh_token("r+f/r=".to_owned()).unwrap();
    let client = Arc::new(client(&server)).with_credential(credential);
    client.resolve(&reference(&server)).await.unwrap();
    let request = &tokens.requests()[0];
    assert_eq!(request.line(), "POST /token");
    assert_eq!(request.header("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(
        request.body,
        "client_id=oras-csi&scope=repository%3Ateam%2Fapp%3Apull&service=r&grant_type=refresh_token&\
         refresh_token=r%2Bf%2Fr%3D"
    );
    assert_eq!(request.header("authorization"), "");
}

#[tokio::test]
async fn an_expired_refresh_token_does_not_prevent_an_anonymous_pull() {
    struct Ended;
    #[async_trait]
    impl Credentials for Ended {
        async fn candidates(&self, _: &RegistryHost, _: &str) -> Vec<Candidate> {
            let ended = Credential::refresh_token("ended".to_owned()).unwrap();
            vec![Candidate::new(Source::Secret("old".into()), ended), Candidate::anonymous()]
        }
    }
    let tokens = Server::start(|request| match request.method.as_str() {
        "POST" => answer(400, &[], br#"{"error":"invalid_grant"}"#),
        _ => answer(200, &[], br#"{"token":"t"}"#),
    })
    .await;
    let server = token_registry(format!("http://{}/token", tokens.host())).await;
    let access = Access::new(Arc::new(client(&server)), Arc::new(Ended));
    access.resolve(&reference(&server)).await.unwrap();
    // A refused HEAD has no message, so GET is tried as well before the next credential.
    let methods: Vec<_> = tokens.requests().iter().map(|one| one.method.clone()).collect();
    assert_eq!(methods, ["POST", "POST", "GET"]);
}

#[tokio::test]
async fn a_password_is_sent_with_post_if_get_is_unsupported() {
    let tokens = Server::start(|request| match request.method.as_str() {
        "POST" => answer(200, &[], br#"{"access_token":"t"}"#),
        _ => answer(405, &[], b""),
    })
    .await;
    let server = token_registry(format!("http://{}/token", tokens.host())).await;
    as_alice(&client(&server)).resolve(&reference(&server)).await.unwrap();
    assert!(tokens.requests()[1].body.ends_with("grant_type=password&username=alice&password=secret"));
}

#[tokio::test]
async fn a_token_request_with_post_is_not_redirected() {
    let other = token_service().await;
    let to = format!("http://{}/token", other.host());
    let tokens = Server::start(move |_| answer(307, &[("Location", &to)], b"")).await;
    let server = token_registry(format!("http://{}/token", tokens.host())).await;
    let credential = Credential::refresh_token("secret".to_owned()).unwrap();
    let client = Arc::new(client(&server)).with_credential(credential);
    let error = client.resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotAllowed, "{error}");
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_registry_token_is_sent_unchanged() {
    let server = token_registry("http://nowhere.test/token".to_owned()).await;
    let client =
        Arc::new(client(&server)).with_credential(Credential::registry_token("abc".to_owned()).unwrap());
    client.resolve(&reference(&server)).await.unwrap();
    assert_eq!(server.requests()[0].header("authorization"), "Bearer abc");
}

#[tokio::test]
async fn the_password_is_used_if_tokens_fail_and_both_are_accepted() {
    let server = Server::start(|request| {
        let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host"));
        match (request.target.as_str(), request.header("authorization")) {
            (target, _) if target.starts_with("/token") => answer(500, &[], b""),
            (_, ALICE) => manifest_answer(),
            _ => answer(401, &[("WWW-Authenticate", &realm), ("WWW-Authenticate", "Basic realm=\"x\"")], b""),
        }
    })
    .await;
    as_alice(&client(&server)).resolve(&reference(&server)).await.unwrap();
}

#[tokio::test]
async fn a_mirror_does_not_get_the_registrys_credentials() {
    let protected = || async {
        Server::start(|request| match request.header("authorization") {
            "" => answer(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
            _ => manifest_answer(),
        })
        .await
    };
    let (mirror, server) = (protected().await, protected().await);
    let url = format!("http://{}", mirror.host());
    let (client, _folder) = named_client(&server, &format!("[host.\"{url}\"]\n"));
    as_alice(&client).resolve(&named()).await.unwrap();
    assert!(
        !mirror.requests().is_empty()
            && mirror.requests().iter().all(|one| one.header("authorization").is_empty())
    );
    let more = format!("[host.\"{url}\"]\n[oras-csi]\ncredentials_for = [\"{url}\"]\n");
    let (client, _folder) = named_client(&server, &more);
    let before = server.requests().len();
    as_alice(&client).resolve(&named()).await.unwrap();
    assert_eq!(mirror.requests().last().unwrap().header("authorization"), ALICE);
    assert_eq!(server.requests().len(), before);
}

#[tokio::test]
async fn a_storage_host_that_requires_a_password_gets_none() {
    let storage = basic_only().await;
    let to = format!("http://{}/x", storage.host());
    let server = Server::start(move |request| match request.header("authorization") {
        ALICE => answer(307, &[("Location", &to)], b""),
        _ => answer(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
    })
    .await;
    let may = format!("[host.\"http://{}\"]\ncapabilities = [\"push\"]\n", storage.host());
    let (client, _folder) = named_client(&server, &may);
    let error = as_alice(&client).resolve(&named()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Redirected { status: 401, .. }), "{error}");
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_empty()));
}

#[tokio::test]
async fn an_expired_address_is_requested_again() {
    let old = Arc::new(AtomicUsize::new(0));
    let storage = Server::start(|request| match request.target.as_str() {
        "/fresh" => manifest_answer(),
        _ => answer(403, &[], b"Request has expired"),
    })
    .await;
    let host = storage.host();
    let server = Server::start(move |_| {
        let path = if old.fetch_add(1, Ordering::SeqCst) == 0 { "stale" } else { "fresh" };
        answer(307, &[("Location", &format!("http://{host}/{path}"))], b"")
    })
    .await;
    let may = format!("[host.\"http://{}\"]\ncapabilities = [\"push\"]\n", storage.host());
    let (client, _folder) = named_client(&server, &may);
    client.resolve(&named()).await.unwrap();
    let only = format!("{may}[oras-csi]\nredirects = [\"elsewhere.test\"]\n");
    let (client, _folder) = named_client(&server, &only);
    let error = client.resolve(&named()).await.unwrap_err();
    assert!(error.to_string().contains("none of the hosts"), "{error}");
}

#[tokio::test]
async fn tokens_are_not_shared_between_credentials() {
    let tokens = Server::start(|request| match request.header("authorization") {
        ALICE => answer(200, &[], br#"{"token":"alices"}"#),
        _ => answer(200, &[], br#"{"token":"anonymous"}"#),
    })
    .await;
    let realm = format!("Bearer realm=\"http://{}/token\"", tokens.host());
    let server = Server::start(move |request| match request.header("authorization") {
        "Bearer alices" => manifest_answer(),
        "Bearer anonymous" => answer(403, &[], b""),
        _ => answer(401, &[("WWW-Authenticate", &realm)], b""),
    })
    .await;
    let client = client(&server);
    let reference = reference(&server);
    for _ in 0..3 {
        as_alice(&client).resolve(&reference).await.unwrap();
        let error = client.resolve(&reference).await.unwrap_err();
        assert!(matches!(error, RegistryError::Refused { status: 403, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_foreign_layer_is_fetched_only_from_allowed_hosts() {
    let bytes = b"foreign bytes";
    let elsewhere = Server::start(|_| answer(200, &[], bytes)).await;
    let server = Server::start(|_| answer(404, &[], b"")).await;
    let url = format!("http://{}/layer", elsewhere.host());
    let blob = Descriptor::new("a/b", Digest::sha256_of(bytes), bytes.len() as u64).with_urls(vec![url]);
    let pinned = named().pin(Digest::sha256_of(b"manifest"));
    let may = format!("[host.\"http://{}\"]\ncapabilities = [\"push\"]\n", elsewhere.host());
    let (client, _folder) = named_client(&server, &may);
    let error = client.blob(&pinned, &blob, 0).await.err().unwrap();
    assert_eq!(error.kind(), Kind::NotFound);
    let named =
        format!("foreign layer, which its descriptor offers at {}: an administrator", elsewhere.host());
    assert!(error.to_string().contains(&named) && error.to_string().contains("foreign_layers"), "{error}");
    assert!(elsewhere.requests().is_empty());
    let allowed = format!("{may}[oras-csi]\nforeign_layers = [\"{}\"]\n", elsewhere.host());
    let (client, _folder) = named_client(&server, &allowed);
    let (read, error) = collect(client.blob(&pinned, &blob, 0).await.unwrap()).await;
    assert_eq!((read.as_slice(), error), (bytes.as_slice(), None));
    let dead = Descriptor::new("a/b", Digest::sha256_of(b"other"), 5)
        .with_urls(vec![format!("http://{}/layer", elsewhere.host())]);
    drop(elsewhere);
    let error = client.blob(&pinned, &dead, 0).await.err().unwrap();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("its URL failed as well: GET http://127.0.0.1:"), "{error}");
    let invalid =
        Descriptor::new("a/b", Digest::sha256_of(bytes), 13).with_urls(vec!["\u{1b}[31m".to_owned()]);
    let error = client.blob(&pinned, &invalid, 0).await.err().unwrap();
    assert!(error.to_string().ends_with("the URLs of its descriptor are not valid"), "{error}");
}

/// The administrator changes the files while a client runs.
#[tokio::test]
async fn a_running_client_uses_changed_configuration_files() {
    let (first, second) = (basic_only().await, basic_only().await);
    let (client, folder) = named_client(&first, "");
    let client = Arc::new(client);
    let config = folder.path().join("config.json");
    let settings =
        AdministratorSettings { docker_config: Some(config.clone()), ..AdministratorSettings::default() };
    let administrator = Administrator::new(settings).unwrap();
    let resolve = async || {
        let keyring = Keyring::new(Some(administrator.clone()));
        Access::new(client.clone(), Arc::new(keyring)).resolve(&named()).await
    };
    let login = |pair: &str| {
        let text = format!("{{\"auths\":{{\"registry.example\":{{\"auth\":\"{pair}\"}}}}}}");
        std::fs::write(&config, text).unwrap();
    };
    let hosts = folder.path().join("_default/hosts.toml");
    let refused = |resolved: Result<Descriptor, RegistryError>| resolved.unwrap_err().kind();

    assert_eq!(refused(resolve().await), Kind::Refused, "the docker config does not exist yet");
    login("Ym9iOm90aGVy");
    assert_eq!(refused(resolve().await), Kind::Refused);
    login(ALICE.trim_start_matches("Basic "));
    resolve().await.unwrap();
    assert!(second.lines().is_empty());

    std::fs::write(&hosts, "server = [").unwrap();
    assert_eq!(refused(resolve().await), Kind::Misconfigured);
    std::fs::write(&hosts, format!("server = \"http://registry.example:{}\"", second.port)).unwrap();
    let before = first.lines().len();
    resolve().await.unwrap();
    assert_eq!(first.lines().len(), before);
    assert!(!second.lines().is_empty());

    std::fs::remove_file(&config).unwrap();
    assert_eq!(refused(resolve().await), Kind::Refused);
}

/// Docker Hub has another limit for anonymous clients, so the error says which credentials were tried.
#[rstest]
#[case::anonymous(false, "pull rate limit; asked with no credentials")]
#[case::a_user(true, "pull rate limit; asked with secret regcred")]
#[tokio::test]
async fn a_rate_limit_has_the_words_of_the_registry_and_the_credentials(
    #[case] has_secret: bool,
    #[case] expected: &str,
) {
    let server = Server::start(|_| {
        answer(429, &[], br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}"#)
    })
    .await;
    let mut keyring = Keyring::new(None);
    if has_secret {
        let config = format!(r#"{{"auths":{{"{}":{{"username":"alice","password":"x"}}}}}}"#, server.host());
        let config = DockerConfig::parse(config.as_bytes()).unwrap();
        keyring = keyring.with_secret(Source::Secret("regcred".into()), Arc::new(config));
    }
    let access = Access::new(Arc::new(client(&server)), Arc::new(keyring));
    let error = access.resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::RateLimited);
    assert!(error.to_string().ends_with(expected), "{error}");
}
