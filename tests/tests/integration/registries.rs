//! `oras-csi pull` from real registries of several projects, with what users configure for them: private
//! authorities, client certificates, mirrors, proxies and token services.

use oras_csi_core::digest::Digest;
use oras_csi_tests::process::run;
use oras_csi_tests::registry::files::{folder, one_file, write};
use oras_csi_tests::registry::proxy::{ForwardProxy, Proxied};
use oras_csi_tests::registry::pulled::{Pulled, assert_same_files, pull, pull_with};
use oras_csi_tests::registry::tenants::{behind, rules};
use oras_csi_tests::registry::tls::Authority;
use oras_csi_tests::registry::token_service::TokenService;
use oras_csi_tests::registry::{
    Configuration, Distribution, Login, Make, Oras, push, write_hosts, write_hosts_toml,
};
use rstest::rstest;

const NAME: &str = "private.example:5000";
const REFERENCE: &str = "private.example:5000/java-app:v1";

#[rstest]
#[case::one_file(&["one.txt:text/plain"])]
#[case::several_files(&["one.txt", "empty", "nested/path/file.txt"])]
#[case::a_directory(&["dir"])]
#[case::sixteen_mebibytes(&["large.bin"])]
fn every_registry_returns_what_was_pushed(
    #[case] names: &[&str],
    #[values(Make::Distribution, Make::GoContainerRegistry, Make::Ociserver)] make: Make,
) {
    let (registry, all, pushed) = (make.start(), folder(), folder());
    let large: Vec<u8> = (0..4_u32 << 20).flat_map(u32::to_le_bytes).collect();
    let files: [(&str, &[u8]); 6] = [
        ("one.txt", b"one"),
        ("empty", b""),
        ("nested/path/file.txt", b"nested"),
        ("dir/a", b"a"),
        ("dir/sub/b", b"b"),
        ("large.bin", &large),
    ];
    write(all.path(), &files);
    let plain = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
    let is_meant = |file: &str| names.iter().any(|name| file.starts_with(&plain(name)));
    for file in files.iter().filter(|(file, _)| is_meant(file)) {
        write(pushed.path(), &[*file]);
    }
    let digest = push(&format!("{}/java-app:v1", registry.host()), all.path(), names);
    let certs = registry.certs_d(NAME);
    pull(certs.path(), &[REFERENCE]).is(pushed.path());
    pull(certs.path(), &[&format!("{NAME}/java-app@{digest}")]).is(pushed.path());
}

#[rstest]
fn every_registry_returns_the_manifest_of_the_platform(
    #[values(Make::Distribution, Make::GoContainerRegistry, Make::Ociserver)] make: Make,
) {
    let (registry, files, oras) = (make.start(), folder(), Oras::plain_http());
    let repository = format!("{}/java-app", registry.host());
    for architecture in ["amd64", "arm64"] {
        write(files.path(), &[("which", architecture.as_bytes())]);
        let (reference, platform) = (format!("{repository}:{architecture}"), format!("linux/{architecture}"));
        let mut push = oras.command(&["push", "--artifact-platform", &platform, &reference, "which"]);
        run(push.current_dir(files.path()));
    }
    run(&mut oras.command(&["manifest", "index", "create", &format!("{repository}:v1"), "amd64", "arm64"]));
    let certs = registry.certs_d(NAME);
    for architecture in ["amd64", "arm64"] {
        write(files.path(), &[("which", architecture.as_bytes())]);
        let platform = format!("linux/{architecture}");
        pull(certs.path(), &[REFERENCE, "--platform", &platform]).is(files.path());
    }
    pull(certs.path(), &[REFERENCE, "--platform", "linux/riscv64"]).failed(2, &["linux/arm64", "riscv64"]);
}

#[rstest]
fn every_registry_reports_missing_content(
    #[values(Make::Distribution, Make::GoContainerRegistry, Make::Ociserver)] make: Make,
) {
    let (registry, files) = (make.start(), one_file());
    push(&format!("{}/java-app:v1", registry.host()), files.path(), &["app.jar"]);
    let certs = registry.certs_d(NAME);
    let digest = Digest::sha256_of(b"nobody has this");
    pull(certs.path(), &[&format!("{NAME}/java-app:v9")]).failed(1, &["java-app/manifests/v9: not found"]);
    pull(certs.path(), &[&format!("{NAME}/java-app@{digest}")])
        .failed(1, &[&digest.to_string(), "not found"]);
    pull(certs.path(), &[&format!("{NAME}/nobody/here:v1")])
        .failed(1, &["nobody/here/manifests/v1: not found"]);
}

