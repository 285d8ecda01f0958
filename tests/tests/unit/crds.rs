//! Compares the custom resource definitions of the chart with those of the code.

use kube::CustomResourceExt as _;
use oras_csi_driver::preload::object::NodeArtifacts;
use oras_csi_tests::parts::repository;
use oras_csi_webhook::pins::object::ArtifactPin;
use oras_csi_webhook::policy::object::ArtifactPolicy;
use oras_csi_webhook::sets::object::{ArtifactSet, ClusterArtifactSet};
use serde_json::Value;

const REMEDY: &str = "differs from the code: run `UPDATE_CRDS=1 cargo test -p oras-csi-tests --test unit crds` and look at the change";

/// Returns the definitions and the source files of their types. Line breaks of descriptions are removed, because `kubectl
/// explain` wraps lines itself and keeps existing breaks.
pub(crate) fn crds() -> [(Value, &'static str); 5] {
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
        (NodeArtifacts::crd(), "node-artifacts/src/lib.rs"),
    ];
    crds.map(|(crd, source)| {
        let mut crd = serde_json::to_value(crd).unwrap();
        unfold(&mut crd);
        (crd, source)
    })
}

#[test]
fn the_chart_has_the_crds_of_the_code() {
    let folder = repository().join("deploy/chart/files/crds");
    for (crd, source) in crds() {
        let path = folder.join(format!("{}.yaml", crd["metadata"]["name"].as_str().unwrap()));
        if std::env::var_os("UPDATE_CRDS").is_some() {
            let text = serde_saphyr::to_string(&crd).unwrap();
            std::fs::create_dir_all(&folder).unwrap();
            let header = format!("# Made from {source}; a test compares them.");
            std::fs::write(&path, format!("{header}\n{text}")).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let there: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(there, crd, "{} {REMEDY}", path.display());
    }
    let files = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, crds().len(), "{} has definitions that the code lacks", folder.display());
}

fn definition(kind: &str) -> Value {
    let (crd, _) = crds().into_iter().find(|(crd, _)| crd["spec"]["names"]["kind"] == kind).unwrap();
    crd
}

/// `kubectl explain` shows the descriptions.
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

/// Otherwise a user with update permission could change the digest of a pin.
#[test]
fn artifact_pins_are_immutable() {
    let crd = definition("ArtifactPin");
    assert_eq!(crd["spec"]["scope"], "Namespaced");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert_eq!(schema["required"], serde_json::json!(["spec"]));
    assert_eq!(schema["properties"]["spec"]["x-kubernetes-validations"][0]["rule"], "self == oldSelf");
}

#[test]
fn node_artifacts_are_cluster_scoped() {
    let crd = definition("NodeArtifacts");
    assert_eq!(crd["spec"]["scope"], "Cluster");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert!(schema["properties"]["status"]["properties"]["sets"]["items"]["properties"]["since"].is_object());
}
