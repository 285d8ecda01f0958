//! The JSON Patch of a pod: it changes only the webhook's own fields, and applying it twice equals applying it once.

use crate::support::{Bench, default_digest, inline, patched, pod};
use oras_csi_webhook::ResolverSettings;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

#[tokio::test]
async fn an_annotated_pod_gets_a_volume_mounts_and_the_pinned_annotation() {
    let bench = Bench::new();
    let pod = pod(&[("artifact", "kind-registry:5000/java-app")]);
    let outcome = bench.admit(&pod).await.unwrap();
    let digest = default_digest("kind-registry:5000/java-app");
    let after = patched(&pod, &outcome);
    let volume = &after["spec"]["volumes"][0];
    let recipe = format!(r#"[{{"add":"kind-registry:5000/java-app@{digest}"}}]"#);
    assert_eq!(volume["name"], "oras-artifacts");
    assert_eq!(volume["csi"]["driver"], "csi.oras.land");
    assert_eq!(volume["csi"]["readOnly"], true);
    assert_eq!(volume["csi"]["volumeAttributes"]["csi.oras.land/recipe"], recipe.as_str());
    let id = volume["csi"]["volumeAttributes"]["csi.oras.land/id"].as_str().unwrap();
    assert!(id.starts_with("java-app-") && id.len() == "java-app-".len() + 32, "{id}");
    assert_eq!(
        after["spec"]["containers"][0]["volumeMounts"],
        json!([{"name": "oras-artifacts", "mountPath": "/mnt/oras", "readOnly": true}])
    );
    let note = after["metadata"]["annotations"]["oras.land/pinned"].as_str().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(note).unwrap(),
        json!({"oras-artifacts": [format!("kind-registry:5000/java-app:latest@{digest}")]})
    );
    assert_eq!(outcome.pinned(), Some(note));
    assert_eq!(
        outcome.warnings(),
        [format!("annotation oras.land/artifact: kind-registry:5000/java-app:latest is pinned to {digest}")]
    );
}

#[tokio::test]
async fn several_artifacts_are_one_volume() {
    let bench = Bench::new();
    let pod = pod(&[
        ("artifact", "r.io/root:1"),
        ("artifact.model", "r.io/model:2"),
        ("artifact.a", "r.io/a:3"),
        ("mount-path", "/opt"),
        ("mount-path.model", "/models"),
        ("platform.model", "linux/arm64"),
    ]);
    let after = bench.admitted(&pod).await;
    let recipe =
        after["spec"]["volumes"][0]["csi"]["volumeAttributes"]["csi.oras.land/recipe"].as_str().unwrap();
    let steps: Vec<Value> = serde_json::from_str(recipe).unwrap();
    let paths: Vec<_> = steps.iter().map(|step| step["path"].as_str()).collect();
    assert_eq!(paths, [None, Some("a"), Some("model")]);
    let artifacts: Vec<_> = steps.iter().map(|step| step["add"].as_str().unwrap().to_owned()).collect();
    let pinned =
        |name: &str, tag: &str| format!("r.io/{name}@{}", default_digest(&format!("r.io/{name}:{tag}")));
    assert_eq!(artifacts, [pinned("root", "1"), pinned("a", "3"), pinned("model", "2")]);
    assert_eq!(steps[2]["platform"], "linux/arm64");
    assert_eq!(after["spec"]["volumes"].as_array().unwrap().len(), 1);
    assert_eq!(
        after["spec"]["containers"][0]["volumeMounts"],
        json!([{"name": "oras-artifacts", "mountPath": "/opt", "readOnly": true},
            {"name": "oras-artifacts", "mountPath": "/models", "readOnly": true, "subPath": "model"}])
    );
}

#[rstest]
#[case::absent(json!({"containers": [{"name": "app"}]}))]
#[case::null(json!({"volumes": null, "initContainers": null, "containers": [{"name": "app", "volumeMounts": null}]}))]
#[case::empty(json!({"volumes": [], "initContainers": [], "containers": [{"name": "app", "volumeMounts": []}]}))]
#[tokio::test]
async fn lists_may_be_absent_null_or_empty(#[case] spec: Value) {
    let bench = Bench::new();
    let mut pod = pod(&[("artifact", "r.io/a:1")]);
    pod["spec"] = spec;
    let after = bench.admitted(&pod).await;
    assert_eq!(after["spec"]["volumes"].as_array().unwrap().len(), 1);
    assert_eq!(after["spec"]["containers"][0]["volumeMounts"].as_array().unwrap().len(), 1);
}