#[rstest]
#[case::authority(false, "ca = \"CA\"", Ok(()))]
#[case::no_authority(false, "", Err(&["certificate", "UnknownIssuer"][..]))]
#[case::another_authority(false, "ca = \"CLIENTS\"", Err(&["certificate"][..]))]
#[case::not_verified(false, "skip_verify = true", Ok(()))]
#[case::client(true, "ca = \"CA\"\nclient = [[\"CERT\", \"KEY\"]]", Ok(()))]
#[case::no_client(true, "ca = \"CA\"", Err(&["CertificateRequired"][..]))]
#[case::a_client_of_another(true, "ca = \"CA\"\nclient = [[\"OTHER_CERT\", \"OTHER_KEY\"]]", Err(&["UnknownCA"][..]))]
fn certificates_are_those_of_hosts_toml(
    #[case] asks_clients: bool,
    #[case] settings: &str,
    #[case] expected: Result<(), &[&str]>,
) {
    let (authority, clients) = (Authority::new("private authority"), Authority::new("clients"));
    let (client, other) = (clients.client("node"), authority.client("other"));
    let tls = Configuration::default().with_tls(&authority.server(&["127.0.0.1"]));
    let (configuration, oras) = if asks_clients {
        let oras = Oras::trusting(authority.certificate()).with_certificate(&client);
        (tls.with_client_authority(&clients), oras)
    } else {
        (tls, Oras::trusting(authority.certificate()))
    };
    let (registry, files, certs) = (Distribution::start_with(configuration), one_file(), folder());
    oras.push(&format!("{}/java-app:v1", registry.host()), files.path(), &["app.jar"]);
    let mut text = format!("server = \"{}\"\n{settings}\n", registry.url());
    for (word, path) in [
        ("OTHER_CERT", other.certificate()),
        ("OTHER_KEY", other.key()),
        ("CLIENTS", clients.certificate()),
        ("CERT", client.certificate()),
        ("KEY", client.key()),
        ("CA", authority.certificate()),
    ] {
        text = text.replace(&format!("\"{word}\""), &format!("\"{}\"", path.display()));
    }
    write_hosts(certs.path(), NAME, &text);
    let pulled = pull(certs.path(), &[REFERENCE]);
    match expected {
        Ok(()) => pulled.is(files.path()),
        Err(words) => pulled.failed(1, words),
    }
}

#[test]
fn an_unavailable_mirror_is_skipped_and_used_again_later() {
    let (mut registry, files, certs) = (Distribution::start(), one_file(), folder());
    let mut mirror = Distribution::down(Configuration::default().with_remote(&registry.url()));
    registry.push("java-app:v1", files.path(), &["app.jar"]);
    let text = format!("server = \"{}\"\n[host.\"{}\"]\n", registry.url(), mirror.url());
    write_hosts(certs.path(), NAME, &text);
    pull(certs.path(), &[REFERENCE]).is(files.path());
    assert!(registry.got(our_blob), "the server gave it: {:?}", registry.requests());

    mirror.start_again();
    pull(certs.path(), &[REFERENCE]).is(files.path());
    assert!(mirror.got(our_blob), "the mirror gave it: {:?}", mirror.requests());
    let its_blob = |line: &str| is_blob(line) && !is_for_another(line);
    assert!(registry.got(its_blob), "and had it from the server: {:?}", registry.requests());

    registry.stop();
    pull(certs.path(), &[REFERENCE]).is(files.path());
}

/// `?ns=` tells a mirror the name of the registry. Neither `oras` nor a mirroring registry sends it.
fn is_for_another(line: &str) -> bool {
    line.contains("?ns=private.example%3A5000 ")
}

fn is_blob(line: &str) -> bool {
    line.starts_with("GET ") && line.contains("/blobs/sha256:")
}

fn our_blob(line: &str) -> bool {
    is_blob(line) && is_for_another(line)
}

