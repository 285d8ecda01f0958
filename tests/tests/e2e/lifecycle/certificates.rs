//! Certificates of three webhook replicas: the CA is replaced, the serving certificates are renewed, and the Secret is
//! damaged in every way.
//!
//! The lives are shortened through the CA: a serving certificate ends with its CA, and is renewed when a third of its life
//! is left. Its life begins more than a day before it is issued, so the certificates of a CA that ends soon are due at once:
//! each replica renews its own at every poll of the Secret, 10 seconds apart.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::installation::{
    restarts, served_certificates, wait_until_all_serve_others, wait_until_ready,
};
use oras_csi_tests::load::Load;
use oras_csi_tests::node::{Node, until};
use oras_csi_tests::process::try_run;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

use crate::{PATIENCE, SYSTEM, says};

const SECRET: &str = "oras-csi-webhook-tls";
const REPLICAS: usize = 3;
/// How often each replica reads the Secret.
const POLL: Duration = Duration::from_secs(10);
/// The life of a CA that ends soon.
const SHORT: Duration = Duration::from_hours(1);
const LONG: Duration = Duration::from_hours(24 * 365);

/// A CA and its key, in PEM.
struct Ca {
    name: String,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

impl Ca {
    fn new(name: &str, life: Duration) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (SystemTime::now() - Duration::from_hours(48)).into();
        params.not_after = (SystemTime::now() + life).into();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let text = key.serialize_pem();
        Self { name: name.to_owned(), issuer: Issuer::new(params, key), certificate, key: text }
    }

    /// A serving certificate for the webhook that has expired, and its key.
    fn expired(&self) -> (String, String) {
        let mut params =
            CertificateParams::new([format!("oras-csi-webhook.{SYSTEM}.svc")]).expect("a DNS name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = (SystemTime::now() - Duration::from_hours(48)).into();
        params.not_after = (SystemTime::now() - Duration::from_hours(24)).into();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

/// Changes entries of the Secret; `Null` removes one.
fn patch(entries: &[(&str, Option<&str>)]) {
    let entries = entries
        .iter()
        .map(|(name, text)| ((*name).to_owned(), json!(text.map(|text| STANDARD.encode(text)))));
    let patch = json!({"data": entries.collect::<serde_json::Map<_, _>>()}).to_string();
    says(&["patch", "secret", "-n", SYSTEM, SECRET, "--type=merge", "-p", &patch]);
}

fn entry(name: &str) -> Option<String> {
    let output = try_run(&mut kubectl(&["get", "secret", "-n", SYSTEM, SECRET, "-o", "json"]));
    let secret: Value = serde_json::from_slice(&output.stdout).ok()?;
    let bytes = STANDARD.decode(secret["data"][name].as_str()?).ok()?;
    String::from_utf8(bytes).ok()
}

/// Makes `ca` the CA, as docs/install says, and waits until every replica serves a certificate of it.
fn replace_ca(ca: &Ca) {
    let previous = entry("ca.crt").expect("there is a CA");
    patch(&[
        ("ca-previous.crt", Some(&previous)),
        ("ca.crt", Some(&ca.certificate)),
        ("ca.key", Some(&ca.key)),
    ]);
    until("every replica serves a certificate of the new CA", PATIENCE, || {
        let served = served_certificates();
        (served.len() == REPLICAS && served.iter().all(|leaf| leaf.contains(&ca.name))).then_some(())
    });
}

/// Waits until every replica has read the Secret since now.
fn is_read_by_every_replica() {
    std::thread::sleep(POLL + Duration::from_secs(3));
}

#[test]
fn certificates_are_rotated_and_a_damaged_secret_is_survived_by_three_replicas() {
    let node = Node::get();
    says(&["scale", "-n", SYSTEM, "deployment/oras-csi-webhook", &format!("--replicas={REPLICAS}")]);
    wait_until_ready("webhook", REPLICAS);
    let load = Load::start(node, 1);
    let running = restarts("webhook");

    let short = Ca::new("lifecycle short", SHORT);
    load.during("a new CA, with three replicas", || replace_ca(&short)).has_no_failure();

    load.during("each serving certificate is renewed twice", || {
        for _ in 0..2 {
            wait_until_all_serve_others(&served_certificates());
        }
    })
    .has_no_failure();

    let long = Ca::new("lifecycle long", LONG);
    load.during("another CA, before the first one ends", || replace_ca(&long)).has_no_failure();

    load.during("garbage in the TLS Secret", || {
        let garbage = Some("garbage");
        patch(&["ca.crt", "ca.key", "tls.crt", "tls.key"].map(|name| (name, garbage)));
        is_read_by_every_replica();
    })
    .has_no_failure();

    load.during("an expired certificate in the TLS Secret", || {
        let (certificate, key) = short.expired();
        patch(&[
            ("ca.crt", Some(&short.certificate)),
            ("ca.key", None),
            ("tls.crt", Some(&certificate)),
            ("tls.key", Some(&key)),
        ]);
        is_read_by_every_replica();
    })
    .has_no_failure();

    load.during("the TLS Secret is deleted", || {
        says(&["delete", "secret", "-n", SYSTEM, SECRET]);
        until("a replica writes its CA again", PATIENCE, || entry("ca.crt"));
        is_read_by_every_replica();
    })
    .has_no_failure();
    let kept = entry("ca.crt").expect("it was written");
    let lines = |pem: &str| pem.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&kept), lines(&long.certificate), "the CA that the API server trusts");
    assert_eq!(restarts("webhook"), running, "no replica was restarted");

    load.finish();
    says(&["scale", "-n", SYSTEM, "deployment/oras-csi-webhook", "--replicas=2"]);
    wait_until_ready("webhook", 2);
}
