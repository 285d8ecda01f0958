//! What a pod may request, rule by rule. Every denial must name the key, the value and what to write.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Map, Value, json};

use oras_csi_core::digest::Digest;
use oras_csi_core::reference::{Reference, RegistryHost};
use oras_csi_core::volume::CanonicalVolume;

use super::volume::VolumeTarget;
use super::*;

/// Configures the host `kind`, plain HTTP for `plain.example`, and unverified TLS for `kind:443`.
struct Administrator;

impl Registries for Administrator {
    fn names(&self, segment: &str) -> bool {
        segment == "kind"
    }

    fn allows_plain_http(&self, host: &RegistryHost) -> bool {
        host.to_string() == "plain.example"
    }

    fn allows_insecure(&self, host: &RegistryHost) -> bool {
        host.to_string() == "kind:443"
    }
}

fn read_pod(pod: &Value) -> Result<Intent, Denial> {
    read(&Pod::read(pod)?, &Administrator)
}

fn annotated(annotations: &Value) -> Value {
    let mut full = Map::new();
    for (key, value) in annotations.as_object().unwrap() {
        full.insert(format!("oras.land/{key}"), value.clone());
    }
    json!({"metadata": {"annotations": full}, "spec": {
        "initContainers": [{"name": "first"}],
        "containers": [{"name": "app", "volumeMounts": [{"name": "tmp", "mountPath": "/tmp/"}]},
            {"name": "side", "volumeDevices": [{"name": "disk", "devicePath": "/dev/xvda"}]}]}})
}

fn inline(attributes: &Value) -> Value {
    json!({"spec": {"containers": [{"name": "app", "volumeMounts": [{"name": "in", "mountPath": "/data"}]}],
        "volumes": [{"name": "in", "csi": {"driver": "csi.oras.land", "volumeAttributes": attributes}}]}})
}

fn target(intent: &Intent) -> &VolumeTarget {
    &intent.volumes[0].target
}

fn source(intent: &Intent) -> &ArtifactSource {
    match &intent.volumes[0].content {
        Requested::Artifacts(request) => &request.source,
        _ => panic!("nothing else was written"),
    }
}

fn recipe(intent: &Intent) -> &UnpinnedRecipe {
    match source(intent) {
        ArtifactSource::Recipe(RecipeSource::Plain(recipe)) => recipe,
        _ => panic!("nothing else was written"),
    }
}

fn summary(intent: &Intent) -> Vec<String> {
    let steps = recipe(intent).recipe.recipe().steps().iter().filter_map(|step| step.layer());
    steps
        .map(|layer| {
            let types: Vec<&str> =
                layer.media_types().iter().map(oras_csi_core::media_type::MediaType::as_str).collect();
            let platform = layer.platform().map(ToString::to_string).unwrap_or_default();
            format!("{} {} [{}] {platform}", layer.reference(), layer.path(), types.join(" "))
        })
        .collect()
}

#[rstest]
#[case(json!({"artifact": "ghcr.io/a/b:v1"}), &["ghcr.io/a/b:v1  [] "])]
#[case(json!({"artifact": "oras://GHCR.io/a/b"}), &["ghcr.io/a/b:latest  [] "])]
#[case(json!({"artifact": "kind/app:1"}), &["kind:443/app:1  [] "])]
#[case(json!({"artifact": "kind-registry:5000/java-app", "platform": "linux/arm64/v8", "media-types": "b/c , a/b,a/b"}),
    &["kind-registry:5000/java-app:latest  [a/b b/c] linux/arm64"])]
#[case(json!({"artifact.z": "r.io/z:1", "artifact.b.c": "r.io/b:1", "artifact": "r.io/root:1", "platform.z": "linux/arm/v7"}),
    &["r.io/root:1  [] ", "r.io/b:1 b.c [] ", "r.io/z:1 z [] linux/arm/v7"])]
#[case(json!({"artifact.only": "r.io/z:1", "media-types.only": "x/y"}), &["r.io/z:1 only [x/y] "])]
#[case(json!({"artifact": "r.io/z:1", "inject": "true", "pinned": "anything"}), &["r.io/z:1  [] "])]
fn annotations_give_steps(#[case] annotations: Value, #[case] steps: &[&str]) {
    let intent = read_pod(&annotated(&annotations)).unwrap();
    assert_eq!(summary(&intent), steps);
    assert_eq!((target(&intent).name.as_str(), target(&intent).index), ("oras-artifacts", None));
    assert_eq!(target(&intent).mounts.len(), 3, "all containers and init containers");
    assert!(target(&intent).mounts.iter().all(|mount| mount.path.as_str() == "/mnt/oras"));
}

#[rstest]
#[case(json!({}))]
#[case(json!({"inject": "false"}))]
#[case(json!({"inject": "false", "artifact": "not a reference", "unknown": "", "mount-path": ":"}))]
#[case(json!({"pinned": "{}"}))]
fn a_pod_without_a_request_has_an_empty_intent(#[case] annotations: Value) {
    let intent = read_pod(&annotated(&annotations)).unwrap();
    assert!(intent.volumes.is_empty() && intent.warnings.is_empty());
}