#[test]
fn a_mirror_without_the_resolve_capability_gets_no_tag_requests() {
    let (registry, mirror) = (Distribution::start(), Distribution::start());
    let (files, old, certs) = (one_file(), folder(), folder());
    registry.push("java-app:v1", files.path(), &["app.jar"]);
    mirror.push("java-app:copy", files.path(), &["app.jar"]);
    write(old.path(), &[("app.jar", b"an old one")]);
    mirror.push("java-app:v1", old.path(), &["app.jar"]);
    let text =
        format!("server = \"{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\"]\n", registry.url(), mirror.url());
    write_hosts(certs.path(), NAME, &text);
    pull(certs.path(), &[REFERENCE]).is(files.path());
    assert!(mirror.got(our_blob), "the bytes are the mirror's: {:?}", mirror.requests());
    let asked_for_tag = |line: &String| is_for_another(line) && line.contains("/manifests/v1");
    assert!(!mirror.requests().iter().any(asked_for_tag), "{:?}", mirror.requests());
    assert!(!registry.requests().iter().any(|line| is_blob(line)), "{:?}", registry.requests());

    let both = text.replace("[\"pull\"]", "[\"pull\", \"resolve\"]");
    write_hosts(certs.path(), NAME, &both);
    pull(certs.path(), &[REFERENCE]).is(old.path());
}

#[test]
fn headers_of_hosts_toml_are_sent() {
    let users = [("reader", "open sesame")];
    let registry = Distribution::start_with(Configuration::default().with_htpasswd(&users));
    let (files, certs) = (one_file(), folder());
    let login = Login::password("reader", "open sesame");
    let oras = Oras::plain_http().with_login(&registry.host(), &login);
    oras.push(&format!("{}/java-app:v1", registry.host()), files.path(), &["app.jar"]);
    write_hosts_toml(certs.path(), NAME, &registry.url());
    pull(certs.path(), &[REFERENCE]).failed(1, &["401", "authentication required"]);
    let text = format!(
        "server = \"{}\"\n[header]\nauthorization = \"Basic cmVhZGVyOm9wZW4gc2VzYW1l\"\n",
        registry.url()
    );
    write_hosts(certs.path(), NAME, &text);
    pull(certs.path(), &[REFERENCE]).is(files.path());
}

#[test]
fn a_path_that_is_overridden_is_the_whole_path() {
    let (registry, files, certs) = (Distribution::start(), one_file(), folder());
    registry.push("java-app:v1", files.path(), &["app.jar"]);
    let elsewhere = Configuration::default().with_prefix("/artifacts/").with_remote(&registry.url());
    let mirror = Distribution::start_with(elsewhere);
    let text = |path: &str| format!("server = \"{}{path}\"\noverride_path = true\n", mirror.url());
    write_hosts(certs.path(), NAME, &text("/artifacts/v2"));
    pull(certs.path(), &[REFERENCE]).is(files.path());
    assert!(mirror.got(|line| line.contains(" /artifacts/v2/java-app/blobs/")));
    write_hosts(certs.path(), NAME, &text("/artifacts"));
    pull(certs.path(), &[REFERENCE]).failed(1, &["/artifacts/java-app/manifests/v1"]);
}

#[test]
fn the_default_folder_applies_to_hosts_without_one() {
    let (registry, other, files, certs) =
        (Distribution::start(), Distribution::start(), one_file(), folder());
    registry.push("java-app:v1", files.path(), &["app.jar"]);
    write_hosts_toml(certs.path(), "_default", &registry.url());
    write_hosts_toml(certs.path(), "other.example:5000", &other.url());
    pull(certs.path(), &[REFERENCE]).is(files.path());
    pull(certs.path(), &["elsewhere.example/java-app:v1"]).is(files.path());
    pull(certs.path(), &["other.example:5000/java-app:v1"]).failed(1, &["not found"]);
}

/// A registry with TLS whose address only the proxy knows.
const BEHIND: &str = "registry.acme.example";

/// `https://registry.acme.example` and `https://auth.acme.example`, with certificates of one authority.
struct Behind {
    authority: Authority,
    certs: tempfile::TempDir,
    files: tempfile::TempDir,
}

impl Behind {
    fn new() -> Self {
        let (authority, certs) = (Authority::new("private authority"), folder());
        let ca = authority.certificate().display();
        let text = format!("server = \"https://{BEHIND}\"\nca = \"{ca}\"\n");
        write_hosts(certs.path(), BEHIND, &text);
        Self { authority, certs, files: one_file() }
    }

