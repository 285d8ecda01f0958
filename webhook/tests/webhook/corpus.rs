//! Posts every review in `corpus/` and compares the answer with the expected one.
//!
//! `NAME.json` is a request body, valid or not. `NAME.answer` has the expected answer: the HTTP status, and for 200 whether
//! the request is allowed, whether there is a patch, the status code, and text that the message or a warning must contain.
//! `path` is the path that the body is posted to; the default is `/mutate`.

use std::path::Path;

use crate::support::{Behaviour, Bench, FixedHealth, not_found};
use axum::body::{Body, to_bytes};
use http::Request;
use oras_csi_webhook::server::{ServerSettings, router};
use serde_json::{Value, json};
use tower::ServiceExt as _;

#[tokio::test]
async fn every_review_gets_its_expected_answer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    names.sort();
    assert!(names.len() >= 79, "the corpus has {} reviews", names.len());
    let bench = Bench::new();
    bench.registry.set("r.io/missing:v1", Behaviour::Fails(not_found("r.io/missing:v1")));
    let routes = router(bench.app(FixedHealth(true), ServerSettings::default()));
    let mut wrong = Vec::new();
    for path in names {
        let wanted: Value =
            serde_json::from_str(&std::fs::read_to_string(path.with_extension("answer")).unwrap()).unwrap();
        let request = Request::post(format!("{}?timeout=10s", wanted["path"].as_str().unwrap_or("/mutate")))
            .header("content-type", "application/json")
            .body(Body::from(std::fs::read(&path).unwrap()))
            .unwrap();
        let answer = routes.clone().oneshot(request).await.unwrap();
        let http = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        let found = summary(http, &body);
        let words = found["words"].as_str().unwrap_or_default().to_owned();
        let has_words = words.contains(wanted["words"].as_str().unwrap_or_default());
        let same = ["http", "allowed", "patched", "code"].iter().all(|key| found[*key] == wanted[*key]);
        if !same || !has_words {
            wrong.push(format!("{}: wanted {wanted}, found {found}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn summary(http: u16, body: &[u8]) -> Value {
    if http != 200 {
        return json!({"http": http, "words": String::from_utf8_lossy(body)});
    }
    let answer: Value = serde_json::from_slice(body).unwrap();
    let response = &answer["response"];
    assert_eq!(response["uid"], "0df28fbd-5f5f-11e8-bc74-36e6bb280816", "{answer}");
    assert_eq!(response.get("patch").is_some(), response.get("patchType").is_some(), "{answer}");
    let mut summary = json!({"http": http, "allowed": response["allowed"]});
    if response["allowed"] == true {
        summary["patched"] = json!(response.get("patch").is_some());
        summary["words"] = json!(response["warnings"].to_string());
    } else {
        summary["code"] = response["status"]["code"].clone();
        summary["words"] = response["status"]["message"].clone();
    }
    summary
}
