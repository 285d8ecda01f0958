//! The custom resource definitions in the chart are those that the code has.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::path::Path;

use kube::CustomResourceExt as _;
use oras_csi_webhook::policy::object::ArtifactPolicy;
use serde_json::Value;

const REMEDY: &str = "is not what the code has: run `UPDATE_CRDS=1 cargo test -p oras-csi-webhook --test crds` and look at the change";

/// The definition, with its descriptions as `kubectl explain` wants them: it wraps lines itself and keeps the
/// breaks that are there.
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
    let mut crd = serde_json::to_value(ArtifactPolicy::crd()).unwrap();
    unfold(&mut crd);
    crd
}

#[test]
fn the_chart_has_what_the_code_has() {
    let crd = crd();
    let name = crd["metadata"]["name"].as_str().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/chart/files/crds/{name}.yaml"));
    if std::env::var_os("UPDATE_CRDS").is_some() {
        let text = serde_saphyr::to_string(&crd).unwrap();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(
            &path,
            format!("# Made from webhook/src/policy/object.rs; a test keeps it in step.\n{text}"),
        )
        .unwrap();
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
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    check("spec", &schema["properties"]["spec"]);
    check("status", &schema["properties"]["status"]);
}
