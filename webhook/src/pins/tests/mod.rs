mod api;
mod refusals;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use oras_csi_core::digest::Digest;
use oras_csi_core::reference::Reference;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use api::{FakeApi, path};

const REFERENCE: &str = "r.io/team/model:v1";

fn owner() -> PinOwner {
    PinOwner {
        api_version: "apps/v1".into(),
        kind: "ReplicaSet".into(),
        name: "web-5d4f".into(),
        uid: "1d4a".into(),
    }
}

fn key() -> PinKey {
    PinKey::new(owner(), Some("5d4f"), &Reference::parse(REFERENCE).unwrap()).unwrap()
}

fn digest(of: &str) -> Digest {
    Digest::sha256_of(of.as_bytes())
}

/// Returns the pin of [`key`] after a change.
fn pin(change: impl FnOnce(&mut Value)) -> Value {
    let pin = object::ArtifactPin::new_for(&key(), &digest("one"));
    let mut pin = serde_json::to_value(pin).unwrap();
    change(&mut pin);
    pin
}

#[tokio::test]
async fn a_pin_is_found_by_its_key() {
    let api = FakeApi::default();
    let pins = ClusterPins::new(api.client());
    assert_eq!(pins.find("team", &key()).await, Ok(None));
    assert_eq!(pins.get_or_create("team", &key(), &digest("one")).await, Ok(digest("one")));
    assert_eq!(pins.find("team", &key()).await, Ok(Some(digest("one"))));
    assert_eq!(pins.find("other", &key()).await, Ok(None));
    let next = PinKey::new(owner(), Some("next"), &Reference::parse(REFERENCE).unwrap()).unwrap();
    assert_eq!(pins.find("team", &next).await, Ok(None));
}

#[tokio::test]
async fn the_object_names_its_owner() {
    let api = FakeApi::default();
    ClusterPins::new(api.client()).get_or_create("team", &key(), &digest("one")).await.unwrap();
    let name = key().object_name();
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "uid": "1d4a"});
    // Without blockOwnerDeletion, which would need permission for the finalizers of all kinds, and without controller.
    assert_eq!(
        api.bodies(),
        [json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPin",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "oras-csi"},
                "ownerReferences": [owner]},
            "spec": {"reference": REFERENCE, "digest": digest("one").to_string(), "owner": owner,
                "revision": "5d4f"}})]
    );
    let asked = path("team", "").trim_end_matches('/').to_owned();
    assert_eq!(api.log(), [format!("POST {asked}?&fieldManager=oras-csi-webhook")]);
}

#[tokio::test]
async fn the_pin_of_an_owner_without_revisions_has_no_revision() {
    let api = FakeApi::default();
    let key = PinKey::new(owner(), None, &Reference::parse("r.io/a").unwrap()).unwrap();
    let pins = ClusterPins::new(api.client());
    pins.get_or_create("team", &key, &digest("one")).await.unwrap();
    assert_eq!(api.bodies()[0]["spec"].get("revision"), None);
    assert_eq!(api.bodies()[0]["spec"]["reference"], "r.io/a:latest");
    assert_eq!(pins.find("team", &key).await, Ok(Some(digest("one"))));
}

async fn assert_all_get_the_first(pins: Arc<dyn Pins>) {
    let writers = (0..16).map(|writer| {
        let pins = Arc::clone(&pins);
        tokio::spawn(async move {
            let found = pins.find("team", &key()).await.unwrap();
            let pinned = pins.get_or_create("team", &key(), &digest(&writer.to_string())).await.unwrap();
            assert!(found.is_none_or(|found| found == pinned));
            pinned
        })
    });
    let pinned = futures_util::future::try_join_all(writers).await.unwrap();
    assert_eq!(pinned.iter().collect::<BTreeSet<_>>().len(), 1, "{pinned:?}");
    assert_eq!(pins.find("team", &key()).await.unwrap().as_ref(), pinned.first());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_of_many_writers_wins() {
    let api = FakeApi::default();
    assert_all_get_the_first(Arc::new(ClusterPins::new(api.client()))).await;
    assert_eq!(api.objects().len(), 1);
    assert_all_get_the_first(Arc::new(MemoryPins::default())).await;
}

#[tokio::test]
async fn the_second_writer_gets_the_digest_of_the_first() {
    let api = FakeApi::default();
    let faster = pin(|_| {});
    let place = path("team", &key().object_name());
    api.meanwhile(Method::POST, move |objects| drop(objects.insert(place, faster)));
    let pins = ClusterPins::new(api.client());
    assert_eq!(pins.get_or_create("team", &key(), &digest("two")).await, Ok(digest("one")));
    assert_eq!(api.log().len(), 2);
}

/// Another client creates the pin just before each create request, and deletes it just before each get request.
fn appear_and_vanish(api: &FakeApi, times: usize) {
    for _ in 0..times {
        let (created, place) = (pin(|_| {}), path("team", &key().object_name()));
        let deleted = place.clone();
        api.meanwhile(Method::POST, move |objects| drop(objects.insert(place, created)));
        api.meanwhile(Method::GET, move |objects| drop(objects.remove(&deleted)));
    }
}

#[tokio::test]
async fn a_pin_that_vanishes_is_created_again_a_few_times() {
    let api = FakeApi::default();
    appear_and_vanish(&api, 2);
    let pins = ClusterPins::new(api.client());
    assert_eq!(pins.get_or_create("team", &key(), &digest("two")).await, Ok(digest("two")));

    let api = FakeApi::default();
    appear_and_vanish(&api, 1_000);
    let error =
        ClusterPins::new(api.client()).get_or_create("team", &key(), &digest("two")).await.unwrap_err();
    assert!(matches!(error, PinError::Vanishing { tries: 3, .. }), "{error}");
    assert_eq!(api.log().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_silent_api_server_ends_in_a_timeout() {
    let api = FakeApi::default();
    api.stop_answering();
    let pins = ClusterPins::new(api.client());
    let limit = Duration::from_secs(11);
    assert_eq!(timeout(limit, pins.find("team", &key())).await, Ok(Err(PinError::TooLate)));
    assert_eq!(
        timeout(limit, pins.get_or_create("team", &key(), &digest("one"))).await,
        Ok(Err(PinError::TooLate))
    );
}
