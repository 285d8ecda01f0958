//! The ValidatingWebhookConfiguration, which readiness does not wait for, beside the MutatingWebhookConfiguration.

use http::Method;
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::*;
use crate::settings::DEFAULT_POLL;
use crate::testing::{CapturedWarnings, FakeApi, names};

const CERT_MANAGER: &str = "cert-manager.io/inject-ca-from";

struct Scene {
    certificates: Certificates,
    mutating: FakeApi,
    validating: FakeApi,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    warnings: CapturedWarnings,
    _root: tempfile::TempDir,
}

impl Scene {
    async fn start_with(validating: Option<Value>) -> Self {
        Self::refusing(validating, &[]).await
    }

    async fn refusing(validating: Option<Value>, refusals: &[Method]) -> Self {
        let warnings = CapturedWarnings::capture();
        let root = tempfile::tempdir().unwrap();
        let mutating = configuration("MutatingWebhookConfiguration", &Value::Null);
        let (mutating, validating, client) = FakeApi::serve_both(Some(mutating), validating);
        for method in refusals {
            validating.refuse(method.clone(), 403);
        }
        let settings = Settings::new(Source::Folder(root.path().to_owned()), names())
            .webhook_configuration(Some("oras"))
            .validating_webhook_configuration(Some("oras".to_owned()));
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let certificates = start(settings, Some(client), shutdown.clone(), &tasks).await.unwrap();
        let scene = Self { certificates, mutating, validating, shutdown, tasks, warnings, _root: root };
        until(|| scene.certificates.readiness().is_ready()).await;
        scene
    }

    /// Waits until both webhooks of the validating configuration have exactly our bundle.
    async fn until_trusted(&self) {
        let ours = bundle(&self.certificates.ca_bundle_pem().unwrap());
        until(|| bundles(&self.validating) == [ours.clone(), ours.clone()]).await;
    }

    fn assert_ready(&self) {
        let readiness = self.certificates.readiness();
        assert!(readiness.is_ready(), "{readiness}");
        assert!(readiness.trust().reason().contains("MutatingWebhookConfiguration oras trusts"));
    }

    /// Waits until a warning has `part`, and then long enough to see that it is not repeated.
    async fn assert_warned_once(&self, part: &str) {
        until(|| !self.warnings.with(part).is_empty()).await;
        wait_for_many_polls().await;
        let warnings = self.warnings.with(part);
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
    }
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(10), wait).await.expect("in time");
}

async fn wait_for_many_polls() {
    tokio::time::sleep(12 * DEFAULT_POLL).await;
}

