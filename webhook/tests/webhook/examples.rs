//! Admits every manifest in `examples/`, and checks that the README lists it.

use std::path::{Path, PathBuf};

use crate::support::{Bench, default_manifest, manifest, review, soon};
use oras_csi_core::digest::Digest;
use oras_csi_core::patch::Level;
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_webhook::policy::{Entry, is_policy};
use oras_csi_webhook::review::{Hook, Review};
use oras_csi_webhook::sets::is_set;
use rstest::rstest;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// Returns the pods of a manifest; for a workload that is its template.
fn pods(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    documents
        .into_iter()
        .filter(|document| {
            document["kind"] != "ArtifactPolicy" && document["kind"] != "Secret" && !is_set(document)
        })
        .map(
            |document| {
                if document["kind"] == "Pod" { document } else { document["spec"]["template"].clone() }
            },
        )
        .collect()
}

/// Creates the patch that the first lines of `patch.yaml` describe.
fn patch_java_app(bench: &Bench, base: &Digest) {
    let at = |text: &str, digest: Digest| Reference::parse(text).unwrap().with_digest(digest);
    let of = |text: &str| at(text, bench.registry.store(&default_manifest(text)));
    let levels = [
        (Level::Minor, of("kind-registry:5000/acme/config:v1")),
        (Level::Major, of("kind-registry:5000/acme/model:v1")),
    ];
    let base = at("kind-registry:5000/java-app:v1", base.clone());
    bench.registry.tag_patch("kind-registry:5000/java-app:patched", &base, &levels);
}

#[rstest]
#[case("pod.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@"])]
#[case("several-artifacts.yaml", &["/opt/artifacts", "/models"], &["kind-registry:5000/java-app:v1@",
    "kind-registry:5000/acme/model:v1@", "kind-registry:5000/acme/tokenizer:v3@"])]
#[case("containers.yaml", &["/data", "/data"], &["kind-registry:5000/acme/dataset:2024@"])]
#[case("media-types.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@"])]
#[case("platform.yaml", &["/mnt/oras"], &["kind-registry:5000/acme/config:v1@"])]
#[case("recipe.yaml", &["/srv/models"], &["kind-registry:5000/acme/model:v1@",
    "kind-registry:5000/acme/tokenizer:v3@"])]
#[case("recipe-overlay.yaml", &["/mnt/oras"], &["kind-registry:5000/acme/model:v1@",
    "kind-registry:5000/acme/config:v1@"])]
#[case("several-artifacts-filtered.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@",
    "kind-registry:5000/acme/config:v1@"])]
#[case("private-registry.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@"])]
#[case("policy-registries.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@"])]
#[case("policy-warn.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@"])]
#[case("policy-contents.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@"])]
#[case("deployment.yaml", &["/srv"], &["kind-registry:5000/acme/config:v1@", "kind-registry:5000/acme/model:v1@"])]
#[case("inline-volume.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:latest@"])]
#[case("inline-volume-plain-http.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@"])]
#[case("inline-volume-actions.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@",
    "kind-registry:5000/acme/model:v1@"])]
#[case("patch.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@", "kind-registry:5000/acme/config:v1@"])]
#[case("inline-volume-patch.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@",
    "kind-registry:5000/acme/config:v1@", "kind-registry:5000/acme/model:v1@"])]
#[case("inline-volume-named.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@"])]
#[case("artifact-set.yaml", &["/srv/models"], &["kind-registry:5000/acme/model:v1@",
    "kind-registry:5000/acme/tokenizer:v3@"])]
#[case("cluster-artifact-set.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@"])]
#[case("issue-25-first.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@",
    "kind-registry:5000/acme/model:v1@"])]
#[case("issue-25-second.yaml", &["/mnt/oras"], &["kind-registry:5000/java-app:v1@",
    "kind-registry:5000/acme/model:v1@"])]
