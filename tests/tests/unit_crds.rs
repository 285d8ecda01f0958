//! The custom resource definitions in the chart are those that the code has.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, missing_docs)]

use kube::CustomResourceExt as _;
use oras_csi_driver::preload::object::NodeArtifacts;
use oras_csi_tests::parts::repository;
use oras_csi_webhook::pins::object::ArtifactPin;
use oras_csi_webhook::policy::object::ArtifactPolicy;
use oras_csi_webhook::sets::object::{ArtifactSet, ClusterArtifactSet};
use serde_json::Value;

const REMEDY: &str = "is not what the code has: run `UPDATE_CRDS=1 cargo test -p oras-csi-tests --test unit_crds` and look at the change";

/// The definitions and the files of their types, with descriptions as `kubectl explain` wants them: it wraps lines
/// itself and keeps the breaks that are there.
fn crds() -> [(Value, &'static str); 5] {
    fn unfold(value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(unfold),
            Value::Object(members) => {
                for (name, member) in members {
                    match member {
                        Value::String(words) if name == "description" => *words = words.replace('\n', " "),
                        _ => unfold(member),
                    }
                }
            }
            _ => {}
        }
    }
    let crds = [
        (ArtifactPolicy::crd(), "webhook/src/policy/object.rs"),
        (ArtifactPin::crd(), "webhook/src/pins/object.rs"),
        (ArtifactSet::crd(), "webhook/src/sets/object.rs"),
        (ClusterArtifactSet::crd(), "webhook/src/sets/object.rs"),
        (NodeArtifacts::crd(), "driver/src/preload/object.rs"),
    ];
    crds.map(|(crd, source)| {
        let mut crd = serde_json::to_value(crd).unwrap();
        unfold(&mut crd);
        (crd, source)
    })
}

#[test]
fn the_chart_has_what_the_code_has() {
    let folder = repository().join("deploy/chart/files/crds");
    for (crd, source) in crds() {
        let path = folder.join(format!("{}.yaml", crd["metadata"]["name"].as_str().unwrap()));
        if std::env::var_os("UPDATE_CRDS").is_some() {
            let text = serde_saphyr::to_string(&crd).unwrap();
            std::fs::create_dir_all(&folder).unwrap();
            let header = format!("# Made from {source}; a test keeps it in step.");
            std::fs::write(&path, format!("{header}\n{text}")).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let there: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(there, crd, "{} {REMEDY}", path.display());
    }
    let files = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, crds().len(), "{} has definitions that the code has not", folder.display());
}

fn definition(kind: &str) -> Value {
    let (crd, _) = crds().into_iter().find(|(crd, _)| crd["spec"]["names"]["kind"] == kind).unwrap();
    crd
}

/// Every field has words, which is what `kubectl explain` shows.
#[test]
fn every_field_is_described() {
    fn check(path: &str, schema: &Value) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let words = property["description"].as_str().unwrap_or_default();
            assert!(words.len() > 5, "{path} has no description");
            check(&path, property);
            check(&path, &property["items"]);
        }
    }
    for (crd, _) in crds() {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        assert!(schema["description"].is_string(), "{kind} has no description");
        check(&format!("{kind}.spec"), &schema["properties"]["spec"]);
        check(&format!("{kind}.status"), &schema["properties"]["status"]);
    }
}

/// Else nobody would believe the digest of a pin: who may update pins could move them.
#[test]
fn a_pin_never_changes() {
    let crd = definition("ArtifactPin");
    assert_eq!(crd["spec"]["scope"], "Namespaced");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert_eq!(schema["required"], serde_json::json!(["spec"]));
    assert_eq!(schema["properties"]["spec"]["x-kubernetes-validations"][0]["rule"], "self == oldSelf");
}

#[test]
fn a_node_tells_of_its_sets_in_an_object_of_the_cluster() {
    let crd = definition("NodeArtifacts");
    assert_eq!(crd["spec"]["scope"], "Cluster");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert!(schema["properties"]["status"]["properties"]["sets"]["items"]["properties"]["since"].is_object());
}
