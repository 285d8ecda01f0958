//! Seals, pins and persistent volumes.

use std::sync::Arc;

use crate::support::{
    Administrator, Behaviour, Bench, FakeRegistry, Namespaced, manifest, patched, pod, review, soon,
};
use oras_csi_core::seal::{Holder, PublicKeys, SealKey};
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_webhook::admit::Admission;
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::pins::{MemoryPins, Pins};
use oras_csi_webhook::review::{Hook, Review};
use oras_csi_webhook::seal::Sealer;
use oras_csi_webhook::{ResolverSettings, policy};
use serde_json::{Value, json};

/// A cluster with a key, and a registry whose tag `r.io/app:v1` moves.
struct Scene {
    registry: Arc<FakeRegistry>,
    pins: Arc<MemoryPins>,
    public: PublicKeys,
    pem: String,
    policies: Vec<Value>,
}

impl Scene {
    fn new() -> Self {
        let key = SealKey::generate().unwrap();
        let pem = key.to_pem().unwrap().to_string();
        let public = PublicKeys::from_iter([key.public().clone()]);
        let scene =
            Self { registry: Arc::default(), pins: Arc::default(), public, pem, policies: Vec::new() };
        scene.moves_to("one");
        scene
    }

    /// Returns a webhook that has just started, with an empty cache.
    fn webhook(&self) -> Admission {
        let policies = policy::Policies::new(Vec::new(), policy::NoPolicy::Allow, Namespaced);
        policies.set_files(crate::support::entries(&self.policies));
        let (registry, metrics) = (self.registry.clone(), Arc::new(Metrics::default()));
        let settings = ResolverSettings::default();
        Admission::new(registry, Arc::new(Administrator), Arc::new(policies), settings, metrics)
            .with_sealer(Sealer::with_key(SealKey::from_pem(&self.pem).unwrap()))
            .with_pins(self.pins.clone())
    }

    fn moves_to(&self, title: &str) -> String {
        self.registry.tag("r.io/app:v1", &manifest(&[("application/java-archive", Some(title))])).to_string()
    }

    /// Returns the pod as the API server stores it after a review.
    async fn stored(&self, namespace: &str, pod: &Value, dry_run: bool) -> Result<Value, (u16, String)> {
        let mut review = review(pod);
        review["request"]["namespace"] = json!(namespace);
        review["request"]["dryRun"] = json!(dry_run);
        let read = Review::decode(Hook::Volumes, review.to_string().as_bytes()).unwrap();
        let answer = self.webhook().review(&read, soon()).await;
        if !answer.is_allowed() {
            return Err((answer.code().unwrap(), answer.message().unwrap().to_owned()));
        }
        let answer = serde_json::to_value(&answer).unwrap();
        let mut pod = pod.clone();
        if let Some(patch) = answer["response"]["patch"].as_str() {
            use base64::Engine as _;
            let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
            json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap())
                .unwrap();
        }
        Ok(pod)
    }
}

fn volume(pod: &Value) -> CanonicalVolume {
    let attributes = pod["spec"]["volumes"][0]["csi"]["volumeAttributes"].as_object().unwrap();
    CanonicalVolume::from_attributes(
        attributes.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap())),
    )
    .unwrap()
}

fn digest(pod: &Value) -> String {
    volume(pod).recipe().references().next().unwrap().digest().to_string()
}

fn pod_with_tag() -> Value {
    pod(&[("artifact", "r.io/app:v1")])
}

fn of(owner: &str, revision: Option<&str>) -> Value {
    let mut pod = pod_with_tag();
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "app",
        "uid": owner, "controller": true, "blockOwnerDeletion": true}]);
    if let Some(revision) = revision {
        pod["metadata"]["labels"] = json!({"controller-revision-hash": revision});
    }
    pod
}