#[test]
fn inject_true_alone_gives_a_warning() {
    let intent = read_pod(&annotated(&json!({"inject": "true"}))).unwrap();
    assert!(intent.volumes.is_empty() && intent.warnings[0].contains("oras.land/artifact"));
}

#[rstest]
#[case(json!({"artefact": "r.io/a"}), "annotation oras.land/artefact: is not an annotation of oras-csi: did you mean oras.land/artifact?")]
#[case(json!({"containers.app": "x"}), "did you mean oras.land/containers?")]
#[case(json!({"artifact": ""}), "annotation oras.land/artifact: \"\" is empty: write a value")]
#[case(json!({"artifact": "r.io/a", "containers": ""}), "oras.land/containers: \"\" is empty")]
#[case(json!({"artifact": "team/app"}), "write docker.io/team/app or team:443/app")]
#[case(json!({"artifact": "r.io/App:1"}), "did you mean")]
#[case(json!({"artifact": " r.io/a"}), "has spaces")]
#[case(json!({"artifact.App": "r.io/a"}), "oras.land/artifact.App: \"App\" is not an artifact name")]
#[case(json!({"artifact.": "r.io/a"}), "\"\" is not an artifact name")]
#[case(json!({"artifact.-a": "r.io/a"}), "\"-a\" is not an artifact name")]
#[case(json!({"artifact.a_b": "r.io/a", "artifact.x": "r.io/y"}), "\"a_b\" is not an artifact name")]
#[case(json!({"mount-path": "/data"}), "oras.land/mount-path: \"/data\" has no effect without oras.land/artifact: add oras.land/artifact: REFERENCE")]
#[case(json!({"containers": "app"}), "has no effect without oras.land/artifact")]
#[case(json!({"media-types": "a/b"}), "has no effect without oras.land/artifact")]
#[case(json!({"platform": "linux/amd64", "artifact.a": "r.io/a"}), "oras.land/platform: \"linux/amd64\" has no effect without oras.land/artifact")]
#[case(json!({"platform.b": "linux/amd64", "artifact.a": "r.io/a"}), "has no effect without oras.land/artifact.b")]
#[case(json!({"mount-path.b": "/b", "artifact": "r.io/a"}), "has no effect without oras.land/artifact.b")]
#[case(json!({"artifact": "r.io/a", "platform": "linux"}), "\"linux\" is not a platform")]
#[case(json!({"artifact": "r.io/a", "media-types": "a/b,,c/d"}), "has an empty entry")]
#[case(json!({"artifact": "r.io/a", "media-types": "a/b, tar"}), "\"tar\" is not a media type")]
#[case(json!({"artifact": "r.io/a", "inject": "False"}), "\"False\" is neither \"true\" nor \"false\"")]
#[case(json!({"artifact": "r.io/a", "inject": ""}), "oras.land/inject: \"\" is neither")]
#[case(json!({"artifact": "r.io/a", "containers": "app,nope"}), "\"nope\" is not a container or init container of this pod: use one or more of: first, app, side")]
#[case(json!({"artifact": "r.io/a", "containers": "app,"}), "has an empty name")]
#[case(json!({"artifact": "r.io/a", "containers": " "}), "has an empty name")]
#[case(json!({"artifact": "r.io/a", "mount-path": "mnt"}), "\"mnt\" is not a mount path")]
#[case(json!({"artifact": "r.io/a", "mount-path": "/"}), "\"/\" is not a mount path")]
#[case(json!({"artifact": "r.io/a", "mount-path": "/a:b"}), "is not a mount path")]
#[case(json!({"artifact": "r.io/a", "mount-path": "/a/../b"}), "is not a mount path")]
#[case(json!({"artifact": "r.io/a", "mount-path": "/a//b"}), "is not a mount path")]
#[case(json!({"artifact": "r.io/a", "mount-path": "/tmp"}), "\"/tmp\" is already used: container app has a mount at /tmp/ of volume tmp there")]
#[case(json!({"artifact": "r.io/a", "mount-path": "/dev"}), "container side has a device at /dev/xvda of volume disk")]
#[case(json!({"artifact.a": "r.io/a", "mount-path.a": "/mnt/oras/a"}), "oras.land/mount-path.a: \"/mnt/oras/a\" is at or below /mnt/oras of oras.land/mount-path")]
#[case(json!({"artifact.a": "r.io/a", "artifact.b": "r.io/b", "mount-path.a": "/x", "mount-path.b": "/x"}), "is at or below /x")]
#[case(json!({"artifact": "r.io/a", "mount-path": "/a/b", "artifact.a": "r.io/a", "mount-path.a": "/a"}), "\"/a/b\" is at or below /a of oras.land/mount-path.a")]
#[case(json!({"recipe": ""}), "oras.land/recipe: \"\" is empty")]
#[case(json!({"recipe": "[]"}), "oras.land/recipe: the recipe is empty")]
#[case(json!({"recipe": "hello"}), "oras.land/recipe: cannot parse the recipe")]
#[case(json!({"artifact.Model": "r.io/a"}), "oras.land/artifact.Model: \"Model\" is not an artifact name: upper-case letters are not allowed, so write model")]
#[case(json!({"artifact-set": "Model"}), "oras.land/artifact-set: \"Model\" is not the name of a set: upper-case letters are not allowed, did you mean model?")]
#[case(json!({"artifact-set": "ghcr.io/acme/model:v1"}), "is not the name of a set: write the name of an ArtifactSet or a ClusterArtifactSet; an artifact is named with oras.land/artifact")]
#[case(json!({"artifact-set": "a_b"}), "is not the name of a set: write the name of an ArtifactSet of the namespace")]
#[case(json!({"recipe": "- add: r.io/a\n  inclde: [x]"}), "line 2 column 3")]
#[case(json!({"recipe": "- add: r.io/a\n- add: [x\n"}), "line 2")]
#[case(json!({"recipe": "- add: r.io/a\n  add: r.io/b"}), "line 2")]
#[case(json!({"recipe": "- add: r.io/a\n- add: team/app"}), "oras.land/recipe: step 2 of the recipe: ")]
#[case(json!({"recipe": "- add: r.io/a\n  path: /abs"}), "step 1 of the recipe: path: \"/abs\" is not a path inside the volume")]
#[case(json!({"recipe": "- remove: a"}), "begins with remove")]
#[case(json!({"recipe": "- add: r.io/a", "artifact": "r.io/b"}), "oras.land/artifact: \"r.io/b\" cannot be combined with oras.land/recipe, which defines the whole content of the volume: write it as a step")]
#[case(json!({"recipe": "- add: r.io/a", "artifact.b": "r.io/b"}), "oras.land/artifact.b: \"r.io/b\" cannot be combined with")]
#[case(json!({"recipe": "- add: r.io/a", "platform": "linux/amd64"}), "has no effect without oras.land/artifact: write mediaTypes and platform in the steps")]
#[case(json!({"recipe": "- add: r.io/a", "media-types": "a/b"}), "has no effect without oras.land/artifact: write mediaTypes")]
#[case(json!({"recipe": "- add: r.io/a\n  path: b", "mount-path.b": "/b"}), "oras.land/mount-path.b: \"/b\" has no effect without oras.land/artifact.b: write the directory as path in a step of the recipe")]
#[case(json!({"recipe": "- add: r.io/a\n  path: b", "media-types.b": "a/b"}), "has no effect without oras.land/artifact.b: write mediaTypes and platform in the steps of the recipe")]
#[case(json!({"recipe": "- add: r.io/a\n  path: b", "platform.b": "linux/amd64"}), "has no effect without oras.land/artifact.b: write mediaTypes and platform in the steps of the recipe")]
#[case(json!({"recipe": "- add: r.io/a\n- add: r.io/a"}), "steps 1 and 2 of the recipe add the same files at the same path")]
#[case(json!({"recipe": "- add: r.io/a\n  include: []"}), "step 1 of the recipe: include is empty: ")]
#[case(json!({"artifact": "r.io/a", "patch-level": "minor"}), "oras.land/patch-level: \"minor\" has no effect without oras.land/patch: add oras.land/patch: REFERENCE")]
#[case(json!({"patch-level": "minor"}), "has no effect without oras.land/patch")]
#[case(json!({"patch": "r.io/a", "patch-level": "high"}), "oras.land/patch-level: \"high\" is not a level of a patch: write minor, major or critical")]
#[case(json!({"patch": "a b"}), "oras.land/patch: \"a b\" has spaces")]
#[case(json!({"patch": "r.io/a", "recipe": "- add: r.io/a"}), "oras.land/patch: \"r.io/a\" cannot be combined with oras.land/recipe, which defines the whole content of the volume: remove one of the two")]
#[case(json!({"patch": "r.io/a", "artifact": "r.io/b"}), "oras.land/artifact: \"r.io/b\" cannot be combined with oras.land/patch, which defines the whole content of the volume: remove it")]
#[case(json!({"patch": "r.io/a", "artifact.x": "r.io/b"}), "oras.land/artifact.x: \"r.io/b\" cannot be combined with oras.land/patch")]
#[case(json!({"patch": "r.io/a", "platform": "linux/amd64"}), "oras.land/platform: \"linux/amd64\" has no effect without oras.land/artifact: write a recipe that has the base")]
#[case(json!({"patch": "r.io/a", "mount-path.x": "/x"}), "oras.land/mount-path.x: \"/x\" has no effect without oras.land/artifact.x")]
#[case(json!({"pinned-patches": "x"}), "did you mean oras.land/pinned-patch?")]
#[case(json!({"artifact": "r.io/a", "pull-secret": "No/Secret"}), "oras.land/pull-secret: \"No/Secret\" is not the name of a Secret")]
#[case(json!({"pull-secret": "s"}), "has no effect without oras.land/artifact")]
fn a_mistake_in_an_annotation_is_denied(#[case] annotations: Value, #[case] words: &str) {
    let denial = read_pod(&annotated(&annotations)).unwrap_err();
    assert!(denial.message().contains(words), "{denial}");
    assert!(denial.message().starts_with("annotation oras.land/"), "{denial}");
    assert_eq!(denial.code().number(), 400);
}

