//! `status` with an API server in memory.

use std::error::Error;

use k8s_openapi::jiff::Timestamp;
use oras_csi_core::digest::Digest;
use oras_csi_testkit::api_server::ApiServer;
use oras_csi_testkit::client::{Behaviour, FakeRegistry, not_found};
use serde_json::{Value, json};

use super::collect::Collector;
use super::model::Status;
use super::tags::TagChecker;
use super::{Format, print};
use crate::cluster::pod::tests::{DIGEST, admitted};

const ORAS: &str = "/apis/oras.land/v1alpha1";

fn put_pod(server: &ApiServer, pod: &Value) {
    let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}",
        namespace.as_str().unwrap_or_default(),
        name.as_str().unwrap_or_default()
    );
    server.put(&path, pod.clone());
}

/// A cluster with two nodes, two sets, a pin, and pods in each state.
fn cluster() -> ApiServer {
    let server = ApiServer::new();
    let driver = |name: &str| json!({"name": name, "nodeID": "n", "topologyKeys": null});
    for (node, drivers) in [
        ("node-1", vec![driver("csi.oras.land")]),
        ("node-2", vec![driver("csi.oras.land")]),
        ("node-3", vec![driver("other")]),
    ] {
        server.put(
            &format!("/apis/storage.k8s.io/v1/csinodes/{node}"),
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": node}, "spec": {"drivers": drivers}}),
        );
    }
    let now = Timestamp::now();
    let since = Timestamp::from_second(now.as_second() - 20).unwrap_or_default();
    let set_on_node = |name: &str, state: &str| json!({"name": name, "id": "i", "state": state, "bytes": 1, "totalBytes": 1, "since": "2026-01-01T00:00:00Z"});
    server.put(
        &format!("{ORAS}/nodeartifacts/node-1"),
        json!({"apiVersion": "oras.land/v1alpha1", "kind": "NodeArtifacts", "metadata": {"name": "node-1"}, "spec": {},
            "status": {"ready": "1/2", "sets": [set_on_node("models", "Ready"), set_on_node("more", "Fetching")],
                "version": "0.1.0", "volumes": 7, "reported": now.to_string(),
                "store": {"bytes": 5_368_709_120_i64, "capacityBytes": 107_374_182_400_i64, "freeBytes": 42_949_672_960_i64, "damaged": 2},
                "pulls": [{"id": "model-1", "bytes": 1_073_741_824_i64, "totalBytes": 4_294_967_296_i64,
                    "downloadedBytes": 1_073_741_824_i64, "since": since.to_string()}]}}),
    );
    // As an earlier driver writes it.
    server.put(
        &format!("{ORAS}/nodeartifacts/node-2"),
        json!({"apiVersion": "oras.land/v1alpha1", "kind": "NodeArtifacts", "metadata": {"name": "node-2"}, "spec": {},
            "status": {"ready": "0/0", "sets": [], "store": {"bytes": 0, "damaged": 0}}}),
    );
    server.put(
        &format!("{ORAS}/clusterartifactsets/models"),
        json!({"apiVersion": "oras.land/v1alpha1", "kind": "ClusterArtifactSet", "metadata": {"name": "models"},
            "spec": {"recipe": [{"add": "ghcr.io/acme/model:v1"}], "namespaceSelector": {}},
            "status": {"observedGeneration": 1, "id": "model-2", "references": [format!("ghcr.io/acme/model:v1@{DIGEST}")],
                "since": "2026-01-01T00:00:00Z", "nodes": {"desired": 2, "ready": 1, "failed": 1},
                "conditions": [{"type": "Ready", "status": "True", "reason": "Resolved", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
    );
    server.put(
        &format!("{ORAS}/namespaces/team/artifactsets/broken"),
        json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactSet", "metadata": {"name": "broken", "namespace": "team"},
            "spec": {"recipe": [{"add": "ghcr.io/acme/none:v1"}]},
            "status": {"conditions": [{"type": "Ready", "status": "False", "reason": "NotFound", "message": "it does not exist",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
    );
    server.put(
        &format!("{ORAS}/namespaces/team/artifactpins/pin-1"),
        json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPin",
            "metadata": {"name": "pin-1", "namespace": "team", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"reference": "ghcr.io/acme/model:v1", "digest": DIGEST,
                "owner": {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "u"}}}),
    );
    let running =
        json!({"phase": "Running", "conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]});
    put_pod(&server, &admitted("running", &running));
    let mut of_set = admitted("of-set", &running);
    of_set["spec"]["volumes"][0]["csi"]["volumeAttributes"]["csi.oras.land/set"] = json!("models");
    put_pod(&server, &of_set);
    put_pod(&server, &admitted("pulling", &json!({"phase": "Pending"})));
    let mut failing = admitted("failing", &json!({"phase": "Pending"}));
    failing["spec"]["nodeName"] = json!("node-2");
    put_pod(&server, &failing);
    put_pod(
        &server,
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain", "namespace": "team"}, "spec": {"containers": []}}),
    );
    let mut other = admitted("other", &running);
    other["metadata"]["namespace"] = json!("other");
    put_pod(&server, &other);
    server.put(
        "/api/v1/namespaces/team/events/e1",
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e1", "namespace": "team"}, "reason": "FailedMount",
            "involvedObject": {"kind": "Pod", "name": "failing", "uid": "uid-of-failing"}, "lastTimestamp": "2026-01-01T00:00:00Z",
            "message": "MountVolume.SetUp failed for volume \"oras-artifacts\" : rpc error: code = NotFound desc = no host has it"}),
    );
    server
}

async fn read(server: &ApiServer, namespace: Option<&str>) -> Result<Status, Box<dyn Error>> {
    let collector = Collector::new(server.client(), namespace.map(str::to_owned));
    let collected = Box::pin(collector.read()).await.map_err(|failure| failure.to_string())?;
    Ok(Status::new(&collected, Timestamp::now()))
}

/// Returns the cells of the line that begins with a word.
fn cells<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
    let line = text.lines().find(|line| line.split("   ").next() == Some(first)).unwrap_or_default();
    line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[tokio::test]
async fn the_tables_have_nodes_sets_pods_and_pins() -> Result<(), Box<dyn Error>> {
    let status = read(&cluster(), Some("team")).await?;
    let text = print(&status, Format::Table);
    assert_eq!(
        cells(&text, "node-1"),
        ["node-1", "0.1.0", "7", "1", "5.0 GiB", "40.0 GiB (40%)", "1/2", "2 objects"],
        "{text}"
    );
    assert_eq!(cells(&text, "node-2"), ["node-2", "unknown", "-", "0", "0 B", "-", "0/0", "none"], "{text}");
    assert!(!text.contains("node-3"), "{text}");
    let set = cells(&text, "models");
    assert_eq!(
        (set[1], set[2], set[3], set[4]),
        ("(cluster)", "yes", "ghcr.io/acme/model:v1", "4fe6f3e48881"),
        "{text}"
    );
    assert_eq!(set.last().copied(), Some("1/2 ready, 1 failed"), "{text}");
    assert_eq!(cells(&text, "broken")[2], "no: it does not exist", "{text}");
    assert_eq!(
        cells(&text, "running"),
        ["running", "oras-artifacts", "ghcr.io/acme/model:v1", "4fe6f3e48881", "-", "mounted"],
        "{text}"
    );
    assert_eq!(cells(&text, "of-set")[4], "yes, the set", "{text}");
    let state = cells(&text, "pulling").last().copied().unwrap_or_default();
    assert!(state.starts_with("pulling 25% of 4.0 GiB, ") && state.ends_with(" left"), "{text}");
    assert_eq!(cells(&text, "failing").last().copied(), Some("failed: no host has it"), "{text}");
    assert!(!text.contains("plain") && !text.contains("other"), "{text}");
    assert_eq!(
        cells(&text, "pin-1")[1..4],
        ["ghcr.io/acme/model:v1", "4fe6f3e48881", "ReplicaSet/web-1"],
        "{text}"
    );
    assert!(!text.contains("Note:"), "{text}");
    // All columns begin at the same place in each line of a table.
    let lines: Vec<&str> = text.lines().take(3).collect();
    let column = |line: &str| line.find("0.1.0").or(line.find("unknown")).or(line.find("DRIVER"));
    assert!(lines.iter().all(|line| column(line) == column(lines[0])), "{text}");
    Ok(())
}

#[tokio::test]
async fn all_namespaces_and_wide_show_more() -> Result<(), Box<dyn Error>> {
    let status = read(&cluster(), None).await?;
    let text = print(&status, Format::Wide);
    let other = text.lines().find(|line| line.starts_with("other")).unwrap_or_default();
    assert!(other.contains(DIGEST) && other.contains("node-1") && other.ends_with("mounted"), "{text}");
    assert!(text.contains("100.0 GiB") && text.contains("NAMESPACE"), "{text}");
    let json: Value = serde_json::from_str(&print(&status, Format::Json))?;
    assert_eq!(json["volumes"].as_array().map(Vec::len), Some(5));
    assert_eq!(json["nodes"][0]["freeBytes"], 42_949_672_960_i64);
    let pulling = json["volumes"].as_array().into_iter().flatten().find(|row| row["pod"] == "pulling");
    let pulling = pulling.cloned().unwrap_or_default();
    assert_eq!(
        (&pulling["state"], &pulling["progress"]["totalBytes"]),
        (&json!("pulling"), &json!(4_294_967_296_i64))
    );
    assert_eq!(pulling["artifacts"][0]["digest"], DIGEST);
    Ok(())
}

#[tokio::test]
async fn what_is_forbidden_has_a_line_each_and_the_rest_is_shown() -> Result<(), Box<dyn Error>> {
    let server = cluster();
    for prefix in [
        &format!("{ORAS}/nodeartifacts"),
        "/apis/storage.k8s.io",
        &format!("{ORAS}/clusterartifactsets"),
        "/api/v1/persistentvolumes",
    ] {
        server.forbid(prefix);
    }
    let text = print(&read(&server, Some("team")).await?, Format::Table);
    let notes: Vec<&str> = text.lines().filter(|line| line.starts_with("Note: ")).collect();
    // No pod has a claim, so PersistentVolumes are not missed.
    assert_eq!(
        notes,
        [
            "Note: cannot list nodeartifacts.oras.land in the cluster: RBAC does not allow it",
            "Note: cannot list csinodes.storage.k8s.io in the cluster: RBAC does not allow it",
            "Note: cannot list clusterartifactsets.oras.land in the cluster: RBAC does not allow it",
        ],
        "{text}"
    );
    assert_eq!(cells(&text, "running").last().copied(), Some("mounted"), "{text}");
    assert!(text.contains("nodes are not shown: see the notes below"), "{text}");
    // A pod with a claim cannot be judged without PersistentVolumes.
    let mut claiming = admitted("claiming", &json!({"phase": "Pending"}));
    claiming["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    put_pod(&server, &claiming);
    let text = print(&read(&server, Some("team")).await?, Format::Table);
    assert!(text.contains("Note: cannot list persistentvolumes in the cluster"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_volume_of_a_claim_is_shown() -> Result<(), Box<dyn Error>> {
    let server = cluster();
    let recipe = format!(r#"[{{"add":"ghcr.io/acme/data@{DIGEST}"}}]"#);
    server.put(
        "/api/v1/persistentvolumes/pv-1",
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv-1"}, "spec": {
            "claimRef": {"namespace": "team", "name": "data"}, "csi": {"driver": "csi.oras.land", "volumeHandle": "h",
                "volumeAttributes": {"csi.oras.land/id": "data-1", "csi.oras.land/recipe": recipe}}}}),
    );
    let mut pod = admitted("claiming", &json!({"phase": "Pending"}));
    pod["metadata"]["annotations"] = json!({});
    pod["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    put_pod(&server, &pod);
    let text = print(&read(&server, Some("team")).await?, Format::Table);
    assert_eq!(cells(&text, "claiming")[1..3], ["v", "ghcr.io/acme/data"], "{text}");
    Ok(())
}

#[tokio::test]
async fn an_empty_cluster_and_one_without_oras_csi_say_so() -> Result<(), Box<dyn Error>> {
    let text = print(&read(&ApiServer::new(), Some("team")).await?, Format::Table);
    assert_eq!(
        text,
        "no node has the driver csi.oras.land\n\nno sets in the cluster and in the namespace team\n\n\
         no pods with volumes of csi.oras.land in the namespace team\n\nno pins in the namespace team\n"
    );
    Ok(())
}

#[tokio::test]
async fn a_thousand_pods_are_read_in_pages() -> Result<(), Box<dyn Error>> {
    let server = ApiServer::new();
    let running =
        json!({"phase": "Running", "conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]});
    server.edit(|objects| {
        for number in 0..1_000 {
            let name = format!("web-{number:04}");
            objects.insert(format!("/api/v1/namespaces/team/pods/{name}"), admitted(&name, &running));
        }
    });
    let status = read(&server, None).await?;
    assert_eq!(status.volumes.len(), 1_000);
    assert!(status.volumes.iter().all(|row| row.state.text() == "mounted"));
    let pages = server.log().iter().filter(|line| line.starts_with("GET /api/v1/pods?")).count();
    assert_eq!(pages, 2, "{:?}", server.log());
    Ok(())
}

#[tokio::test]
async fn tags_are_resolved_once_and_only_if_asked_for() -> Result<(), Box<dyn Error>> {
    let server = cluster();
    let mut lost = admitted("lost", &json!({"phase": "Pending"}));
    let recipe = format!(r#"[{{"add":"ghcr.io/acme/lost@{DIGEST}"}}]"#);
    lost["spec"]["volumes"][0]["csi"]["volumeAttributes"]["csi.oras.land/recipe"] = json!(recipe);
    lost["metadata"]["annotations"]["oras.land/pinned"] =
        json!(format!(r#"{{"oras-artifacts":["ghcr.io/acme/lost:v1@{DIGEST}"]}}"#));
    put_pod(&server, &lost);
    let registry = FakeRegistry::new();
    let moved = Digest::sha256_of(b"moved");
    registry.set("ghcr.io/acme/model:v1", Behaviour::Is(moved.clone()));
    registry.set("ghcr.io/acme/lost:v1", Behaviour::Fails(not_found("ghcr.io")));
    let mut status = read(&server, Some("team")).await?;
    assert_eq!(registry.calls(), 0);
    TagChecker::with(registry.clone()).check(&mut status).await;
    assert_eq!(registry.calls(), 2, "each tag is resolved once");
    let text = print(&status, Format::Table);
    let short = moved.hex().get(..12).unwrap_or_default();
    assert_eq!(cells(&text, "running")[4], format!("yes, to {short}"), "{text}");
    assert_eq!(cells(&text, "lost")[4], "unknown", "{text}");
    assert!(print(&status, Format::Wide).contains("unknown: GET ghcr.io: not found"));
    registry.set("ghcr.io/acme/model:v1", Behaviour::Is(DIGEST.parse()?));
    TagChecker::with(registry).check(&mut status).await;
    assert_eq!(cells(&print(&status, Format::Table), "running")[4], "no");
    Ok(())
}

#[tokio::test]
async fn hostile_texts_cannot_reach_the_terminal() -> Result<(), Box<dyn Error>> {
    let evil = "\u{1b}]0;x\u{7}\u{202e}evil\n\u{9b}2J";
    let server = cluster();
    let mut pod = admitted("failing", &json!({"phase": "Pending"}));
    pod["spec"]["nodeName"] = json!(evil);
    pod["spec"]["volumes"][0]["name"] = json!(evil);
    pod["spec"]["volumes"][0]["csi"]["volumeAttributes"]["csi.oras.land/id"] = json!(evil);
    pod["spec"]["volumes"][0]["csi"]["volumeAttributes"]["csi.oras.land/set"] = json!(evil);
    put_pod(&server, &pod);
    server.edit(|objects| {
        for (path, object) in objects.iter_mut() {
            if path.contains("/events/") {
                object["message"] = json!(evil);
            }
            if path.contains("/artifactsets/") {
                object["status"]["conditions"][0]["message"] = json!(evil);
                object["status"]["references"] = json!([evil]);
            }
            if path.contains("/artifactpins/") {
                object["spec"]["reference"] = json!(evil);
            }
            if path.contains("/nodeartifacts/") {
                object["status"]["version"] = json!(evil);
            }
        }
    });
    let status = read(&server, Some("team")).await?;
    for format in [Format::Table, Format::Wide] {
        let text = print(&status, format);
        let is_bad =
            |character: char| (character.is_control() && character != '\n') || character == '\u{202e}';
        assert!(!text.contains(is_bad), "{text:?}");
        assert!(text.matches("evil").count() >= 5, "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn an_api_server_that_fails_is_an_error() -> Result<(), Box<dyn Error>> {
    let server = cluster();
    server.go_down();
    let failure = read(&server, None).await.err().ok_or("it was read")?.to_string();
    assert!(failure.contains("from the Kubernetes API server"), "{failure}");
    Ok(())
}
