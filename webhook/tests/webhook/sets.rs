//! Sets in pods: which set a name means, the recipe that a pod gets, who may use it, and which sets are created.

use std::sync::Arc;

use crate::support::{Bench, default_digest, default_manifest, entries, inline, patched, pod, review, soon};
use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_core::seal::{Holder, PublicKeys, SealKey};
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_webhook::credentials::{CredentialSources, ManifestSecrets};
use oras_csi_webhook::pins::MemoryPins;
use oras_csi_webhook::review::{Hook, Review};
use oras_csi_webhook::seal::Sealer;
use oras_csi_webhook::sets::object::ClusterArtifactSet;
use oras_csi_webhook::sets::{MemorySets, SetCatalog, SetResolver as _, SetToResolve, UsableSecrets};
use rstest::rstest;
use serde_json::{Value, json};

const TAG: &str = "r.io/team/model:v1";
const NEXT: &str = "r.io/team/model:v2";

/// Returns the canonical JSON of one `add` step.
fn recipe(text: &str) -> String {
    let reference = Reference::parse(text).unwrap();
    let pinned = reference.pin(default_digest(text));
    PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).unwrap().to_json().to_owned()
}

fn status(text: &str, generation: i64) -> Value {
    let line = format!("{text}@{}", default_digest(text));
    json!({"observedGeneration": generation, "recipe": recipe(text), "recipeGeneration": generation,
        "id": "model-0", "references": [line], "refreshed": "2026-01-01T00:00:00Z"})
}

fn set(name: &str, text: &str) -> Value {
    json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactSet",
        "metadata": {"name": name, "namespace": "team", "generation": 1},
        "spec": {"recipe": [{"add": text}]}, "status": status(text, 1)})
}

fn cluster_set(name: &str, text: &str, selector: &Value) -> Value {
    json!({"apiVersion": "oras.land/v1alpha1", "kind": "ClusterArtifactSet",
        "metadata": {"name": name, "generation": 1},
        "spec": {"recipe": [{"add": text}], "namespaceSelector": selector}, "status": status(text, 1)})
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}})
}

fn of_team(team: &str) -> Value {
    json!({"matchLabels": {"team": team}})
}

fn bench(manifests: &[Value]) -> Bench {
    Bench::new().with_sets(&[manifests, &[namespace("team"), namespace("other")]].concat()).0
}

fn by_annotation(name: &str) -> Value {
    pod(&[("artifact-set", name)])
}

fn by_name(name: &str) -> Value {
    inline(&json!({"oras-csi.name": name}))
}

fn with_actions(name: &str, text: &str) -> Value {
    inline(&json!({"oras-csi.name": name, "oras-csi.actions": format!("- add: {text}\n")}))
}

fn volume(pod: &Value) -> CanonicalVolume {
    let attributes = pod["spec"]["volumes"][0]["csi"]["volumeAttributes"].as_object().unwrap();
    let texts = attributes.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap()));
    CanonicalVolume::from_attributes(texts).unwrap()
}

#[rstest]
#[case(by_annotation("model"), "oras-artifacts")]
#[case(by_name("model"), "in")]
#[tokio::test]
async fn a_pod_gets_the_recipe_of_the_set_without_a_registry_request(#[case] pod: Value, #[case] name: &str) {
    let bench = bench(&[set("model", TAG)]);
    let after = bench.admitted(&pod).await;
    let volume = volume(&after);
    assert_eq!((volume.recipe().to_json(), volume.set()), (recipe(TAG).as_str(), None));
    assert_eq!(volume.id().slug(), "model");
    let note: Value =
        serde_json::from_str(after["metadata"]["annotations"]["oras.land/pinned"].as_str().unwrap()).unwrap();
    assert_eq!(note[name], json!([format!("{TAG}@{}", default_digest(TAG))]));
    assert_eq!(bench.registry.calls(), 0);
    let mount = &after["spec"]["containers"][0]["volumeMounts"][0];
    assert_eq!((&mount["name"], &mount["readOnly"]), (&json!(name), &json!(true)));
}

#[tokio::test]
async fn the_pod_chooses_mount_path_and_containers() {
    let bench = bench(&[set("model", TAG)]);
    let mut pod = pod(&[("artifact-set", "model"), ("mount-path", "/models"), ("containers", "app")]);
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "side"}));
    let after = bench.admitted(&pod).await;
    assert_eq!(after["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], "/models");
    assert!(after["spec"]["containers"][1].get("volumeMounts").is_none());
}

#[rstest]
#[case(pod(&[("artifact-set", "model"), ("media-types", "a/b")]), 400, "oras.land/media-types", "the steps of the set")]
#[case(pod(&[("artifact-set", "model"), ("platform", "linux/arm64")]), 400, "oras.land/platform", "the steps of the set")]
#[case(pod(&[("artifact-set", "model"), ("artifact", "r.io/a")]), 400, "oras.land/artifact:", "cannot be combined with")]
#[case(pod(&[("artifact-set", "model"), ("recipe", "- add: r.io/a")]), 400, "oras.land/artifact-set", "cannot be combined with")]
#[case(pod(&[("artifact-set", "model"), ("patch", "r.io/a:p")]), 400, "oras.land/artifact-set", "one of the two")]
#[case(pod(&[("artifact-set", "Model")]), 400, "\"Model\" is not the name of a set", "did you mean model?")]
#[case(inline(&json!({"oras-csi.name": "model", "oras.options.pullalways": "true"})), 400,
    "oras.options.pullalways", "names a set")]
