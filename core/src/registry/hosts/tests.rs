use std::fs;
use std::time::Duration;

use rstest::rstest;
use tempfile::TempDir;

use super::*;
use crate::go_duration;
use crate::reference::RegistryHost;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn config(folder: &TempDir) -> HostsConfig {
    HostsConfig::load(Some(folder.path())).unwrap()
}

fn host(text: &str) -> RegistryHost {
    text.parse().unwrap()
}

fn bases(config: &HostsConfig, registry: &str) -> Vec<String> {
    config.endpoints(&host(registry)).unwrap().iter().map(|endpoint| endpoint.base().to_string()).collect()
}

#[rstest]
#[case("ghcr.io", "https://ghcr.io/v2")]
#[case("docker.io", "https://registry-1.docker.io/v2")]
#[case("kind-registry:5000", "https://kind-registry:5000/v2")]
#[case("localhost:5000", "https://localhost:5000/v2")]
#[case("[2001:db8::1]:5000", "https://[2001:db8::1]:5000/v2")]
fn a_registry_without_a_folder_is_reached_over_https(#[case] registry: &str, #[case] base: &str) {
    let none = HostsConfig::load(None).unwrap();
    let empty = folder(&[]);
    for config in [none, config(&empty)] {
        let endpoints = config.endpoints(&host(registry)).unwrap();
        let [endpoint] = endpoints.as_slice() else { panic!("{endpoints:?}") };
        assert_eq!(endpoint.base().as_str(), base);
        assert!(!endpoint.is_named() && !endpoint.is_mirror() && !endpoint.is_plain_http());
        assert!(endpoint.pulls() && endpoint.resolves() && endpoint.pushes());
        assert!(!config.is_configured(registry) && !config.allows_insecure(&host(registry)));
    }
}

/// Which folder is read if several exist.
#[rstest]
#[case(&["kind-registry_5000_", "kind-registry:5000", "kind-registry", "_default"], "kind-registry:5000", Some("kind-registry_5000_"))]
#[case(&["kind-registry:5000", "kind-registry", "_default"], "kind-registry:5000", Some("kind-registry:5000"))]
#[case(&["kind-registry", "_default"], "kind-registry:5000", Some("_default"))]
#[case(&["kind-registry"], "kind-registry:5000", None)]
#[case(&["ghcr.io", "_default"], "ghcr.io", Some("ghcr.io"))]
#[case(&["ghcr.io_443_"], "ghcr.io", Some("ghcr.io_443_"))]
#[case(&["team"], "team:443", Some("team"))]
#[case(&["team_443_", "team"], "team:443", Some("team_443_"))]
#[case(&["[2001:db8::1]_5000_"], "[2001:db8::1]:5000", Some("[2001:db8::1]_5000_"))]
#[case(&["docker.io"], "docker.io", Some("docker.io"))]
#[case(&["_default"], "anything.example", Some("_default"))]
fn the_folder_is_found_as_containerd_finds_it(
    #[case] folders: &[&str],
    #[case] registry: &str,
    #[case] found: Option<&str>,
) {
    let files: Vec<_> = folders
        .iter()
        .enumerate()
        .map(|(port, name)| {
            (format!("{name}/hosts.toml"), format!("server = \"http://found:{}\"", 9000 + port))
        })
        .collect();
    let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
    let folder = folder(&files);
    let wanted = found.map(|name| folders.iter().position(|one| *one == name).unwrap());
    let endpoints = config(&folder).endpoints(&host(registry)).unwrap();
    let found = endpoints[0].base().as_str();
    match wanted {
        Some(port) => assert_eq!(found, format!("http://found:{}/v2", 9000 + port)),
        None => assert!(found.starts_with("https://kind-registry:5000"), "{found}"),
    }
    let own = folders.iter().any(|name| *name != "_default")
        && wanted.is_some_and(|port| folders[port] != "_default");
    assert_eq!(config(&folder).is_configured(registry), own);
}

