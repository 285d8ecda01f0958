//! Events of pods that need a registry over HTTP, on a real API server. `driver/tests/driver/preload.rs` has the others.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_testkit::scripted::tricks::status_with;
use oras_csi_testkit::scripted::{Content, Script, Scripted, Security};
use oras_csi_tests::cluster::{client, eventually, kubectl};
use oras_csi_tests::driver::{Driver, cannot_mount};
use oras_csi_tests::process::run;
use oras_csi_tests::registry::write_hosts_toml;
use serde_json::json;
use tonic::Code;

const NAMESPACE: &str = "pod-events";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const PATIENCE: Duration = Duration::from_mins(1);

/// A registry that answers 429 for the first requests of blobs, and demands a wait that is longer than the call of kubelet.
fn limiting(script: Script) -> (Scripted, Digest) {
    let (file, config) = (b"content".to_vec(), b"{}".to_vec());
    let digest = |bytes: &[u8]| Digest::sha256_of(bytes);
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(&config), "size": config.len()},
        "layers": [{"mediaType": "application/octet-stream", "digest": digest(&file), "size": file.len(),
            "annotations": {"org.opencontainers.image.title": "file"}}]});
    let manifest = manifest.to_string().into_bytes();
    let pinned = digest(&manifest);
    let content = Content::default().with_blob(&digest(&file).to_string(), file).with_manifest(
        "v1",
        &pinned.to_string(),
        MANIFEST,
        manifest,
    );
    (Scripted::start("127.0.0.1", Security::Plain, Arc::new(content), script), pinned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_waits_for_a_registry_with_a_rate_limit_has_an_event() {
    if cannot_mount().is_some() {
        return;
    }
    run(&mut kubectl(&["create", "namespace", NAMESPACE]));
    let (registry, digest) =
        limiting(Script::default().times(1, "/blobs/", status_with(429, "Retry-After", "20")));
    let certs = tempfile::tempdir().expect("a folder");
    write_hosts_toml(certs.path(), "limited.example", &format!("http://{}", registry.host()));
    let kubeconfig = PathBuf::from(std::env::var_os("KUBECONFIG").expect("run `make test-integration`"));
    let driver =
        Driver::start_in_cluster(certs.path(), &["--pod-events", "--publish-wait=5"], Some(&kubeconfig));

    let reference = Reference::parse("limited.example/artifact").expect("a reference").pin(digest);
    let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(reference))]).expect("a recipe");
    let volume = CanonicalVolume::new(None, recipe).expect("it fits");
    let attributes =
        || volume.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let publish = async || driver.publish_attributes("waits", NAMESPACE, attributes(), None).await;
    let status = publish().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "the pull goes on: {status}");

    let events = Api::<Event>::namespaced(client().await, NAMESPACE);
    let event = eventually("the event", PATIENCE, async || {
        let all = events.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
        let reasons: Vec<_> = all.iter().map(|event| event.reason.clone().unwrap_or_default()).collect();
        let limited = all.into_iter().find(|event| event.reason.as_deref() == Some("RateLimited"));
        if limited.is_none() {
            // On a slow machine, the first call ends before the request that is limited.
            let _ = publish().await;
        }
        limited.ok_or_else(|| format!("{reasons:?}"))
    })
    .await;
    let note = event.note.expect("a note");
    assert!(
        note.starts_with("The registry limits the rate of requests; the volume \"v\" waits: pulling"),
        "{note}"
    );
    assert_eq!(event.type_.as_deref(), Some("Warning"));

    // Kubelet calls again and again, until the registry gives the content.
    eventually("the volume is mounted", PATIENCE, async || {
        driver
            .publish_attributes("waits", NAMESPACE, attributes(), None)
            .await
            .map_err(|status| status.to_string())
    })
    .await;
    let all = events.list(&ListParams::default()).await.expect("events").items;
    let limited = all.iter().filter(|event| event.reason.as_deref() == Some("RateLimited")).count();
    assert_eq!(limited, 1, "one event for a volume");
}
