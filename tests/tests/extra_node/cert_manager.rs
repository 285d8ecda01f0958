//! cert-manager issues and renews the certificate of the webhook, which reads it from the Secret, and then from the Secret
//! that kubelet mounts.

use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::installation::{
    SYSTEM, helm_and_wait, served_certificates, wait_until_all_serve_others, wait_until_ready,
};
use oras_csi_tests::load::Load;
use oras_csi_tests::node::{Node, apply, until};
use oras_csi_tests::parts::testbed;
use oras_csi_tests::process::{Running, run, try_run};
use serde_json::{Value, json};

use crate::says;

const PATIENCE: Duration = Duration::from_mins(3);
/// How long the API server trusts the new CA only, while a replica serves a certificate of the old one: a replica reads the
/// Secret every 10 seconds. Longer than on any production node, for a machine that runs other tests at once.
const UNTIL_READ: Duration = Duration::from_mins(1);
const SECRET: &str = "oras-csi-webhook-tls";
const AUTHORITY: &str = "oras-csi-ca";
const CERTIFICATE: &str = "oras-csi-webhook";

/// cert-manager, until this value is dropped, and its definitions.
fn start(folder: &std::path::Path) -> Running {
    run(kubectl(&["apply", "--server-side", "-f"]).arg(testbed("cert-manager.yaml")));
    until("the definitions are served", PATIENCE, || {
        let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
        try_run(&mut kubectl(&wait)).status.success().then_some(())
    });
    Running::start(&mut Command::new(testbed("cert-manager")), "cert-manager", folder)
}

fn of_cert_manager(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "cert-manager.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": SYSTEM}, "spec": spec})
}

/// A CA that keeps its key when it is renewed, and its issuer.
fn authority() -> [Value; 3] {
    let self_signed = "oras-csi-self-signed";
    [
        of_cert_manager("Issuer", self_signed, &json!({"selfSigned": {}})),
        of_cert_manager(
            "Certificate",
            AUTHORITY,
            &json!({"isCA": true, "commonName": AUTHORITY, "secretName": AUTHORITY, "duration": "8760h",
                "privateKey": {"algorithm": "ECDSA", "rotationPolicy": "Never"},
                "issuerRef": {"name": self_signed}}),
        ),
        of_cert_manager("Issuer", AUTHORITY, &json!({"ca": {"secretName": AUTHORITY}})),
    ]
}

/// The serving certificate, with the shortest life that cert-manager accepts.
fn certificate() -> Value {
    of_cert_manager(
        "Certificate",
        CERTIFICATE,
        &json!({"secretName": SECRET, "dnsNames": [format!("oras-csi-webhook.{SYSTEM}.svc")],
            "duration": "1h", "renewBefore": "15m", "usages": ["server auth"],
            "privateKey": {"algorithm": "ECDSA", "rotationPolicy": "Always"},
            "issuerRef": {"name": AUTHORITY}}),
    )
}

fn status(certificate: &str) -> Value {
    let found: Value =
        serde_json::from_str(&says(&["get", "certificate", "-n", SYSTEM, certificate, "-o", "json"]))
            .expect("JSON");
    found["status"].clone()
}

fn is_ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let has = |kind: &str, value: &str| {
        conditions.iter().any(|condition| condition["type"] == kind && condition["status"] == value)
    };
    has("Ready", "True") && !has("Issuing", "True")
}

/// Waits until a certificate was issued more often than `revision`.
fn is_issued(certificate: &str, revision: u64) {
    until(&format!("{certificate} is issued"), PATIENCE, || {
        let status = status(certificate);
        (is_ready(&status) && status["revision"].as_u64().unwrap_or_default() > revision).then_some(())
    });
}

/// Renews a certificate now, as `cmctl renew` does.
fn renew(certificate: &str) {
    let mut status = status(certificate);
    let revision = status["revision"].as_u64().expect("it was issued");
    status["conditions"].as_array_mut().expect("conditions").push(
        json!({"type": "Issuing", "status": "True",
        "reason": "ManuallyTriggered", "message": "renewed by a test",
        "lastTransitionTime": Timestamp::now().to_string().split('.').next().map(|time| format!("{time}Z"))}),
    );
    let patch = json!({"status": {"conditions": status["conditions"]}}).to_string();
    says(&[
        "patch",
        "certificate",
        "-n",
        SYSTEM,
        certificate,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ]);
    is_issued(certificate, revision);
}

