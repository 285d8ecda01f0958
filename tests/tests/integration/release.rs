//! The image and the chart of a release, pushed to a real registry and read back.

use std::path::{Path, PathBuf};
use std::process::Command;

use oras_csi_tests::parts::{oras_csi, repository, testbed};
use oras_csi_tests::process::{run, try_run};
use oras_csi_tests::registry::{Configuration, Distribution, Login, oras};
use serde_json::Value;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn deploy(script: &str) -> Command {
    let mut command = Command::new(repository().join("deploy").join(script));
    let bin = testbed("oras");
    command
        .env("ORAS_CSI_TESTBED_BIN", bin.parent().expect("its folder"))
        .env("DOCKER_CONFIG", "/nonexistent");
    command
}

/// Makes the image of a binary, with a certificate that is no authority, because making the real ones needs a compiler.
fn image(binary: &Path, out: &Path) {
    let authorities = out.with_extension("pem");
    std::fs::write(&authorities, "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n").expect("writes");
    run(deploy("image").arg(binary).arg(out).env("CA_CERTIFICATES", authorities));
}

/// Writes a copy of the binary that claims to be for arm64: the machine of its ELF header.
fn for_arm64(folder: &Path) -> PathBuf {
    let mut bytes = std::fs::read(oras_csi()).expect("the binary");
    assert_eq!(&bytes[..4], b"\x7fELF");
    bytes[18..20].copy_from_slice(&183_u16.to_le_bytes());
    let path = folder.join("arm64");
    std::fs::write(&path, bytes).expect("writes");
    path
}

fn fetch(what: &str, reference: &str) -> Value {
    let text = run(oras().args([what, "fetch", "--plain-http", "--output", "-", reference]));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{reference}: {error}: {text}"))
}

/// The digest of `pushed: REPOSITORY@DIGEST`.
fn pushed(text: &str) -> &str {
    let line = text.lines().find_map(|line| line.strip_prefix("pushed: ")).expect("a line");
    line.split_once('@').expect("a digest").1
}

#[test]
fn an_image_is_pushed_without_docker_and_is_the_same_each_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let [one, two] = ["one.tar", "two.tar"].map(|name| folder.path().join(name));
    image(&oras_csi(), &one);
    image(&oras_csi(), &two);
    assert!(std::fs::read(&one).expect("reads") == std::fs::read(&two).expect("reads"), "equal bytes");

    let registry = Distribution::start();
    let to = format!("{}/team/oras-csi:dev", registry.host());
    let said = run(deploy("release/push-image").arg(&one).arg(&to).env("PLAIN_HTTP", "1"));
    let digest = pushed(&said);
    let manifest = fetch("manifest", &to);
    assert_eq!(manifest, fetch("manifest", &format!("{}/team/oras-csi@{digest}", registry.host())));
    let config = manifest["config"]["digest"].as_str().expect("a digest");
    let config = fetch("blob", &format!("{}/team/oras-csi@{config}", registry.host()));
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/oras-csi"]));
    assert_eq!(config["os"], "linux");
    let layers = manifest["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 1);
    let size = std::fs::metadata(oras_csi()).expect("the binary").len();
    assert!(layers[0]["size"].as_u64().expect("a size") > size, "{manifest}");
}

#[test]
fn a_registry_with_a_login_needs_the_docker_config() {
    let folder = tempfile::tempdir().expect("a folder");
    let archive = folder.path().join("image.tar");
    image(&oras_csi(), &archive);
    let user = ("alice", "open sesame");
    let registry = Distribution::start_with(Configuration::default().with_htpasswd(&[user]));
    let to = format!("{}/oras-csi:dev", registry.host());
    let mut push = deploy("release/push-image");
    push.arg(&archive).arg(&to).env("PLAIN_HTTP", "1");
    let refused = try_run(&mut push);
    assert!(!refused.status.success());
    let config = Login::password(user.0, user.1).docker_config(&registry.host());
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("writes");
    assert!(pushed(&run(push.env("DOCKER_CONFIG", folder.path()))).starts_with("sha256:"));
}

