use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs};

use super::*;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        Self::named("an authority")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    /// The configuration of a server. With `clients`, it accepts only clients with a certificate of this authority.
    fn server(&self, clients: bool) -> ServerConfig {
        let (certificate, key) = self.issue(ExtendedKeyUsagePurpose::ServerAuth);
        let provider = std::sync::Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.0.der().clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        builder.with_single_cert(vec![certificate.der().clone()], key).unwrap()
    }
}

/// A client whose `_default/hosts.toml` has the server and `settings`, with more files in the folder.
fn client_of(server: &Server, settings: &str, files: &[(&str, &str)]) -> (HttpRegistry, TempDir) {
    let (client, folder) = client_with(&format!("server = \"https://{}\"\n{settings}\n", server.host()));
    for (name, content) in files {
        std::fs::write(folder.path().join("_default").join(name), content).unwrap();
    }
    (client, folder)
}

#[tokio::test]
async fn a_private_authority_is_trusted_if_it_is_configured() {
    let authority = Authority::new();
    let server = Server::start_tls(authority.server(false), |_| manifest_answer()).await;
    let reference = reference(&server);
    let pem = authority.0.pem();

    let (client, folder) = client_of(&server, "", &[]);
    let error = client.resolve(&reference).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Certificate, "{error}");
    assert!(error.to_string().contains("hosts.toml"), "{error}");
    assert_eq!(server.lines().len(), 0);

    // The next request uses a changed file.
    std::fs::write(folder.path().join("_default/ca.crt"), &pem).unwrap();
    let toml = format!("server = \"https://{}\"\nca = \"ca.crt\"", server.host());
    std::fs::write(folder.path().join("_default/hosts.toml"), toml).unwrap();
    client.resolve(&reference).await.unwrap();

    let (client, _folder) = client_of(&server, "skip_verify = true", &[]);
    client.resolve(&reference).await.unwrap();

    let (client, _folder) = client_of(&server, "ca = \"ca.crt\"", &[("ca.crt", "nothing in PEM")]);
    let error = client.resolve(&reference).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Misconfigured, "{error}");
    assert!(error.to_string().contains("_default/ca.crt"), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_sent_only_to_the_registry() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue(ExtendedKeyUsagePurpose::ClientAuth);
    let (pem, certificate, key) = (authority.0.pem(), certificate.pem(), key.serialize_pem());
    let storage = Server::start_tls(authority.server(true), |_| answer(200, &[], b"abc")).await;
    let location = format!("https://{}/x", storage.host());
    let server = Server::start_tls(authority.server(true), move |request| match request.method.as_str() {
        "HEAD" => manifest_answer(),
        _ => answer(307, &[("Location", &location)], b""),
    })
    .await;
    let reference = reference(&server);
    let (without, _folder) = client_of(&server, "ca = \"ca.crt\"", &[("ca.crt", &pem)]);
    assert_eq!(without.resolve(&reference).await.unwrap_err().kind(), Kind::Unreachable);

    let both = format!("{certificate}{key}");
    let may = push_only(&format!("https://{}", storage.host()));
    let files = [("ca.crt", pem.as_str()), ("c.cert", &certificate), ("c.key", &key), ("both.pem", &both)];
    for setting in ["client = [[\"c.cert\", \"c.key\"]]", "client = \"both.pem\""] {
        let (client, _folder) = client_of(&server, &format!("ca = \"ca.crt\"\n{setting}\n{may}"), &files);
        client.resolve(&reference).await.unwrap();
        let blob = Descriptor::new("text/plain", Digest::sha256_of(b"abc"), 3);
        let read = client.blob(&pinned(&server, &Digest::sha256_of(b"")), &blob, 0).await;
        assert_eq!(read.err().expect("an error").kind(), Kind::Unreachable);
        assert_eq!(storage.lines().len(), 0, "the storage host requires a certificate and gets none");
    }
    let wrong = "ca = \"ca.crt\"\nclient = [[\"c.cert\", \"ca.crt\"]]";
    let (client, _folder) = client_of(&server, wrong, &files);
    let error = client.resolve(&reference).await.unwrap_err();
    assert!(error.to_string().contains("ca.crt: no private key"), "{error}");
}

#[tokio::test]
async fn https_never_becomes_http() {
    let authority = Authority::new();
    let plain = Server::start(|_| manifest_answer()).await;
    let location = format!("http://{}/x", plain.host());
    let realm = format!("Bearer realm=\"{location}\"");
    let server = Server::start_tls(authority.server(false), move |request| match request.method.as_str() {
        "HEAD" => answer(302, &[("Location", &location)], b""),
        _ => answer(401, &[("WWW-Authenticate", &realm)], b""),
    })
    .await;
    let (client, _folder) = client_of(&server, "ca = \"ca.crt\"", &[("ca.crt", &authority.0.pem())]);
    let error = client.resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotAllowed, "{error}");
    let error = client.manifest(&pinned(&server, &Digest::sha256_of(b""))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Authentication, "{error}");
    let words = format!("names the token realm http://{}, which is not https", plain.host());
    assert!(error.to_string().contains(&words) && error.to_string().contains("X-Forwarded-Proto"), "{error}");
    assert_eq!(plain.lines().len(), 0);
}

