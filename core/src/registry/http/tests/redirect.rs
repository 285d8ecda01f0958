use rstest::rstest;

use super::*;

fn to(location: &str) -> Vec<Part> {
    answer(307, &[("Location", location)], b"")
}

async fn blob(client: &HttpRegistry, server: &Server) -> Result<Vec<u8>, RegistryError> {
    let blob = Descriptor::new("text/plain", Digest::sha256_of(b"abc"), 3);
    let stream = client.blob(&pinned(server, &Digest::sha256_of(b"manifest")), &blob, 0).await?;
    let (bytes, error) = collect(stream).await;
    error.map_or(Ok(bytes), Err)
}

#[tokio::test]
async fn redirects_to_a_storage_host_are_followed_without_credentials() {
    let storage = Server::start(|_| answer(200, &[], b"abc")).await;
    let location = format!("http://{}/bucket/abc?X-Signature=secret", storage.host());
    let server = Server::start(move |request| match request.header("authorization") {
        "" if request.target.starts_with("/token") => answer(200, &[], br#"{"token":"hunter2"}"#),
        "" => {
            let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host"));
            answer(401, &[("WWW-Authenticate", &realm)], b"")
        }
        _ if request.target.ends_with("/again") => to(&location),
        _ => to("again"),
    })
    .await;
    let may = push_only(&format!("http://{}", storage.host()));
    let (client, _folder) = client_with(&format!("server = \"http://{}\"\n{may}", server.host()));
    assert_eq!(blob(&client, &server).await.unwrap(), b"abc");
    let seen: Vec<_> =
        server.requests().iter().map(|request| request.header("authorization").to_owned()).collect();
    assert_eq!(seen, ["", "", "Bearer hunter2", "Bearer hunter2"], "credentials stay with the registry");
    let [request] = &storage.requests()[..] else { panic!("one request") };
    assert_eq!(request.header("authorization"), "");
    assert_eq!(request.target, "/bucket/abc?X-Signature=secret");
}

#[tokio::test]
async fn a_redirect_back_to_the_registry_gets_no_credentials() {
    let registry = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let back = registry.clone();
    let other = Server::start(move |_| to(&format!("http://{}/v2/private", back.get().unwrap()))).await;
    let away = format!("http://{}/", other.host());
    let server = Server::start(move |request| match request.target.as_str() {
        "/v2/private" => answer(200, &[], b"abc"),
        _ => to(&away),
    })
    .await;
    registry.set(server.host()).unwrap();
    let may = push_only(&format!("http://{}", other.host()));
    let toml = format!("server = \"http://{}\"\n[header]\nx-secret = \"hunter2\"\n{may}", server.host());
    let (client, _folder) = client_with(&toml);
    blob(&client, &server).await.unwrap();
    let seen: Vec<_> =
        server.requests().iter().map(|request| request.header("x-secret").to_owned()).collect();
    assert_eq!(seen, ["hunter2", ""]);
    assert_eq!(other.requests()[0].header("x-secret"), "");
}

/// Storage services write the name of a file as it is. A URL has its bytes in percent form (RFC 3986, 2.1).
#[tokio::test]
async fn a_location_with_letters_outside_ascii_is_followed() {
    let server = Server::start(|request| match request.target.as_str() {
        "/bucket/mod%C3%A8le?name=%E6%A8%A1" => answer(200, &[], b"abc"),
        target if target.starts_with("/v2/") => to("/bucket/modèle?name=模"),
        _ => answer(404, &[], b""),
    })
    .await;
    assert_eq!(blob(&client(&server), &server).await.unwrap(), b"abc");
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    let server = Server::start(|request| to(&request.target)).await;
    let error = blob(&client(&server), &server).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotAllowed, "{error}");
    assert_eq!(server.lines().len(), 11, "ten redirects are followed");
}

#[rstest]
#[case::metadata("http://169.254.169.254/latest/meta-data/")]
#[case::mapped("http://[::ffff:169.254.169.254]/")]
#[case::mapped_loopback("http://[::ffff:127.0.0.1]:5000/")]
#[case::translated("http://[64:ff9b::a9fe:a9fe]/")]
#[case::decimal("http://2852039166/")]
#[case::hexadecimal("http://0xa9fea9fe/")]
#[case::octal("http://0251.0376.0251.0376/")]
#[case::other_loopback("http://127.0.0.2:5000/")]
#[case::loopback_6("http://[::1]:5000/")]
#[case::by_name("http://localhost:5000/")]
#[case::by_name_in_capitals("http://LOCALHOST:5000/")]
#[case::unspecified("http://0.0.0.0:5000/")]
#[case::file("file:///etc/passwd")]
#[case::gopher("gopher://10.0.0.1/")]
#[case::user("http://user:hunter2@10.0.0.1/")]
#[tokio::test]
async fn redirects_to_forbidden_addresses_are_rejected(#[case] location: &'static str) {
    let server = Server::start(move |_| to(location)).await;
    let registry = client(&server);
    let error = blob(&registry, &server).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotAllowed, "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    // `server` of hosts.toml is not where a redirect leads.
    assert!(!error.to_string().contains("set server"), "{error}");
    assert!(error.to_string().contains("the registry must"), "{error}");
    let error = registry.resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotAllowed, "{error}");
}