#[rstest]
#[case(json!({"artifact": "r.io/a", "mount-path": "/tmpfoo"}), "/tmpfoo")]
#[case(json!({"artifact": "r.io/a", "mount-path": "/tmp/below"}), "/tmp/below")]
#[case(json!({"artifact": "r.io/a", "mount-path": "/data/"}), "/data")]
#[case(json!({"artifact": "r.io/a", "mount-path": "/tmp", "containers": "side"}), "/tmp")]
fn mount_paths_beside_and_below_other_mounts_are_allowed(#[case] annotations: Value, #[case] path: &str) {
    let intent = read_pod(&annotated(&annotations)).unwrap();
    assert!(target(&intent).mounts.iter().all(|mount| mount.path.as_str() == path));
}

#[test]
fn a_pod_with_too_many_containers_gets_no_mounts() {
    for (containers, is_allowed) in [(253, true), (254, false), (37_000, false)] {
        let mut pod = annotated(&json!({"artifact": "r.io/a"}));
        // Three more are in the pod.
        pod["spec"]["containers"].as_array_mut().unwrap().extend(vec![json!({}); containers]);
        match read_pod(&pod) {
            Ok(_) => assert!(is_allowed, "{containers}"),
            Err(denial) => {
                assert!(!is_allowed && denial.message().contains("more than 256 mounts"), "{denial}");
            }
        }
    }
}

