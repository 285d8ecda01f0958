//! Sets on a real API server and a real registry: their status, and pods that name them.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use oras_csi_tests::admission::{Cluster, create_in, pod};
use oras_csi_tests::cluster::{eventually, kubectl};
use oras_csi_tests::parts::repository;
use oras_csi_tests::process::run;
use oras_csi_tests::registry::Distribution;
use serde_json::{Value, json};

/// Every webhook reconciles all sets of the API server, and `kind-registry:5000` is another registry in each test.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const PATIENCE: Duration = Duration::from_secs(40);

fn sets_flag(name: &str) -> String {
    format!("--sets={name}")
}

async fn start(name: &str) -> Cluster {
    let seal = format!("--seal-secret={name}/oras-csi-seal");
    let cluster = Cluster::start(name, &[&sets_flag(name), &seal, "--keep-pins"]).await;
    let probe = pod("sealed", &json!({"oras.land/artifact": "kind-registry:5000/java-app:v1"}));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually("the webhook has a key", PATIENCE, async || {
        create_in(&cluster.pods(), &probe, &dry).await.map_err(|status| status.message.clone())
    })
    .await;
    cluster
}

fn sets(cluster: &Cluster, kind: &str) -> Api<DynamicObject> {
    let plural = format!("{}s", kind.to_lowercase());
    let kind = GroupVersionKind::gvk("oras.land", "v1alpha1", kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &plural);
    if plural.starts_with("cluster") {
        Api::all_with(cluster.client.clone(), &resource)
    } else {
        Api::namespaced_with(cluster.client.clone(), cluster.webhook.namespace(), &resource)
    }
}

/// Applies as a GitOps tool does, by server-side apply.
async fn apply(api: &Api<DynamicObject>, kind: &str, name: &str, spec: &Value) -> DynamicObject {
    let object =
        json!({"apiVersion": "oras.land/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let applied = api.patch(name, &PatchParams::apply("git"), &Patch::Apply(&object)).await;
    applied.unwrap_or_else(|error| panic!("{object}: {error}"))
}

async fn apply_own(cluster: &Cluster, name: &str, tag: &str) -> DynamicObject {
    let spec = json!({"recipe": [{"add": format!("kind-registry:5000/{tag}")}], "refreshInterval": "10s"});
    apply(&sets(cluster, "ArtifactSet"), "ArtifactSet", name, &spec).await
}

/// As `kubectl wait`, which is what people use.
fn wait_ready(namespace: &str, what: &str) {
    run(&mut kubectl(&["wait", "--for=condition=Ready", what, "--namespace", namespace, "--timeout=30s"]));
}

fn by_annotation(name: &str, set: &str) -> Value {
    pod(name, &json!({"oras.land/artifact-set": set}))
}

fn inline(name: &str, attributes: &Value) -> Value {
    let volume =
        json!({"name": "oras-inline", "csi": {"driver": "csi.oras.land", "volumeAttributes": attributes}});
    let mut pod = pod(name, &json!({}));
    pod["spec"]["volumes"] = json!([volume]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "oras-inline", "mountPath": "/mnt/oras"}]);
    pod
}

fn attribute<'a>(pod: &'a Value, key: &str) -> Option<&'a str> {
    let volumes = pod["spec"]["volumes"].as_array().expect("volumes");
    let ours = volumes.iter().find(|volume| volume["csi"]["driver"] == "csi.oras.land").expect("ours");
    ours["csi"]["volumeAttributes"][key].as_str()
}

fn push(registry: &Distribution, repository_and_tag: &str, content: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), content).expect("writes");
    registry.push(repository_and_tag, folder.path(), &["file"])
}

