//! Requests for artifacts that `render` and `explain` leave alone: in kinds whose pods they do not know, and in annotations
//! of a workload instead of its pod template.
//!
//! A kind such as a Rollout, a Workflow, a JobSet or an InferenceService creates pods through a controller. The webhook
//! admits these pods in the cluster, so the manifest needs no change; but the reader of the output must know that its tags
//! are not pinned.

use std::collections::BTreeSet;

use oras_csi_core::display::Shown;
use oras_csi_core::keys::{ANNOTATION_PREFIX, DRIVER};
use oras_csi_webhook::pod_template::{self, is_persistent_volume};
use serde_json::Value;

/// How many pod templates a warning names.
const MAX_NAMED: usize = 16;

/// Returns the warnings for an object.
pub(crate) fn warnings(object: &Value) -> Vec<String> {
    if let Some(path) = pod_template::pod_path(object) {
        return if path.is_empty() { Vec::new() } else { pod_template::misplaced_annotations(object) };
    }
    if is_persistent_volume(object) {
        return Vec::new();
    }
    let mut templates = Vec::new();
    find(object, "", false, &mut templates);
    let mut seen = BTreeSet::new();
    templates.retain(|path| seen.insert(path.clone()));
    let mut warnings = Vec::new();
    if seen.remove("") {
        templates.retain(|path| !path.is_empty());
        warnings.push(
            "its own annotations request artifacts. They have an effect only if its controller copies them to its pods; \
             else write them in the annotations of the pod template"
                .to_owned(),
        );
    }
    let more = templates.len().saturating_sub(MAX_NAMED);
    let mut named: Vec<String> =
        templates.iter().take(MAX_NAMED).map(|path| Shown::new(path).to_string()).collect();
    if more > 0 {
        named.push(format!("{more} more"));
    }
    if !named.is_empty() {
        warnings.push(format!(
            "requests artifacts, but pods of this kind are not supported here; the webhook pins them when they are created: {}",
            named.join(", ")
        ));
    }
    warnings
}

/// Adds the path of each pod template that requests artifacts: the object whose metadata has the annotation, or whose list
/// of volumes has the volume. The empty path is the object itself.
fn find(value: &Value, path: &str, in_annotations: bool, templates: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if in_annotations && key.starts_with(ANNOTATION_PREFIX) || key == "driver" && value == DRIVER
                {
                    templates.push(template_of(path).to_owned());
                }
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                find(value, &below, key.ends_with("nnotations"), templates);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                find(value, &format!("{path}[{index}]"), false, templates);
            }
        }
        _ => {}
    }
}

/// Returns the path of the pod template, from that of its annotations or of the `csi` of a volume.
fn template_of(path: &str) -> &str {
    let path = path.strip_suffix(".csi").map_or(path, |volume| {
        volume.rsplit_once(".volumes[").map_or(volume, |(spec, _)| spec.strip_suffix(".spec").unwrap_or(spec))
    });
    if path == "metadata.annotations" {
        return "";
    }
    path.strip_suffix(".annotations")
        .map_or(path, |parent| parent.strip_suffix(".metadata").unwrap_or(parent))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn pod(reference: &str) -> Value {
        json!({"metadata": {"annotations": {"example.org/a": "b", "oras.land/artifact": reference, "oras.land/platform": "p"}}})
    }

    fn volumes() -> Value {
        json!([{"name": "x", "emptyDir": {}}, {"name": "v", "csi": {"driver": "csi.oras.land"}}])
    }

    #[rstest]
    #[case::rollout(json!({"kind": "Rollout", "spec": {"template": pod("a")}}), &["created: spec.template"])]
    #[case::workflow(
        json!({"kind": "Workflow", "spec": {"volumes": volumes(), "podMetadata": {"annotations": {"oras.land/artifact": "a"}},
            "templates": [{"name": "no"}, {"volumes": volumes()}, {"metadata": {"annotations": {"oras.land/artifact": "a"}}}]}}),
        &["created: spec, spec.podMetadata, spec.templates[1], spec.templates[2]"]
    )]
    #[case::job_set(
        json!({"kind": "JobSet", "spec": {"replicatedJobs": [{"template": {"spec": {"template": pod("a")}}},
            {"template": {"spec": {"template": {"spec": {"volumes": volumes()}}}}}]}}),
        &["created: spec.replicatedJobs[0].template.spec.template, spec.replicatedJobs[1].template.spec.template"]
    )]
    #[case::leader_worker_set(
        json!({"kind": "LeaderWorkerSet", "spec": {"leaderWorkerTemplate": {"leaderTemplate": pod("a"), "workerTemplate": pod("b")}}}),
        &["created: spec.leaderWorkerTemplate.leaderTemplate, spec.leaderWorkerTemplate.workerTemplate"]
    )]
    #[case::ray_cluster(
        json!({"kind": "RayCluster", "spec": {"headGroupSpec": {"template": pod("a")}, "workerGroupSpecs": [{"template": pod("b")}]}}),
        &["created: spec.headGroupSpec.template, spec.workerGroupSpecs[0].template"]
    )]
    #[case::knative_on_the_service_itself(
        json!({"kind": "Service", "metadata": {"annotations": {"oras.land/artifact": "a"}}, "spec": {"template": pod("b")}}),
        &["its own annotations request artifacts", "created: spec.template"]
    )]
    #[case::kserve(
        json!({"kind": "InferenceService", "metadata": {"annotations": {"oras.land/artifact": "a"}}, "spec": {"predictor": {"volumes": volumes()}}}),
        &["its own annotations request artifacts", "created: spec.predictor"]
    )]
    #[case::a_deployment_itself(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"annotations": {"oras.land/artifact": "a"}}, "spec": {"template": pod("b")}}),
        &["annotation oras.land/artifact on the Deployment itself has no effect: write it in spec.template.metadata.annotations"]
    )]
    #[case::a_pod(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"annotations": {"oras.land/artifact": "a"}}}), &[])]
    #[case::labels(json!({"kind": "CSIDriver", "metadata": {"name": "csi.oras.land", "labels": {"oras.land/x": "y"}}}), &[])]
    #[case::text(json!({"kind": "ConfigMap", "data": {"pod.yaml": "oras.land/artifact: r.io/a"}}), &[])]
    #[case::a_volume(json!({"apiVersion": "v1", "kind": "PersistentVolume", "spec": {"csi": {"driver": "csi.oras.land"}}}), &[])]
    #[case::others(json!({"kind": "Rollout", "spec": {"template": {"metadata": {"annotations": {"a": "oras.land/"}}}}}), &[])]
    fn names_every_pod_template_that_is_left_alone(#[case] object: Value, #[case] expected: &[&str]) {
        let found = warnings(&object);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.ends_with(expected) || found.starts_with(expected), "{found}");
        }
    }

    #[test]
    fn a_list_of_templates_is_bounded() {
        let jobs: Vec<Value> = (0..100).map(|_| json!({"template": pod("a")})).collect();
        let found = warnings(&json!({"kind": "JobSet", "spec": {"replicatedJobs": jobs}}));
        assert!(
            found.len() == 1 && found[0].ends_with("spec.replicatedJobs[15].template, 84 more"),
            "{found:?}"
        );
    }
}
