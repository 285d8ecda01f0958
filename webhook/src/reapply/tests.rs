#![expect(clippy::needless_pass_by_value, reason = "the values are made where they are passed")]

use json_patch::patch;
use rstest::rstest;
use serde_json::json;

use super::*;

const CANONICAL: &str = "csi.oras.land/recipe";

fn source(attributes: Value) -> Value {
    json!({"driver": DRIVER, "volumeHandle": "h", "readOnly": true, "volumeAttributes": attributes})
}

/// A `PersistentVolume` as the API server has it, and as an update would make it.
fn volumes(written: &Value, new: Value) -> Change {
    let annotations = json!({annotation::WRITTEN: written.to_string()});
    Change {
        old: json!({"metadata": {"annotations": annotations}, "spec": {"csi": source(json!({CANONICAL: "x"}))}}),
        new,
    }
}

fn with(csi: Value) -> Value {
    json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"csi": csi}})
}

fn reference(tag: &str) -> Value {
    json!({"oras.artifact.reference": format!("ghcr.io/team/model:{tag}")})
}

fn merged(mut one: Value, other: Value) -> Value {
    one.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
    one
}

/// Each client puts the manifest in place in another way.
#[rstest]
#[case::beside_the_attributes_of_the_object(source(merged(reference("v1"), json!({CANONICAL: "x"}))))]
#[case::in_their_place(json!({"driver": DRIVER, "volumeHandle": "h", "volumeAttributes": reference("v1")}))]
#[case::with_what_the_user_wrote_of_other_fields(
    json!({"driver": DRIVER, "volumeHandle": "h", "readOnly": false, "volumeAttributes": reference("v1")})
)]
fn the_same_manifest_changes_nothing(#[case] csi: Value) {
    let mut written = json!({"volumeAttributes": reference("v1")});
    if csi["readOnly"] == false {
        written["readOnly"] = json!(false);
    }
    let change = volumes(&written, with(csi));
    let mut after = change.new.clone();
    patch(&mut after, &restore_persistent_volume(&change).unwrap()).unwrap();
    assert_eq!(after["spec"], change.old["spec"]);
    assert_eq!(
        after["metadata"]["annotations"],
        json!({"a": "b", annotation::WRITTEN: written.to_string()}),
        "the record stays"
    );
}

#[rstest]
#[case::another_tag(reference("v2"), "oras.artifact.reference was \"ghcr.io/team/model:v1\" when")]
#[case::another_attribute(merged(reference("v1"), json!({"oras.artifact.patch": "p"})), "oras.artifact.patch was nothing when")]
#[case::an_attribute_less(json!({}), "is nothing now")]
#[case::another_canonical_value(merged(reference("v1"), json!({CANONICAL: "y"})), "csi.oras.land/recipe was nothing when the object was created and is \"y\" now")]
fn a_manifest_that_says_something_else_is_denied(#[case] attributes: Value, #[case] words: &str) {
    let written = json!({"volumeAttributes": reference("v1")});
    let new = source(merged(json!({CANONICAL: "x"}), attributes));
    let mut change = volumes(&written, with(new));
    if change.new["spec"] == change.old["spec"] {
        change.new["spec"]["csi"]["volumeAttributes"] = json!({});
    }
    let denial = restore_persistent_volume(&change).unwrap_err();
    assert!(denial.message().contains(words), "{denial}");
    assert!(denial.message().ends_with("or write a new one with another name"), "{denial}");
}

#[test]
fn another_secret_is_denied_and_the_one_that_was_written_is_not() {
    let secret = |name: &str| json!({"name": name, "namespace": "team"});
    let mut written = json!({"volumeAttributes": reference("v1"), "nodePublishSecretRef": secret("mine")});
    let csi = |name: &str| {
        merged(
            source(merged(reference("v1"), json!({CANONICAL: "x"}))),
            json!({"nodePublishSecretRef": secret(name)}),
        )
    };
    let check = |written: &Value, name: &str| {
        let mut change = volumes(written, with(csi(name)));
        change.old["spec"]["csi"]["nodePublishSecretRef"] = secret("chosen");
        restore_persistent_volume(&change).map(|patch| patch.0.len())
    };
    assert!(check(&written, "mine").is_ok() && check(&written, "chosen").is_ok());
    let denial = check(&written, "other").unwrap_err();
    assert!(denial.message().contains("nodePublishSecretRef was {\"name\":\"mine\""), "{denial}");
    written.as_object_mut().unwrap().remove("nodePublishSecretRef");
    assert!(check(&written, "chosen").is_ok());
}