async fn until_recipe_has(api: &Api<DynamicObject>, name: &str, digest: &str) -> Value {
    eventually("the recipe of the set", PATIENCE, async || {
        let set = api.get(name).await.map_err(|error| error.to_string())?;
        let recipe = set.data["status"]["recipe"].as_str().unwrap_or_default();
        if recipe.contains(digest) { Ok(set.data["status"].clone()) } else { Err(format!("{}", set.data)) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn admits_a_pod_by_set_name_without_the_registry_and_after_a_restart() {
    let _alone = ALONE.lock().await;
    let name = "sets-offline";
    let mut cluster = start(name).await;
    let started = Instant::now();
    apply_own(&cluster, "app", "java-app:v1").await;
    wait_ready(name, "artifactset/app");
    eprintln!("applied to ready: {:?}", started.elapsed());
    cluster.registry.stop();
    cluster.webhook.stop();
    cluster.webhook.start_again();
    let stored = eventually("the pod is admitted", PATIENCE, async || {
        cluster.create(&by_annotation("by-name", "app")).await.map_err(|status| status.message.clone())
    })
    .await;
    assert!(attribute(&stored, "csi.oras.land/recipe").expect("a recipe").contains(&cluster.digest));
    let by_name = inline("inline", &json!({"oras-csi.name": "app"}));
    let stored = cluster.create(&by_name).await.expect("admitted");
    assert!(attribute(&stored, "csi.oras.land/recipe").expect("a recipe").contains(&cluster.digest));
    // The last recipe stays in use while tags cannot be resolved, and the status reports that.
    let api = sets(&cluster, "ArtifactSet");
    eventually("the set says that the registry is gone", PATIENCE, async || {
        let set = api.get("app").await.map_err(|error| error.to_string())?;
        let conditions = set.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is = |kind: &str, status: &str| {
            conditions.iter().any(|one| one["type"] == kind && one["status"] == status)
        };
        if is("Ready", "True") && is("Refreshed", "False") { Ok(()) } else { Err(format!("{conditions:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_follows_the_spec_and_the_tag_without_apply_conflicts() {
    let _alone = ALONE.lock().await;
    let cluster = start("sets-git").await;
    let api = sets(&cluster, "ArtifactSet");
    let (one, two) =
        (push(&cluster.registry, "moving:v1", "one"), push(&cluster.registry, "moving:v2", "two"));
    apply_own(&cluster, "moving", "moving:v1").await;
    until_recipe_has(&api, "moving", &one).await;
    let old = cluster.create(&by_annotation("old", "moving")).await.expect("admitted");
    apply_own(&cluster, "moving", "moving:v2").await;
    let status = until_recipe_has(&api, "moving", &two).await;
    assert!(status["history"][0]["recipe"].as_str().expect("an earlier one").contains(&one), "{status}");
    let before = api.get("moving").await.expect("there");
    let again = apply_own(&cluster, "moving", "moving:v2").await;
    assert_eq!(again.metadata.generation, before.metadata.generation, "applying the same changes nothing");
    assert_eq!(again.data["spec"], before.data["spec"]);
    for entry in again.metadata.managed_fields.expect("managed fields") {
        let is_status = entry.subresource.as_deref() == Some("status");
        assert_eq!(entry.manager.as_deref(), Some(if is_status { "oras-csi-webhook" } else { "git" }));
    }
    let three = push(&cluster.registry, "moving:v2", "three");
    until_recipe_has(&api, "moving", &three).await;
    let new = cluster.create(&by_annotation("new", "moving")).await.expect("admitted");
    assert!(attribute(&new, "csi.oras.land/recipe").expect("a recipe").contains(&three));
    assert!(
        attribute(&old, "csi.oras.land/recipe").expect("a recipe").contains(&one),
        "who runs keeps what it has"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_two_pods_of_issue_25() {
    let _alone = ALONE.lock().await;
    let cluster = start("sets-issue").await;
    let read = |file: &str| -> Value {
        let text = std::fs::read_to_string(repository().join("examples").join(file)).expect("reads");
        serde_saphyr::from_str(&text).expect("YAML")
    };
    let (first, second) = (read("issue-25-first.yaml"), read("issue-25-second.yaml"));
    let api = sets(&cluster, "ArtifactSet");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    create_in(&cluster.pods(), &first, &dry).await.expect("admitted");
    assert!(
        api.list(&ListParams::default()).await.expect("a list").items.is_empty(),
        "a dry run makes nothing"
    );
    let stored = cluster.create(&first).await.expect("admitted");
    let name = "optional-mount-identifier";
    api.get(name).await.expect("it was made");
    cluster
        .pods()
        .delete("my-csi-app-inline", &kube::api::DeleteParams::default().grace_period(0))
        .await
        .expect("deleted");
    let requests = cluster.registry.requests().len();
    let again = eventually("the second pod", PATIENCE, async || {
        cluster.create(&second).await.map_err(|status| status.message.clone())
    })
    .await;
    assert_eq!(attribute(&again, "csi.oras.land/recipe"), attribute(&stored, "csi.oras.land/recipe"));
    wait_ready("sets-issue", &format!("artifactset/{name}"));
    eprintln!("registry requests before the second pod: {requests}");

    let other = inline(
        "other",
        &json!({"oras-csi.name": name, "oras-csi.actions": "- add: kind-registry:5000/java-app:v1"}),
    );
    let refusal = cluster.refusal(&other).await;
    assert_eq!(refusal.code, 400);
    assert!(refusal.message.contains("whose recipe is"), "{}", refusal.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_selected_namespaces_can_use_a_cluster_set() {
    let _alone = ALONE.lock().await;
    let name = "sets-cluster";
    let cluster = start(name).await;
    let api = sets(&cluster, "ClusterArtifactSet");
    let spec = |team: &str| {
        json!({"recipe": [{"add": "kind-registry:5000/java-app:v1"}],
            "namespaceSelector": {"matchLabels": {"sets-team": team}}})
    };
    apply(&api, "ClusterArtifactSet", "sets-cluster-app", &spec("a")).await;
    wait_ready(name, "clusterartifactset/sets-cluster-app");
    let refusal = cluster.refusal(&by_annotation("no", "sets-cluster-app")).await;
    assert_eq!(refusal.code, 403, "{}", refusal.message);
    let refusal = cluster.refusal(&by_annotation("typo", "sets-cluster-ap")).await;
    assert_eq!(refusal.code, 404);
    assert!(refusal.message.contains("did you mean sets-cluster-app"), "{}", refusal.message);
    let labels = json!({"metadata": {"labels": {"sets-team": "a"}}});
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.patch(name, &PatchParams::default(), &Patch::Merge(&labels)).await.expect("labelled");
    let stored = cluster.create(&by_annotation("yes", "sets-cluster-app")).await.expect("admitted");
    assert_eq!(attribute(&stored, "csi.oras.land/set"), Some("sets-cluster-app"));
    assert!(stored["spec"]["volumes"][0]["csi"]["nodePublishSecretRef"].is_null());
    // The stored pod is admitted again; no set of the same name can be created.
    let mut copy = stored.clone();
    copy["metadata"] = json!({"name": "copy", "annotations": stored["metadata"]["annotations"]});
    copy.as_object_mut().expect("an object").remove("status");
    let copy = cluster.create(&copy).await.expect("admitted");
    assert_eq!(attribute(&copy, "csi.oras.land/seal"), attribute(&stored, "csi.oras.land/seal"));
    let shadow = json!({"oras-csi.name": "sets-cluster-app", "oras-csi.actions": "- add: kind-registry:5000/java-app:v1"});
    assert_eq!(cluster.refusal(&inline("shadow", &shadow)).await.code, 400);
    // Specs that the custom resource definition refuses.
    for wrong in [
        json!({"recipe": [{"add": "r.io/a:1"}]}),
        json!({"recipe": [], "namespaceSelector": {}}),
        json!({"recipe": [{"add": "r.io/a:1", "overlay": "r.io/b:1"}], "namespaceSelector": {}}),
        json!({"recipe": [{"remove": "x", "path": "y"}], "namespaceSelector": {}}),
        json!({"recipe": [{"add": "r.io/a:1"}], "namespaceSelector": {}, "refreshInterval": "1s"}),
        json!({"recipe": [{"add": "r.io/a:1"}], "namespaceSelector": {}, "nodeSelector": {"a": "b"}}),
    ] {
        let object = json!({"apiVersion": "oras.land/v1alpha1", "kind": "ClusterArtifactSet",
            "metadata": {"name": "wrong"}, "spec": wrong});
        let refused = api.patch("wrong", &PatchParams::apply("git"), &Patch::Apply(&object)).await;
        assert!(
            matches!(&refused, Err(kube::Error::Api(status)) if status.code == 422),
            "{wrong}: {refused:?}"
        );
    }
    api.delete("sets-cluster-app", &kube::api::DeleteParams::default()).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_do_one_refresh_and_never_go_back() {
    let _alone = ALONE.lock().await;
    let name = "sets-replicas";
    let cluster = start(name).await;
    let seal = format!("--seal-secret={name}/oras-csi-seal");
    let other = cluster
        .webhook
        .start_other(&cluster.client, cluster.certs.path(), &[&sets_flag(name), &seal, "--keep-pins"])
        .await;
    let api = sets(&cluster, "ArtifactSet");
    push(&cluster.registry, "raced:v1", "0");
    apply_own(&cluster, "raced", "raced:v1").await;
    wait_ready(name, "artifactset/raced");
    let mut last = String::new();
    for round in 1..=2 {
        last = push(&cluster.registry, "raced:v1", &round.to_string());
        until_recipe_has(&api, "raced", &last).await;
    }
    let heads =
        || cluster.registry.requests().iter().filter(|line| line.contains("/v2/raced/manifests/v1")).count();
    let (before, began) = (heads(), Instant::now());
    eventually("the next refresh", PATIENCE, async || {
        if heads() > before { Ok(()) } else { Err("no request for the tag".to_owned()) }
    })
    .await;
    // Time for a second replica to refresh as well, if it did.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let set = api.get("raced").await.expect("there");
    assert!(set.data["status"]["recipe"].as_str().expect("a recipe").contains(&last));
    assert_eq!(set.data["status"]["history"].as_array().map(Vec::len), Some(2), "{}", set.data);
    let (looks, seconds) = (heads() - before, began.elapsed().as_secs_f64());
    eprintln!("two replicas resolved the tag {looks} times in {seconds:.1} s at an interval of 10 s");
    assert!(
        f64::from(u32::try_from(looks).expect("a few")) <= (seconds * 8.0 / 25.0).ceil(),
        "{looks} in {seconds} s"
    );
    other.uninstall(&cluster.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_revision_have_one_recipe_while_the_set_changes() {
    let _alone = ALONE.lock().await;
    let name = "sets-pins";
    let cluster = start(name).await;
    let api = sets(&cluster, "ArtifactSet");
    let (one, two) =
        (push(&cluster.registry, "pinned:v1", "one"), push(&cluster.registry, "pinned:v2", "two"));
    apply_own(&cluster, "pinned", "pinned:v1").await;
    until_recipe_has(&api, "pinned", &one).await;
    let of = |pod_name: &str, revision: &str| {
        let mut pod = by_annotation(pod_name, "pinned");
        pod["metadata"]["labels"] = json!({"pod-template-hash": revision});
        pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "example.org/v1", "kind": "Trainer",
            "name": "trainer", "uid": "00000000-0000-0000-0000-000000000001", "controller": true}]);
        pod
    };
    let recipe = |pod: &Value| attribute(pod, "csi.oras.land/recipe").expect("a recipe").to_owned();
    assert!(recipe(&cluster.create(&of("a", "1")).await.expect("admitted")).contains(&one));
    apply_own(&cluster, "pinned", "pinned:v2").await;
    until_recipe_has(&api, "pinned", &two).await;
    assert!(recipe(&cluster.create(&of("b", "1")).await.expect("admitted")).contains(&one));
    assert!(recipe(&cluster.create(&of("c", "2")).await.expect("admitted")).contains(&two));
    let pins = run(&mut kubectl(&[
        "get",
        "artifactpins",
        "--namespace",
        name,
        "-o",
        "jsonpath={.items[*].spec.reference}",
    ]));
    assert_eq!(pins, "ArtifactSet pinned ArtifactSet pinned");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sets_of_the_examples_become_ready_and_their_pods_are_admitted() {
    let _alone = ALONE.lock().await;
    let name = "sets-examples";
    let cluster = start(name).await;
    for (file, what) in [
        ("artifact-set.yaml", "artifactset/models"),
        ("cluster-artifact-set.yaml", "clusterartifactset/java-app"),
    ] {
        let text = std::fs::read_to_string(repository().join("examples").join(file)).expect("reads");
        let mut documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
        let (pod, set) = (documents.pop().expect("a pod"), documents.pop().expect("a set"));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("set.json");
        std::fs::write(&path, set.to_string()).expect("writes");
        let path = path.display().to_string();
        run(&mut kubectl(&["apply", "--validate=strict", "--namespace", name, "-f", &path]));
        wait_ready(name, what);
        let stored = cluster.create(&pod).await.unwrap_or_else(|status| panic!("{file}: {}", status.message));
        assert_eq!(attribute(&stored, "csi.oras.land/set").is_some(), what.starts_with("cluster"));
        run(&mut kubectl(&["delete", "--namespace", name, "-f", &path]));
    }
}
