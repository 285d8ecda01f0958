//! The command against real registries and artifacts that the real `oras` has pushed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use oras_csi_core::digest::Digest;
use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::{run, try_run};
use oras_csi_tests::registry::raw::Raw;
use oras_csi_tests::registry::{Distribution, oras};
use serde_json::{Value, json};

type Listing = BTreeMap<String, Digest>;

fn list(folder: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").display().to_string();
                listing.insert(name, Digest::sha256_of(&fs::read(&path).expect("reads")));
            }
        }
    }
    listing
}

/// A folder to push: files, one of them in a path, one empty, one of several MiB, and a directory.
fn files() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("makes");
        fs::write(path, bytes).expect("writes");
    };
    write("HelloWorldServer.jar", b"PK jar");
    write("empty", b"");
    write("nested/path/file.txt", b"nested");
    write("large.bin", &(0..5_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    write("dir/a", b"a");
    write("dir/sub/b", b"b");
    folder
}

const PUSHED: [&str; 5] =
    ["HelloWorldServer.jar:application/java-archive", "empty", "nested/path/file.txt", "large.bin", "dir"];

struct Bench {
    registry: Distribution,
    certs: tempfile::TempDir,
    files: tempfile::TempDir,
    digest: String,
}

impl Bench {
    fn start() -> Self {
        let (registry, files) = (Distribution::start(), files());
        let digest = registry.push("java-app:v1", files.path(), &PUSHED);
        let certs = registry.certs_d(&["kind-registry:5000"]);
        Self { registry, certs, files, digest }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(oras_csi());
        command.args(arguments).arg("--certs-dir").arg(self.certs.path());
        command
    }
}

fn code(output: &Output) -> i32 {
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    output.status.code().expect("it ended by itself")
}

#[test]
fn pull_writes_exactly_what_oras_pushed() {
    let bench = Bench::start();
    let (out, store) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let target = out.path().join("tree");
    let mut pull = bench.command(&["pull", "kind-registry:5000/java-app:v1"]);
    run(pull.arg(&target).arg("--store").arg(store.path()));
    assert_eq!(list(&target), list(bench.files.path()));

    let theirs = out.path().join("oras");
    let reference = format!("{}/java-app:v1", bench.registry.host());
    run(oras().args(["pull", "--plain-http", &reference, "-o"]).arg(&theirs));
    assert_eq!(list(&target), list(&theirs));
}

#[test]
fn one_blob_with_two_names_becomes_two_writable_files() {
    let bench = Bench::start();
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("one"), "same").expect("writes");
    fs::write(folder.path().join("two"), "same").expect("writes");
    bench.registry.push("twice:v1", folder.path(), &["one", "two"]);
    let out = tempfile::tempdir().expect("a folder");
    let target = out.path().join("tree");
    run(bench.command(&["pull", "kind-registry:5000/twice:v1"]).arg(&target));
    fs::write(target.join("one"), "changed").expect("the owner may write");
    assert_eq!(fs::read_to_string(target.join("two")).expect("reads"), "same");
    assert_eq!(fs::read_dir(out.path()).expect("a folder").count(), 1, "nothing is left beside it");
}

#[test]
fn pull_needs_no_registry_for_stored_content() {
    let mut bench = Bench::start();
    let (out, store) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let reference = format!("kind-registry:5000/java-app@{}", bench.digest);
    let pull = |bench: &Bench, name: &str| {
        let mut pull = bench.command(&["pull", &reference]);
        pull.arg(out.path().join(name)).arg("--store").arg(store.path());
        pull
    };
    run(&mut pull(&bench, "one"));
    bench.registry.stop();
    run(&mut pull(&bench, "two"));
    assert_eq!(list(&out.path().join("two")), list(bench.files.path()));
}

#[test]
fn a_recipe_writes_each_artifact_to_its_path() {
    let bench = Bench::start();
    let out = tempfile::tempdir().expect("a folder");
    let recipe = out.path().join("recipe.yaml");
    fs::write(
        &recipe,
        "- add: kind-registry:5000/java-app:v1\n  mediaTypes: [application/java-archive]\n\
         - add: kind-registry:5000/java-app:v1\n  path: all\n  exclude: [\"large.*\", \"dir/**\"]\n",
    )
    .expect("writes");
    let target = out.path().join("tree");
    run(bench
        .command(&["pull"])
        .arg("-f")
        .arg(&recipe)
        .arg(&target)
        .arg("--store")
        .arg(out.path().join("store")));
    let names: Vec<String> = list(&target).into_keys().collect();
    assert_eq!(
        names,
        ["HelloWorldServer.jar", "all/HelloWorldServer.jar", "all/empty", "all/nested/path/file.txt"]
    );
}

