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

use super::object::PinOwner;
use super::*;
use crate::view::Owner;
use api::{FakeApi, path};

const REFERENCE: &str = "r.io/team/model:v1";

fn owner() -> Owner<'static> {
    Owner { api_version: "apps/v1", kind: "ReplicaSet", name: "web-5d4f", uid: "1d4a" }
}

fn key() -> PinKey {
    PinKey::new(owner(), Some("5d4f"), &Reference::parse(REFERENCE).unwrap()).unwrap()
}

fn digest(of: &str) -> Digest {
    Digest::sha256_of(of.as_bytes())
}

/// The pin of [`key`], changed.
fn pin(change: impl FnOnce(&mut Value)) -> Value {
    let pin = object::ArtifactPin::of(&key(), &digest("one"));
    let mut pin = serde_json::to_value(pin).unwrap();
    change(&mut pin);
    pin
}

#[tokio::test]
async fn what_is_kept_is_found() {
    let api = FakeApi::default();
    let pins = ClusterPins::new(api.client());
    assert_eq!(pins.find("team", &key()).await, Ok(None));
    assert_eq!(pins.keep("team", &key(), &digest("one")).await, Ok(digest("one")));
    assert_eq!(pins.find("team", &key()).await, Ok(Some(digest("one"))));
    assert_eq!(pins.find("other", &key()).await, Ok(None));
    let next = PinKey::new(owner(), Some("next"), &Reference::parse(REFERENCE).unwrap()).unwrap();
    assert_eq!(pins.find("team", &next).await, Ok(None));
}

#[tokio::test]
async fn the_object_says_whose_it_is_and_goes_with_its_owner() {
    let api = FakeApi::default();
    ClusterPins::new(api.client()).keep("team", &key(), &digest("one")).await.unwrap();
    let name = key().object_name();
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "uid": "1d4a"});
    // No blockOwnerDeletion, which would take a right over finalizers of all kinds, and no controller.
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
async fn an_owner_with_one_revision_has_none_in_its_pins() {
    let api = FakeApi::default();
    let key = PinKey::new(owner(), None, &Reference::parse("r.io/a").unwrap()).unwrap();
    let pins = ClusterPins::new(api.client());
    pins.keep("team", &key, &digest("one")).await.unwrap();
    assert_eq!(api.bodies()[0]["spec"].get("revision"), None);
    assert_eq!(api.bodies()[0]["spec"]["reference"], "r.io/a:latest");
    assert_eq!(pins.find("team", &key).await, Ok(Some(digest("one"))));
}

async fn all_get_the_first(pins: Arc<dyn Pins>) {
    let keepers = (0..16).map(|keeper| {
        let pins = Arc::clone(&pins);
        tokio::spawn(async move {
            let found = pins.find("team", &key()).await.unwrap();
            let kept = pins.keep("team", &key(), &digest(&keeper.to_string())).await.unwrap();
            assert!(found.is_none_or(|found| found == kept));
            kept
        })
    });
    let kept = futures_util::future::try_join_all(keepers).await.unwrap();
    assert_eq!(kept.iter().collect::<BTreeSet<_>>().len(), 1, "{kept:?}");
    assert_eq!(pins.find("team", &key()).await.unwrap().as_ref(), kept.first());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_keepers_the_first_wins() {
    let api = FakeApi::default();
    all_get_the_first(Arc::new(ClusterPins::new(api.client()))).await;
    assert_eq!(api.objects().len(), 1);
    all_get_the_first(Arc::new(MemoryPins::default())).await;
}

#[tokio::test]
async fn who_comes_second_gets_what_is_there() {
    let api = FakeApi::default();
    let faster = pin(|_| {});
    let place = path("team", &key().object_name());
    api.meanwhile(Method::POST, move |objects| drop(objects.insert(place, faster)));
    let pins = ClusterPins::new(api.client());
    assert_eq!(pins.keep("team", &key(), &digest("two")).await, Ok(digest("one")));
    assert_eq!(api.log().len(), 2);
}

/// Somebody makes the pin just before it should be made, and deletes it just before it should be read.
fn come_and_go(api: &FakeApi, times: usize) {
    for _ in 0..times {
        let (made, there) = (pin(|_| {}), path("team", &key().object_name()));
        let gone = there.clone();
        api.meanwhile(Method::POST, move |objects| drop(objects.insert(there, made)));
        api.meanwhile(Method::GET, move |objects| drop(objects.remove(&gone)));
    }
}

#[tokio::test]
async fn a_pin_that_vanishes_is_made_again_a_few_times() {
    let api = FakeApi::default();
    come_and_go(&api, 2);
    let pins = ClusterPins::new(api.client());
    assert_eq!(pins.keep("team", &key(), &digest("two")).await, Ok(digest("two")));

    let api = FakeApi::default();
    come_and_go(&api, 1_000);
    let error = ClusterPins::new(api.client()).keep("team", &key(), &digest("two")).await.unwrap_err();
    assert!(matches!(error, PinError::Vanishing { tries: 3, .. }), "{error}");
    assert_eq!(api.log().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever() {
    let api = FakeApi::default();
    api.stop_answering();
    let pins = ClusterPins::new(api.client());
    let limit = Duration::from_secs(11);
    assert_eq!(timeout(limit, pins.find("team", &key())).await, Ok(Err(PinError::TooLate)));
    assert_eq!(timeout(limit, pins.keep("team", &key(), &digest("one"))).await, Ok(Err(PinError::TooLate)));
}

#[test]
fn a_pods_controller_is_the_owner_of_its_pins() {
    let owner = PinOwner::from(owner());
    let there = [owner.api_version, owner.kind, owner.name, owner.uid];
    assert_eq!(there, ["apps/v1", "ReplicaSet", "web-5d4f", "1d4a"]);
}
