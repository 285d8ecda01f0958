//! The custom resource definitions in the chart are those that the code has.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::path::Path;

use kube::CustomResourceExt as _;
use oras_csi_webhook::pins::object::ArtifactPin;
use oras_csi_webhook::policy::object::ArtifactPolicy;
use oras_csi_webhook::sets::object::{ArtifactSet, ClusterArtifactSet};
use serde_json::Value;

const REMEDY: &str = "is not what the code has: run `UPDATE_CRDS=1 cargo test -p oras-csi-webhook --test crds` and look at the change";

/// The definitions and the files of their types, with descriptions as `kubectl explain` wants them: it wraps lines
/// itself and keeps the breaks that are there.
fn crds() -> [(Value, &'static str); 4] {
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
        (ArtifactPolicy::crd(), "policy/object.rs"),
        (ArtifactPin::crd(), "pins/object.rs"),
        (ArtifactSet::crd(), "sets/object.rs"),
        (ClusterArtifactSet::crd(), "sets/object.rs"),
    ];
    crds.map(|(crd, source)| {
        let mut crd = serde_json::to_value(crd).unwrap();
        unfold(&mut crd);
        (crd, source)
    })
}

#[test]
fn the_chart_has_what_the_code_has() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/files/crds");
    for (crd, source) in crds() {
        let path = folder.join(format!("{}.yaml", crd["metadata"]["name"].as_str().unwrap()));
        if std::env::var_os("UPDATE_CRDS").is_some() {
            let text = serde_saphyr::to_string(&crd).unwrap();
            std::fs::create_dir_all(&folder).unwrap();
            let header = format!("# Made from webhook/src/{source}; a test keeps it in step.");
            std::fs::write(&path, format!("{header}\n{text}")).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let there: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(there, crd, "{} {REMEDY}", path.display());
    }
    // The driver's own are looked at in driver/tests/crds.rs.
    let is_ours = |text: &String| text.starts_with("# Made from webhook/");
    let texts = std::fs::read_dir(&folder)
        .unwrap()
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let files = texts.filter(is_ours).count();
    assert_eq!(files, crds().len(), "{} has definitions that the code has not", folder.display());
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
    let (crd, _) = crds().into_iter().find(|(crd, _)| crd["spec"]["names"]["kind"] == "ArtifactPin").unwrap();
    assert_eq!(crd["spec"]["scope"], "Namespaced");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert_eq!(schema["required"], serde_json::json!(["spec"]));
    assert_eq!(schema["properties"]["spec"]["x-kubernetes-validations"][0]["rule"], "self == oldSelf");
}