#[case(by_annotation("modle"), 404, "\"modle\" is not a set that namespace team", "did you mean model?")]
#[case(by_name("modle"), 404, "volume in, attribute oras-csi.name", "kubectl get clusterartifactsets")]
#[case(by_annotation("theirs"), 403, "does not select namespace team", "ask the administrator")]
#[case(
    by_annotation("new"),
    503,
    "ArtifactSet team/new, which is new or was changed",
    "kubectl get artifactset new"
)]
#[case(
    by_annotation("changed"),
    503,
    "is being resolved",
    "kubectl get artifactset changed --namespace team"
)]
#[case(by_annotation("failed"), 503, "RegistryUnavailable: it is away", "kubectl get artifactset failed")]
#[case(by_annotation("wrong"), 422, "InvalidSpec: it cannot be read", "correct it")]
#[case(
    with_actions("model", "r.io/b:2"),
    400,
    "whose recipe is [{\"add\":\"r.io/team/model:v1\"}], and not [{\"add\":\"r.io/b:2\"}]",
    "choose another name"
)]
#[case(with_actions("ours", "r.io/b:2"), 400, "is the name of a ClusterArtifactSet", "by its name alone")]
#[case(with_actions("ours", TAG), 400, "is the name of a ClusterArtifactSet", "by its name alone")]
#[tokio::test]
async fn a_denial_names_the_set_and_the_correction(
    #[case] pod: Value,
    #[case] code: u16,
    #[case] words: &str,
    #[case] instead: &str,
) {
    let mut new = set("new", TAG);
    new.as_object_mut().unwrap().remove("status");
    let mut changed = set("changed", TAG);
    changed["metadata"]["generation"] = json!(2);
    let condition = |reason: &str, message: &str| {
        json!({"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "False", "reason": reason,
            "message": message, "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
    };
    let (mut failed, mut wrong) = (set("failed", TAG), set("wrong", TAG));
    failed["status"] = condition("RegistryUnavailable", "it is away");
    wrong["status"] = condition("InvalidSpec", "it cannot be read");
    let bench = bench(&[
        set("model", TAG),
        cluster_set("theirs", TAG, &of_team("other")),
        cluster_set("ours", TAG, &of_team("team")),
        new,
        changed,
        failed,
        wrong,
    ]);
    let denial = bench.admit(&pod).await.unwrap_err();
    assert_eq!(denial.code().number(), code, "{denial}");
    assert!(denial.message().contains(words) && denial.message().contains(instead), "{denial}");
    assert_eq!(bench.registry.calls(), 0);
}

#[tokio::test]
async fn a_namespace_cannot_shadow_a_cluster_set_that_it_may_use() {
    let theirs = "r.io/team/theirs:1";
    let bench = bench(&[
        cluster_set("model", TAG, &of_team("team")),
        set("model", theirs),
        cluster_set("other", TAG, &of_team("other")),
        set("other", theirs),
    ]);
    let after = bench.admitted(&by_annotation("model")).await;
    assert_eq!(
        (volume(&after).set(), volume(&after).recipe().to_json()),
        (Some("model"), recipe(TAG).as_str())
    );
    // A cluster set that the namespace may not use does not reserve the name.
    let after = bench.admitted(&by_annotation("other")).await;
    assert_eq!((volume(&after).set(), volume(&after).recipe().to_json()), (None, recipe(theirs).as_str()));
}

#[tokio::test]
async fn an_empty_selector_selects_every_namespace() {
    let bench = bench(&[cluster_set("model", TAG, &json!({}))]);
    assert!(bench.admit_in("other", &by_annotation("model")).await.is_ok());
    let denial = bench.admit_in("other", &by_annotation("none")).await.unwrap_err();
    assert_eq!(denial.code().number(), 404);
}

#[tokio::test]
async fn a_set_is_denied_where_sets_are_off() {
    for pod in [by_annotation("model"), by_name("model")] {
        let denial = Bench::new().admit(&pod).await.unwrap_err();
        assert_eq!(denial.code().number(), 400);
        assert!(denial.message().contains("sets are disabled in this webhook"), "{denial}");
    }
    // A name beside a recipe is then only the label of the volume.
    assert!(Bench::new().admit(&with_actions("model", TAG)).await.is_ok());
}

#[rstest]
#[case(by_annotation("model"), true)]
#[case(by_name("model"), true)]
#[case(by_annotation("own"), false)]
#[case(by_name("own"), false)]
#[case(with_actions("new", TAG), false)]
#[case(pod(&[("artifact", TAG)]), false)]
#[case(pod(&[("recipe", "- add: r.io/team/model:v1")]), false)]
#[case(inline(&json!({"csi.oras.land/id": format!("model-{}", "0".repeat(32)), "csi.oras.land/recipe": "[]"})), false)]
#[tokio::test]
async fn sets_only_allows_the_cluster_sets(#[case] pod: Value, #[case] passes: bool) {
    let bench = bench(&[cluster_set("model", TAG, &of_team("team")), set("own", TAG)]);
    bench.policies.set_files(entries(&[json!({"setsOnly": true})]));
    match bench.admit(&pod).await {
        Ok(_) => assert!(passes),
        Err(denial) => assert!(!passes && [400, 403].contains(&denial.code().number()), "{denial}"),
    }
    assert_eq!(bench.registry.calls(), 0);
}

#[tokio::test]
async fn policies_check_the_spec_of_a_set_and_its_digests() {
    let deny = |spec: Value| {
        let bench = bench(&[cluster_set("model", TAG, &json!({}))]);
        bench.policies.set_files(entries(&[spec]));
        async move { bench.admit(&by_annotation("model")).await.err().map(|denial| denial.message().to_owned()) }
    };
    let words = deny(json!({"deniedTags": ["v1"]})).await.unwrap();
    assert!(words.contains("annotation oras.land/artifact-set, step 1") && words.contains(TAG), "{words}");
    assert!(deny(json!({"registries": {"deny": ["r.io"]}})).await.is_some());
    assert!(deny(json!({"requireDigest": true})).await.is_some());
    assert_eq!(deny(json!({"registries": {"allow": ["r.io/team/**"]}})).await, None);

    // A status with another repository than the spec does not bypass the policy.
    let mut forged = set("model", TAG);
    forged["status"]["recipe"] = json!(recipe("evil.io/x:1"));
    let bench = bench(&[forged]);
    bench.policies.set_files(entries(&[json!({"registries": {"deny": ["evil.io"]}})]));
    let denial = bench.admit(&by_annotation("model")).await.unwrap_err();
    assert!(denial.message().contains("evil.io/x@sha256"), "{denial}");
}

#[tokio::test]
async fn contents_are_read_only_where_a_policy_requires_it() {
    let bench = bench(&[cluster_set("model", TAG, &json!({}))]);
    bench.registry.store(&default_manifest(TAG));
    bench.policies.set_files(entries(&[json!({"allowedMediaTypes": ["text/plain"]})]));
    let denial = bench.admit(&by_annotation("model")).await.unwrap_err();
    assert!(denial.message().contains("allowedMediaTypes"), "{denial}");
    assert_eq!(bench.registry.resolves.load(std::sync::atomic::Ordering::SeqCst), 0);
}

fn secret(name: &str, host: &str) -> Value {
    let config = json!({"auths": {host: {"username": "u", "password": "p"}}}).to_string();
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "team"},
        "stringData": {".dockerconfigjson": config}})
}

