//! The demo as a newcomer runs it: it ends well, leaves nothing, and is no play-acting.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::{children, signal};

/// Starts the demo with a folder of its own for what it makes.
fn start(arguments: &[&str], folder: &tempfile::TempDir) -> Child {
    let mut demo = Command::new(oras_csi());
    demo.arg("demo").args(arguments).env("TMPDIR", folder.path()).stdin(Stdio::null());
    demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn is_empty(folder: &tempfile::TempDir) -> bool {
    fs::read_dir(folder.path()).expect("a folder").next().is_none()
}

#[test]
fn it_ends_well_with_and_without_the_mount_and_leaves_nothing() {
    for arguments in [&[][..], &["--no-mount"]] {
        let folder = tempfile::tempdir().expect("a folder");
        let output = start(arguments, &folder).wait_with_output().expect("it ends");
        let words = words(&output);
        assert!(output.status.success(), "{words}");
        for step in
            ["Byte for byte what was pushed.", "What the name stands for.", "that the patch replaces."]
        {
            assert!(words.contains(step), "{step}: {words}");
        }
        assert!(is_empty(&folder), "{words}");
    }
}

/// Runs the demo and kills its webhook as soon as that is there.
fn without_a_webhook() -> (Option<i32>, String) {
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
    assert!(is_empty(&folder), "{}", words(&output));
    (output.status.code(), words(&output))
}

/// The programs meet over TLS, HTTP and the CSI socket alone: with no webhook that listens there is no demo.
#[test]
fn without_the_webhook_it_fails() {
    // On a busy machine the kill can come after the webhook was asked for the last time.
    let tries: Vec<_> = (0..5).map(|_| without_a_webhook()).collect();
    let failed = tries.iter().find(|(code, _)| *code != Some(0));
    let (code, words) = failed.unwrap_or_else(|| panic!("it ends well without a webhook: {tries:?}"));
    assert_eq!(*code, Some(1), "{words}");
    assert!(words.contains("the webhook did not"), "{words}");
}
