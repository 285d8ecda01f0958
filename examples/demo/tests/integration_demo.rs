//! Runs the demo as a newcomer does. It belongs to the integration tier, which builds the `oras-csi` binary first.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::{Running, children, free_port, listens, run, signal};
use oras_csi_tests::registry::{oras, push, write_hosts_toml};

const DEMO: &str = env!("CARGO_BIN_EXE_oras-csi-demo");

/// Starts the demo with a temporary folder of its own.
fn start(arguments: &[&str], folder: &tempfile::TempDir) -> Child {
    let mut demo = Command::new(DEMO);
    demo.arg("--oras-csi").arg(oras_csi()).args(arguments);
    demo.env("TMPDIR", folder.path()).stdin(Stdio::null());
    demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn is_empty(folder: &tempfile::TempDir) -> bool {
    fs::read_dir(folder.path()).expect("a folder").next().is_none()
}

#[test]
fn succeeds_with_and_without_the_mount_and_leaves_nothing_behind() {
    for arguments in [&[][..], &["--no-mount"]] {
        let folder = tempfile::tempdir().expect("a folder");
        let output = start(arguments, &folder).wait_with_output().expect("it ends");
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        for step in [
            "Byte for byte what was pushed.",
            "The files of the artifact that the set names.",
            "that the patch replaces.",
        ] {
            assert!(text.contains(step), "{step}: {text}");
        }
        assert!(is_empty(&folder), "{text}");
    }
}

/// The path of a Unix socket has at most 107 bytes, and those of kubelet are long.
#[test]
fn succeeds_in_a_temporary_folder_with_a_long_path() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = tempfile::Builder::new().prefix(&"long".repeat(20)).tempdir_in(parent.path());
    let folder = folder.expect("a folder");
    let output = start(&[], &folder).wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", text(&output));
    assert!(is_empty(&folder), "{}", text(&output));
}

/// Runs the demo and kills its webhook as soon as the webhook has started.
fn run_and_kill_the_webhook() -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let demo = start(&[], &folder);
    let started = Instant::now();
    let webhook = loop {
        if let Some(webhook) = children(demo.id(), "oras-csi webhook").first() {
            break *webhook;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "the demo starts no webhook");
    };
    signal(webhook, "KILL");
    let output = demo.wait_with_output().expect("it ends");
    assert!(is_empty(&folder), "{}", text(&output));
    (output.status.code(), text(&output))
}

/// The demo calls no code of the webhook: it fails when the webhook does not listen.
#[test]
fn fails_without_the_webhook() {
    // On a busy machine the kill can come after the last request to the webhook.
    let attempts: Vec<_> = (0..5).map(|_| run_and_kill_the_webhook()).collect();
    let failed = attempts.iter().find(|(code, _)| *code != Some(0));
    let (code, text) = failed.unwrap_or_else(|| panic!("it succeeds without a webhook: {attempts:?}"));
    assert_eq!(*code, Some(1), "{text}");
    assert!(text.contains("the webhook did not"), "{text}");
}

/// Writes files to push: one in a path, one empty, one of several MiB, and a directory.
fn write_files(folder: &Path) {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("makes");
        fs::write(path, bytes).expect("writes");
    };
    write("HelloWorldServer.jar", b"PK jar");
    write("empty", b"");
    write("nested/path/file.txt", b"nested");
    write("large.bin", &(0..5_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    write("dir/a", b"a");
    write("dir/sub/b", b"b");
}

const PUSHED: [&str; 5] =
    ["HelloWorldServer.jar:application/java-archive", "empty", "nested/path/file.txt", "large.bin", "dir"];

fn assert_same_files(one: &Path, other: &Path) {
    run(Command::new("diff").arg("--recursive").arg(one).arg(other));
}

#[test]
fn the_registry_of_the_demo_works_with_oras() {
    let out = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let host = format!("127.0.0.1:{port}");
    let mut command = Command::new(DEMO);
    let mut registry = Running::start(command.args(["--serve-registry", &host]), "registry", out.path());
    registry.wait_until("listening", Duration::from_secs(20), || listens(port));

    let files = tempfile::tempdir().expect("a folder");
    write_files(files.path());
    let digest = push(&format!("{host}/java-app:v1"), files.path(), &PUSHED);
    let pulled = out.path().join("oras");
    run(oras().args(["pull", "--plain-http", &format!("{host}/java-app@{digest}"), "-o"]).arg(&pulled));
    assert_same_files(&pulled, files.path());

    run(oras().args([
        "copy",
        "--from-plain-http",
        "--to-plain-http",
        &format!("{host}/java-app:v1"),
        &format!("{host}/some/deep/copy:v2"),
    ]));
    let tags = run(oras().args(["repo", "tags", "--plain-http", &format!("{host}/some/deep/copy")]));
    assert_eq!(tags.trim(), "v2");

    fs::write(out.path().join("note"), "signed").expect("writes");
    let attach = ["attach", "--plain-http", "--artifact-type", "example/signature"];
    let mut command = oras();
    run(command.args(attach).args([&format!("{host}/java-app:v1"), "note"]).current_dir(out.path()));
    let found =
        run(oras().args(["discover", "--plain-http", "--format", "json", &format!("{host}/java-app:v1")]));
    assert!(found.contains("example/signature"), "{found}");

    let certs = tempfile::tempdir().expect("a folder");
    write_hosts_toml(certs.path(), "kind-registry:5000", &format!("http://{host}"));
    let tree = out.path().join("tree");
    let mut pull = Command::new(oras_csi());
    pull.args(["pull", "kind-registry:5000/java-app:v1"]).arg(&tree).arg("--certs-dir").arg(certs.path());
    run(pull.arg("--store").arg(out.path().join("store")));
    assert_same_files(&tree, files.path());
}
