//! The Secret: which writer wins, and what does not change.

use std::sync::Arc;

use http::Method;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::ca_storage::CaStorage;
use crate::entries::Stored;
use crate::settings::Issuance;
use crate::testing::{FakeApi, now};

fn storage(object: Option<Value>) -> (FakeApi, CaSecret) {
    let (api, client) = FakeApi::serve(object);
    (api, CaSecret::new(client, "oras", "hook-ca"))
}

fn secret(data: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": "hook-ca", "namespace": "oras", "labels": {"chart": "oras-csi"}},
        "data": data,
    })
}

fn data_of(authority: &Authority) -> Value {
    json!({
        "ca.crt": ByteString(authority.certificate_pem().into()),
        "ca.key": ByteString(authority.key_pem().into()),
    })
}

fn authority() -> Authority {
    Authority::generate(now()).unwrap()
}

async fn stored(storage: &CaSecret) -> Authority {
    let entries = storage.read().await.unwrap();
    match entries.interpret("here", Issuance::Automatic, now()).unwrap() {
        Stored::Authority(stored) => stored.authority,
        _ => panic!("no CA is stored"),
    }
}

#[tokio::test]
async fn a_missing_secret_is_created() {
    let (api, storage) = storage(None);
    let proposed = authority();
    storage.store_ca(&proposed, now()).await.unwrap();
    assert_eq!(stored(&storage).await.certificate(), proposed.certificate());
    assert_eq!(api.log(), ["GET", "POST", "GET"]);
    let created = api.object().unwrap();
    assert_eq!(created["data"].as_object().unwrap().keys().collect::<Vec<_>>(), ["ca.crt", "ca.key"]);
}

#[tokio::test]
async fn the_first_to_create_wins() {
    let (api, storage) = storage(None);
    let first = authority();
    let theirs = secret(&data_of(&first));
    api.meanwhile(Method::POST, move |object| *object = Some(theirs));
    storage.store_ca(&authority(), now()).await.unwrap();
    assert_eq!(stored(&storage).await.certificate(), first.certificate());
    assert_eq!(api.log(), ["GET", "POST", "GET"]);
}

#[rstest]
#[case::no_data(Value::Null)]
#[case::no_entries(json!({}))]
#[case::empty_entries(json!({"tls.crt": "", "tls.key": "", "ca.crt": ""}))]
#[tokio::test]
async fn an_empty_secret_of_a_chart_is_filled(#[case] data: Value) {
    let (api, storage) = storage(Some(secret(&data)));
    let proposed = authority();
    storage.store_ca(&proposed, now()).await.unwrap();
    assert_eq!(stored(&storage).await.certificate(), proposed.certificate());
    assert_eq!(api.log(), ["GET", "PUT", "GET"], "permission to create is not needed");
    assert_eq!(api.object().unwrap()["metadata"]["labels"]["chart"], "oras-csi");
}

#[tokio::test]
async fn the_first_to_fill_wins() {
    let (api, storage) = storage(Some(secret(&json!({}))));
    let first = authority();
    let data = data_of(&first);
    api.meanwhile(Method::PUT, move |object| object.as_mut().unwrap()["data"] = data);
    storage.store_ca(&authority(), now()).await.unwrap();
    assert_eq!(stored(&storage).await.certificate(), first.certificate());
}

#[tokio::test]
async fn a_key_without_certificate_gets_its_certificate() {
    let dead = authority();
    let key = json!({"ca.key": ByteString(dead.key_pem().into())});
    let (_, storage) = storage(Some(secret(&key)));
    storage.store_ca(&authority(), now()).await.unwrap();
    assert_eq!(stored(&storage).await.key_pem(), dead.key_pem());
}

#[tokio::test]
async fn an_external_certificate_is_not_changed() {
    let (api, storage) = storage(Some(secret(&json!({"tls.crt": "eA==", "tls.key": "eA=="}))));
    storage.store_ca(&authority(), now()).await.unwrap();
    assert_eq!(api.log(), ["GET"]);
}

#[rstest]
#[case(Method::GET, 403, None, "cannot get Secret oras/hook-ca: refused with 403; grant get", false)]
#[case(Method::POST, 403, None, "cannot create Secret oras/hook-ca: refused with 403; grant create", false)]
#[case(Method::PUT, 403, Some(json!({})), "cannot update Secret oras/hook-ca: refused with 403; grant update", false)]
#[case(
    Method::GET,
    503,
    None,
    "cannot get Secret oras/hook-ca: refused with 503; check that the API server runs",
    true
)]
#[tokio::test]
async fn errors_say_which_permission_to_grant(
    #[case] method: Method,
    #[case] code: u16,
    #[case] data: Option<Value>,
    #[case] start: &str,
    #[case] transient: bool,
) {
    let (api, storage) = storage(data.as_ref().map(secret));
    api.refuse(method, code);
    let error = storage.store_ca(&authority(), now()).await.unwrap_err();
    assert!(error.to_string().starts_with(start), "{error}");
    assert_eq!(error.is_transient(), transient);
}

#[tokio::test]
async fn replicas_that_start_together_agree() {
    let (_, client) = FakeApi::serve(None);
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let storage = CaSecret::new(client.clone(), "oras", "hook-ca");
        racers.spawn(async move {
            CaStorage::Secret(Box::new(storage.clone()))
                .store_ca(&Arc::new(authority()), now())
                .await
                .unwrap();
            stored(&storage).await.certificate().clone()
        });
    }
    let results = racers.join_all().await;
    assert!(results.iter().all(|result| *result == results[0]));
}