#[rstest]
#[case::no_metadata(json!(null))]
#[case::no_annotations(json!({"name": "x"}))]
#[case::null_annotations(json!({"annotations": null}))]
#[tokio::test]
async fn an_inline_pod_may_have_no_annotations(#[case] metadata: Value) {
    let bench = Bench::new();
    let mut pod = inline(&json!({"oras.artifact.reference": "r.io/a:1"}));
    pod["metadata"] = metadata;
    let after = bench.admitted(&pod).await;
    assert!(after["metadata"]["annotations"]["oras.land/pinned"].is_string());
    pod.as_object_mut().unwrap().remove("metadata");
    assert!(bench.admitted(&pod).await["metadata"]["annotations"]["oras.land/pinned"].is_string());
}

#[tokio::test]
async fn an_inline_volume_becomes_canonical_in_place_with_its_mounts_read_only() {
    let bench = Bench::new();
    let mut pod = inline(&json!({"oras.artifact.reference": "r.io/a:1", "oras-csi.name": "my-files"}));
    pod["spec"]["volumes"].as_array_mut().unwrap().insert(0, json!({"name": "tmp", "emptyDir": {}}));
    pod["spec"]["volumes"][1]["csi"]["readOnly"] = json!(false);
    pod["spec"]["volumes"][1]["csi"]["future"] = json!({"x": 1});
    pod["spec"]["initContainers"] = json!([{"name": "i", "volumeMounts": [
        {"name": "tmp", "mountPath": "/t"}, {"name": "in", "mountPath": "/i", "readOnly": false, "subPath": "s"}]}]);
    let after = bench.admitted(&pod).await;
    let csi = &after["spec"]["volumes"][1]["csi"];
    let keys: Vec<&String> = csi["volumeAttributes"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["csi.oras.land/id", "csi.oras.land/recipe"]);
    assert!(csi["volumeAttributes"]["csi.oras.land/id"].as_str().unwrap().starts_with("my-files-"));
    assert_eq!((&csi["readOnly"], &csi["future"]), (&json!(true), &json!({"x": 1})));
    assert_eq!(
        after["spec"]["initContainers"][0]["volumeMounts"],
        json!([{"name": "tmp", "mountPath": "/t"}, {"name": "in", "mountPath": "/i", "readOnly": true, "subPath": "s"}])
    );
    assert_eq!(after["spec"]["containers"][0]["volumeMounts"][0]["readOnly"], true);
    assert_eq!(after["spec"]["volumes"][0], json!({"name": "tmp", "emptyDir": {}}));
}

#[rstest]
#[case::annotations(pod(&[("artifact", "r.io/a:1"), ("artifact.b", "r.io/b:1"), ("mount-path.b", "/b")]))]
#[case::inline(inline(&json!({"oras.artifact.reference": "r.io/a:1", "oras-csi.name": "n"})))]
#[case::digest(inline(&json!({"oras.artifact.reference": format!("r.io/a:1@{}", default_digest("r.io/a:1"))})))]
#[tokio::test]
async fn admitting_twice_changes_nothing(#[case] pod: Value) {
    let bench = Bench::new();
    bench.admit(&crate::support::pod(&[("artifact", "r.io/a:1")])).await.unwrap();
    let once = bench.admitted(&pod).await;
    let again = bench.admit(&once).await.unwrap();
    assert!(again.patch().0.is_empty(), "{:?}", again.patch());
    assert_eq!(again.pinned(), once["metadata"]["annotations"]["oras.land/pinned"].as_str());
}

#[tokio::test]
async fn a_copied_pod_follows_its_annotations() {
    let bench = Bench::new();
    let once = bench.admitted(&pod(&[("artifact", "r.io/a:1")])).await;
    let mut edited = once.clone();
    edited["metadata"]["annotations"]["oras.land/artifact"] = json!("r.io/b:2");
    let after = bench.admitted(&edited).await;
    let fresh = bench.admitted(&pod(&[("artifact", "r.io/b:2")])).await;
    assert_eq!(after["spec"], fresh["spec"]);

    let mut without = once.clone();
    without["metadata"]["annotations"].as_object_mut().unwrap().remove("oras.land/artifact");
    assert_eq!(
        bench.admitted(&without).await,
        without,
        "a canonical volume is kept, with the tag noted for it"
    );
}