#[rstest]
#[case(&[], None, None)]
#[case(&["elsewhere"], None, None)]
#[case(&["elsewhere", "here", "too"], None, Some("here"))]
#[case(&["elsewhere", "here"], Some("elsewhere"), Some("elsewhere"))]
#[tokio::test]
async fn the_secret_is_chosen_without_a_registry_request(
    #[case] of_pod: &[&str],
    #[case] named: Option<&str>,
    #[case] wanted: Option<&str>,
) {
    let mut secrets = ManifestSecrets::default();
    for manifest in [secret("elsewhere", "q.io"), secret("here", "r.io"), secret("too", "r.io")] {
        secrets.take(&manifest, "team");
    }
    let credentials = CredentialSources { secrets: Box::new(secrets), administrator: None };
    let manifests = [set("own", TAG), cluster_set("model", TAG, &json!({}))];
    let (bench, _) = Bench::with_credentials(credentials).with_sets(&manifests);
    for (set, wanted) in [("own", wanted), ("model", None)] {
        let mut pod = by_annotation(set);
        pod["spec"]["imagePullSecrets"] = of_pod.iter().map(|name| json!({"name": name})).collect();
        if let Some(named) = named {
            pod["metadata"]["annotations"]["oras.land/pull-secret"] = json!(named);
        }
        let outcome = bench.admit(&pod).await.unwrap();
        let after = patched(&pod, &outcome);
        let found = &after["spec"]["volumes"][0]["csi"]["nodePublishSecretRef"]["name"];
        assert_eq!(found.as_str(), wanted, "{set}");
        let has_warning = outcome.warnings().iter().any(|words| words.contains("is ignored"));
        assert_eq!(has_warning, set == "model" && named.is_some());
    }
    assert_eq!(bench.registry.calls(), 0);
}