/// Lets the webhook read the certificate from a folder that kubelet mounts, instead of from the API server.
fn mount_the_secret() {
    let deployment: Value =
        serde_json::from_str(&says(&["get", "deployment", "-n", SYSTEM, "oras-csi-webhook", "-o", "json"]))
            .expect("JSON");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let arguments = container["args"].as_array().expect("arguments");
    let arguments: Vec<Value> = arguments
        .iter()
        .map(|argument| match argument.as_str() {
            Some(text) if text.starts_with("--tls-secret=") => json!("--tls-dir=/tls"),
            _ => argument.clone(),
        })
        .collect();
    let patch = json!({"spec": {"template": {"spec": {
        "volumes": [{"name": "tls", "secret": {"secretName": SECRET}}],
        "containers": [{"name": "webhook", "args": arguments,
            "volumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": true}]}]}}}});
    says(&["patch", "deployment", "-n", SYSTEM, "oras-csi-webhook", "-p", &patch.to_string()]);
    says(&["rollout", "status", "-n", SYSTEM, "deployment/oras-csi-webhook", "--timeout=120s"]);
    wait_until_ready("webhook", 2);
}

/// Waits until every replica serves another certificate. Kubelet updates mounted Secrets when it syncs a pod: about every
/// minute, or when the pod changes.
fn are_updated_by_kubelet(before: &[String]) {
    let mut touched = 0;
    until("every replica serves the certificate that kubelet has mounted", PATIENCE, || {
        touched += 1;
        let note = format!("tests.oras.land/touched={touched}");
        let webhook = "app.kubernetes.io/component=webhook";
        says(&["annotate", "pod", "-n", SYSTEM, "-l", webhook, "--overwrite", &note]);
        let now = served_certificates();
        (now.len() == before.len() && now.iter().all(|leaf| !leaf.is_empty() && !before.contains(leaf)))
            .then_some(())
    });
}

#[test]
fn certificates_of_cert_manager_are_renewed_without_a_failed_creation() {
    let node = Node::get();
    let folder = tempfile::tempdir().expect("a folder");
    let _running = start(folder.path());
    let load = Load::start(node, 1);
    for object in authority() {
        apply(&object);
    }
    is_issued(AUTHORITY, 0);
    let injected = format!("{SYSTEM}/{CERTIFICATE}");
    load.during("the chart leaves the `caBundle` to cert-manager", || {
        let annotation =
            format!("webhook.configurationAnnotations.cert-manager\\.io/inject-ca-from={injected}");
        node.upgrade_chart(&["--set", &annotation]);
    })
    .has_no_failure();

    let since = Instant::now();
    load.during("cert-manager takes over the certificate, with another CA", || {
        apply(&certificate());
        is_issued(CERTIFICATE, 0);
        until("every replica serves the certificate of cert-manager", PATIENCE, || {
            let served = served_certificates();
            (served.len() == 2 && served.iter().all(|leaf| leaf.contains(AUTHORITY))).then_some(())
        });
    })
    .has_failures_only_until(
        since,
        UNTIL_READ,
        &["failed to verify certificate"],
        "until every replica has read the Secret",
    );

    load.during("cert-manager renews the serving certificate, twice", || {
        for _ in 0..2 {
            let before = served_certificates();
            renew(CERTIFICATE);
            wait_until_all_serve_others(&before);
        }
    })
    .has_no_failure();

    load.during("cert-manager renews its CA with the same key, and the serving certificate", || {
        let before = served_certificates();
        renew(AUTHORITY);
        renew(CERTIFICATE);
        wait_until_all_serve_others(&before);
    })
    .has_no_failure();

    load.during("the webhook reads a mounted Secret of cert-manager", mount_the_secret).has_no_failure();
    load.during("cert-manager renews the certificate in the mounted Secret", || {
        let before = served_certificates();
        renew(CERTIFICATE);
        are_updated_by_kubelet(&before);
    })
    .has_no_failure();
    load.finish();
    restore(node);
}

/// Installs the chart with certificates of its own again.
fn restore(node: &Node) {
    helm_and_wait("uninstall");
    says(&["delete", "certificates,issuers", "-n", SYSTEM, "--all"]);
    says(&["delete", "secret", "-n", SYSTEM, SECRET]);
    node.install_chart();
}