#[test]
fn hosts_keep_the_order_of_the_file_and_the_server_is_last() {
    let text = r#"
        server = "https://origin.example"
        ca = "origin.crt"

        [host."https://zeta.example"]
          capabilities = ["pull"]
          ca = ["a.crt", "sub/b.crt"]
          [host."https://zeta.example".header]
            x-one = "1"
            x-many = ["2", "3"]
        [host."http://alpha.example:5000"]
          capabilities = ["pull", "resolve"]
          dial_timeout = "1m30s"
        [host."mid.example/some/path"]
        [host."https://whole.example/api"]
          override_path = true
          skip_verify = true
    "#;
    let folder = folder(&[
        ("origin.example/hosts.toml", text),
        ("origin.example/origin.crt", "origin"),
        ("origin.example/a.crt", "a"),
        ("origin.example/sub/b.crt", "b"),
    ]);
    let config = config(&folder);
    assert_eq!(
        bases(&config, "origin.example"),
        [
            "https://zeta.example/v2",
            "http://alpha.example:5000/v2",
            "https://mid.example/some/path/v2",
            "https://whole.example/api",
            "https://origin.example/v2",
        ]
    );
    let endpoints = config.endpoints(&host("origin.example")).unwrap();
    let [zeta, alpha, mid, whole, origin] = endpoints.as_slice() else { panic!("five") };
    assert!(zeta.pulls() && !zeta.resolves() && !zeta.pushes());
    assert!(alpha.pulls() && alpha.resolves() && !alpha.pushes());
    assert!(mid.pulls() && mid.resolves() && mid.pushes());
    assert_eq!(zeta.tls().ca.iter().map(|pem| &*pem.bytes).collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(&*origin.tls().ca[0].bytes, b"origin");
    assert_eq!(zeta.headers().get_all("x-many").iter().collect::<Vec<_>>(), ["2", "3"]);
    assert!(!format!("{zeta:?}").contains("\"2\""), "values may be secrets");
    assert_eq!(alpha.dial_timeout(), Some(Duration::from_secs(90)));
    assert!(whole.skips_verification() && !origin.skips_verification());
    assert!(zeta.is_mirror() && alpha.is_mirror() && !origin.is_mirror());
    assert!(endpoints.iter().all(Endpoint::is_named));
    assert!(config.allows_plain_http(&host("origin.example")));
}

#[test]
fn settings_without_a_server_apply_to_the_registrys_own_address() {
    let folder = folder(&[
        ("docker.io/hosts.toml", "skip_verify = true\n[host.\"https://mirror.example\"]\n"),
        ("_default/hosts.toml", "[host.\"http://10.0.0.1:5000\"]\n"),
    ]);
    let config = config(&folder);
    assert_eq!(bases(&config, "docker.io"), ["https://mirror.example/v2", "https://registry-1.docker.io/v2"]);
    let hub = config.endpoints(&host("docker.io")).unwrap();
    assert!(hub[1].skips_verification() && !hub[1].is_named() && !hub[1].is_mirror());
    assert!(config.allows_insecure(&host("docker.io")) && !config.allows_plain_http(&host("docker.io")));
    assert_eq!(bases(&config, "x.example:8443"), ["http://10.0.0.1:5000/v2", "https://x.example:8443/v2"]);
}

#[test]
fn a_server_at_the_registrys_own_address_is_not_a_mirror() {
    for (registry, server, mirror) in [
        ("kind-registry:5000", "http://kind-registry:5000", false),
        ("kind-registry:80", "http://kind-registry", false),
        ("docker.io", "https://registry-1.docker.io", false),
        ("docker.io", "https://docker.io", false),
        ("x.example", "https://x.example:443", false),
        ("kind-registry:5000", "http://localhost:5000", true),
        ("x.example", "https://x.example:444", true),
    ] {
        let folder = folder(&[("_default/hosts.toml", &format!("server = \"{server}\""))]);
        let endpoints = config(&folder).endpoints(&host(registry)).unwrap();
        assert_eq!(endpoints[0].is_mirror(), mirror, "{registry} {server}");
    }
}

#[test]
fn dockers_layout_is_read_if_there_is_no_hosts_toml() {
    let folder = folder(&[
        ("x.example/ca.crt", "authority"),
        ("x.example/client.cert", "certificate"),
        ("x.example/client.key", "key"),
    ]);
    let endpoints = config(&folder).endpoints(&host("x.example")).unwrap();
    let tls = endpoints[0].tls();
    assert_eq!(&*tls.ca[0].bytes, b"authority");
    let [(certificate, key)] = tls.client.as_slice() else { panic!("one certificate") };
    assert_eq!((&*certificate.bytes, &*key.bytes), (b"certificate".as_slice(), b"key".as_slice()));
    assert!(!endpoints[0].is_named());
}

#[rstest]
#[case("server = 5", "server")]
#[case("server = \"ftp://x\"", "server")]
#[case("server = \"https://user:hunter2@x\"", "server")]
#[case("server = \"https://x?a=b\"", "server")]
#[case("server = \"https://\"", "server")]
#[case("host = 1", "host")]
#[case("[host]\n\"https://x\" = 1", "host.\"https://x\"")]
#[case("[host.\"https://u:hunter2@x\"]\nca = 1", "host.\"…@x\"")]
#[case("[host.\"https://x\"]\ncapabilities = [\"fly\"]", "host.\"https://x\".capabilities")]
#[case("[host.\"https://x\"]\ncapabilities = \"pull\"", "host.\"https://x\".capabilities")]
#[case("skip_verify = \"yes\"", "skip_verify")]
#[case("override_path = 1\nserver = \"x\"", "override_path")]
#[case("ca = 1", "ca")]
#[case("ca = [[\"a\"]]", "ca")]
#[case("client = [\"a\", 5]", "client")]
#[case("client = [[\"a\", \"b\", \"c\"]]", "client")]
#[case("proxy = \"http://proxy:3128\"", "proxy")]
#[case("[host.\"https://m\"]\nproxy = \"http://proxy:3128\"", "host.\"https://m\".proxy")]
#[case("client = 5", "client")]
#[case("dial_timeout = \"fast\"", "dial_timeout")]
#[case("dial_timeout = \"-5s\"", "dial_timeout")]
#[case("dial_timeout = 5", "dial_timeout")]
#[case("[header]\n\"a b\" = \"hunter2\"", "header.a b")]
#[case("[header]\na = \"hunter2\\n\"", "header.a")]
fn an_invalid_value_names_file_and_key(#[case] text: &str, #[case] named: &str) {
    let folder = folder(&[("x/hosts.toml", text)]);
    let error = config(&folder).endpoints(&host("x:443")).unwrap_err();
    let HostsError::Key { path, key, .. } = &error else { panic!("{error}") };
    assert_eq!(path, &folder.path().join("x/hosts.toml"));
    assert!(key.as_str().starts_with(named), "{key} for {text}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    assert!(!config(&folder).allows_insecure(&host("x:443")), "a broken file allows nothing");
}

#[test]
fn errors_name_unreadable_files() {
    let folder = folder(&[
        ("a.example/hosts.toml", "ca = \"missing.crt\""),
        ("b.example/hosts.toml", "server = "),
        ("c.example/hosts.toml/x", "a folder"),
    ]);
    let config = config(&folder);
    let missing = config.endpoints(&host("a.example")).unwrap_err();
    assert!(missing.to_string().contains("a.example/missing.crt"), "{missing}");
    assert!(matches!(config.endpoints(&host("b.example")), Err(HostsError::Toml { .. })));
    assert!(matches!(config.endpoints(&host("c.example")), Err(HostsError::File { .. })));
    let gone = HostsConfig::load(Some(&folder.path().join("gone"))).unwrap_err();
    assert!(gone.to_string().contains("gone"), "{gone}");
}

#[test]
fn unknown_keys_are_reported_and_ignored() {
    let text = "severs = 1\n[host.\"https://m.example\"]\nskip-verify = true\n";
    let folder = folder(&[("x.example/hosts.toml", text)]);
    let server = Endpoint::default_for(&host("x.example"), "https").unwrap();
    let (endpoints, unknown) =
        parse::read(&folder.path().join("x.example"), &host("x.example"), server).unwrap();
    assert_eq!(endpoints.len(), 2);
    assert!(!endpoints[0].skips_verification());
    assert_eq!(unknown, ["host.\"https://m.example\".skip-verify", "severs"]);
}

#[test]
fn a_changed_file_is_seen_by_the_next_lookup() {
    let folder = folder(&[("x.example/hosts.toml", "server = \"http://one\"")]);
    let config = config(&folder);
    assert_eq!(bases(&config, "x.example"), ["http://one/v2"]);
    fs::write(folder.path().join("x.example/hosts.toml"), "server = \"http://two\"").unwrap();
    assert_eq!(bases(&config, "x.example"), ["http://two/v2"]);
    fs::remove_dir_all(folder.path().join("x.example")).unwrap();
    assert_eq!(bases(&config, "x.example"), ["https://x.example/v2"]);
}

#[test]
fn plain_http_at_the_prompt_applies_to_one_registry() {
    let config = HostsConfig::load(None).unwrap().with_plain_http(host("localhost:5000"));
    assert_eq!(bases(&config, "localhost:5000"), ["http://localhost:5000/v2"]);
    assert!(config.endpoints(&host("localhost:5000")).unwrap()[0].is_named());
    assert!(config.is_configured("localhost:5000") && config.allows_plain_http(&host("localhost:5000")));
    assert_eq!(bases(&config, "localhost:5001"), ["https://localhost:5001/v2"]);
}

#[test]
fn only_hosts_with_a_folder_are_configured() {
    let folder = folder(&[("team/hosts.toml", ""), ("_default/hosts.toml", "")]);
    let config = config(&folder);
    assert!(config.is_configured("team") && config.is_configured("TEAM") && config.is_configured("team:443"));
    for no in ["", ".", "..", "_default", "team/..", "other", "team:5000"] {
        assert!(!config.is_configured(no), "{no}");
    }
}

#[test]
fn durations_have_gos_format() {
    for (text, milliseconds) in
        [("10s", 10_000), ("1m30s", 90_000), ("1.5s", 1_500), ("500ms", 500), ("1h", 3_600_000)]
    {
        assert_eq!(go_duration::parse_positive(text), Some(Duration::from_millis(milliseconds)), "{text}");
    }
    for text in ["", "5", "s", "-1s", "1 s", "0s", "1d", "1e400s", ".s"] {
        assert_eq!(go_duration::parse_positive(text), None, "{text}");
    }
}