async fn reviewed(bench: &Bench, pod: &Value, dry_run: bool) -> Value {
    let mut review = review(pod);
    review["request"]["dryRun"] = json!(dry_run);
    let review = Review::decode(Hook::Volumes, review.to_string().as_bytes()).unwrap();
    let answer = bench.admission.review(&review, soon()).await;
    serde_json::to_value(answer).unwrap()["response"].clone()
}

fn names(sets: &MemorySets) -> Vec<String> {
    sets.namespaced_sets().into_iter().map(|((namespace, name), _)| format!("{namespace}/{name}")).collect()
}

#[tokio::test]
async fn a_name_with_a_recipe_creates_the_set_for_the_next_pod() {
    let (bench, sets) = Bench::new().with_sets(&[]);
    let first = with_actions("group", TAG);
    assert_eq!(reviewed(&bench, &first, true).await["allowed"], true);
    assert_eq!(names(&sets), [""; 0], "a dry run makes nothing");
    assert!(bench.admit(&first).await.is_ok());
    assert_eq!(names(&sets), [""; 0], "who renders makes nothing");
    assert_eq!(reviewed(&bench, &first, false).await["allowed"], true);
    assert_eq!(names(&sets), ["team/group"]);
    let (_, made) = sets.namespaced_sets().remove(0);
    let labels = made.metadata.labels.unwrap();
    assert_eq!(labels["app.kubernetes.io/managed-by"], "oras-csi");
    assert_eq!(serde_json::to_value(&made.spec).unwrap(), json!({"recipe": [{"add": TAG}]}));

    let asked = bench.registry.calls();
    let after = bench.admitted(&by_name("group")).await;
    assert_eq!(volume(&after).recipe().to_json(), recipe(TAG));
    // The first manifest again, also in another spelling, is the same set.
    let again =
        inline(&json!({"oras-csi.name": "group", "oras-csi.actions": format!("[{{add: 'oras://{TAG}'}}]")}));
    assert_eq!(volume(&bench.admitted(&again).await), volume(&after));
    assert_eq!(bench.registry.calls(), asked);
    let other = reviewed(&bench, &with_actions("group", "r.io/b:2"), false).await;
    assert_eq!(other["status"]["code"], 400, "{other}");
    assert_eq!(names(&sets), ["team/group"]);
}

#[tokio::test]
async fn one_pod_cannot_use_one_name_for_two_recipes() {
    let (bench, sets) = Bench::new().with_sets(&[]);
    let mut pod = with_actions("group", TAG);
    let mut second = with_actions("group", "r.io/b:2")["spec"]["volumes"][0].clone();
    second["name"] = json!("second");
    pod["spec"]["volumes"].as_array_mut().unwrap().push(second);
    let answer = reviewed(&bench, &pod, false).await;
    assert_eq!(answer["status"]["code"], 400, "{answer}");
    assert!(sets.namespaced_sets().is_empty());
}

#[rstest]
#[case(by_annotation("model"))]
#[case(by_name("model"))]
#[tokio::test]
async fn a_sealed_volume_of_a_cluster_set_is_not_changed(#[case] pod: Value) {
    let (bench, sets) = Bench::new().with_sets(&[cluster_set("model", TAG, &json!({})), namespace("team")]);
    let admission = Arc::into_inner(bench.admission).unwrap();
    let admission = Arc::new(admission.with_sealer(Sealer::with_key(SealKey::generate().unwrap())));
    let bench = Bench { admission, ..bench };
    let after = bench.admitted(&pod).await;
    assert!(volume(&after).seal().is_some() && volume(&after).set() == Some("model"));
    // The set's recipe has changed since.
    let set = cluster_set("model", TAG, &json!({}));
    sets.take(&moved(set, TAG, NEXT, true), "team").unwrap();
    let again = bench.admit(&after).await.unwrap();
    assert!(again.patch().0.is_empty(), "{:?}", again.patch());
    assert_ne!(volume(&bench.admitted(&pod).await), volume(&after), "a new pod has what it is now");
    assert_eq!(bench.registry.calls(), 0);
}

/// Returns a webhook with a key, whose cluster has these sets.
fn sealing_bench(pem: &str, manifests: &[Value]) -> Bench {
    let bench = bench(manifests);
    let admission = Arc::into_inner(bench.admission).unwrap();
    let sealer = Sealer::with_key(SealKey::from_pem(pem).unwrap());
    Bench { admission: Arc::new(admission.with_sealer(sealer)), ..bench }
}