#[test]
fn a_volume_of_another_driver_and_one_without_a_change_are_left_alone() {
    let written = json!({"volumeAttributes": reference("v1")});
    let mut change = volumes(&written, with(source(reference("v1"))));
    change.old["spec"]["csi"]["driver"] = json!("other");
    assert_eq!(restore_persistent_volume(&change).unwrap().0, []);
    let mut change = volumes(&written, Value::Null);
    change.new = change.old.clone();
    assert_eq!(restore_persistent_volume(&change).unwrap().0, []);
}

/// A pod with an inline volume, the volume of its annotations and an `emptyDir`.
fn pod() -> Value {
    let canonical =
        |id: &str| json!({"driver": DRIVER, "readOnly": true, "volumeAttributes": {CANONICAL: id}});
    json!({
        "metadata": {"annotations": {
            "oras.land/artifact": "ghcr.io/team/model:v1",
            annotation::WRITTEN: json!({"inline": {"volumeAttributes": reference("v1")}}).to_string(),
        }},
        "spec": {
            "volumes": [
                {"name": "scratch", "emptyDir": {}},
                {"name": "inline", "csi": canonical("i")},
                {"name": "oras-artifacts", "csi": canonical("a")},
            ],
            "containers": [{"name": "c", "volumeMounts": [
                {"name": "scratch", "mountPath": "/tmp"},
                {"name": "inline", "mountPath": "/in", "readOnly": true},
                {"name": "oras-artifacts", "mountPath": "/mnt/oras", "readOnly": true},
            ]}],
        },
    })
}

fn restored(new: Value) -> Result<Value, Denial> {
    let change = Change { old: pod(), new };
    let mut after = change.new.clone();
    patch(&mut after, &restore_pod(&change)?).unwrap();
    Ok(after)
}

#[test]
fn the_volumes_and_mounts_of_a_pod_are_put_back() {
    let mut new = pod();
    new["spec"]["volumes"][1]["csi"]["volumeAttributes"]["oras.artifact.reference"] =
        json!("ghcr.io/team/model:v1");
    assert_eq!(restored(new.clone()).unwrap(), pod());
    // What the webhook added is gone: a server-side apply takes the pod over from another client.
    new["spec"]["volumes"].as_array_mut().unwrap().remove(2);
    let mounts = new["spec"]["containers"][0]["volumeMounts"].as_array_mut().unwrap();
    mounts.remove(2);
    mounts[1].as_object_mut().unwrap().remove("readOnly");
    new["metadata"]["annotations"].as_object_mut().unwrap().remove(annotation::WRITTEN);
    assert_eq!(restored(new).unwrap(), pod());
    assert_eq!(restored(pod()).unwrap(), pod());
}

#[test]
fn a_changed_volume_of_a_pod_is_denied() {
    let mut new = pod();
    new["spec"]["volumes"][1]["csi"]["volumeAttributes"]["oras.artifact.reference"] =
        json!("ghcr.io/team/model:v2");
    let denial = restored(new).unwrap_err();
    assert!(denial.message().starts_with("volume inline: "), "{denial}");
    assert!(denial.message().contains("is \"ghcr.io/team/model:v2\" now"), "{denial}");
    assert!(denial.message().ends_with("delete the pod and create it again"), "{denial}");
    // Clients that recreate objects look for it.
    assert_eq!(denial.code().reason(), "Invalid");
}

