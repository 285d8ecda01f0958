//! Reconciling a configuration, against a small API server.

use http::Method;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::*;
use crate::authority::Authority;
use crate::testing::{FakeApi, ManualClock, names, now};

const NAME: &str = "oras";

struct Scene {
    api: FakeApi,
    desired: watch::Sender<CaBundle>,
    observed: watch::Receiver<ObservedConfiguration>,
    chain: Vec<CertificateDer<'static>>,
    bundle: CaBundle,
    shutdown: CancellationToken,
}

impl Scene {
    fn start(object: Option<Value>) -> Self {
        let authority = Authority::generate(now()).unwrap();
        let issued = authority.issue(&names(), now()).unwrap();
        let chain = crate::ca_bundle::parse_certificates(issued.certificate_pem.as_bytes()).unwrap();
        let bundle = CaBundle::from(authority.certificate().clone());
        let (api, client) = FakeApi::serve(object);
        let (desired, receiver) = watch::channel(bundle.clone());
        let (reconciler, observed) = reconciler(client, receiver);
        let shutdown = CancellationToken::new();
        tokio::spawn(reconciler.run(shutdown.clone()));
        Self { api, desired, observed, chain, bundle, shutdown }
    }

    /// Waits until the trust check has this result, and returns its reason.
    async fn until(&mut self, ready: bool) -> String {
        let chain = self.chain.clone();
        let observed = self.observed.wait_for(|observed| is_trusted(observed, &chain, now()) == ready);
        let observed =
            tokio::time::timeout(Duration::from_mins(10), observed).await.expect("in time").unwrap().clone();
        check_trust(&observed, &self.chain, now()).reason().to_owned()
    }

    async fn until_reason_has(&mut self, part: &str) {
        let chain = self.chain.clone();
        let observed =
            self.observed.wait_for(|observed| check_trust(observed, &chain, now()).reason().contains(part));
        tokio::time::timeout(Duration::from_mins(10), observed).await.expect("in time").unwrap();
    }

    fn written_bundles(&self) -> Vec<CaBundle> {
        let object: MutatingWebhookConfiguration =
            serde_json::from_value(self.api.object().unwrap()).unwrap();
        object.entries().map(|entry| entry.bundle).collect()
    }

    async fn wait_for_overlap() {
        tokio::time::sleep(2 * OVERLAP).await;
    }
}

type Reconciler = BundleReconciler<MutatingWebhookConfiguration>;

fn reconciler(
    client: kube::Client,
    desired: watch::Receiver<CaBundle>,
) -> (Reconciler, watch::Receiver<ObservedConfiguration>) {
    BundleReconciler::new(client, NAME, desired, Duration::ZERO, ManualClock::default().clock())
}