/// A sealed volume of a cluster set is copied into a new pod, or is in the template of a controller. The set's right ends
/// with the set, for the namespace that it no longer selects, and with its history.
#[rstest]
#[case::same(Some(cluster_set("model", TAG, &json!({}))), None)]
#[case::in_history(Some(moved(cluster_set("model", TAG, &json!({})), TAG, NEXT, true)), None)]
#[case::being_resolved(Some(unresolved_change(cluster_set("model", TAG, &json!({})))), None)]
#[case::deleted(
    None,
    Some("granted the content of the volume to namespace team, but this set does not exist any more")
)]
#[case::hidden_by_a_set_of_the_namespace(Some(set("model", TAG)), Some("this set does not exist any more"))]
#[case::unselected(
    Some(cluster_set("model", TAG, &of_team("other"))),
    Some("its namespaceSelector does not select the namespace any more")
)]
#[case::created_again(
    Some(cluster_set("model", NEXT, &json!({}))),
    Some("neither its recipe nor its history has the recipe of the volume any more")
)]
#[tokio::test]
async fn the_right_of_a_cluster_set_ends_for_copies_of_its_sealed_volumes(
    #[case] later: Option<Value>,
    #[case] words: Option<&str>,
    #[values(false, true)] is_of_controller: bool,
    #[values(json!([]), json!([{"setsOnly": true}]))] policies: Value,
) {
    let pem = SealKey::generate().unwrap().to_pem().unwrap();
    let first = sealing_bench(&pem, &[cluster_set("model", TAG, &json!({}))]);
    let mut copy = first.admitted(&by_name("model")).await;
    if is_of_controller {
        copy = of_revision(copy, "1");
    }
    let bench = sealing_bench(&pem, later.as_slice());
    bench.policies.set_files(entries(policies.as_array().unwrap()));
    match (bench.admit(&copy).await, words) {
        (Ok(outcome), None) => assert!(outcome.patch().0.is_empty(), "{:?}", outcome.patch()),
        (Err(denial), Some(words)) => {
            assert!(denial.message().contains(words), "{denial}");
            assert!(
                denial.message().starts_with("volume in, attribute csi.oras.land/set: \"model\""),
                "{denial}"
            );
            assert_eq!(denial.code().number(), 403, "{denial}");
        }
        (admitted, _) => panic!("{admitted:?}"),
    }
    assert_eq!(bench.registry.calls(), 0);
}

const OLD: &str = "r.io/old/model:1";

/// Returns a copy of a pod with a sealed volume of the earlier recipe of a set, and a webhook whose set has the recipe of
/// [`TAG`] and, in its history, the earlier recipe of these references.
async fn copy_of_earlier_recipe(earlier: &[(&str, Digest)]) -> (Value, Bench) {
    let pem = SealKey::generate().unwrap().to_pem().unwrap();
    let reference = |text: &str| Reference::parse(text).unwrap();
    let steps =
        earlier.iter().map(|(text, digest)| Step::Add(Layer::new(reference(text).pin(digest.clone()))));
    let recipe = PinnedRecipe::new(steps.collect()).unwrap().to_json().to_owned();
    let references: Vec<_> = earlier.iter().map(|(text, digest)| format!("{text}@{digest}")).collect();
    let mut before = cluster_set("model", TAG, &json!({}));
    before["spec"]["recipe"] = earlier.iter().map(|(text, _)| json!({"add": text})).collect();
    before["status"]["recipe"] = json!(recipe);
    before["status"]["references"] = json!(references);
    let copy = sealing_bench(&pem, &[before]).admitted(&by_annotation("model")).await;
    assert_eq!(volume(&copy).recipe().to_json(), recipe);
    let mut set = cluster_set("model", TAG, &json!({}));
    set["status"]["history"] =
        json!([{"recipe": recipe, "references": references, "since": "2026-01-01T00:00:00Z"}]);
    (copy, sealing_bench(&pem, &[set]))
}

