//! The Secret: who wins, and what is left alone.

use std::sync::Arc;

use http::Method;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::contents::Kept;
use crate::keep::Keeper;
use crate::settings::Issuance;
use crate::testing::{FakeApi, now};

fn keeper(object: Option<Value>) -> (FakeApi, SecretKeeper) {
    let (api, client) = FakeApi::serve(object);
    (api, SecretKeeper::new(client, "oras", "hook-ca"))
}

fn secret(data: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": "hook-ca", "namespace": "oras", "labels": {"chart": "oras-csi"}},
        "data": data,
    })
}

fn of(authority: &Authority) -> Value {
    json!({
        "ca.crt": ByteString(authority.certificate_pem().into()),
        "ca.key": ByteString(authority.key_pem().into()),
    })
}

fn authority() -> Authority {
    Authority::generate(now()).unwrap()
}

async fn kept(keeper: &SecretKeeper) -> Authority {
    let contents = keeper.read().await.unwrap();
    match contents.meaning("here", Issuance::Automatic, now()).unwrap() {
        Kept::Authority(kept) => kept.authority,
        _ => panic!("no CA is kept"),
    }
}

#[tokio::test]
async fn a_secret_that_is_not_there_is_made() {
    let (api, keeper) = keeper(None);
    let proposed = authority();
    keeper.establish(&proposed, now()).await.unwrap();
    assert_eq!(kept(&keeper).await.certificate(), proposed.certificate());
    assert_eq!(api.log(), ["GET", "POST", "GET"]);
    let made = api.object().unwrap();
    assert_eq!(made["data"].as_object().unwrap().keys().collect::<Vec<_>>(), ["ca.crt", "ca.key"]);
}

#[tokio::test]
async fn the_first_to_create_wins() {
    let (api, keeper) = keeper(None);
    let first = authority();
    let theirs = secret(&of(&first));
    api.meanwhile(Method::POST, move |object| *object = Some(theirs));
    keeper.establish(&authority(), now()).await.unwrap();
    assert_eq!(kept(&keeper).await.certificate(), first.certificate());
    assert_eq!(api.log(), ["GET", "POST", "GET"]);
}

#[rstest]
#[case::no_data(Value::Null)]
#[case::no_entries(json!({}))]
#[case::empty_entries(json!({"tls.crt": "", "tls.key": "", "ca.crt": ""}))]
#[tokio::test]
async fn a_secret_that_a_chart_made_is_filled(#[case] data: Value) {
    let (api, keeper) = keeper(Some(secret(&data)));
    let proposed = authority();
    keeper.establish(&proposed, now()).await.unwrap();
    assert_eq!(kept(&keeper).await.certificate(), proposed.certificate());
    assert_eq!(api.log(), ["GET", "PUT", "GET"], "no right to create is needed");
    assert_eq!(api.object().unwrap()["metadata"]["labels"]["chart"], "oras-csi");
}

#[tokio::test]
async fn the_first_to_fill_wins() {
    let (api, keeper) = keeper(Some(secret(&json!({}))));
    let first = authority();
    let data = of(&first);
    api.meanwhile(Method::PUT, move |object| object.as_mut().unwrap()["data"] = data);
    keeper.establish(&authority(), now()).await.unwrap();
    assert_eq!(kept(&keeper).await.certificate(), first.certificate());
}

#[tokio::test]
async fn a_key_alone_is_kept_and_gets_its_certificate() {
    let dead = authority();
    let key = json!({"ca.key": ByteString(dead.key_pem().into())});
    let (_, keeper) = keeper(Some(secret(&key)));
    keeper.establish(&authority(), now()).await.unwrap();
    assert_eq!(kept(&keeper).await.key_pem(), dead.key_pem());
}

#[tokio::test]
async fn somebody_elses_certificate_is_left_alone() {
    let (api, keeper) = keeper(Some(secret(&json!({"tls.crt": "eA==", "tls.key": "eA=="}))));
    keeper.establish(&authority(), now()).await.unwrap();
    assert_eq!(api.log(), ["GET"]);
}

#[rstest]
#[case(Method::GET, 403, None, "cannot get Secret oras/hook-ca: refused with 403; grant get", false)]
#[case(Method::POST, 403, None, "cannot create Secret oras/hook-ca: refused with 403; grant create", false)]
#[case(Method::PUT, 403, Some(json!({})), "cannot update Secret oras/hook-ca: refused with 403; grant update", false)]
#[case(Method::GET, 503, None, "cannot get Secret oras/hook-ca: refused with 503", true)]
#[tokio::test]
async fn refusals_say_what_to_grant(
    #[case] method: Method,
    #[case] code: u16,
    #[case] data: Option<Value>,
    #[case] words: &str,
    #[case] transient: bool,
) {
    let (api, keeper) = keeper(data.as_ref().map(secret));
    api.refuse(method, code);
    let error = keeper.establish(&authority(), now()).await.unwrap_err();
    assert!(error.to_string().starts_with(words), "{error}");
    assert_eq!(error.is_transient(), transient);
}

#[tokio::test]
async fn replicas_that_start_together_agree() {
    let (_, client) = FakeApi::serve(None);
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let keeper = SecretKeeper::new(client.clone(), "oras", "hook-ca");
        racers.spawn(async move {
            Keeper::Secret(Box::new(keeper.clone())).establish(&Arc::new(authority()), now()).await.unwrap();
            kept(&keeper).await.certificate().clone()
        });
    }
    let results = racers.join_all().await;
    assert!(results.iter().all(|result| *result == results[0]));
}