#[tokio::test]
async fn a_users_pinned_annotation_is_replaced() {
    let bench = Bench::new();
    for written in ["nonsense", "{}", r#"{"in":["r.io/a:fake@sha256:00"]}"#, r#"{"in":7}"#] {
        let mut pod = inline(&json!({"oras.artifact.reference": "r.io/a:1"}));
        pod["metadata"]["annotations"] = json!({"oras.land/pinned": written});
        let after = bench.admitted(&pod).await;
        let note = after["metadata"]["annotations"]["oras.land/pinned"].as_str().unwrap();
        assert!(note.contains(&format!("r.io/a:1@{}", default_digest("r.io/a:1"))), "{note}");
    }
    // A tag beside a digest that the volume does not have is ignored.
    let mut canonical = bench.admitted(&inline(&json!({"oras.artifact.reference": "r.io/a:1"}))).await;
    let other = format!(r#"{{"in":["r.io/a:2@sha256:{}"]}}"#, "0".repeat(64));
    canonical["metadata"]["annotations"]["oras.land/pinned"] = json!(other);
    let after = bench.admitted(&canonical).await;
    let plain = format!(r#"{{"in":["r.io/a@{}"]}}"#, default_digest("r.io/a:1"));
    assert_eq!(after["metadata"]["annotations"]["oras.land/pinned"], plain.as_str());
    // The annotation is removed from a pod without volumes of this driver.
    let mut nothing = pod(&[("inject", "false")]);
    nothing["metadata"]["annotations"]["oras.land/pinned"] = json!("{}");
    let after = bench.admitted(&nothing).await;
    assert_eq!(after["metadata"]["annotations"], json!({"oras.land/inject": "false"}));
}

#[tokio::test]
async fn an_invalid_seal_is_removed() {
    let bench = Bench::new();
    let once = bench.admitted(&inline(&json!({"oras.artifact.reference": "r.io/a:1"}))).await;
    let mut sealed = once.clone();
    sealed["spec"]["volumes"][0]["csi"]["volumeAttributes"]["csi.oras.land/seal"] =
        json!(format!("v1.0123456789abcdef.{}A", "A".repeat(85)));
    assert_eq!(bench.admitted(&sealed).await, once);
    sealed["spec"]["volumes"][0]["csi"]["volumeAttributes"]["csi.oras.land/seal"] = json!("v1.key.c2VhbA");
    let denial = bench.admit(&sealed).await.unwrap_err();
    assert!(denial.message().contains("which the webhook never writes"), "{denial}");
}

#[tokio::test]
async fn a_users_mounts_of_the_annotations_volume_become_read_only() {
    let bench = Bench::new();
    let mut pod = pod(&[("artifact", "r.io/a:1")]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "oras-artifacts", "mountPath": "/mnt/oras/"},
        {"name": "oras-artifacts", "mountPath": "/elsewhere", "subPath": "x"}]);
    let after = bench.admitted(&pod).await;
    assert_eq!(
        after["spec"]["containers"][0]["volumeMounts"],
        json!([{"name": "oras-artifacts", "mountPath": "/mnt/oras/", "readOnly": true},
            {"name": "oras-artifacts", "mountPath": "/elsewhere", "subPath": "x", "readOnly": true}])
    );
}

#[tokio::test]
async fn large_pods_are_admitted() {
    let bench = Bench::new();
    let mut pod = pod(&[("artifact", "r.io/a:1")]);
    let variables: Vec<Value> =
        (0..1_500).map(|n| json!({"name": format!("V{n}"), "value": "ü~/\\\""})).collect();
    pod["spec"]["containers"] =
        (0..200).map(|n| json!({"name": format!("c{n}"), "image": "i"})).collect::<Vec<_>>().into();
    pod["spec"]["containers"][7]["env"] = variables.into();
    let after = bench.admitted(&pod).await;
    let mounted =
        after["spec"]["containers"].as_array().unwrap().iter().filter(|one| one["volumeMounts"].is_array());
    assert_eq!(mounted.count(), 200);
    assert_eq!(after["spec"]["containers"][7]["env"], pod["spec"]["containers"][7]["env"]);
}