/// A copied pod keeps its sealed volume beside the annotation, also if it has an earlier recipe of the set.
#[rstest]
#[case::earlier_registry(json!({"registries": {"deny": ["r.io/old/**"]}}), Some(OLD))]
#[case::earlier_tag(json!({"deniedTags": ["1"]}), Some(OLD))]
#[case::earlier_not_listed(json!({"registries": {"allow": ["r.io/team/**"]}}), Some(OLD))]
#[case::current_registry(json!({"registries": {"deny": ["r.io/team/**"]}}), None)]
#[case::current_tag(json!({"deniedTags": ["v1"]}), None)]
#[tokio::test]
async fn policies_evaluate_the_earlier_recipe_that_is_mounted(
    #[case] policy: Value,
    #[case] denied: Option<&str>,
    #[values(false, true)] is_of_controller: bool,
) {
    let (mut copy, bench) = copy_of_earlier_recipe(&[(OLD, default_digest(OLD))]).await;
    if is_of_controller {
        copy = of_revision(copy, "1");
    }
    let admission = Arc::into_inner(bench.admission).unwrap().with_pins(Arc::new(MemoryPins::default()));
    let bench = Bench { admission: Arc::new(admission), ..bench };
    bench.policies.set_files(entries(&[policy]));
    match (bench.admit(&copy).await, denied) {
        (Ok(outcome), None) => assert!(outcome.patch().0.is_empty(), "{:?}", outcome.patch()),
        (Err(denial), Some(reference)) => assert!(denial.message().contains(reference), "{denial}"),
        (admitted, _) => panic!("{admitted:?}"),
    }
    let shown = bench.admission.preview().pod(&copy, "team", soon()).await.unwrap();
    assert!(shown[0].references()[0].reference().to_string().starts_with(OLD));
    assert_eq!(shown[0].references()[0].denial().is_some(), denied.is_some());
    assert_eq!(bench.registry.calls(), 0);
}

/// The earlier recipe has more artifacts than the current one, and the policies refuse only the last.
#[tokio::test]
async fn policies_evaluate_the_content_of_every_artifact_of_an_earlier_recipe() {
    let small = default_manifest(OLD);
    let mut large = default_manifest("r.io/old/large:1");
    large["layers"][0]["size"] = json!(1_000);
    let digest_of = |manifest: &Value| Digest::sha256_of(manifest.to_string().as_bytes());
    let earlier = [(OLD, digest_of(&small)), ("r.io/old/large:1", digest_of(&large))];
    let (copy, bench) = copy_of_earlier_recipe(&earlier).await;
    for manifest in [&small, &large, &default_manifest(TAG)] {
        bench.registry.store(manifest);
    }
    bench.policies.set_files(entries(&[json!({"maxSize": 1_000})]));
    assert!(bench.admit(&copy).await.unwrap().patch().0.is_empty());
    bench.policies.set_files(entries(&[json!({"maxSize": 999})]));
    let denial = bench.admit(&copy).await.unwrap_err();
    let words = ["annotation oras.land/artifact-set, step 2", "r.io/old/large:1", "rule maxSize"];
    assert!(words.iter().all(|words| denial.message().contains(words)), "{denial}");
}

/// The pod requests the set by its name, and a set of that name exists: the pod gets what the set has now.
#[tokio::test]
async fn a_set_that_is_created_again_does_not_grant_what_the_deleted_set_granted() {
    let pem = SealKey::generate().unwrap().to_pem().unwrap();
    let first = sealing_bench(&pem, &[cluster_set("model", TAG, &json!({}))]);
    let copy = first.admitted(&by_annotation("model")).await;
    let bench = sealing_bench(&pem, &[cluster_set("model", NEXT, &json!({}))]);
    assert_eq!(volume(&bench.admitted(&copy).await).recipe().to_json(), recipe(NEXT));
}

/// Changes the spec of a set that the controller has not resolved again yet.
fn unresolved_change(mut set: Value) -> Value {
    set["spec"]["recipe"][0]["add"] = json!(NEXT);
    set["metadata"]["generation"] = json!(2);
    set
}

/// Admits a volume of the set `model` with the recipe of [`TAG`]. Returns its recipe, or the code and the message.
async fn readmitted(namespace_: &str, pod: &Value, manifests: &[Value]) -> Result<String, (u16, String)> {
    let (bench, _) = Bench::new().with_sets(&[manifests, &[namespace("team"), namespace("other")]].concat());
    let key = SealKey::generate().unwrap();
    let public = PublicKeys::from_iter([key.public().clone()]);
    let admission = Arc::into_inner(bench.admission).unwrap().with_sealer(Sealer::with_key(key));
    let bench = Bench { admission: Arc::new(admission), ..bench };
    let admitted = bench.admit_in(namespace_, pod).await;
    assert_eq!(bench.registry.calls(), 0);
    let after =
        patched(pod, &admitted.map_err(|denial| (denial.code().number(), denial.message().to_owned()))?);
    let volume = volume(&after);
    assert_eq!(volume.verify_seal(&public, Holder::pod(namespace_)), Ok(()));
    assert_eq!(volume.set(), Some("model"));
    let note: Value =
        serde_json::from_str(after["metadata"]["annotations"]["oras.land/pinned"].as_str().unwrap()).unwrap();
    let lines = note.as_object().unwrap().values().next().unwrap();
    let text = if volume.recipe().to_json() == recipe(TAG) { TAG } else { NEXT };
    assert_eq!(*lines, json!([format!("{text}@{}", default_digest(text))]));
    Ok(text.to_owned())
}