/// The API server has its own sentence for these.
#[rstest]
#[case("/spec/volumes/0/emptyDir/medium", json!("Memory"))]
#[case("/spec/volumes/3", json!({"name": "more", "emptyDir": {}}))]
#[case("/spec/volumes/1", json!({"name": "inline", "emptyDir": {}}))]
#[case("/spec/containers/1", json!({"name": "d"}))]
#[case("/spec/containers/0/volumeMounts/1/mountPath", json!("/elsewhere"))]
#[case("/spec/containers/0/volumeMounts/0/readOnly", json!(true))]
fn another_change_of_a_pod_is_left_to_the_api_server(#[case] path: &str, #[case] value: Value) {
    let mut new = pod();
    new["spec"]["volumes"][1]["csi"]["volumeAttributes"] = merged(reference("v1"), json!({CANONICAL: "i"}));
    let operation = json!([{"op": "add", "path": path, "value": value}]);
    patch(&mut new, &serde_json::from_value::<Patch>(operation).unwrap()).unwrap();
    assert_eq!(restored(new.clone()).unwrap(), new);
}

#[test]
fn a_removed_volume_of_a_user_is_left_to_the_api_server() {
    let mut new = pod();
    new["spec"]["volumes"].as_array_mut().unwrap().remove(1);
    assert_eq!(restored(new.clone()).unwrap(), new);
}

#[test]
fn annotations_of_a_pod_that_exists_have_no_effect() {
    let mut new = pod();
    assert_eq!(warnings(&Change { old: pod(), new: new.clone() }), [""; 0]);
    new["metadata"]["annotations"]["oras.land/artifact"] = json!("v2");
    new["metadata"]["annotations"]["Oras.land/artifact.more"] = json!("v2");
    new["metadata"]["annotations"]["example.org/a"] = json!("b");
    new["metadata"]["annotations"][annotation::PINNED] = json!("{}");
    let warnings = warnings(&Change { old: pod(), new });
    assert_eq!(warnings.len(), 2);
    assert!(
        warnings[0].starts_with("annotation oras.land/artifact has no effect on a pod that exists"),
        "{warnings:?}"
    );
}

#[rstest]
#[case::without_metadata(json!({}), json!([]))]
#[case::without_annotations(json!({"metadata": {}}), json!([]))]
#[case::with_annotations(json!({"metadata": {"annotations": {"a": "b"}}}), json!([]))]
#[case::beside_what_the_webhook_adds(
    json!({"metadata": {}}),
    json!([{"op": "add", "path": "/metadata/annotations", "value": {"oras.land/pinned": "{}"}}])
)]
fn what_was_written_is_recorded(#[case] object: Value, #[case] operations: Value) {
    let written = merged(source(reference("v1")), json!({"readOnly": false}));
    let volumes = json!({"spec": {"volumes": [{"name": "other"}, {"name": "v", "csi": written}]}});
    let mut pod = merged(object, volumes);
    let mut changes: Patch = serde_json::from_value(operations).unwrap();
    changes.0.push(replace(
        ["spec", "volumes", "1", "csi", "volumeAttributes"].into_iter().map(Token::new),
        &json!({CANONICAL: "x"}),
    ));
    written::record_pod(&pod, &mut changes);
    patch(&mut pod, &changes).unwrap();
    let record =
        |pod: &Value| pod["metadata"]["annotations"][annotation::WRITTEN].as_str().unwrap().to_owned();
    assert_eq!(
        serde_json::from_str::<Value>(&record(&pod)).unwrap(),
        json!({"v": {"volumeAttributes": reference("v1"), "readOnly": false}})
    );
    // The API server calls the webhook again when others changed the pod.
    let mut again = Patch(Vec::new());
    written::record_pod(&pod, &mut again);
    assert_eq!(again.0, []);
    let mut of_workload = pod.clone();
    of_workload["metadata"]["ownerReferences"] = json!([{"kind": "ReplicaSet", "controller": true}]);
    written::record_pod(&of_workload, &mut again);
    assert_eq!(again.0, []);
    // A record of volumes that are not there is removed.
    pod["spec"]["volumes"][1]["name"] = json!("renamed");
    written::record_pod(&pod, &mut again);
    patch(&mut pod, &again).unwrap();
    assert!(pod["metadata"]["annotations"].get(annotation::WRITTEN).is_none(), "{pod}");
}
