//! Keeping the live configuration in step, against a small API server.

use http::Method;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::*;
use crate::issue::Authority;
use crate::testing::{FakeApi, Hands, names, now};

const NAME: &str = "oras";

struct Scene {
    api: FakeApi,
    wanted: watch::Sender<Bundle>,
    live: watch::Receiver<Live>,
    chain: Vec<CertificateDer<'static>>,
    bundle: Bundle,
    shutdown: CancellationToken,
}

impl Scene {
    fn open(object: Option<Value>) -> Self {
        let authority = Authority::generate(now()).unwrap();
        let issued = authority.issue(&names(), now()).unwrap();
        let chain = crate::bundle::parse_certificates(issued.certificate_pem.as_bytes()).unwrap();
        let bundle = Bundle::from(authority.certificate().clone());
        let (api, client) = FakeApi::serve(object);
        let (wanted, receiver) = watch::channel(bundle.clone());
        let (keeper, live) = keeper(client, receiver);
        let shutdown = CancellationToken::new();
        tokio::spawn(keeper.run(shutdown.clone()));
        Self { api, wanted, live, chain, bundle, shutdown }
    }

    /// Waits until the check of readiness is as given; its reason.
    async fn until(&mut self, ready: bool) -> String {
        let chain = self.chain.clone();
        let live = self.live.wait_for(|live| trusts(live, &chain, now()) == ready);
        let live =
            tokio::time::timeout(Duration::from_mins(10), live).await.expect("in time").unwrap().clone();
        judge(&live, &self.chain, now()).reason().to_owned()
    }

    async fn reason_with(&mut self, part: &str) {
        let chain = self.chain.clone();
        let live = self.live.wait_for(|live| judge(live, &chain, now()).reason().contains(part));
        tokio::time::timeout(Duration::from_mins(10), live).await.expect("in time").unwrap();
    }

    fn live_bundles(&self) -> Vec<Bundle> {
        let object: MutatingWebhookConfiguration =
            serde_json::from_value(self.api.object().unwrap()).unwrap();
        object.entries().map(|entry| entry.bundle).collect()
    }

    async fn settle() {
        tokio::time::sleep(2 * GRACE).await;
    }
}

type Keeper = TrustKeeper<MutatingWebhookConfiguration>;