    fn configuration(&self) -> Configuration {
        Configuration::default().with_tls(&self.authority.server(&[BEHIND, "127.0.0.1"]))
    }

    fn oras(&self) -> Oras {
        Oras::trusting(self.authority.certificate())
    }

    fn pull(&self, path: &str, environment: &[(&str, &str)]) -> Pulled {
        pull_with(self.certs.path(), &[&format!("{BEHIND}/{path}")], environment)
    }
}

#[test]
fn https_uses_a_proxy_tunnel() {
    let behind = Behind::new();
    let registry = Distribution::start_with(behind.configuration());
    let reference = format!("{}/java-app:v1", registry.host());
    behind.oras().push(&reference, behind.files.path(), &["app.jar"]);
    let proxy = ForwardProxy::start(&[(&format!("{BEHIND}:443"), &registry.host())]);
    let url = proxy.url();

    behind.pull("java-app:v1", &[("HTTPS_PROXY", &url)]).is(behind.files.path());
    let tunnels = proxy.connects(&format!("{BEHIND}:443"));
    assert!(tunnels > 0, "{:?}", proxy.seen());
    assert_eq!(proxy.seen().len(), tunnels, "nothing else: {:?}", proxy.seen());

    // Only the proxy resolves that name.
    for environment in [
        &[("HTTP_PROXY", url.as_str())][..],
        &[("HTTPS_PROXY", url.as_str()), ("NO_PROXY", ".acme.example")],
        &[("HTTPS_PROXY", url.as_str()), ("no_proxy", BEHIND)],
    ] {
        behind.pull("java-app:v1", environment).failed(1, &[BEHIND]);
        assert_eq!(proxy.seen().len(), tunnels, "{environment:?}");
    }
    behind
        .pull("java-app:v1", &[("HTTPS_PROXY", &url), ("NO_PROXY", "other.example")])
        .is(behind.files.path());
}

/// As in Go programs: `NO_PROXY` with ports and `*`, no `ALL_PROXY`. An invalid proxy address is reported.
#[test]
fn proxy_variables_work_as_in_go_programs() {
    let behind = Behind::new();
    let proxy = ForwardProxy::start(&[]);
    let url = proxy.url();
    let authority = format!("{BEHIND}:443");
    let secret = url.replace("http://", "http://user:hunter2@");
    let pulled =
        behind.pull("java-app:v1", &[("HTTPS_PROXY", &secret), ("NO_PROXY", "registry.acme.example:444")]);
    pulled.failed(1, &[&format!("through the proxy {url}")]);
    assert!(!pulled.words().contains("hunter2"), "{}", pulled.words());
    let seen = proxy.connects(&authority);
    assert!(seen > 0, "{:?}", proxy.seen());
    for environment in [
        &[("HTTPS_PROXY", url.as_str()), ("NO_PROXY", &authority)][..],
        &[("HTTPS_PROXY", url.as_str()), ("NO_PROXY", "*")],
        &[("ALL_PROXY", url.as_str())],
    ] {
        behind.pull("java-app:v1", environment).failed(1, &[BEHIND]);
        assert_eq!(proxy.seen().len(), seen, "{environment:?}");
    }
    for wrong in ["ftp://user:hunter2@proxy.test:21", "socks5://proxy.test", "http://"] {
        let pulled = behind.pull("java-app:v1", &[("HTTPS_PROXY", wrong)]);
        pulled.failed(2, &["HTTPS_PROXY is ", "write http://HOST:PORT"]);
        assert!(!pulled.words().contains("hunter2"), "{}", pulled.words());
    }
    // A port without a listener.
    let closed = "http://127.0.0.1:1";
    behind.pull("java-app:v1", &[("HTTPS_PROXY", closed)]).failed(1, &[closed]);
}