#[tokio::test]
async fn every_volume_is_sealed_for_its_namespace_and_nothing_else() {
    let scene = Scene::new();
    let stored = scene.stored("team", &pod_with_tag(), false).await.unwrap();
    assert_eq!(volume(&stored).verify_seal(&scene.public, Holder::pod("team")), Ok(()));
    assert!(volume(&stored).verify_seal(&scene.public, Holder::pod("other")).is_err());
    assert_eq!(scene.stored("team", &stored, false).await.unwrap(), stored, "a second round changes nothing");
}

/// A stored pod that is applied again.
#[tokio::test]
async fn copies_keep_their_digests_only_in_the_namespace_of_the_seal() {
    let mut scene = Scene::new();
    let first = scene.moves_to("one");
    let stored = scene.stored("team", &pod_with_tag(), false).await.unwrap();
    let second = scene.moves_to("two");
    assert_ne!(first, second);

    let again = scene.stored("team", &stored, false).await.unwrap();
    assert_eq!(digest(&again), first, "the tag moved, the namespace's own seal keeps its digest");
    let elsewhere = scene.stored("other", &stored, false).await.unwrap();
    assert_eq!(digest(&elsewhere), second, "another namespace resolves the tag");
    assert_eq!(volume(&elsewhere).verify_seal(&scene.public, Holder::pod("other")), Ok(()));

    let mut edited = stored.clone();
    edited["metadata"]["annotations"]["oras.land/artifact"] = json!("r.io/app:v2");
    let edited = scene.stored("team", &edited, false).await.unwrap();
    assert_ne!(digest(&edited), first, "the annotation requests something else");

    // A volume from `render` has no seal; the user may keep its digest in Git.
    let mut rendered = stored.clone();
    let attributes = &mut rendered["spec"]["volumes"][0]["csi"]["volumeAttributes"];
    attributes.as_object_mut().unwrap().remove("csi.oras.land/seal");
    let sealed = scene.stored("team", &rendered, false).await.unwrap();
    assert_eq!(digest(&sealed), first);
    assert_eq!(volume(&sealed).verify_seal(&scene.public, Holder::pod("team")), Ok(()));

    // Without the annotation there is a digest and no tag: it counts as if the user had written it.
    let mut bare = stored.clone();
    bare["metadata"]["annotations"] = json!({});
    bare["spec"]["volumes"][0]["name"] = json!("mine");
    bare["spec"]["containers"][0]["volumeMounts"][0]["name"] = json!("mine");
    let asked = scene.registry.calls();
    let copied = scene.stored("other", &bare, false).await.unwrap();
    assert_eq!(digest(&copied), first);
    assert!(scene.registry.calls() > asked, "who copies it needs the right to it");
    assert_eq!(volume(&copied).verify_seal(&scene.public, Holder::pod("other")), Ok(()));

    scene.policies = vec![json!({"registries": {"deny": ["r.io"]}})];
    for pod in [&stored, &bare] {
        let (code, words) = scene.stored("team", pod, false).await.unwrap_err();
        assert!(code == 403 && words.contains("registries.deny"), "{words}");
    }
}

#[tokio::test]
async fn all_pods_of_a_revision_get_the_digest_of_the_first() {
    let scene = Scene::new();
    let first = scene.moves_to("one");
    assert_eq!(digest(&scene.stored("team", &of("rs-1", None), true).await.unwrap()), first);
    assert_eq!(scene.pins.count(), 0, "a dry run keeps nothing");
    assert_eq!(digest(&scene.stored("team", &of("rs-1", None), false).await.unwrap()), first);
    let second = scene.moves_to("two");
    // Every call is to a webhook with an empty cache, so the cache cannot be the reason.
    assert_eq!(digest(&scene.stored("team", &of("rs-1", None), false).await.unwrap()), first);
    assert_eq!(digest(&scene.stored("team", &of("rs-1", None), true).await.unwrap()), first);
    assert_eq!(digest(&scene.stored("team", &of("rs-2", None), false).await.unwrap()), second);
    assert_eq!(
        digest(&scene.stored("team", &pod_with_tag(), false).await.unwrap()),
        second,
        "a pod without a controller"
    );
    assert_eq!(digest(&scene.stored("team", &of("ds", Some("a")), false).await.unwrap()), second);
    let third = scene.moves_to("three");
    assert_eq!(digest(&scene.stored("team", &of("ds", Some("a")), false).await.unwrap()), second);
    assert_eq!(digest(&scene.stored("team", &of("ds", Some("b")), false).await.unwrap()), third);
    assert_eq!(scene.pins.count(), 4);
}