fn configuration(kind: &str, annotations: &Value) -> Value {
    let webhook = |name: &str| {
        json!({
            "name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "hook", "namespace": "oras"}},
            "fromTheFuture": {"kept": true},
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": "oras", "annotations": annotations},
        "webhooks": [webhook("workloads.oras.land"), webhook("jobs.oras.land")],
    })
}

fn validating() -> Value {
    configuration("ValidatingWebhookConfiguration", &Value::Null)
}

fn bundle(pem: &str) -> Value {
    json!(ByteString(pem.as_bytes().to_vec()))
}

fn bundles(api: &FakeApi) -> Vec<Value> {
    let object = api.object().unwrap();
    let webhooks = object["webhooks"].as_array().unwrap().iter();
    webhooks.map(|webhook| webhook["clientConfig"]["caBundle"].clone()).collect()
}

fn set_bundle(object: &mut Option<Value>, index: usize, bundle: &Value) {
    object.as_mut().unwrap()["webhooks"][index]["clientConfig"]["caBundle"] = bundle.clone();
}

#[tokio::test(start_paused = true)]
async fn the_bundle_is_written_and_nothing_else_changes() {
    let scene = Scene::start_with(Some(validating())).await;
    scene.until_trusted().await;
    wait_for_many_polls().await;
    assert_eq!((scene.mutating.count("PATCH"), scene.validating.count("PATCH")), (1, 1));
    assert_eq!(scene.validating.bodies()[0][0]["path"], "/metadata/resourceVersion");
    let mut without = scene.validating.object().unwrap();
    for index in 0..2 {
        let webhook = &mut without["webhooks"][index];
        webhook["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    }
    without["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(without, validating());
    assert_eq!(scene.warnings.with(""), [""; 0], "there is no warning");
}

#[tokio::test(start_paused = true)]
async fn a_removed_bundle_is_written_again() {
    let scene = Scene::start_with(Some(validating())).await;
    for removed in [Value::Null, json!(""), bundle("garbage")] {
        scene.until_trusted().await;
        scene.validating.edit(|object| set_bundle(object, 1, &removed));
        scene.assert_ready();
    }
    scene.until_trusted().await;
}

#[tokio::test(start_paused = true)]
async fn a_configuration_of_cert_manager_is_never_patched() {
    let annotations = json!({CERT_MANAGER: "oras/hook"});
    let scene = Scene::start_with(Some(configuration("ValidatingWebhookConfiguration", &annotations))).await;
    scene.assert_warned_once("waiting for cert-manager").await;
    scene.assert_ready();
    let ours = bundle(&scene.certificates.ca_bundle_pem().unwrap());
    scene.validating.edit(|object| (0..2).for_each(|index| set_bundle(object, index, &ours)));
    wait_for_many_polls().await;
    scene.validating.edit(|object| set_bundle(object, 0, &Value::Null));
    wait_for_many_polls().await;
    assert_eq!(scene.validating.count("PATCH"), 0);
    assert_eq!(scene.warnings.with("waiting for cert-manager").len(), 2, "once per change");
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn a_missing_configuration_is_logged_and_the_process_is_ready() {
    let scene = Scene::start_with(None).await;
    scene.assert_warned_once("ValidatingWebhookConfiguration oras: it does not exist yet").await;
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_appears_later_is_patched() {
    let scene = Scene::start_with(None).await;
    for _ in 0..2 {
        wait_for_many_polls().await;
        scene.validating.edit(|object| *object = Some(validating()));
        scene.until_trusted().await;
        scene.validating.edit(|object| *object = None);
    }
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn a_failed_watch_is_logged_once_and_the_process_is_ready() {
    let scene = Scene::refusing(Some(validating()), &vec![Method::GET; 12]).await;
    scene.assert_warned_once("cannot watch a webhook configuration").await;
    scene.assert_warned_once("refused with 403; grant list and watch on it").await;
    scene.assert_ready();
    scene.until_trusted().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_is_logged_once_and_the_process_is_ready() {
    let scene = Scene::refusing(Some(validating()), &vec![Method::PATCH; 12]).await;
    scene.assert_warned_once("cannot write the caBundle").await;
    scene.assert_warned_once("refused with 403; grant patch on it").await;
    scene.assert_ready();
    scene.until_trusted().await;
}

#[tokio::test(start_paused = true)]
async fn the_tasks_end_at_shutdown() {
    let scene = Scene::start_with(Some(validating())).await;
    scene.shutdown.cancel();
    scene.tasks.close();
    tokio::time::timeout(Duration::from_mins(10), scene.tasks.wait()).await.expect("in time");
}

#[tokio::test(start_paused = true)]
async fn a_validating_configuration_alone_is_reconciled_and_readiness_does_not_wait() {
    let root = tempfile::tempdir().unwrap();
    let (_, api, client) = FakeApi::serve_both(None, Some(validating()));
    let settings = Settings::new(Source::Folder(root.path().to_owned()), names())
        .validating_webhook_configuration(Some("oras".to_owned()));
    let shutdown = CancellationToken::new();
    let certificates = start(settings, Some(client), shutdown, &TaskTracker::new()).await.unwrap();
    assert!(certificates.readiness().is_ready(), "{}", certificates.readiness());
    let ours = bundle(&certificates.ca_bundle_pem().unwrap());
    until(|| bundles(&api) == [ours.clone(), ours.clone()]).await;
}