fn keeper(client: kube::Client, wanted: watch::Receiver<Bundle>) -> (Keeper, watch::Receiver<Live>) {
    TrustKeeper::new(client, NAME, wanted, Duration::ZERO, Hands::default().clock())
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
    let mut scene = Scene::open(Some(configuration(&Value::Null)));
    scene.until(true).await;
    assert_eq!(scene.live_bundles(), [scene.bundle.clone(), scene.bundle.clone()]);
    let mut without = scene.api.object().unwrap();
    for index in 0..2 {
        without["webhooks"][index]["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    }
    without["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(without, configuration(&Value::Null));
    Scene::settle().await;
    assert_eq!(scene.api.count("PATCH"), 1, "and then it is quiet");
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_somebody_empties_comes_back() {
    let mut scene = Scene::open(Some(configuration(&Value::Null)));
    scene.until(true).await;
    for taken in [Value::Null, json!(""), json!(ByteString(b"garbage".to_vec()))] {
        scene.api.edit(|object| set_bundle(object, 1, &taken));
        let reason = scene.until(false).await;
        assert!(reason.contains("volumes.oras.land"), "{reason}");
        scene.until(true).await;
        assert_eq!(scene.live_bundles(), [scene.bundle.clone(), scene.bundle.clone()]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bundle_of_somebody_else_is_added_to_and_then_replaced() {
    let mut scene = Scene::open(Some(configuration(&Value::Null)));
    scene.until(true).await;
    let theirs = Bundle::from(Authority::generate(now()).unwrap().certificate().clone());
    let pem = json!(ByteString(theirs.pem().into_bytes()));
    scene.api.edit(|object| set_bundle(object, 0, &pem));
    scene.until(false).await;
    scene.until(true).await;
    assert!(scene.live_bundles()[0].contains_all(&theirs));
    Scene::settle().await;
    assert_eq!(scene.live_bundles()[0], scene.bundle);
}

#[tokio::test(start_paused = true)]
async fn cert_managers_configuration_is_never_patched() {
    let annotations = json!({"cert-manager.io/inject-ca-from": "oras/hook"});
    let mut scene = Scene::open(Some(configuration(&annotations)));
    scene.reason_with("waiting for cert-manager (cert-manager.io/inject-ca-from)").await;
    Scene::settle().await;
    assert_eq!(scene.api.count("PATCH"), 0);
    let pem = json!(ByteString(scene.bundle.pem().into_bytes()));
    scene.api.edit(|object| (0..2).for_each(|index| set_bundle(object, index, &pem)));
    scene.until(true).await;
    assert_eq!(scene.api.count("PATCH"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_is_handed_over_in_between_is_not_patched() {
    let mut scene = Scene::open(Some(configuration(&Value::Null)));
    let annotated = configuration(&json!({"cert-manager.io/inject-ca-from": "oras/hook"}));
    scene.api.meanwhile(Method::PATCH, move |object| *object = Some(annotated));
    scene.reason_with("waiting for cert-manager").await;
    Scene::settle().await;
    assert_eq!(scene.api.count("PATCH"), 1, "the one that failed");
    assert!(scene.live_bundles().iter().all(Bundle::is_empty));
}

#[tokio::test(start_paused = true)]
async fn entries_that_are_reordered_in_between_are_not_mixed_up() {
    let mut scene = Scene::open(Some(configuration(&Value::Null)));
    scene.api.meanwhile(Method::PATCH, |object| {
        object.as_mut().unwrap()["webhooks"].as_array_mut().unwrap().reverse();
    });
    scene.until(true).await;
    assert_eq!(scene.api.count("PATCH"), 2);
    let first = &scene.api.bodies()[0];
    assert_eq!(first[0]["path"], "/metadata/resourceVersion");
}

#[tokio::test(start_paused = true)]
async fn a_missing_configuration_is_waited_for() {
    let mut scene = Scene::open(None);
    scene.reason_with("there is none of this name yet").await;
    scene.api.edit(|object| *object = Some(configuration(&Value::Null)));
    scene.until(true).await;
    scene.api.edit(|object| *object = None);
    scene.reason_with("there is none of this name yet").await;
    scene.api.edit(|object| *object = Some(configuration(&Value::Null)));
    scene.until(true).await;
}

#[tokio::test(start_paused = true)]
async fn refusals_are_told_and_tried_again() {
    let (api, client) = FakeApi::serve(Some(configuration(&Value::Null)));
    for code in [403, 500, 403] {
        api.refuse(Method::PATCH, code);
    }
    let authority = Authority::generate(now()).unwrap();
    let (_wanted, receiver) = watch::channel(Bundle::from(authority.certificate().clone()));
    let (keeper, mut live) = keeper(client, receiver);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(keeper.run(shutdown.clone()));
    let chain = [authority.certificate().clone()];
    let told = live.wait_for(|live| {
        let check = judge(live, &chain, now());
        check.reason().contains("refused with 403; grant patch")
    });
    told.await.unwrap();
    live.wait_for(|live| trusts(live, &chain, now())).await.unwrap();
    assert_eq!(api.count("PATCH"), 4);
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_fails_is_told_and_tried_again() {
    let (api, client) = FakeApi::serve(Some(configuration(&Value::Null)));
    api.refuse(Method::GET, 403);
    let (_wanted, receiver) = watch::channel(Bundle::default());
    let (keeper, mut live) = keeper(client, receiver);
    tokio::spawn(keeper.run(CancellationToken::new()));
    live.wait_for(|live| judge(live, &[], now()).reason().contains("cannot be watched")).await.unwrap();
    live.wait_for(|live| trusts(live, &[], now())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_ca_is_added_before_the_old_one_goes() {
    let mut scene = Scene::open(Some(configuration(&Value::Null)));
    scene.until(true).await;
    let new = Bundle::from(Authority::generate(now()).unwrap().certificate().clone());
    scene.wanted.send(new.clone()).unwrap();
    let both: Bundle = new.iter().chain(scene.bundle.iter()).cloned().collect();
    tokio::time::sleep(GRACE / 2).await;
    assert_eq!(scene.live_bundles(), [both.clone(), both]);
    Scene::settle().await;
    assert_eq!(scene.live_bundles(), [new.clone(), new]);
    scene.until(false).await;
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_told() {
    let scene = Scene::open(None);
    scene.shutdown.cancel();
    tokio::time::timeout(Duration::from_mins(10), scene.wanted.closed()).await.expect("in time");
}