/// A volume of a cluster set without a valid seal, from `render` or copied from another namespace. It is accepted where
/// the namespace may use the set, and the set has or had the same recipe.
#[rstest]
#[case::rendered("team", false)]
#[case::of_another_cluster("team", true)]
#[case::copied("other", true)]
#[tokio::test]
async fn an_unsealed_volume_of_a_cluster_set_is_looked_up_again(
    #[case] into: &str,
    #[case] is_sealed: bool,
    #[values(by_annotation("model"), by_name("model"))] pod: Value,
) {
    let set = cluster_set("model", TAG, &json!({}));
    let (mut bench, _) = Bench::new().with_sets(&[set.clone(), namespace("team")]);
    if is_sealed {
        let admission = Arc::into_inner(bench.admission).unwrap();
        bench.admission = Arc::new(admission.with_sealer(Sealer::with_key(SealKey::generate().unwrap())));
    }
    let after = bench.admitted(&pod).await;
    let by_annotation = pod["metadata"]["annotations"].get("oras.land/artifact-set").is_some();
    let keeps = !is_sealed || !by_annotation;

    assert_eq!(readmitted(into, &after, std::slice::from_ref(&set)).await, Ok(TAG.into()));
    let known = moved(set.clone(), TAG, NEXT, true);
    let written = if keeps { TAG } else { NEXT };
    assert_eq!(readmitted(into, &after, std::slice::from_ref(&known)).await, Ok(written.into()));
    let forgotten = moved(set.clone(), TAG, NEXT, false);
    match readmitted(into, &after, &[forgotten]).await {
        Ok(text) => assert!(by_annotation && text == NEXT, "{text}"),
        Err((code, words)) => {
            assert!(
                !by_annotation && code == 400 && words.contains("has another recipe than the volume"),
                "{words}"
            );
        }
    }
    let mut theirs = set;
    theirs["spec"]["namespaceSelector"] = of_team("none");
    let (code, words) = readmitted(into, &after, &[theirs]).await.unwrap_err();
    assert!(code == 403 && words.contains("does not select namespace"), "{words}");
    if !by_annotation {
        let mut own = self::set("model", TAG);
        own["metadata"]["namespace"] = json!(into);
        let (code, words) = readmitted(into, &after, &[own]).await.unwrap_err();
        assert!(code == 403 && words.contains("the name means ArtifactSet"), "{words}");
    }
}

/// A pod of a controller, at one of its revisions.
fn of_revision(mut pod: Value, revision: &str) -> Value {
    pod["metadata"]["labels"]["pod-template-hash"] = json!(revision);
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
        "uid": "u-1", "controller": true}]);
    pod
}

/// Changes the recipe of a set, with or without the earlier recipe in its history.
fn moved(mut set: Value, from: &str, to: &str, knows: bool) -> Value {
    let references = set["status"]["references"].take();
    set["status"] = status(to, 1);
    set["spec"]["recipe"][0]["add"] = json!(to);
    if knows {
        let earlier =
            json!({"recipe": recipe(from), "references": references, "since": "2026-01-01T00:00:00Z"});
        set["status"]["history"] = json!([earlier]);
    }
    set
}

#[rstest]
#[case(set("model", TAG))]
#[case(cluster_set("model", TAG, &json!({})))]
#[tokio::test]
async fn all_pods_of_a_revision_get_one_recipe_while_the_set_changes(#[case] set: Value) {
    let (bench, sets) = Bench::new().with_sets(&[set.clone(), namespace("team")]);
    let pins = Arc::new(MemoryPins::default());
    let admission = Arc::into_inner(bench.admission).unwrap().with_pins(pins.clone());
    let bench = Bench { admission: Arc::new(admission), ..bench };
    let first = of_revision(by_annotation("model"), "1");
    assert_eq!(reviewed(&bench, &first, true).await["allowed"], true);
    assert_eq!(pins.count(), 0, "a dry run keeps nothing");
    assert_eq!(reviewed(&bench, &first, false).await["allowed"], true);
    assert_eq!(pins.count(), 1);

    let next = "r.io/team/model:v2";
    sets.take(&moved(set.clone(), TAG, next, true), "team").unwrap();
    let has = async |revision: &str| {
        let pod = of_revision(by_annotation("model"), revision);
        let outcome = bench.admit(&pod).await.unwrap();
        let warned = outcome.warnings().iter().any(|words| words.contains("no longer has the recipe"));
        (volume(&patched(&pod, &outcome)).recipe().to_json().to_owned(), warned)
    };
    assert_eq!(has("1").await, (recipe(TAG), false));
    assert_eq!(has("2").await, (recipe(next), false));
    // A recipe that is not in the set's history is not used: users can write pins, but not the status of a set.
    sets.take(&moved(set, TAG, next, false), "team").unwrap();
    assert_eq!(has("1").await, (recipe(next), true));
    assert_eq!(bench.registry.calls(), 0);
}