#[test]
fn containers_may_be_listed_with_spaces_and_twice() {
    let intent =
        read_pod(&annotated(&json!({"artifact": "r.io/a", "containers": " side, first ,side"}))).unwrap();
    let chosen: Vec<usize> = target(&intent).mounts.iter().map(|mount| mount.container).collect();
    assert_eq!(chosen, [0, 2]);
}

#[test]
fn a_named_mount_path_is_a_sub_path_of_the_same_volume() {
    let intent = read_pod(&annotated(&json!({"artifact.m": "r.io/a", "mount-path.m": "/models"}))).unwrap();
    let app: Vec<_> = target(&intent).mounts.iter().filter(|mount| mount.container == 1).collect();
    assert_eq!((app[0].path.as_str(), &app[0].sub_path), ("/mnt/oras", &None));
    assert_eq!((app[1].path.as_str(), app[1].sub_path.as_deref()), ("/models", Some("m")));
}

#[test]
fn a_recipe_that_is_too_long_is_denied_before_resolution() {
    let many: Map<String, Value> = (0..40)
        .map(|n| (format!("artifact.n{n}"), json!(format!("r.io/repository/of/some/length{n}"))))
        .collect();
    let denial = read_pod(&annotated(&Value::Object(many))).unwrap_err();
    assert!(denial.message().contains("bytes: the maximum is 3072"), "{denial}");
    assert!(denial.message().starts_with("annotation oras.land/artifact.n0: "), "{denial}");
}

#[test]
fn a_pod_with_too_many_references_is_denied() {
    let volumes: Vec<Value> = (0..129)
        .map(|n| {
            json!({"name": format!("v{n}"), "csi": {"driver": "csi.oras.land",
                "volumeAttributes": {"oras.artifact.reference": format!("r.io/a:{n}")}}})
        })
        .collect();
    let denial = read_pod(&json!({"spec": {"volumes": volumes}})).unwrap_err();
    assert!(denial.message().contains("129 different artifacts"), "{denial}");
}

#[rstest]
#[case(json!({"name": "oras-artifacts", "emptyDir": {}}))]
#[case(json!({"name": "oras-artifacts", "csi": {"driver": "other"}}))]
#[case(json!({"name": "oras-artifacts", "csi": {"driver": "csi.oras.land", "volumeAttributes": {"oras.artifact.reference": "r.io/a"}}}))]
#[case(json!({"name": "oras-artifacts", "csi": {"driver": "csi.oras.land", "volumeAttributes": null}}))]
fn a_volume_of_the_user_cannot_have_the_reserved_name(#[case] volume: Value) {
    let mut pod = annotated(&json!({"artifact": "r.io/a"}));
    pod["spec"]["volumes"] = json!([volume]);
    let denial = read_pod(&pod).unwrap_err();
    assert!(denial.message().contains("volume oras-artifacts: has a name that is reserved"), "{denial}");
}

#[test]
fn a_pod_without_containers_cannot_request_artifacts() {
    for spec in [json!(null), json!({}), json!({"containers": [null]})] {
        let pod = json!({"metadata": {"annotations": {"oras.land/artifact": "r.io/a"}}, "spec": spec});
        let denial = read_pod(&pod).unwrap_err();
        assert!(denial.message().contains("has no containers"), "{denial}");
    }
}

#[rstest]
#[case(json!({"os": {"name": "windows"}}))]
#[case(json!({"nodeSelector": {"kubernetes.io/os": "windows"}}))]
fn windows_pods_are_denied_only_if_they_request_artifacts(#[case] windows: Value) {
    for (mut pod, is_request) in [
        (annotated(&json!({"artifact": "r.io/a"})), true),
        (inline(&json!({"oras.artifact.reference": "r.io/a"})), true),
        (annotated(&json!({"artifact": "r.io/a", "inject": "false"})), false),
    ] {
        pod["spec"].as_object_mut().unwrap().extend(windows.as_object().unwrap().clone());
        let read = read_pod(&pod);
        assert_eq!(
            read.as_ref().is_err_and(|denial| denial.message().contains("Linux nodes only")),
            is_request,
            "{read:?}"
        );
    }
}