#[tokio::test]
async fn policies_apply_to_pins_and_a_denial_names_the_pin_of_a_missing_digest() {
    let mut scene = Scene::new();
    let first = scene.moves_to("one");
    scene.stored("team", &of("rs-1", None), false).await.unwrap();
    scene.moves_to("two");
    scene.registry.set(&format!("r.io/app@{first}"), Behaviour::Fails(crate::support::not_found("r.io/app")));
    let (code, words) = scene.stored("team", &of("rs-1", None), false).await.unwrap_err();
    assert!(code == 404 && words.contains("delete ArtifactPin team/app-"), "{words}");
    scene.policies = vec![json!({"deniedTags": ["v1"]})];
    let (code, words) = scene.stored("team", &of("rs-1", None), false).await.unwrap_err();
    assert!(code == 403 && words.contains("deniedTags"), "{words}");
}

/// Two webhooks admit the first pods of one revision at the same time, while the tag moves.
#[tokio::test]
async fn concurrent_first_pods_of_a_revision_get_the_same_digest() {
    for _ in 0..20 {
        let scene = Scene::new();
        let (one, two) = (scene.webhook(), scene.webhook());
        let review = |uid: &str| {
            let mut review = review(&of("rs", None));
            review["request"]["uid"] = json!(uid);
            Review::decode(Hook::Volumes, review.to_string().as_bytes()).unwrap()
        };
        let (first, second) = (review("1"), review("2"));
        let answers = tokio::join!(one.review(&first, soon()), async {
            scene.moves_to("two");
            two.review(&second, soon()).await
        });
        let recipe = |answer: &oras_csi_webhook::review::ReviewResponse| {
            let answer = serde_json::to_value(answer).unwrap();
            answer["response"]["auditAnnotations"]["pinned"].clone()
        };
        assert_eq!(recipe(&answers.0), recipe(&answers.1));
        assert_eq!(scene.pins.count(), 1);
    }
}

fn persistent(spec: &Value) -> Value {
    let mut volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv-1"},
        "spec": {"claimRef": {"namespace": "team", "name": "data"}, "accessModes": ["ReadOnlyMany"],
            "csi": {"driver": "csi.oras.land", "volumeHandle": "h-1",
                "volumeAttributes": {"oras.artifact.reference": "r.io/app:v1"}}}});
    let spec = json!({ "spec": spec });
    json_patch::merge(&mut volume, &spec);
    volume
}

#[tokio::test]
async fn a_persistent_volume_is_sealed_for_its_claims_namespace_and_its_handle() {
    let scene = Scene::new();
    let object = persistent(&json!({}));
    let outcome = scene.webhook().admit_persistent_volume(&object, soon()).await.unwrap();
    let stored = patched(&object, &outcome);
    assert_eq!(stored["spec"]["csi"]["readOnly"], true);
    let (_, volume) = &outcome.volumes()[0];
    assert_eq!(volume.verify_seal(&scene.public, Holder::claim("team", "h-1")), Ok(()));
    for other in [Holder::pod("team"), Holder::claim("other", "h-1"), Holder::claim("team", "h-2")] {
        assert!(volume.verify_seal(&scene.public, other).is_err(), "{other}");
    }
    // Applied again after the tag moved, it keeps its digest; for another claim it is resolved again.
    let first = scene.moves_to("one");
    scene.moves_to("two");
    let again = scene.webhook().admit_persistent_volume(&stored, soon()).await.unwrap();
    assert!(again.patch().0.is_empty(), "{:?}", again.patch());
    let mut moved = stored.clone();
    moved["spec"]["claimRef"]["namespace"] = json!("other");
    let moved = scene.webhook().admit_persistent_volume(&moved, soon()).await.unwrap();
    assert!(moved.volumes()[0].1.recipe().to_json().contains(&first));
    assert_eq!(moved.volumes()[0].1.verify_seal(&scene.public, Holder::claim("other", "h-1")), Ok(()));
}

