use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::*;
use crate::credentials::{Administrator, AdministratorSettings, Credential};
use crate::reference::RegistryHost;
use crate::registry::guard::Names;
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
    Arc::new(client.clone()).seen_by(alice())
}

/// Every name is this machine.
#[derive(Debug)]
struct Here;

#[async_trait]
impl Names for Here {
    async fn addresses(&self, _: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![([127, 0, 0, 1], 0).into()])
    }
}

/// A client for `registry.example`, with these `[host]` and other tables; their hosts may be this machine.
fn named_client(server: &Server, more: &str) -> (HttpRegistry, TempDir) {
    let toml = format!("server = \"http://registry.example:{}\"\n{more}", server.port);
    client_with_settings(&toml, settings().with_names(Arc::new(Here)))
}

fn named() -> Reference {
    "registry.example/team/app:v1".parse().unwrap()
}

/// A registry that wants a user name and a password.
async fn basic_only() -> Server {
    Server::start(|request| match request.header("authorization") {
        ALICE => manifest_answer(),
        _ => answer(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
    })
    .await
}

/// A registry whose tokens come from `realm`; every token is good.
async fn token_wanted(realm: String) -> Server {
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
async fn a_password_is_shown_once_it_is_asked_for_and_then_at_once() {
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
async fn a_refusal_says_who_asked() {
    let server = basic_only().await;
    let nobody = client(&server).resolve(&reference(&server)).await.unwrap_err();
    assert!(nobody.to_string().contains("it wants credentials, and none were given"), "{nobody}");
    let access = Access::new(Arc::new(client(&server)), Arc::new(Both));
    let error = access.resolve(&reference(&server)).await.unwrap_err();
    assert!(error.to_string().ends_with("asked with secret bobs, no credentials"), "{error}");
    assert!(!format!("{error:?}{error}").contains("other"));
}

#[tokio::test]
async fn credentials_are_tried_in_their_order_until_one_is_let_in() {
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
    assert_eq!(after.len(), 1, "it stays with the one that was let in: {after:?}");
    assert_eq!(after[0].header("authorization"), ALICE);
}

#[tokio::test]
async fn a_token_service_of_the_registry_itself_sees_the_password() {
    let tokens = token_service().await;
    // Another port of the same host.
    let server = token_wanted(format!("http://{}/token", tokens.host())).await;
    as_alice(&client(&server)).resolve(&reference(&server)).await.unwrap();
    assert_eq!(tokens.requests()[0].header("authorization"), ALICE);
    assert!(server.requests().iter().all(|request| !request.header("authorization").starts_with("Basic")));
}

#[tokio::test]
async fn a_sibling_sees_the_password_and_a_stranger_does_not() {
    for (host, shown) in
        [("auth.registry.example", true), ("stranger.test", false), ("registry.example.evil.test", false)]
    {
        let tokens = token_service().await;
        let server = token_wanted(format!("http://{host}:{}/token", tokens.port)).await;
        // Named with no capability that is used: only its address may be dialled.
        let may = format!("[host.\"http://{host}:{}\"]\ncapabilities = [\"push\"]\n", tokens.port);
        let (client, _folder) = named_client(&server, &may);
        as_alice(&client).resolve(&named()).await.unwrap();
        assert_eq!(tokens.requests()[0].header("authorization"), if shown { ALICE } else { "" }, "{host}");
        // The administrator may say otherwise.
        let trusted = format!("{may}[oras-csi]\ntoken_realms = [\"{host}:{}\"]\n", tokens.port);
        let (client, _folder) = named_client(&server, &trusted);
        as_alice(&client).resolve(&named()).await.unwrap();
        assert_eq!(tokens.requests()[1].header("authorization"), ALICE, "{host}");
    }
}

#[tokio::test]
async fn a_refusal_because_a_stranger_was_not_told_says_so() {
    let tokens = Server::start(|_| answer(401, &[], b"")).await;
    let server = token_wanted(format!("http://stranger.test:{}/token", tokens.port)).await;
    let may = format!("[host.\"http://stranger.test:{}\"]\ncapabilities = [\"push\"]\n", tokens.port);
    let (client, _folder) = named_client(&server, &may);
    let error = as_alice(&client).resolve(&named()).await.unwrap_err().to_string();
    assert!(
        error.contains("were not shown to http://stranger.test") && error.contains("token_realms"),
        "{error}"
    );
    assert!(
        !error.contains("secret")
            && tokens.requests().iter().all(|one| one.header("authorization").is_empty())
    );
}

#[tokio::test]
async fn a_refresh_token_goes_by_post() {
    let tokens = token_service().await;
    let server = token_wanted(format!("http://{}/token", tokens.host())).await;
    let credential = Credential::refresh_token("r+f/r=".to_owned()).unwrap();
    let client = Arc::new(client(&server)).seen_by(credential);
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
async fn a_refresh_token_that_has_ended_does_not_hide_what_is_public() {
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
    let server = token_wanted(format!("http://{}/token", tokens.host())).await;
    let access = Access::new(Arc::new(client(&server)), Arc::new(Ended));
    access.resolve(&reference(&server)).await.unwrap();
    // HEAD's refusals have no words, so GET is tried as well before the next credential is.
    let methods: Vec<_> = tokens.requests().iter().map(|one| one.method.clone()).collect();
    assert_eq!(methods, ["POST", "POST", "GET"]);
}

#[tokio::test]
async fn a_password_goes_by_post_where_get_is_not_known() {
    let tokens = Server::start(|request| match request.method.as_str() {
        "POST" => answer(200, &[], br#"{"access_token":"t"}"#),
        _ => answer(405, &[], b""),
    })
    .await;
    let server = token_wanted(format!("http://{}/token", tokens.host())).await;
    as_alice(&client(&server)).resolve(&reference(&server)).await.unwrap();
    assert!(tokens.requests()[1].body.ends_with("grant_type=password&username=alice&password=secret"));
}

#[tokio::test]
async fn a_post_is_not_redirected() {
    let other = token_service().await;
    let to = format!("http://{}/token", other.host());
    let tokens = Server::start(move |_| answer(307, &[("Location", &to)], b"")).await;
    let server = token_wanted(format!("http://{}/token", tokens.host())).await;
    let credential = Credential::refresh_token("secret".to_owned()).unwrap();
    let client = Arc::new(client(&server)).seen_by(credential);
    let error = client.resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotAllowed, "{error}");
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let server = token_wanted("http://nowhere.test/token".to_owned()).await;
    let client = Arc::new(client(&server)).seen_by(Credential::registry_token("abc".to_owned()).unwrap());
    client.resolve(&reference(&server)).await.unwrap();
    assert_eq!(server.requests()[0].header("authorization"), "Bearer abc");
}

#[tokio::test]
async fn where_both_are_taken_and_tokens_fail_the_password_does() {
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
async fn a_mirror_gets_nothing_that_was_meant_for_the_registry() {
    let wants = || async {
        Server::start(|request| match request.header("authorization") {
            "" => answer(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
            _ => manifest_answer(),
        })
        .await
    };
    let (mirror, server) = (wants().await, wants().await);
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
async fn a_storage_host_that_wants_a_password_gets_none() {
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
    assert!(matches!(error, RegistryError::Refused { status: 401, .. }), "{error}");
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_empty()));
}

#[tokio::test]
async fn an_address_that_has_run_out_is_asked_for_anew() {
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
async fn one_persons_token_serves_nobody_else() {
    let tokens = Server::start(|request| match request.header("authorization") {
        ALICE => answer(200, &[], br#"{"token":"alices"}"#),
        _ => answer(200, &[], br#"{"token":"nobodys"}"#),
    })
    .await;
    let realm = format!("Bearer realm=\"http://{}/token\"", tokens.host());
    let server = Server::start(move |request| match request.header("authorization") {
        "Bearer alices" => manifest_answer(),
        "Bearer nobodys" => answer(403, &[], b""),
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
async fn a_foreign_layer_is_fetched_only_where_the_administrator_lets_it() {
    let bytes = b"foreign bytes";
    let elsewhere = Server::start(|_| answer(200, &[], bytes)).await;
    let server = Server::start(|_| answer(404, &[], b"")).await;
    let url = format!("http://{}/layer", elsewhere.host());
    let blob = Descriptor::new("a/b", Digest::sha256_of(bytes), bytes.len() as u64).with_urls(vec![url]);
    let pinned = named().pin(Digest::sha256_of(b"manifest"));
    let may = format!("[host.\"http://{}\"]\ncapabilities = [\"push\"]\n", elsewhere.host());
    let (client, _folder) = named_client(&server, &may);
    assert_eq!(client.blob(&pinned, &blob, 0).await.err().unwrap().kind(), Kind::NotFound);
    assert!(elsewhere.requests().is_empty());
    let let_in = format!("{may}[oras-csi]\nforeign_layers = [\"{}\"]\n", elsewhere.host());
    let (client, _folder) = named_client(&server, &let_in);
    let (read, error) = collect(client.blob(&pinned, &blob, 0).await.unwrap()).await;
    assert_eq!((read.as_slice(), error), (bytes.as_slice(), None));
}

/// One client of a running process, whose administrator changes the files under it.
#[tokio::test]
async fn a_running_client_follows_the_administrators_files() {
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

    assert_eq!(refused(resolve().await), Kind::Refused, "there is no docker config yet");
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