#[rstest]
#[case::mirror(json!({"annotations": {"oras.land/artifact": "r.io/a", "kubernetes.io/config.mirror": "x"}}))]
#[case::off(json!({"annotations": {"oras.land/artifact": "r.io/a", "oras.land/inject": "false"}}))]
#[case::none(json!({"annotations": {"other": "x"}}))]
#[tokio::test]
async fn mirror_pods_are_not_changed(#[case] metadata: Value) {
    let bench = Bench::new();
    let mut pod = pod(&[]);
    pod["metadata"] = metadata;
    let outcome = bench.admit(&pod).await.unwrap();
    assert!(outcome.patch().0.is_empty() && outcome.pinned().is_none());
    assert_eq!(bench.registry.calls(), 0);
}

/// A server-side apply may create a pod with a deletion timestamp; the API server removes it after the webhooks.
#[tokio::test]
async fn a_pod_with_a_deletion_timestamp_is_admitted_as_any_other() {
    let mut asking = pod(&[("artifact", "r.io/a")]);
    asking["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(Bench::new().admit(&asking).await.unwrap().pinned().is_some());
    assert!(Bench::with(&["ghcr.io"], ResolverSettings::default()).admit(&asking).await.is_err());
}

/// Any JSON, as unknown fields may have.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map("[a-z~/]{1,6}", inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}

/// A pod with annotations and an inline volume, and unknown fields everywhere.
fn any_pod() -> impl Strategy<Value = Value> {
    (
        proptest::collection::vec(any_json(), 6),
        proptest::option::of("[a-z]{1,8}"),
        proptest::collection::vec(any::<bool>(), 1..6),
        any::<bool>(),
    )
        .prop_map(|(future, name, containers, with_inline)| {
            let mut pod = pod(&[("artifact", "r.io/a:1")]);
            if let Some(name) = name {
                pod["metadata"]["annotations"][format!("oras.land/artifact.{name}")] = json!("r.io/named:1");
            }
            pod["future"] = future[0].clone();
            pod["metadata"]["future"] = future[1].clone();
            pod["spec"]["future~/"] = future[2].clone();
            pod["status"] = future[3].clone();
            let container = |(index, has_mounts): (usize, bool)| {
                let mut container = json!({"name": format!("c{index}"), "future": future[4]});
                if has_mounts {
                    container["volumeMounts"] =
                        json!([{"name": "in", "mountPath": "/in", "future": future[5]}, {"name": "x", "mountPath": "/x"}]);
                }
                container
            };
            pod["spec"]["containers"] =
                containers.into_iter().enumerate().map(container).collect::<Vec<_>>().into();
            if with_inline {
                pod["spec"]["volumes"] = json!([{"name": "x", "emptyDir": {}}, {"name": "in", "future": future[5],
                    "csi": {"driver": "csi.oras.land", "volumeAttributes": {"oras.artifact.reference": "r.io/in:1"}}}]);
            }
            pod
        })
}

/// Removes what the webhook adds.
fn without_ours(mut pod: Value) -> Value {
    for own in ["oras.land/pinned", "oras.land/written"] {
        pod["metadata"]["annotations"].as_object_mut().unwrap().remove(own);
    }
    if let Some(volumes) = pod["spec"].get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.retain(|volume| volume["name"] != "oras-artifacts");
        for volume in volumes.iter_mut().filter(|volume| volume["csi"]["driver"] == "csi.oras.land") {
            volume["csi"] = json!("ours");
        }
    }
    for container in pod["spec"]["containers"].as_array_mut().unwrap() {
        if let Some(mounts) = container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
            mounts.retain(|mount| mount["name"] != "oras-artifacts");
            for mount in mounts.iter_mut().filter(|mount| mount["name"] == "in") {
                mount.as_object_mut().unwrap().remove("readOnly");
            }
        }
        container.as_object_mut().unwrap().entry("volumeMounts").or_insert_with(|| json!([]));
    }
    pod["spec"].as_object_mut().unwrap().entry("volumes").or_insert_with(|| json!([]));
    pod
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn unknown_fields_survive_and_admitting_twice_changes_nothing(pod in any_pod()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let once = bench.admitted(&pod).await;
            prop_assert_eq!(without_ours(once.clone()).to_string(), without_ours(pod.clone()).to_string());
            let again = bench.admit(&once).await.unwrap();
            prop_assert!(again.patch().0.is_empty(), "{:?}", again.patch());
            Ok(())
        })?;
    }
}