#[tokio::test]
async fn an_example_is_admitted(#[case] file: &str, #[case] paths: &[&str], #[case] references: &[&str]) {
    // The example's own sets exist, or those that another example creates.
    let sets = if file == "issue-25-second.yaml" { "issue-25-first.yaml" } else { file };
    let text = std::fs::read_to_string(folder().join(sets)).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let sets: Vec<Value> = documents.into_iter().filter(is_set).collect();
    let (bench, stated) = Bench::new().with_sets(&sets);
    // The example's own policies are in force, whatever namespaces they select.
    let path = folder().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let policies: Vec<Entry> = serde_saphyr::from_multiple::<Value>(&text)
        .unwrap()
        .iter()
        .filter(|document| is_policy(document))
        .map(|document| Entry::from_manifest(document).unwrap())
        .collect();
    let has_policies = !policies.is_empty();
    bench.policies.set_files(policies);
    let mut jar = manifest(&[("application/java-archive", Some("HelloWorldServer.jar"))]);
    jar["artifactType"] = "application/vnd.unknown.artifact.v1".into();
    let digest = bench.registry.tag("kind-registry:5000/java-app:v1", &jar);
    patch_java_app(&bench, &digest);
    assert_eq!(has_policies, file.starts_with("policy-"));
    for set in &sets {
        let name = set["metadata"]["name"].as_str().unwrap();
        bench.admission.update_set_statuses(&stated, name, soon()).await;
    }
    if file == "issue-25-second.yaml" {
        let first = review(&pods("issue-25-first.yaml")[0]);
        let first = Review::decode(Hook::Volumes, first.to_string().as_bytes()).unwrap();
        assert!(bench.admission.review(&first, soon()).await.is_allowed());
        let calls = bench.registry.calls();
        bench.admitted(&pods(file)[0]).await;
        assert_eq!(bench.registry.calls(), calls, "the name is all that is needed");
    }
    for pod in pods(file) {
        let after = bench.admitted(&pod).await;
        let volumes = after["spec"]["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), 1);
        let attributes = volumes[0]["csi"]["volumeAttributes"].as_object().unwrap();
        let texts = attributes.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap()));
        CanonicalVolume::from_attributes(texts).unwrap();

        let mut found = Vec::new();
        for list in ["initContainers", "containers"] {
            for container in after["spec"][list].as_array().into_iter().flatten() {
                for mount in container["volumeMounts"].as_array().into_iter().flatten() {
                    assert_eq!(
                        (&mount["readOnly"], &mount["name"]),
                        (&Value::Bool(true), &volumes[0]["name"])
                    );
                    found.push(mount["mountPath"].as_str().unwrap().to_owned());
                }
            }
        }
        assert_eq!(found, paths);

        let note = after["metadata"]["annotations"]["oras.land/pinned"].as_str().unwrap();
        let note: Value = serde_json::from_str(note).unwrap();
        let lines = note[volumes[0]["name"].as_str().unwrap()].as_array().unwrap();
        assert_eq!(lines.len(), references.len(), "{note}");
        for (line, reference) in lines.iter().zip(references) {
            assert!(line.as_str().unwrap().starts_with(reference), "{line}");
        }
    }
}

#[rstest]
#[case("inject-false.yaml")]
#[tokio::test]
async fn an_example_without_a_request_is_not_changed(#[case] file: &str) {
    let bench = Bench::new();
    let pods = pods(file);
    assert_eq!(pods.len(), 1);
    assert_eq!(bench.admitted(&pods[0]).await, pods[0]);
    assert_eq!(bench.registry.calls(), 0);
}

#[test]
fn all_examples_are_tested_and_listed() {
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let tests = include_str!("examples.rs");
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // Examples of tools that drive sets are tested on the node (tests/tests/e2e/sets.rs).
        if !["README.md", "demo", "workflows"].contains(&name.as_str()) {
            assert!(readme.contains(&format!("]({name})")), "{name} is not in the README");
            assert!(tests.contains(&format!("#[case(\"{name}\"")), "{name} has no case here");
        }
    }
}