#[tokio::test]
async fn skip_verify_applies_only_to_the_registry() {
    let authority = Authority::new();
    let storage = Server::start_tls(authority.server(false), |_| answer(200, &[], b"abc")).await;
    let location = format!("https://{}/x", storage.host());
    let server =
        Server::start_tls(authority.server(false), move |_| answer(307, &[("Location", &location)], b""))
            .await;
    let blob = Descriptor::new("text/plain", Digest::sha256_of(b"abc"), 3);
    let pinned = pinned(&server, &Digest::sha256_of(b""));
    let may = push_only(&format!("https://{}", storage.host()));
    let (client, _folder) = client_of(&server, &format!("skip_verify = true\n{may}"), &[]);
    assert_eq!(client.blob(&pinned, &blob, 0).await.err().expect("an error").kind(), Kind::Certificate);
    let settings = format!("skip_verify = true\nca = \"ca.crt\"\n{may}");
    let (client, _folder) = client_of(&server, &settings, &[("ca.crt", &authority.0.pem())]);
    let stream = client.blob(&pinned, &blob, 0).await.unwrap();
    assert_eq!(collect(stream).await, (b"abc".to_vec(), None));
}

#[tokio::test]
async fn an_error_suggests_plain_http_for_a_server_without_tls() {
    let server = Server::start(|_| manifest_answer()).await;
    let (client, _folder) = client_of(&server, "skip_verify = true", &[]);
    let error = client.resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Certificate, "{error}");
    assert!(error.to_string().contains("plain http"), "{error}");
}

/// A certificate as `openssl req -x509` makes it: signed with its own key, and of an authority (CA:TRUE).
fn self_signed(host: &str, last_year: i32) -> (rcgen::Certificate, KeyPair) {
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, host);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(last_year, 12, 31);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap(), key)
}

fn server_config((certificate, key): &(rcgen::Certificate, KeyPair)) -> ServerConfig {
    let provider = std::sync::Arc::new(aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap()
}

/// The webpki crate accepts no certificate of an authority as that of a server. Go programs, and so containerd, accept a
/// certificate that is itself among the configured ones.
#[tokio::test]
async fn a_certificate_that_is_named_as_ca_is_accepted_from_a_server() {
    let authority = Authority::new();
    for certified in [self_signed("127.0.0.1", 2999), authority.issue(ExtendedKeyUsagePurpose::ServerAuth)] {
        let server = Server::start_tls(server_config(&certified), |_| manifest_answer()).await;
        let (client, _folder) = client_of(&server, "ca = \"ca.crt\"", &[("ca.crt", &certified.0.pem())]);
        client.resolve(&reference(&server)).await.unwrap();
    }
}

/// None of these errors goes away by itself, so none is one that a client tries again.
#[tokio::test]
async fn a_certificate_error_says_what_to_do() {
    let [right, other] = [2999, 2999].map(|year| self_signed("127.0.0.1", year));
    let (authority, renewed, stranger) = (Authority::new(), Authority::new(), Authority::named("a stranger"));
    let of_server = authority.issue(ExtendedKeyUsagePurpose::ServerAuth);
    let of_client = authority.issue(ExtendedKeyUsagePurpose::ClientAuth);
    let (named, past) = (self_signed("registry.example", 2999), self_signed("127.0.0.1", 2001));
    for (served, ca, words) in [
        (&named, named.0.pem(), "not valid for name"),
        (&past, past.0.pem(), "has expired"),
        (&right, other.0.pem(), "is one of an authority, CA:TRUE"),
        (&of_server, stranger.0.pem(), "set the server's own certificate, or its authority, as `ca`"),
        (&of_server, renewed.0.pem(), "set the present authority as `ca`"),
        (&of_client, authority.0.pem(), "issue a new one for a server"),
    ] {
        let server = Server::start_tls(server_config(served), |_| manifest_answer()).await;
        let (client, _folder) = client_of(&server, "ca = \"ca.crt\"", &[("ca.crt", &ca)]);
        let error = client.resolve(&reference(&server)).await.unwrap_err();
        assert!(error.kind() == Kind::Certificate && !error.is_transient(), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(server.lines().len(), 0);
    }
}

/// All forms of `client` in containerd's docs/hosts.md. Of several certificates, the one whose authority the server
/// accepts is sent.
#[tokio::test]
async fn client_certificates_are_configured_as_in_containerd() {
    let (authority, other) = (Authority::new(), Authority::named("another authority"));
    let pems = |authority: &Authority| {
        let (certificate, key) = authority.issue(ExtendedKeyUsagePurpose::ClientAuth);
        (certificate.pem(), key.serialize_pem())
    };
    let ((certificate, key), (foreign, foreign_key)) = (pems(&authority), pems(&other));
    let server = Server::start_tls(authority.server(true), |_| manifest_answer()).await;
    let pem = authority.0.pem();
    let (both, foreign_both) = (format!("{certificate}{key}"), format!("{foreign}{foreign_key}"));
    let files = [
        ("ca.crt", pem.as_str()),
        ("c.cert", &certificate),
        ("c.key", &key),
        ("both.pem", &both),
        ("foreign.pem", &foreign_both),
    ];
    for client in [
        r#"["both.pem"]"#,
        r#"[["both.pem", ""]]"#,
        r#"["foreign.pem", "both.pem"]"#,
        r#"["both.pem", "foreign.pem"]"#,
        r#"[["foreign.pem", ""], ["c.cert", "c.key"]]"#,
        r#"["foreign.pem", ["c.cert", "c.key"]]"#,
    ] {
        let settings = format!("ca = \"ca.crt\"\nclient = {client}");
        let (client_of_it, _folder) = client_of(&server, &settings, &files);
        let resolved = client_of_it.resolve(&reference(&server)).await;
        assert!(resolved.is_ok(), "{client}: {}", resolved.unwrap_err());
    }
    let (foreign, _folder) = client_of(&server, "ca = \"ca.crt\"\nclient = \"foreign.pem\"", &files);
    assert_eq!(foreign.resolve(&reference(&server)).await.unwrap_err().kind(), Kind::Unreachable);
}
