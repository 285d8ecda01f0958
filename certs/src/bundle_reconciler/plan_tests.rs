//! Which bundles are written, and which are not.

use super::super::webhook_configuration::bundle_of;
use super::*;
use crate::authority::{AUTHORITY_LIFE, Authority};
use crate::testing::now;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use rstest::rstest;
use serde_json::json;

fn authority() -> CaBundle {
    CaBundle::from(Authority::generate(now()).unwrap().certificate().clone())
}

fn configuration(bundles: &[&str], annotations: &Value) -> MutatingWebhookConfiguration {
    let webhooks: Vec<Value> = bundles
        .iter()
        .enumerate()
        .map(|(index, pem)| {
            json!({
                "name": format!("hook-{index}.oras.land"), "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "clientConfig": {
                    "service": {"name": "hook", "namespace": "oras"},
                    "caBundle": ByteString(pem.as_bytes().to_vec()),
                },
            })
        })
        .collect();
    let metadata = json!({"name": "oras", "resourceVersion": "7", "annotations": annotations});
    serde_json::from_value(json!({"metadata": metadata, "webhooks": webhooks})).unwrap()
}

/// Returns the bundle that a plan writes for the webhook at `index`.
fn written(plan: &Plan, index: usize) -> Option<CaBundle> {
    let Plan::Patch { patch, .. } = plan else { return None };
    let path = format!("/webhooks/{index}/clientConfig/caBundle");
    patch.0.iter().find_map(|operation| match operation {
        PatchOperation::Add(add) if add.path.as_str() == path => {
            let bytes: ByteString = serde_json::from_value(add.value.clone()).unwrap();
            Some(bundle_of(Some(&bytes)))
        }
        _ => None,
    })
}

#[test]
fn only_webhooks_without_the_bundle_are_written_and_tests_come_first() {
    let ours = authority();
    // PEM, but not a certificate.
    let hollow = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    assert!(bundle_of(Some(&ByteString(hollow.into()))).is_empty());
    let plan = plan(&configuration(&["", &ours.pem(), hollow], &Value::Null), &ours, ForeignCas::Keep, now());
    assert_eq!(written(&plan, 0), Some(ours.clone()));
    assert_eq!(written(&plan, 1), None);
    let replaced = written(&plan, 2).unwrap();
    assert_eq!(replaced, ours, "{replaced:?}");
    let Plan::Patch { patch, webhooks } = plan else { panic!("nothing is written") };
    assert_eq!(webhooks, ["hook-0.oras.land", "hook-2.oras.land"]);
    let operations = serde_json::to_value(&patch).unwrap();
    let paths: Vec<_> =
        operations.as_array().unwrap().iter().map(|o| format!("{} {}", o["op"], o["path"])).collect();
    assert_eq!(
        paths.join("\n").replace('"', ""),
        "test /metadata/resourceVersion\n\
         test /webhooks/0/name\nadd /webhooks/0/clientConfig/caBundle\n\
         test /webhooks/2/name\nadd /webhooks/2/clientConfig/caBundle"
    );
}

#[test]
fn certificates_are_compared_and_not_bytes() {
    let (one, two) = (authority(), authority());
    let mut desired = one.clone();
    desired.extend(two.iter().cloned());
    let live = format!("# swapped\r\n{}\n\n{}{}", two.pem(), one.pem().replace('\n', "\r\n"), two.pem());
    let plan = plan(&configuration(&[&live], &Value::Null), &desired, ForeignCas::Remove, now());
    assert!(matches!(plan, Plan::Nothing { has_foreign_cas: false }), "{plan:?}");
}

#[test]
fn foreign_cas_are_removed_after_a_grace_time() {
    let (ours, others) = (authority(), authority());
    let theirs = configuration(&[&others.pem()], &Value::Null);
    let both: CaBundle = ours.iter().chain(others.iter()).cloned().collect();
    assert_eq!(written(&plan(&theirs, &ours, ForeignCas::Keep, now()), 0), Some(both.clone()));
    let overlap = configuration(&[&both.pem()], &Value::Null);
    assert!(matches!(
        plan(&overlap, &ours, ForeignCas::Keep, now()),
        Plan::Nothing { has_foreign_cas: true }
    ));
    assert_eq!(written(&plan(&overlap, &ours, ForeignCas::Remove, now()), 0), Some(ours.clone()));
    let expired = now() + 2 * AUTHORITY_LIFE;
    assert_eq!(
        written(&plan(&theirs, &ours, ForeignCas::Keep, expired), 0),
        Some(ours),
        "expired CAs are removed at once"
    );
}

#[rstest]
#[case("cert-manager.io/inject-ca-from")]
#[case("cert-manager.io/inject-ca-from-secret")]
#[case("cert-manager.io/inject-apiserver-ca")]
fn a_configuration_of_cert_manager_is_never_patched(#[case] annotation: &str) {
    let configuration = configuration(&[""], &json!({annotation: "oras/hook"}));
    for foreign in [ForeignCas::Keep, ForeignCas::Remove] {
        let plan = plan(&configuration, &authority(), foreign, now());
        assert!(matches!(plan, Plan::Nothing { has_foreign_cas: false }), "{plan:?}");
    }
}

#[test]
fn without_a_bundle_nothing_is_written() {
    let plan =
        plan(&configuration(&["", "x"], &Value::Null), &CaBundle::default(), ForeignCas::Remove, now());
    assert!(matches!(plan, Plan::Nothing { has_foreign_cas: false }), "{plan:?}");
}