#[rstest]
#[case(json!({"oras.artifact.reference": "kind-registry:5000/java-app"}), "kind-registry:5000/java-app:latest  [] ", None, false)]
#[case(json!({"oras.artifact.reference": "r.io/a:1", "oras.artifact.layers.mediatype": "x/y, a/b"}), "r.io/a:1  [a/b x/y] ", None, false)]
#[case(json!({"oras.artifact.reference": "r.io/a:1", "oras-csi.name": "my-name"}), "r.io/a:1  [] ", Some("my-name"), false)]
#[case(json!({"oras.artifact.reference": "r.io/a:1", "oras.options.pullalways": "t"}), "r.io/a:1  [] ", None, true)]
#[case(json!({"oras.artifact.reference": "plain.example/a:1", "oras.options.plainhttp": "True"}), "plain.example/a:1  [] ", None, false)]
#[case(json!({"oras.artifact.reference": "kind/a:1", "oras.options.insecure": "1"}), "kind:443/a:1  [] ", None, false)]
#[case(json!({"oras.artifact.reference": "r.io/a:1", "oras.options.plainhttp": "F", "oras.options.insecure": "0"}), "r.io/a:1  [] ", None, false)]
fn the_earlier_drivers_attributes_work(
    #[case] attributes: Value,
    #[case] step: &str,
    #[case] label: Option<&str>,
    #[case] past_cache: bool,
) {
    let intent = read_pod(&inline(&attributes)).unwrap();
    assert_eq!(summary(&intent), [step]);
    assert_eq!(
        (recipe(&intent).options.label.as_deref(), recipe(&intent).options.bypass_cache),
        (label, past_cache)
    );
    assert_eq!((target(&intent).index, target(&intent).mounts.len()), (Some(0), 0));
    assert!(intent.warnings.is_empty());
}

#[test]
fn concurrency_is_accepted_with_a_warning() {
    let intent =
        read_pod(&inline(&json!({"oras.artifact.reference": "r.io/a", "oras.options.concurrency": "4"})))
            .unwrap();
    assert!(intent.warnings[0].contains("oras.options.concurrency has no effect"), "{:?}", intent.warnings);
}

#[test]
fn actions_are_a_recipe() {
    let actions = "- add: r.io/a:v1\n  path: a\n  include: [\"*.jar\"]\n- add: r.io/b\n";
    let intent = read_pod(&inline(&json!({"oras-csi.actions": actions, "oras-csi.name": "mine"}))).unwrap();
    let recipe = recipe(&intent);
    let references: Vec<String> = recipe.recipe.recipe().references().map(ToString::to_string).collect();
    assert_eq!(references, ["r.io/a:v1", "r.io/b:latest"]);
    assert_eq!((recipe.steps().count(), recipe.options.label.as_deref()), (2, Some("mine")));
}

