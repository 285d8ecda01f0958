//! The pod templates of workloads, and the warnings that a user gets when a workload is applied.
//!
//! Controllers create pods later than the user applies a Deployment, so the user sees neither the warnings nor the denial
//! of those pods. The webhook therefore admits the template as well and returns the result as warnings. It never denies
//! or changes a workload.

use oras_csi_core::display::Shown;
use oras_csi_core::keys::ANNOTATION_PREFIX;
use serde_json::Value;

use crate::denial::Denial;

/// Returns the path to the pod of an object, which is empty for a pod, or `None` for a kind without one.
pub fn pod_path(object: &Value) -> Option<&'static [&'static str]> {
    let kind = object.get("kind").and_then(Value::as_str)?;
    let group = object.get("apiVersion").and_then(Value::as_str)?.split('/').next()?;
    match (group, kind) {
        ("v1", "Pod") => Some(&[]),
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("batch", "Job")
        | ("v1", "ReplicationController") => Some(&["spec", "template"]),
        ("v1", "PodTemplate") => Some(&["template"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// Reports whether an object is a `PersistentVolume` of any driver.
pub fn is_persistent_volume(object: &Value) -> bool {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    (text("apiVersion"), text("kind")) == (Some("v1"), Some("PersistentVolume"))
}

/// Returns the pod template of a workload.
pub(crate) fn template(workload: &Value) -> Option<&Value> {
    let path = pod_path(workload).filter(|path| !path.is_empty())?;
    path.iter().try_fold(workload, |value, key| value.get(key)).filter(|template| template.is_object())
}

/// Returns the warnings for a workload, from the warnings that its pods would get or from their denial.
pub(crate) fn warnings(workload: &Value, admitted: Result<&[String], &Denial>) -> Vec<String> {
    let kind = Shown::new(workload.get("kind").and_then(Value::as_str).unwrap_or_default());
    let mut messages = Vec::new();
    match admitted {
        Ok(admitted) => {
            messages.extend(admitted.iter().map(|warning| format!("pods of this {kind}: {warning}")));
        }
        Err(denial) => messages.push(format!("pods of this {kind} would be denied: {denial}")),
    }
    messages.extend(misplaced_annotations(workload));
    messages
}

/// Returns a warning for each annotation of ours on a workload itself, where it has no effect.
pub fn misplaced_annotations(workload: &Value) -> Vec<String> {
    let kind = Shown::new(workload.get("kind").and_then(Value::as_str).unwrap_or_default());
    let path = pod_path(workload).unwrap_or_default().join(".");
    let places = [
        ("/metadata/annotations", format!("{kind} itself")),
        ("/spec/jobTemplate/metadata/annotations", format!("Job template of the {kind}")),
    ];
    let mut warnings = Vec::new();
    for (pointer, place) in places {
        let annotations = workload.pointer(pointer).and_then(Value::as_object);
        let keys = annotations.into_iter().flat_map(serde_json::Map::keys);
        warnings.extend(keys.filter(|key| key.starts_with(ANNOTATION_PREFIX)).map(|key| {
            let key = Shown::new(key);
            format!("annotation {key} on the {place} has no effect: write it in {path}.metadata.annotations")
        }));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::denial::At;

    #[test]
    fn finds_the_pod_of_each_kind() {
        let at = |api: &str, kind: &str| pod_path(&json!({"apiVersion": api, "kind": kind}));
        assert_eq!(at("v1", "Pod"), Some(&[] as &[_]));
        assert_eq!(at("batch/v1", "CronJob").map(<[_]>::len), Some(4));
        assert_eq!(at("v1", "Service"), None);
        assert_eq!(at("example.org/v1", "Deployment"), None);
    }

    #[test]
    fn finds_the_template_of_a_workload() {
        let pod = json!({"metadata": {}});
        let job = json!({"spec": {"template": pod}});
        let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "spec": {"jobTemplate": job}});
        assert_eq!(template(&cron), Some(&pod));
        for none in [
            json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": []}}),
            json!({"apiVersion": "v1", "kind": "Pod"}),
            json!([]),
        ] {
            assert_eq!(template(&none), None);
        }
    }

    #[test]
    fn warns_of_a_denial_and_of_an_annotation_on_the_workload_itself() {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"annotations": {"oras.land/artifact": "x", "example.org/a": "b"}}});
        let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "spec": {"jobTemplate": {"metadata": {"annotations": {"oras.land/artifact": "x"}}}}});
        assert_eq!(
            misplaced_annotations(&cron),
            ["annotation oras.land/artifact on the Job template of the CronJob has no effect: write it in \
              spec.jobTemplate.spec.template.metadata.annotations"]
        );
        let denial = Denial::bad_request(At::Volume("v"), None, "is wrong", "write right");
        assert_eq!(
            warnings(&deployment, Err(&denial)),
            [
                "pods of this Deployment would be denied: volume v: is wrong: write right",
                "annotation oras.land/artifact on the Deployment itself has no effect: write it in \
                 spec.template.metadata.annotations"
            ]
        );
    }
}