#[tokio::test]
async fn an_invalid_persistent_volume_is_denied() {
    let scene = Scene::new();
    for (change, words) in [
        (json!({"claimRef": null}), "spec.claimRef.namespace: is missing"),
        (json!({"claimRef": {"namespace": ""}}), "spec.claimRef.namespace: is missing"),
        (json!({"volumeMode": "Block"}), "Filesystem"),
        (json!({"csi": {"volumeHandle": null}}), "spec.csi.volumeHandle: is missing"),
        (
            json!({"csi": {"nodePublishSecretRef": {"name": "s", "namespace": "kube-system"}}}),
            "claim's namespace team",
        ),
        (
            json!({"csi": {"volumeAttributes": {"csi.storage.k8s.io/pod.namespace": "x"}}}),
            "only kubelet may write",
        ),
        (json!({"csi": {"volumeAttributes": {"oras.artifact.reference": null}}}), "names no artifact"),
        (
            json!({"csi": {"volumeAttributes": {"oras.artifact.ref": "x"}}}),
            "did you mean oras.artifact.reference",
        ),
    ] {
        let denial = scene.webhook().admit_persistent_volume(&persistent(&change), soon()).await.unwrap_err();
        assert!(denial.message().contains(words), "{words}: {denial}");
        assert_eq!(denial.code().number(), 400, "{denial}");
    }
    let mut annotated = persistent(&json!({}));
    annotated["metadata"]["annotations"] = json!({"oras.land/artifact": "r.io/app:v1"});
    let denial = scene.webhook().admit_persistent_volume(&annotated, soon()).await.unwrap_err();
    assert!(denial.message().contains("has no effect on a PersistentVolume"), "{denial}");
    let other = json!({"kind": "PersistentVolume", "spec": {"hostPath": {"path": "/"}}});
    assert!(scene.webhook().admit_persistent_volume(&other, soon()).await.unwrap().patch().0.is_empty());
}

/// A volume of a cluster set cannot be forged, nor copied to a namespace that may not use the set.
#[tokio::test]
async fn a_cluster_sets_volume_needs_a_seal_for_its_namespace() {
    let scene = Scene::new();
    let stored = scene.stored("team", &pod_with_tag(), false).await.unwrap();
    let mut claimed = stored;
    claimed["metadata"]["annotations"] = json!({});
    claimed["spec"]["volumes"][0]["csi"]["volumeAttributes"]["csi.oras.land/set"] = json!("models");
    let (code, words) = scene.stored("team", &claimed, false).await.unwrap_err();
    assert!(code == 400 && words.contains("sets are disabled in this webhook"), "{words}");
    let denial = Bench::new().admit(&claimed).await.unwrap_err();
    assert!(
        denial.message().contains("sets are disabled in this webhook"),
        "nor where no seals are made: {denial}"
    );
}

/// A webhook without a key makes no seals.
#[tokio::test]
async fn without_a_key_there_is_no_seal() {
    let bench = Bench::new();
    let admitted = bench.admitted(&pod_with_tag()).await;
    assert_eq!(volume(&admitted).seal(), None);
    assert!(MemoryPins::default().find("team", &pin_key()).await.unwrap().is_none());
}

fn pin_key() -> oras_csi_webhook::pins::PinKey {
    let owner = oras_csi_webhook::pins::PinOwner {
        api_version: "v1".into(),
        kind: "X".into(),
        name: "x".into(),
        uid: "u".into(),
    };
    let reference = "r.io/app:v1".parse().unwrap();
    oras_csi_webhook::pins::PinKey::new(owner, None, &reference).unwrap()
}