#[test]
fn an_unusable_name_is_refused_before_a_push() {
    for to in [
        "registry.example.com/oras-csi",
        "oras-csi:dev",
        "registry.example.com:5000/oras-csi",
        "r.io/a:b@sha256:c",
    ] {
        let output = try_run(deploy("release/push-image").arg("/nonexistent").arg(to));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(2) && said.contains("is not REGISTRY/REPOSITORY:TAG"),
            "{to}: {said}"
        );
    }
}

#[test]
fn a_release_is_an_index_of_both_architectures_and_a_chart_that_names_its_digest() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    image(&for_arm64(folder.path()), &at("image-arm64.tar"));
    image(&oras_csi(), &at("image-amd64.tar"));
    let index = |out: &str, order: [&str; 2]| {
        let mut command = deploy("oci-index");
        command.arg(format!("localhost/oras-csi:{VERSION}")).arg(at(out)).args(order.map(at));
        run(&mut command).trim().to_owned()
    };
    let digest = index("image.tar", ["image-arm64.tar", "image-amd64.tar"]);
    assert_eq!(
        index("again.tar", ["image-amd64.tar", "image-arm64.tar"]),
        digest,
        "the order does not matter"
    );
    let twice = try_run(
        deploy("oci-index")
            .arg("a:b")
            .arg(at("twice.tar"))
            .args([at("image-arm64.tar"), at("image-arm64.tar")]),
    );
    assert!(!twice.status.success(), "one architecture twice");

    let registry = Distribution::start();
    let parent = format!("{}/acme", registry.host());
    let to = format!("{parent}/oras-csi:{VERSION}");
    let said = run(deploy("release/push-image").arg(at("image.tar")).arg(&to).env("PLAIN_HTTP", "1"));
    assert_eq!(pushed(&said), digest);
    let pushed_index = fetch("manifest", &to);
    let platforms: Vec<String> = pushed_index["manifests"]
        .as_array()
        .expect("manifests")
        .iter()
        .map(|manifest| {
            let of = format!("{parent}/oras-csi@{}", manifest["digest"].as_str().expect("a digest"));
            let config = fetch("manifest", &of)["config"]["digest"].as_str().expect("a digest").to_owned();
            let config = fetch("blob", &format!("{parent}/oras-csi@{config}"));
            assert_eq!(config["architecture"], manifest["platform"]["architecture"]);
            format!("{}/{}", manifest["platform"]["os"], manifest["platform"]["architecture"])
        })
        .collect();
    assert_eq!(platforms, ["\"linux\"/\"amd64\"", "\"linux\"/\"arm64\""]);

    let chart = |out: &str| {
        let mut command = deploy("release/chart");
        command.arg(at(out)).arg(&digest).env("RELEASE_REGISTRY", &parent);
        PathBuf::from(run(command.env("RELEASE_SOURCE", "https://forge.example.com/acme/oras-csi")).trim())
    };
    let (one, two) = (chart("one"), chart("two"));
    assert!(std::fs::read(&one).expect("reads") == std::fs::read(two).expect("reads"), "equal bytes");
    let helm = || {
        let mut command = Command::new(testbed("helm"));
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, at("helm"));
        }
        command
    };
    run(helm().args(["lint", "--strict", "--quiet"]).arg(&one));
    run(helm().arg("push").arg(&one).args([&format!("oci://{parent}/charts"), "--plain-http"]));
    let of = format!("oci://{parent}/charts/oras-csi");
    let from_registry = ["--version", VERSION, "--plain-http"];
    let rendered = run(helm().args(["template", "oras-csi", &of]).args(from_registry));
    let images: Vec<&str> = rendered.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
    let expected = format!("{parent}/oras-csi@{digest}");
    assert_eq!(images, [expected.as_str(); 2]);
    let shown: Value =
        serde_saphyr::from_str(&run(helm().args(["show", "chart", &of]).args(from_registry))).expect("YAML");
    assert_eq!(shown["home"], "https://forge.example.com/acme/oras-csi");
    let annotations = &shown["annotations"];
    // Artifact Hub reads these as YAML in a text.
    for list in ["images", "changes", "links", "crds"] {
        let text = annotations[format!("artifacthub.io/{list}")].as_str().expect("a text");
        let items: Value =
            serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{list}: {error}: {text}"));
        assert!(!items.as_array().expect("a list").is_empty(), "{list}");
    }
}