#[rstest]
#[case(json!({}), 400, "volume in: names no artifact: write oras.artifact.reference: REFERENCE")]
#[case(json!({"oras.artifact.ref": "r.io/a"}), 400, "did you mean oras.artifact.reference?")]
#[case(json!({"oras.artifact.reference": ""}), 400, "attribute oras.artifact.reference: \"\" is empty")]
#[case(json!({"oras.artifact.reference": "a b"}), 400, "has spaces")]
#[case(json!({"oras-csi.name": "x", "oras.options.insecure": "1"}), 400, "oras.options.insecure: \"1\" cannot be combined with oras-csi.name alone")]
#[case(json!({"oras-csi.name": "X"}), 400, "\"X\" is not the name of a set")]
#[case(json!({"oras-csi.name": "X", "oras.artifact.reference": "r.io/a"}), 400, "\"X\" is not a DNS label")]
#[case(json!({"oras-csi.name": "-x", "oras.artifact.reference": "r.io/a"}), 400, "is not a DNS label")]
#[case(json!({"oras-csi.name": "a.b", "oras.artifact.reference": "r.io/a"}), 400, "is not a DNS label")]
#[case(json!({"oras-csi.actions": ""}), 400, "oras-csi.actions: \"\" is empty")]
#[case(json!({"oras-csi.actions": "- add: x", "oras.artifact.reference": "x"}), 400, "cannot be combined with oras-csi.actions")]
#[case(json!({"oras-csi.actions": "- add: x", "oras.artifact.layers.mediatype": "a/b"}), 400, "has no effect without oras.artifact.reference")]
#[case(json!({"oras-csi.actions": "- add: x\n  paht: y"}), 400, "line 2")]
#[case(json!({"oras-csi.actions": "- add: team/app"}), 400, "docker.io/team/app")]
#[case(json!({"oras-csi.actions": "- remove: a\n- add: x"}), 400, "begins with remove")]
#[case(json!({"oras-csi.actions": "- add: x\n- add: r.io/y", "oras.options.plainhttp": "1"}), 403, "is not allowed for docker.io")]
#[case(json!({"oras.artifact.patch": ""}), 400, "oras.artifact.patch: \"\" is empty")]
#[case(json!({"oras.artifact.patch": "team/app"}), 400, "is ambiguous")]
#[case(json!({"oras.artifact.patch": "r.io/a", "oras-csi.actions": "- add: x"}), 400, "oras-csi.actions: \"- add: x\" cannot be combined with oras.artifact.patch")]
#[case(json!({"oras.artifact.patch": "r.io/a", "oras.artifact.layers.mediatype": "a/b"}), 400, "cannot be combined with oras.artifact.patch")]
#[case(json!({"oras.artifact.patch": "r.io/a", "oras.artifact.patch.level": "x"}), 400, "oras.artifact.patch.level: \"x\" is not a level")]
#[case(json!({"oras.artifact.patch": "r.io/a", "oras.artifact.reference": "a b"}), 400, "oras.artifact.reference: \"a b\" has spaces")]
#[case(json!({"oras.artifact.patch": "r.io/a", "oras.options.plainhttp": "true"}), 403, "oras.options.plainhttp: \"true\" is not allowed for r.io")]
#[case(json!({"oras.artifact.patch": "plain.example/a", "oras.artifact.reference": "r.io/b", "oras.options.plainhttp": "1"}), 403, "is not allowed for r.io")]
#[case(json!({"oras.artifact.reference": "r.io/a", "oras.artifact.patch.level": "minor"}), 400, "has no effect without oras.artifact.patch")]
#[case(json!({"oras.artifact.reference": "r.io/a", "oras.options.concurrency": "0"}), 400, "\"0\" is not a whole number of 1 or more")]
#[case(json!({"oras.artifact.reference": "r.io/a", "oras.options.concurrency": "-1"}), 400, "is not a whole number of 1 or more")]
#[case(json!({"oras.artifact.reference": "r.io/a", "oras.options.concurrency": "many"}), 400, "is not a whole number of 1 or more")]
#[case(json!({"oras.artifact.reference": "r.io/a", "oras.options.pullalways": "yes"}), 400, "\"yes\" is not a boolean")]
#[case(json!({"oras.artifact.reference": "r.io/a", "oras.options.plainhttp": "tRUE"}), 400, "is not a boolean")]
#[case(json!({"oras.artifact.reference": "r.io/a", "oras.options.plainhttp": "true"}), 403, "oras.options.plainhttp: \"true\" is not allowed for r.io")]
#[case(json!({"oras.artifact.reference": "r.io/a", "oras.options.insecure": "1"}), 403, "oras.options.insecure: \"1\" is not allowed for r.io")]
#[case(json!({"oras.artifact.reference": "plain.example/a", "oras.options.insecure": "1"}), 403, "is not allowed for plain.example")]
#[case(json!({"oras.artifact.reference": "r.io/a", "oras.artifact.layers.mediatype": "a/b,"}), 400, "has an empty entry")]
#[case(json!({"oras.artifact.reference": "r.io/a", "csi.storage.k8s.io/pod.namespace": "other"}), 400, "csi.storage.k8s.io/pod.namespace: \"other\" is an attribute that only kubelet may write: remove it")]
#[case(json!({"oras.artifact.reference": "r.io/a", "csi.oras.land/id": "x"}), 400, "cannot be combined with csi.oras.land/id")]
#[case(json!({"csi.oras.land/id": "x"}), 400, "csi.oras.land/recipe: is missing")]
#[case(json!({"csi.oras.land/recipe": "[]", "csi.oras.land/id": "x"}), 400, "the recipe is empty")]
#[case(json!({"csi.oras.land/recipe": "[{\"add\":\"r.io/a:1\"}]", "csi.oras.land/id": "x"}), 400, "has no digest")]
#[case(json!({"csi.oras.land/other": "x"}), 400, "csi.oras.land/other is not an attribute of oras-csi")]
fn a_mistake_in_an_inline_volume_is_denied(
    #[case] attributes: Value,
    #[case] code: u16,
    #[case] words: &str,
) {
    let denial = read_pod(&inline(&attributes)).unwrap_err();
    assert!(denial.message().contains(words), "{denial}");
    assert!(denial.message().starts_with("volume in"), "{denial}");
    assert_eq!(denial.code().number(), code);
}

#[test]
fn a_recipe_can_have_options_that_short_forms_lack() {
    let yaml = "# what the job needs\n- add: GHCR.io/acme/model:v1\n  path: model\n  include: ['*.safetensors', config/**]\n\
                  - remove: model/optimizer.pt\n- overlay: hotfix:2\n  platform: linux/aarch64\n  mediaTypes: [a/b]\n";
    for pod in [
        annotated(&json!({"recipe": yaml, "mount-path": "/srv", "containers": "app"})),
        inline(&json!({"oras-csi.actions": yaml})),
    ] {
        let intent = read_pod(&pod).unwrap();
        let recipe = recipe(&intent);
        let steps: Vec<String> =
            recipe.steps().map(|(reference, origin)| format!("{} {reference}", origin.at())).collect();
        assert_eq!(steps.len(), 2);
        assert!(steps[0].ends_with(", step 1 ghcr.io/acme/model:v1"), "{steps:?}");
        assert!(steps[1].ends_with(", step 3 docker.io/library/hotfix:2"), "{steps:?}");
        assert_eq!(recipe.recipe.recipe().steps().len(), 3);
    }
    let intent =
        read_pod(&annotated(&json!({"recipe": yaml, "mount-path": "/srv", "containers": "app"}))).unwrap();
    assert_eq!(target(&intent).mounts.len(), 1);
    assert_eq!(target(&intent).mounts[0].path.as_str(), "/srv");
}