#[rstest]
#[case::nowhere(answer(307, &[], b""))]
#[case::no_url(to("http://[::1"))]
#[case::no_text(to("/\u{fffd}"))]
#[tokio::test]
async fn a_redirect_without_a_valid_location_is_rejected(#[case] script: Vec<Part>) {
    let server = Server::start(move |_| script.clone()).await;
    let error = blob(&client(&server), &server).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Untruthful | Kind::NotAllowed), "{error}");
}

/// Without a configuration, the client does not even connect.
#[tokio::test]
async fn a_registry_on_loopback_must_be_configured() {
    let server = Server::start(|_| manifest_answer()).await;
    let hosts = HostsConfig::load(None).unwrap();
    let registry = HttpRegistry::new(hosts, settings());
    for host in ["127.0.0.1", "localhost", "[::1]"] {
        let reference: Reference = format!("{host}:{}/team/app:v1", server.port).parse().unwrap();
        let error = registry.resolve(&reference).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotAllowed, "{error}");
        assert!(error.to_string().contains("hosts.toml"), "{error}");
    }
    // A mirror of one registry is not allowed for another registry.
    let (client, folder) = client_with("");
    std::fs::create_dir(folder.path().join("a.example")).unwrap();
    let toml = format!("server = \"http://localhost:{}\"", server.port);
    std::fs::write(folder.path().join("a.example/hosts.toml"), toml).unwrap();
    client.resolve(&"a.example/team/app:v1".parse().unwrap()).await.unwrap();
    let other: Reference = format!("localhost:{}/team/app:v1", server.port).parse().unwrap();
    assert_eq!(client.resolve(&other).await.unwrap_err().kind(), Kind::NotAllowed);
}

#[tokio::test]
async fn presigned_addresses_stay_out_of_errors() {
    let server = Server::start(|request| match request.target.as_str() {
        target if target.contains("bucket") => answer(404, &[], b""),
        _ => to("/bucket?X-Signature=hunter2#hunter2"),
    })
    .await;
    let error = blob(&client(&server), &server).await.unwrap_err();
    assert!(error.to_string().contains("/bucket") && !error.to_string().contains("hunter2"), "{error}");
}

/// Allowing one port of a host allows no other port.
#[rstest]
#[case("127.0.0.1")]
#[case("localhost")]
#[tokio::test]
async fn other_ports_of_an_allowed_host_are_not_allowed(#[case] host: &'static str) {
    let secret = Server::start(|_| answer(200, &[], b"abc")).await;
    let location = format!("http://{host}:{}/secret", secret.port);
    let server = Server::start(move |_| to(&location)).await;
    let (client, _folder) = client_with(&format!("server = \"http://{host}:{}\"", server.port));
    let error = blob(&client, &server).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotAllowed, "{error}");
    assert_eq!(secret.lines(), [""; 0]);
    // The other port is allowed as an entry of its own.
    let may = push_only(&format!("http://{host}:{}", secret.port));
    let (client, _folder) = client_with(&format!("server = \"http://{host}:{}\"\n{may}", server.port));
    assert_eq!(blob(&client, &server).await.unwrap(), b"abc");
}

/// A token service may use any port of the registry's own host. Its redirects may not.
#[tokio::test]
async fn a_token_realm_allows_its_own_port_only() {
    let secret = Server::start(|_| answer(200, &[], br#"{"token":"t"}"#)).await;
    let location = format!("http://127.0.0.1:{}/secret", secret.port);
    let tokens = Server::start(move |_| to(&location)).await;
    let realm = format!("Bearer realm=\"http://{}/token\"", tokens.host());
    let server = Server::start(move |_| answer(401, &[("WWW-Authenticate", &realm)], b"")).await;
    let error = client(&server).resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotAllowed, "{error}");
    assert!(!tokens.lines().is_empty());
    assert_eq!(secret.lines(), [""; 0]);
}

/// A storage service gets no credentials, so the error has its own message and nothing on credentials.
#[rstest]
#[case(403, "AccessDenied", Kind::Refused)]
#[case(404, "NoSuchKey", Kind::NotFound)]
#[tokio::test]
async fn the_error_of_a_storage_service_has_its_words(
    #[case] status: u16,
    #[case] code: &'static str,
    #[case] kind: Kind,
) {
    use crate::registry::{Access, Keyring};
    let storage = Server::start(move |_| {
        let xml =
            format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>the cause</Message></Error>");
        answer(status, &[("Content-Type", "application/xml")], xml.as_bytes())
    })
    .await;
    let location = format!("http://{}/bucket/abc?X-Signature=secret", storage.host());
    let server = Server::start(move |_| to(&location)).await;
    let may = push_only(&format!("http://{}", storage.host()));
    let (client, _folder) = client_with(&format!("server = \"http://{}\"\n{may}", server.host()));
    let access = Access::new(std::sync::Arc::new(client), std::sync::Arc::new(Keyring::default()));
    let blob = Descriptor::new("text/plain", Digest::sha256_of(b"abc"), 3);
    let error = access.blob(&pinned(&server, &Digest::sha256_of(b"manifest")), &blob, 0).await.err().unwrap();
    assert_eq!(error.kind(), kind);
    let expected = format!(
        "GET http://{}/bucket/abc: the registry redirected to this host, which answered {status}: {code}: the \
         cause",
        storage.host()
    );
    assert_eq!(error.to_string(), expected);
}