fn configuration(annotations: &Value) -> Value {
    let webhook = |name: &str| {
        json!({
            "name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "hook", "namespace": "oras"}},
            "fromTheFuture": {"kept": true},
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": NAME, "annotations": annotations},
        "webhooks": [webhook("pods.oras.land"), webhook("volumes.oras.land")],
    })
}

fn set_bundle(object: &mut Option<Value>, index: usize, bundle: &Value) {
    object.as_mut().unwrap()["webhooks"][index]["clientConfig"]["caBundle"] = bundle.clone();
}

#[tokio::test(start_paused = true)]
async fn every_webhook_gets_the_bundle_and_nothing_else_changes() {
    let mut scene = Scene::start(Some(configuration(&Value::Null)));
    scene.until(true).await;
    assert_eq!(scene.written_bundles(), [scene.bundle.clone(), scene.bundle.clone()]);
    let mut without = scene.api.object().unwrap();
    for index in 0..2 {
        without["webhooks"][index]["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    }
    without["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(without, configuration(&Value::Null));
    Scene::wait_for_overlap().await;
    assert_eq!(scene.api.count("PATCH"), 1, "no further write");
}

#[tokio::test(start_paused = true)]
async fn a_removed_bundle_is_written_again() {
    let mut scene = Scene::start(Some(configuration(&Value::Null)));
    scene.until(true).await;
    for removed in [Value::Null, json!(""), json!(ByteString(b"garbage".to_vec()))] {
        scene.api.edit(|object| set_bundle(object, 1, &removed));
        let reason = scene.until(false).await;
        assert!(reason.contains("volumes.oras.land"), "{reason}");
        scene.until(true).await;
        assert_eq!(scene.written_bundles(), [scene.bundle.clone(), scene.bundle.clone()]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_bundle_is_extended_and_then_replaced() {
    let mut scene = Scene::start(Some(configuration(&Value::Null)));
    scene.until(true).await;
    let theirs = CaBundle::from(Authority::generate(now()).unwrap().certificate().clone());
    let pem = json!(ByteString(theirs.pem().into_bytes()));
    scene.api.edit(|object| set_bundle(object, 0, &pem));
    scene.until(false).await;
    scene.until(true).await;
    assert!(scene.written_bundles()[0].contains_all(&theirs));
    Scene::wait_for_overlap().await;
    assert_eq!(scene.written_bundles()[0], scene.bundle);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_of_cert_manager_is_never_patched() {
    let annotations = json!({"cert-manager.io/inject-ca-from": "oras/hook"});
    let mut scene = Scene::start(Some(configuration(&annotations)));
    scene.until_reason_has("waiting for cert-manager (cert-manager.io/inject-ca-from)").await;
    Scene::wait_for_overlap().await;
    assert_eq!(scene.api.count("PATCH"), 0);
    let pem = json!(ByteString(scene.bundle.pem().into_bytes()));
    scene.api.edit(|object| (0..2).for_each(|index| set_bundle(object, index, &pem)));
    scene.until(true).await;
    assert_eq!(scene.api.count("PATCH"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_is_handed_over_meanwhile_is_not_patched() {
    let mut scene = Scene::start(Some(configuration(&Value::Null)));
    let annotated = configuration(&json!({"cert-manager.io/inject-ca-from": "oras/hook"}));
    scene.api.meanwhile(Method::PATCH, move |object| *object = Some(annotated));
    scene.until_reason_has("waiting for cert-manager").await;
    Scene::wait_for_overlap().await;
    assert_eq!(scene.api.count("PATCH"), 1, "only the failed one");
    assert!(scene.written_bundles().iter().all(CaBundle::is_empty));
}

#[tokio::test(start_paused = true)]
async fn webhooks_that_are_reordered_meanwhile_are_not_mixed_up() {
    let mut scene = Scene::start(Some(configuration(&Value::Null)));
    scene.api.meanwhile(Method::PATCH, |object| {
        object.as_mut().unwrap()["webhooks"].as_array_mut().unwrap().reverse();
    });
    scene.until(true).await;
    assert_eq!(scene.api.count("PATCH"), 2);
    let first = &scene.api.bodies()[0];
    assert_eq!(first[0]["path"], "/metadata/resourceVersion");
}

#[tokio::test(start_paused = true)]
async fn a_missing_configuration_is_awaited() {
    let mut scene = Scene::start(None);
    scene.until_reason_has("it does not exist yet").await;
    scene.api.edit(|object| *object = Some(configuration(&Value::Null)));
    scene.until(true).await;
    scene.api.edit(|object| *object = None);
    scene.until_reason_has("it does not exist yet").await;
    scene.api.edit(|object| *object = Some(configuration(&Value::Null)));
    scene.until(true).await;
}

#[tokio::test(start_paused = true)]
async fn failed_writes_are_reported_and_retried() {
    let (api, client) = FakeApi::serve(Some(configuration(&Value::Null)));
    for code in [403, 500, 403] {
        api.refuse(Method::PATCH, code);
    }
    let authority = Authority::generate(now()).unwrap();
    let (_desired, receiver) = watch::channel(CaBundle::from(authority.certificate().clone()));
    let (reconciler, mut observed) = reconciler(client, receiver);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(reconciler.run(shutdown.clone()));
    let chain = [authority.certificate().clone()];
    let reported = observed.wait_for(|observed| {
        let check = check_trust(observed, &chain, now());
        check.reason().contains("refused with 403; grant patch")
    });
    reported.await.unwrap();
    observed.wait_for(|observed| is_trusted(observed, &chain, now())).await.unwrap();
    assert_eq!(api.count("PATCH"), 4);
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failed_watch_is_reported_and_retried() {
    let (api, client) = FakeApi::serve(Some(configuration(&Value::Null)));
    api.refuse(Method::GET, 403);
    let (_desired, receiver) = watch::channel(CaBundle::default());
    let (reconciler, mut observed) = reconciler(client, receiver);
    tokio::spawn(reconciler.run(CancellationToken::new()));
    observed
        .wait_for(|observed| check_trust(observed, &[], now()).reason().contains("cannot be watched"))
        .await
        .unwrap();
    observed.wait_for(|observed| is_trusted(observed, &[], now())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_ca_is_added_before_the_old_one_is_removed() {
    let mut scene = Scene::start(Some(configuration(&Value::Null)));
    scene.until(true).await;
    let new = CaBundle::from(Authority::generate(now()).unwrap().certificate().clone());
    scene.desired.send(new.clone()).unwrap();
    let both: CaBundle = new.iter().chain(scene.bundle.iter()).cloned().collect();
    tokio::time::sleep(OVERLAP / 2).await;
    assert_eq!(scene.written_bundles(), [both.clone(), both]);
    Scene::wait_for_overlap().await;
    assert_eq!(scene.written_bundles(), [new.clone(), new]);
    scene.until(false).await;
}

#[tokio::test(start_paused = true)]
async fn it_ends_at_shutdown() {
    let scene = Scene::start(None);
    scene.shutdown.cancel();
    tokio::time::timeout(Duration::from_mins(10), scene.desired.closed()).await.expect("in time");
}