#[tokio::test]
async fn policies_check_the_pinned_recipe_of_a_revision() {
    let (bench, sets) = Bench::new().with_sets(&[set("model", "r.io/old/model:1"), namespace("team")]);
    let admission = Arc::into_inner(bench.admission).unwrap().with_pins(Arc::new(MemoryPins::default()));
    let bench = Bench { admission: Arc::new(admission), ..bench };
    let pod = of_revision(by_annotation("model"), "1");
    assert_eq!(reviewed(&bench, &pod, false).await["allowed"], true);
    sets.take(&moved(set("model", TAG), "r.io/old/model:1", TAG, true), "team").unwrap();
    bench.policies.set_files(entries(&[json!({"registries": {"deny": ["r.io/old/**"]}})]));
    let denial = bench.admit(&pod).await.unwrap_err();
    assert!(denial.message().contains("r.io/old/model@sha256"), "{denial}");
}

/// A webhook with the permission for pull secrets of pods can read every Secret of the release namespace.
#[tokio::test]
async fn a_cluster_set_uses_only_the_secrets_that_the_administrator_lists() {
    let mut secrets = ManifestSecrets::default();
    for name in ["robot", "other"] {
        secrets.take(&secret(name, "private.io"), "team");
    }
    let bench = Bench::new();
    let usable = UsableSecrets::Listed(["robot".to_owned()].into());
    let store = Arc::new(MemorySets::default());
    let sets = SetCatalog::new(store).with_secrets(Arc::new(secrets), "team", usable);
    let admission = Arc::into_inner(bench.admission).unwrap().with_sets(sets);
    let set: ClusterArtifactSet =
        serde_json::from_value(cluster_set("model", "r.io/team/model:v1", &json!({}))).unwrap();
    let resolve = async |secret: &str| {
        let steps = &set.spec.recipe;
        let set = SetToResolve { namespace: None, name: "model", steps, secret: Some(secret) };
        admission.resolve_set(set, soon()).await
    };
    resolve("robot").await.unwrap();
    let calls = bench.registry.calls();
    for name in ["other", "missing", "../robot"] {
        let denial = resolve(name).await.unwrap_err();
        let words = format!(
            "spec.pullSecret.name: \"{name}\" is a Secret of namespace team that the administrator does not list"
        );
        assert!(denial.message().starts_with(&words), "{denial}");
        assert!(denial.message().contains("clusterSets.pullSecrets"), "{denial}");
        assert_eq!(denial.code().number(), 403, "{denial}");
    }
    assert_eq!(bench.registry.calls(), calls, "the denial comes before any request");
}

/// Returns a set without a status.
fn unresolved(recipe: &Value) -> Value {
    json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactSet",
        "metadata": {"name": "model", "namespace": "team", "generation": 1}, "spec": {"recipe": recipe}})
}

#[tokio::test]
async fn policies_of_the_namespace_are_checked_before_a_set_is_resolved() {
    let (bench, sets) = Bench::new().with_sets(&[unresolved(&json!([{"add": "evil.io/a:1"}]))]);
    bench.policies.set_files(entries(&[json!({"registries": {"deny": ["evil.io"]}})]));
    bench.admission.update_set_statuses(&sets, "model", soon()).await;
    assert_eq!(bench.registry.calls(), 0);
    let denial = bench.admit(&by_annotation("model")).await.unwrap_err();
    assert!(denial.message().contains("Refused: spec.recipe[0]: \"evil.io/a:1\" is refused by"), "{denial}");
}

#[tokio::test]
async fn a_patch_in_a_set_is_pinned_with_all_levels() {
    use oras_csi_core::patch::Level;
    let at = |text: &str| Reference::parse(text).unwrap().with_digest(default_digest(text));
    let recipe = json!([{"patch": "r.io/base:patched", "path": "p", "level": "minor"}]);
    let (bench, sets) = Bench::new().with_sets(&[unresolved(&recipe)]);
    for text in ["r.io/base:1", "r.io/fix:minor", "r.io/fix:major"] {
        bench.registry.store(&default_manifest(text));
    }
    let levels = [(Level::Minor, at("r.io/fix:minor")), (Level::Major, at("r.io/fix:major"))];
    bench.registry.tag_patch("r.io/base:patched", &at("r.io/base:1"), &levels);
    bench.admission.update_set_statuses(&sets, "model", soon()).await;
    let calls = bench.registry.calls();
    let after = bench.admitted(&by_annotation("model")).await;
    let expected = format!(
        "[{{\"add\":\"r.io/base@{}\",\"path\":\"p\"}},{{\"overlay\":\"r.io/fix@{}\",\"path\":\"p\"}}]",
        default_digest("r.io/base:1"),
        default_digest("r.io/fix:minor")
    );
    assert_eq!(volume(&after).recipe().to_json(), expected);
    assert_eq!(bench.registry.calls(), calls);
}
