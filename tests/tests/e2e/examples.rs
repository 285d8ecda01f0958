//! Every manifest of `examples/`.

use std::process::Command;

use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::node::{Node, apply, on_this_node, try_apply, until};
use oras_csi_tests::parts::{oras_csi, repository};
use oras_csi_tests::process::{run, try_run};
use serde_json::{Value, json};

use super::PATIENCE;

/// The command in the first lines of `patch.yaml`.
fn patch(certs: &tempfile::TempDir) {
    let at = |name: &str| format!("kind-registry:5000/{name}");
    let mut patch = Command::new(oras_csi());
    patch.args([
        "patch",
        &at("java-app:v1"),
        "--minor",
        &at("acme/config:v1"),
        "--major",
        &at("acme/model:v1"),
    ]);
    run(patch.args(["--push", &at("java-app:patched"), "--certs-dir"]).arg(certs.path()));
}

#[test]
fn every_example_runs() {
    let node = Node::get();
    for artifact in [
        "java-app:v1",
        "java-app:latest",
        "acme/model:v1",
        "acme/tokenizer:v3",
        "acme/dataset:2024",
        "acme/config:v1",
    ] {
        // A patch must not overlay its base with itself.
        node.push(artifact, &[("HelloWorldServer.jar", "PK jar"), ("notes.txt", artifact)]);
    }
    patch(&node.registry().certs_d(&["kind-registry:5000"]));
    let mut files: Vec<_> = std::fs::read_dir(repository().join("examples"))
        .expect("examples")
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    for file in files.into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "yaml"))
    {
        let text = std::fs::read_to_string(&file).expect("reads");
        for mut document in serde_saphyr::from_multiple::<Value>(&text).expect("YAML") {
            let stem = file.file_stem().expect("a name").to_string_lossy();
            // The second pod uses the set that the first has created.
            let is_second = stem == "issue-25-second";
            let namespace = format!("example-{}", if is_second { "issue-25-first" } else { &stem });
            let _ = try_run(&mut kubectl(&["create", "namespace", &namespace]));
            if is_second {
                run(&mut kubectl(&["delete", "pods", "--all", "-n", &namespace, "--wait=true"]));
            }
            if matches!(document["kind"].as_str(), Some("ArtifactPolicy" | "ClusterArtifactSet")) {
                eprint!("{}: {}", file.display(), apply(&document));
                continue;
            }
            document["metadata"]["namespace"] = json!(namespace);
            until("the namespace has its service account", PATIENCE, || {
                let found = try_run(&mut kubectl(&["get", "serviceaccount", "default", "-n", &namespace]));
                found.status.success().then_some(())
            });
            if matches!(document["kind"].as_str(), Some("Secret" | "ArtifactSet")) {
                apply(&document);
                continue;
            }
            let document = on_this_node(document);
            // The webhook still resolves a set that was applied a moment ago.
            let applied = until(&format!("{} is let in", file.display()), PATIENCE, || {
                let applied = try_apply(&document);
                let words = String::from_utf8_lossy(&applied.stderr).into_owned();
                let is_waited_for = words.contains("is being resolved");
                assert!(applied.status.success() || is_waited_for, "{words}");
                applied.status.success().then_some(words)
            });
            eprint!("{}: {applied}", file.display());
            until(&format!("{} runs", file.display()), PATIENCE, || {
                let phases = run(&mut kubectl(&[
                    "get",
                    "pods",
                    "-n",
                    &namespace,
                    "-o",
                    "jsonpath={.items[*].status.phase}",
                ]));
                let phases: Vec<&str> = phases.split_whitespace().collect();
                assert!(!phases.contains(&"Failed"), "{}: a pod failed", file.display());
                (!phases.is_empty() && phases.iter().all(|phase| matches!(*phase, "Running" | "Succeeded")))
                    .then_some(())
            });
            if stem != "issue-25-first" {
                run(&mut kubectl(&["delete", "namespace", &namespace, "--wait=false"]));
            }
        }
        run(&mut kubectl(&["delete", "clusterartifactsets", "--all"]));
        run(&mut kubectl(&["delete", "artifactpolicies", "--all"]));
    }
}