/// The first volume has the reserved name, but the pod has no annotations.
#[test]
fn a_denial_names_the_place_of_the_secret() {
    let mut pod = inline(&json!({"oras.artifact.reference": "r.io/a"}));
    pod["spec"]["volumes"][0]["name"] = json!("oras-artifacts");
    pod["spec"]["volumes"][0]["csi"]["nodePublishSecretRef"] = json!({"name": "s"});
    assert_eq!(target(&read_pod(&pod).unwrap()).secret_at().to_string(), "volume oras-artifacts");
    let pod = annotated(&json!({"artifact": "r.io/a", "pull-secret": "s"}));
    assert_eq!(target(&read_pod(&pod).unwrap()).secret_at().to_string(), "annotation oras.land/pull-secret");
}

#[test]
fn a_patch_is_read_with_its_options() {
    let patch_request = |intent: &Intent| match source(intent) {
        ArtifactSource::Patch(request) => request.clone(),
        ArtifactSource::Recipe(_) => panic!("a patch was written"),
    };
    let pod = annotated(&json!({"patch": "kind/app:p", "patch-level": "crit", "mount-path": "/srv",
        "containers": "app", "pull-secret": "s", "pinned": "x", "pinned-patch": "y"}));
    let intent = read_pod(&pod).unwrap();
    assert_eq!((target(&intent).mounts.len(), target(&intent).secret.as_deref()), (1, Some("s")));
    let names: Vec<String> =
        intent.volumes[0].names().iter().map(|named| named.reference.to_string()).collect();
    assert_eq!((names, source(&intent).pinned()), (vec!["kind:443/app:p".to_owned()], None));
    let of_pod = patch_request(&intent);
    let (level, origin) = of_pod.level.clone().unwrap();
    assert_eq!(
        (level.as_str(), origin.at().to_string().as_str()),
        ("critical", "annotation oras.land/patch-level")
    );

    let attributes = json!({"oras.artifact.patch": "r.io/app:p", "oras.artifact.patch.level": "minor",
        "oras.artifact.reference": "r.io/app:1", "oras-csi.name": "mine", "oras.options.pullalways": "1"});
    let intent = read_pod(&inline(&attributes)).unwrap();
    let names: Vec<String> =
        intent.volumes[0].names().iter().map(|named| named.origin.at().to_string()).collect();
    assert_eq!(
        names,
        ["volume in, attribute oras.artifact.patch", "volume in, attribute oras.artifact.reference"]
    );
    let of_volume = patch_request(&intent);
    assert_eq!((of_volume.options.label.as_deref(), of_volume.options.bypass_cache), (Some("mine"), true));
    assert_eq!(of_volume.base.unwrap().0.to_string(), "r.io/app:1");
}

#[rstest]
#[case(&["1", "t", "T", "TRUE", "true", "True"], true)]
#[case(&["0", "f", "F", "FALSE", "false", "False"], false)]
fn booleans_are_parsed_as_in_go(#[case] texts: &[&str], #[case] value: bool) {
    for text in texts {
        let attributes = json!({"oras.artifact.reference": "r.io/a", "oras.options.pullalways": text});
        assert_eq!(recipe(&read_pod(&inline(&attributes)).unwrap()).options.bypass_cache, value, "{text}");
    }
}

fn canonical_attributes() -> Value {
    let reference = Reference::parse("r.io/a").unwrap().pin(Digest::sha256_of(b"x"));
    let step = oras_csi_core::recipe::Step::Add(oras_csi_core::recipe::Layer::new(reference));
    let recipe = oras_csi_core::recipe::PinnedRecipe::new(vec![step]).unwrap();
    json!(CanonicalVolume::new(None, recipe).unwrap().to_attributes())
}

#[test]
fn a_canonical_volume_is_parsed() {
    let intent = read_pod(&inline(&canonical_attributes())).unwrap();
    assert!(
        matches!(&intent.volumes[0].content, Requested::Canonical(volume) if volume.id().as_str().starts_with("a-"))
    );
    assert_eq!(
        intent.volumes[0].names()[0].origin.at().to_string(),
        "volume in, attribute csi.oras.land/recipe"
    );

    let mut forged = canonical_attributes();
    forged["csi.oras.land/id"] = json!("a-00000000000000000000000000000000");
    let denial = read_pod(&inline(&forged)).unwrap_err();
    assert!(denial.message().contains("does not belong to its recipe"), "{denial}");
}

#[test]
fn volumes_of_other_drivers_are_ignored() {
    let pod = json!({"spec": {"volumes": [{"name": "v", "csi": {"driver": "csi.oras.land.evil",
        "volumeAttributes": {"csi.storage.k8s.io/x": "y"}}}]}});
    assert!(read_pod(&pod).unwrap().volumes.is_empty());
}

#[test]
fn a_mount_below_an_inline_volume_gives_a_warning() {
    let mut pod = inline(&json!({"oras.artifact.reference": "r.io/a"}));
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "in", "mountPath": "/data"}, {"name": "x", "mountPath": "/data/x"}]);
    let intent = read_pod(&pod).unwrap();
    assert!(intent.warnings[0].contains("/data/x is below the read-only volume in"), "{:?}", intent.warnings);
}

