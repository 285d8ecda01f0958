//! Checks what a release depends on: versions that agree, crates that are not published, and actions and images that are
//! pinned by digest.

use std::path::PathBuf;
use std::process::Command;

use oras_csi_tests::parts::repository;
use oras_csi_tests::process::{run, try_run};
use serde_json::Value;

/// The jobs that can write, and what: each other job can only read.
const WRITERS: &[(&str, &str, &[&str])] = &[
    ("docs.yaml", "publish", &["contents"]),
    ("release.yaml", "publish", &["attestations", "contents", "id-token", "packages"]),
    ("scorecard.yaml", "scorecard", &["id-token", "security-events"]),
];

fn workflows() -> Vec<(String, String)> {
    let folder = repository().join(".github/workflows");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the workflows")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 3, "{files:?} are too few to be all");
    let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
    files.iter().map(|path| (name(path), std::fs::read_to_string(path).expect("reads"))).collect()
}

fn release(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(repository().join("deploy/release").join(script));
    command.args(arguments);
    command
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Returns why a line of a workflow or a Dockerfile names something that is not pinned.
fn unpinned(line: &str) -> Option<&'static str> {
    let line = line.trim_start_matches(['-', ' ']);
    if let Some(action) = line.strip_prefix("uses: ") {
        let (action, comment) = action.split_once(" # v").unwrap_or((action, ""));
        let is_commit = action.split_once('@').is_some_and(|(_, commit)| is_hex(commit, 40));
        return (!is_commit || comment.is_empty())
            .then_some("an action needs a commit, and its version as a comment");
    }
    let image = ["container: ", "image: ", "FROM "].iter().find_map(|word| line.strip_prefix(word))?;
    let image = image.split(' ').next().unwrap_or_default();
    let is_digest = image.split_once("@sha256:").is_some_and(|(_, digest)| is_hex(digest, 64));
    (image != "scratch" && !is_digest).then_some("an image needs a digest")
}

#[test]
fn actions_and_images_are_pinned_by_digest() {
    let mut texts = workflows();
    let dockerfile = repository().join("deploy/Dockerfile");
    texts.push(("Dockerfile".to_owned(), std::fs::read_to_string(dockerfile).expect("reads")));
    let (mut checked, mut found) = (0, Vec::new());
    for (name, text) in &texts {
        for (line, number) in text.lines().zip(1..) {
            checked += usize::from(line.contains('@'));
            if let Some(why) = unpinned(line) {
                found.push(format!("{name}:{number}: {why}: {}", line.trim()));
            }
        }
    }
    assert!(checked > 20, "only {checked} lines name something by digest");
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn finds_what_is_not_pinned() {
    assert!(unpinned("      - uses: actions/checkout@v4").is_some());
    assert!(unpinned(&format!("        uses: a/b@{}", "0".repeat(40))).is_some(), "no version");
    assert!(unpinned(&format!("        uses: a/b@{} # v1.0.0", "0".repeat(40))).is_none());
    assert!(unpinned("    container: rust:1.95").is_some());
    assert!(unpinned("FROM rust:1.95 AS build").is_some());
    assert!(unpinned(&format!("FROM rust:1.95@sha256:{} AS build", "a".repeat(64))).is_none());
    assert!(unpinned("FROM scratch").is_none());
}

#[test]
fn tokens_of_workflows_can_only_read_except_where_a_job_needs_more() {
    for (name, text) in workflows() {
        let workflow: Value = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let read_only = |permissions: &Value| {
            permissions
                .as_object()
                .is_some_and(|map| map.values().all(|value| value == "read" || value == "none"))
        };
        assert!(read_only(&workflow["permissions"]), "{name}: {}", workflow["permissions"]);
        for (job, settings) in workflow["jobs"].as_object().expect("jobs") {
            let granted = settings["permissions"].as_object().into_iter().flatten();
            let mut written: Vec<&str> =
                granted.filter(|(_, value)| *value == "write").map(|(what, _)| what.as_str()).collect();
            written.sort_unstable();
            let allowed = WRITERS.iter().find(|(file, of, _)| *file == name && of == job);
            assert_eq!(written, allowed.map_or(&[][..], |(_, _, what)| what), "{name}: {job}");
        }
    }
}

#[test]
fn one_builder_image_and_one_compiler_make_a_release() {
    let dockerfile = std::fs::read_to_string(repository().join("deploy/Dockerfile")).expect("reads");
    let builder = dockerfile.lines().find_map(|line| line.strip_prefix("FROM rust:")).expect("a builder");
    let builder = builder.split(' ').next().expect("its name");
    let compiler = builder.split('-').next().expect("a version");
    let (_, workflow) =
        workflows().into_iter().find(|(name, _)| name == "release.yaml").expect("the workflow of releases");
    assert!(workflow.contains(&format!("container: rust:{builder}\n")), "another image than rust:{builder}");
    let installed: Vec<&str> =
        workflow.lines().filter_map(|line| Some(line.split_once("rustup toolchain install ")?.1)).collect();
    assert!(!installed.is_empty());
    for line in installed {
        assert!(line.starts_with(&format!("{compiler} ")), "another compiler than {compiler}: {line}");
    }
}

#[test]
fn no_crate_is_published() {
    let mut metadata = Command::new(env!("CARGO"));
    metadata.args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&run(metadata.current_dir(repository()))).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 10);
    for package in packages {
        // An empty list of registries: `publish = false`.
        assert_eq!(package["publish"], serde_json::json!([]), "{}", package["name"]);
    }
}

#[test]
fn versions_agree_and_a_tag_must_be_the_version() {
    let version = run(&mut release("version", &[]));
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
    for tag in ["v999.0.0", env!("CARGO_PKG_VERSION")] {
        let output = try_run(&mut release("version", &[tag]));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(&format!("the tag is '{tag}'")), "{said}");
    }
}

#[test]
fn notes_have_the_changes_of_the_version_and_its_digests() {
    let mut notes = release("notes", &[env!("CARGO_PKG_VERSION"), "sha256:image", "sha256:chart"]);
    let notes = run(notes.env("RELEASE_REGISTRY", "registry.example.com/acme"));
    let changelog = std::fs::read_to_string(repository().join("CHANGELOG.md")).expect("reads");
    let first = changelog.lines().find(|line| line.starts_with("- ")).expect("a change");
    assert!(notes.contains(first), "{notes}");
    for expected in [
        "helm install oras-csi oci://registry.example.com/acme/charts/oras-csi --version",
        "registry.example.com/acme/oras-csi@sha256:image",
        "registry.example.com/acme/charts/oras-csi@sha256:chart",
    ] {
        assert!(notes.contains(expected), "{expected}: {notes}");
    }
}

#[test]
fn continuous_fuzzing_has_every_target() {
    let manifest = std::fs::read_to_string(repository().join("fuzz/Cargo.toml")).expect("reads");
    let manifest: toml::Table = manifest.parse().expect("TOML");
    let targets = manifest["bin"].as_array().expect("targets").iter().filter_map(|bin| bin["name"].as_str());
    let targets: Vec<&str> = targets.collect();
    let build = std::fs::read_to_string(repository().join("fuzz/oss-fuzz/build.sh")).expect("reads");
    assert!(build.contains(&format!("targets=({})", targets.join(" "))), "{targets:?}");
}