#[test]
fn http_requests_to_a_proxy_have_absolute_urls() {
    let (registry, files, certs) = (Distribution::start(), one_file(), folder());
    registry.push("java-app:v1", files.path(), &["app.jar"]);
    write_hosts_toml(certs.path(), BEHIND, &format!("http://{BEHIND}"));
    let proxy = ForwardProxy::start(&[(&format!("{BEHIND}:80"), &registry.host())]);
    let reference = format!("{BEHIND}/java-app:v1");
    pull_with(certs.path(), &[&reference], &[("http_proxy", &proxy.url())]).is(files.path());
    let tag = format!("http://{BEHIND}/v2/java-app/manifests/v1");
    assert!(proxy.seen().contains(&Proxied::Request("HEAD".to_owned(), tag)), "{:?}", proxy.seen());
    assert!(proxy.seen().iter().all(|seen| matches!(seen, Proxied::Request(..))), "{:?}", proxy.seen());

    // Local addresses are not requested through a proxy.
    write_hosts_toml(certs.path(), NAME, &registry.url());
    let before = proxy.seen().len();
    pull_with(certs.path(), &[REFERENCE], &[("http_proxy", &proxy.url())]).is(files.path());
    assert_eq!(proxy.seen().len(), before);
}

#[test]
fn tokens_come_from_a_sibling_of_the_registry() {
    let host = Behind::new();
    let own = host.authority.server(&["auth.acme.example", "127.0.0.1"]);
    let rules = rules().with_tls(&own).with_realm("https://auth.acme.example/token").with_public("");
    let service = TokenService::start(rules);
    let registry = Distribution::start_with(host.configuration().with_tokens(&service));
    let proxy = ForwardProxy::start(&[
        (&format!("{BEHIND}:443"), &registry.host()),
        ("auth.acme.example:443", &service.host()),
    ]);
    // The real client has to find the service as well.
    let oras = host.oras().with_login(BEHIND, &Login::password("admin", "of all")).with_proxy(&proxy.url());
    oras.push(&format!("{BEHIND}/public/app:v1"), host.files.path(), &["app.jar"]);
    service.forget_requests();
    host.pull("public/app:v1", &[("HTTPS_PROXY", &proxy.url())]).is(host.files.path());
    assert_eq!(service.requests().len(), 1, "{:?}", service.requests());
}

/// The download takes 12 seconds with four connections, longer than the lifetime of a token: three seconds, although the
/// token announces minutes. A shorter lifetime can end between a renewal and the next request on a loaded machine.
fn slow() -> (TokenService, Distribution, ForwardProxy, tempfile::TempDir) {
    let service = TokenService::start(rules().with_realm("http://auth.acme.example/token"));
    let (registry, files) = (behind(&service), folder());
    let (own, auth) = (format!("{BEHIND}:80"), "auth.acme.example:80");
    let names: [(&str, &str); 2] = [(&own, &registry.host()), (auth, &service.host())];
    let proxy = ForwardProxy::start_slow(&names, 64 << 10);
    let parts: Vec<String> = (0..24_u8).map(|number| format!("part-{number}")).collect();
    for (number, part) in (0..).zip(&parts) {
        write(files.path(), &[(part, &vec![number; 128 << 10])]);
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let oras = Oras::plain_http().with_login(BEHIND, &Login::password("admin", "of all"));
    oras.with_proxy(&proxy.url()).push(&format!("{BEHIND}/public/app:v1"), files.path(), &parts);
    service.change(|rules| rules.with_lifetime(3).with_told_lifetime(Some(300)));
    service.forget_requests();
    (service, registry, proxy, files)
}

/// Reports whether a request for a blob was refused with a token.
fn refused(line: &str) -> bool {
    is_blob(line) && line.ends_with(" 401")
}

#[test]
fn a_token_that_expires_during_a_pull_is_renewed() {
    let (service, registry, proxy, files) = slow();
    let certs = folder();
    write_hosts_toml(certs.path(), BEHIND, &format!("http://{BEHIND}"));
    let reference = format!("{BEHIND}/public/app:v1");
    pull_with(certs.path(), &[&reference], &[("HTTP_PROXY", &proxy.url())]).is(files.path());
    assert!(registry.got(refused), "no token ended while blobs were fetched");
    assert!(service.requests().len() > 1, "{:?}", service.requests());
}

#[test]
fn oras_renews_an_expired_token() {
    let (service, registry, proxy, files) = slow();
    let out = folder();
    let oras = Oras::plain_http().with_proxy(&proxy.url());
    run(oras.pull(&format!("{BEHIND}/public/app:v1"), out.path()).args(["--concurrency", "2"]));
    assert_same_files(out.path(), files.path());
    assert!(registry.got(refused) && service.requests().len() > 1, "{:?}", service.requests());
}