/// What a read-only mount above a mount of ours leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Above {
    /// The container runtime can create the directory.
    Nothing,
    /// The volume may have the directory.
    Warning,
    /// The volume cannot have the directory.
    Denial,
}

#[rstest]
#[case::read_only_mount(json!({"persistentVolumeClaim": {"claimName": "c"}}), true, Above::Warning)]
#[case::writable_mount(json!({"persistentVolumeClaim": {"claimName": "c"}}), false, Above::Nothing)]
#[case::read_only_claim(json!({"persistentVolumeClaim": {"claimName": "c", "readOnly": true}}), false, Above::Warning)]
#[case::config_map(json!({"configMap": {"name": "c"}}), false, Above::Denial)]
#[case::secret(json!({"secret": {"secretName": "s"}}), false, Above::Denial)]
#[case::image(json!({"image": {"reference": "i"}}), false, Above::Warning)]
#[case::read_only_csi(json!({"csi": {"driver": "d.example", "readOnly": true}}), false, Above::Warning)]
#[case::writable_csi(json!({"csi": {"driver": "d.example"}}), false, Above::Nothing)]
#[case::empty_dir(json!({"emptyDir": {}}), false, Above::Nothing)]
fn a_read_only_mount_above_is_found(
    #[case] source: Value,
    #[case] read_only: bool,
    #[case] expected: Above,
    #[values("/mnt", "/mnt/", "/mnt/./x/..", "/")] above: &str,
) {
    let mut volume = source;
    volume["name"] = json!("v");
    let mut pod = annotated(&json!({"artifact": "r.io/a"}));
    pod["spec"]["volumes"] = json!([volume]);
    pod["spec"]["containers"][1]["volumeMounts"] =
        json!([{"name": "v", "mountPath": above, "readOnly": read_only}]);
    // The root is no mount path that Kubernetes accepts.
    let expected = if above == "/" { Above::Nothing } else { expected };
    let warned = |warnings: &[String], path: &str| {
        let words = format!("mount path {path} is below the mount /mnt");
        warnings.iter().any(|warning| warning.contains(&words) && warning.contains("container side"))
    };
    match read_pod(&pod) {
        Ok(intent) => {
            assert_eq!(
                warned(&intent.warnings, "/mnt/oras"),
                expected == Above::Warning,
                "{:?}",
                intent.warnings
            );
            assert_ne!(expected, Above::Denial);
        }
        Err(denial) => {
            let words = "\"/mnt/oras\" is below the mount";
            assert!(expected == Above::Denial && denial.message().contains(words), "{denial}");
        }
    }
    // A writable mount between both has the directory.
    let mounts = pod["spec"]["containers"][1]["volumeMounts"].as_array_mut().unwrap();
    mounts.push(json!({"name": "tmp", "mountPath": "/mnt/between"}));
    pod["metadata"]["annotations"]["oras.land/mount-path"] = json!("/mnt/between/x");
    assert_eq!(read_pod(&pod).unwrap().warnings, [""; 0]);
    pod["metadata"]["annotations"]["oras.land/mount-path"] = json!("/mnt/x");
    pod["metadata"]["annotations"]["oras.land/containers"] = json!("app");
    assert_eq!(read_pod(&pod).unwrap().warnings, [""; 0]);
    // Of an inline volume.
    pod["metadata"] = json!({});
    pod["spec"]["volumes"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "in", "csi": {"driver": "csi.oras.land",
        "volumeAttributes": {"oras.artifact.reference": "r.io/a"}}}));
    let mounts = pod["spec"]["containers"][1]["volumeMounts"].as_array_mut().unwrap();
    mounts.push(json!({"name": "in", "mountPath": "/mnt/x"}));
    let warnings = read_pod(&pod).unwrap().warnings;
    assert_eq!(warned(&warnings, "/mnt/x"), expected != Above::Nothing, "{warnings:?}");
}

#[rstest]
#[case(json!({"os": {"name": "windows"}}), "spec.os.name")]
#[case(json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), "spec.nodeSelector")]
fn a_pod_for_windows_is_denied(#[case] spec: Value, #[case] field: &str) {
    let mut pod = annotated(&json!({"artifact": "r.io/a"}));
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let denial = read_pod(&pod).unwrap_err();
    assert!(denial.message().starts_with(field), "{denial}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn hostile_annotations_never_panic_and_denials_are_printable(
        annotations in proptest::collection::btree_map(
            "(artifact|artifact\\.[a-z.A-Z-]{0,6}|mount-path|containers|platform|inject|media-types|\\PC{0,8})", ".*", 0..6),
    ) {
        if let Err(denial) = read_pod(&annotated(&json!(annotations))) {
            prop_assert!(!denial.message().contains(char::is_control));
            prop_assert!(denial.message().chars().count() <= 2_000);
        }
    }

    #[test]
    fn hostile_attributes_never_panic(
        attributes in proptest::collection::btree_map(
            "(oras\\.artifact\\.reference|oras-csi\\.name|oras\\.options\\.[a-z]{4,12}|csi\\.oras\\.land/(id|recipe|seal)|\\PC{0,8})",
            ".*", 0..6),
    ) {
        let _ = read_pod(&inline(&json!(attributes)));
    }
}
