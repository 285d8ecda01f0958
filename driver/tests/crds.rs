//! The driver's custom resource definition in the chart is the one that the code has.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::path::Path;

use kube::CustomResourceExt as _;
use oras_csi_driver::preload::object::NodeArtifacts;
use serde_json::Value;

const REMEDY: &str = "is not what the code has: run `UPDATE_CRDS=1 cargo test -p oras-csi-driver --test crds` and look at the change";

/// With descriptions as `kubectl explain` wants them: it wraps lines itself and keeps the breaks that are there.
fn crd() -> Value {
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
    let mut crd = serde_json::to_value(NodeArtifacts::crd()).unwrap();
    unfold(&mut crd);
    crd
}

#[test]
fn the_chart_has_what_the_code_has() {
    let crd = crd();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/files/crds");
    let path = folder.join(format!("{}.yaml", crd["metadata"]["name"].as_str().unwrap()));
    if std::env::var_os("UPDATE_CRDS").is_some() {
        let text = serde_saphyr::to_string(&crd).unwrap();
        let header = "# Made from driver/src/preload/object.rs; a test keeps it in step.";
        std::fs::write(&path, format!("{header}\n{text}")).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let there: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(there, crd, "{} {REMEDY}", path.display());
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
    let crd = crd();
    assert_eq!(crd["spec"]["scope"], "Cluster");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert!(schema["description"].is_string());
    assert!(schema["properties"]["status"]["properties"]["sets"]["items"]["properties"]["since"].is_object());
    check("spec", &schema["properties"]["spec"]);
    check("status", &schema["properties"]["status"]);
}