/// A layer that no rule gives a name is not written, which must not happen without a word.
#[test]
fn a_layer_without_a_name_is_named_by_a_recipe() {
    let bench = Bench::start();
    let raw = Raw::new(&bench.registry.host(), "weights");
    let config = raw.blob(b"{}");
    let layer = |media_type: &str, bytes: &[u8], annotations: Value| json!({"mediaType": media_type, "digest": raw.blob(bytes).to_string(), "size": bytes.len(), "annotations": annotations});
    let title = json!({"org.opencontainers.image.title": "README"});
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.to_string(), "size": 2},
        "layers": [layer("text/plain", b"read me", title), layer("application/vnd.acme.weights", b"weights", json!({}))]});
    let digest = raw
        .manifest("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())
        .expect("it is accepted");
    let out = tempfile::tempdir().expect("a folder");
    let reference = format!("kind-registry:5000/weights@{digest}");
    let output = try_run(bench.command(&["pull", &reference]).arg(out.path().join("plain")));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && words.contains("not written"), "{words}");
    assert!(words.contains("application/vnd.acme.weights"), "{words}");
    let names: Vec<String> = list(&out.path().join("plain")).into_keys().collect();
    assert_eq!(names, ["README"]);

    let recipe = out.path().join("recipe.yaml");
    let step =
        format!("- add: {reference}\n  mediaTypes: [application/vnd.acme.weights]\n  as: weights.bin\n");
    fs::write(&recipe, step).expect("writes");
    let output = try_run(bench.command(&["pull"]).arg("-f").arg(&recipe).arg(out.path().join("named")));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !words.contains("not written"), "{words}");
    assert_eq!(fs::read_to_string(out.path().join("named/weights.bin")).expect("the file"), "weights");
}

#[test]
fn an_index_gives_the_manifest_of_the_platform() {
    let bench = Bench::start();
    let host = bench.registry.host();
    let folder = tempfile::tempdir().expect("a folder");
    for architecture in ["amd64", "arm64"] {
        fs::write(folder.path().join("which"), architecture).expect("writes");
        let reference = format!("{host}/multi:{architecture}");
        let platform = format!("linux/{architecture}");
        run(oras()
            .args(["push", "--plain-http", "--artifact-platform", &platform, &reference, "which"])
            .current_dir(folder.path()));
    }
    run(oras().args([
        "manifest",
        "index",
        "create",
        "--plain-http",
        &format!("{host}/multi:v1"),
        "amd64",
        "arm64",
    ]));
    for (arguments, expected) in [
        (&[][..], None),
        (&["--platform", "linux/arm64"], Some("arm64")),
        (&["--platform", "linux/amd64"], Some("amd64")),
    ] {
        let out = tempfile::tempdir().expect("a folder");
        let mut pull = bench.command(&["pull", "kind-registry:5000/multi:v1"]);
        run(pull.args(arguments).arg(out.path().join("tree")).arg("--store").arg(out.path().join("store")));
        let found = fs::read_to_string(out.path().join("tree/which")).expect("the file");
        let own = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        assert_eq!(found, expected.unwrap_or(own));
    }
    let out = tempfile::tempdir().expect("a folder");
    let mut pull = bench.command(&["pull", "kind-registry:5000/multi:v1", "--platform", "linux/riscv64"]);
    let output = try_run(pull.arg(out.path().join("tree")).arg("--store").arg(out.path().join("store")));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_ne!(code(&output), 0);
    assert!(words.contains("linux/arm64") && words.contains("riscv64"), "{words}");
    assert!(!out.path().join("tree").exists());
}

#[test]
fn exit_statuses_distinguish_kinds_of_failure() {
    let bench = Bench::start();
    let out = tempfile::tempdir().expect("a folder");
    let pull = |arguments: &[&str]| {
        let mut pull = bench.command(&["pull"]);
        code(&try_run(
            pull.args(arguments).arg(out.path().join("tree")).arg("--store").arg(out.path().join("store")),
        ))
    };
    assert_eq!(pull(&["kind-registry:5000/java-app:v9"]), 1, "no such tag");
    assert_eq!(pull(&["kind-registry:5000/java-app:v1@sha256:00"]), 2, "no digest");
    assert_eq!(pull(&["team/app"]), 2, "ambiguous");
    assert!(!out.path().join("tree").exists(), "nothing is left of what failed");

    let explain = |arguments: &[&str]| code(&try_run(bench.command(&["explain"]).args(arguments)));
    assert_eq!(explain(&["kind-registry:5000/java-app:v1"]), 0);
    assert_eq!(explain(&["kind-registry:5000/java-app:v1", "--allow-registry", "ghcr.io/**"]), 3, "denied");
    assert_eq!(explain(&["kind-registry:5000/Java-App:v1"]), 2, "upper case");
}

#[test]
fn explain_shows_how_a_reference_is_parsed() {
    let bench = Bench::start();
    let explain = |arguments: &[&str]| -> Value {
        serde_json::from_str(&run(bench.command(&["explain", "-o", "json"]).args(arguments))).expect("JSON")
    };
    let online = explain(&["oras://Kind-Registry:5000/java-app:v1"]);
    assert_eq!(online["host"], "kind-registry:5000");
    assert_eq!(online["repository"], "java-app");
    assert_eq!(online["tag"], "v1");
    assert_eq!(online["digest"], bench.digest.as_str());
    assert!(online["id"].as_str().is_some_and(|id| id.starts_with("java-app-")), "{online}");
    let offline = explain(&["ubuntu", "--offline"]);
    assert_eq!(offline["reference"], "docker.io/library/ubuntu:latest");
    assert_eq!(offline.get("digest"), None);
}
