//! What the running programs answer at `/metrics`: all that alerts and panels name, and what happened.

use std::time::{Duration, SystemTime};

use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_tests::admission::{Cluster, pod};
use oras_csi_tests::driver::{Driver, cannot_mount};
use oras_csi_tests::monitoring::{alerts, dashboard_expressions};
use oras_csi_tests::openmetrics::{Family, named, parse};
use serde_json::{Value, json};

const NAME: &str = "kind-registry:5000";

fn asks(name: &str, reference: &str) -> Value {
    pod(name, &json!({"oras.land/artifact": reference}))
}

/// Returns the sum of the series whose line begins with `name` and has all `labels`.
fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let is_meant = |line: &&str| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| {
            rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label))
        })
    };
    let values =
        text.lines().filter(is_meant).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}

fn is_at_least(text: &str, name: &str, labels: &[&str], least: f64) {
    let found = value(text, name, labels);
    assert!(found >= least, "{name} {labels:?}: {found}\n{text}");
}

/// Checks that a scrape has each metric of an expression, with the labels that select it.
fn check(families: &[Family], place: &str, expression: &str) {
    for (metric, labels) in named(expression).selectors {
        if metric == "up" {
            continue;
        }
        let family = families.iter().find(|family| family.series.contains(&metric));
        let family = family.unwrap_or_else(|| panic!("{place}: no program answers with {metric}"));
        for (label, ..) in labels {
            let is_known = family.labels.contains_key(&label) || ["instance", "job", "le"].contains(&&*label);
            assert!(is_known, "{place}: {metric} has no label {label}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_programs_have_what_alerts_and_panels_name() {
    let cluster = Cluster::start("metrics", &[]).await;
    cluster.create(&asks("allowed", "kind-registry:5000/java-app:v1")).await.expect("it exists");
    cluster.create(&asks("cached", "kind-registry:5000/java-app:v1")).await.expect("it exists");
    cluster.refusal(&asks("missing", "kind-registry:5000/none:v1")).await;
    cluster.refusal(&asks("unreachable", "127.0.0.1:1/none:v1")).await;
    let webhook = cluster.webhook.metrics();
    let registry = ["registry=\"kind-registry:5000\""];
    is_at_least(&webhook, "oras_csi_webhook_requests_total", &["outcome=\"patched\"", "code=\"200\""], 2.0);
    is_at_least(&webhook, "oras_csi_webhook_requests_total", &["outcome=\"denied\"", "code=\"404\""], 1.0);
    is_at_least(&webhook, "oras_csi_webhook_resolve_duration_seconds_count", &["cache=\"hit\""], 1.0);
    is_at_least(&webhook, "oras_csi_webhook_registry_request_duration_seconds_count", &registry, 1.0);
    let missing = [registry[0], "kind=\"not_found\""];
    is_at_least(&webhook, "oras_csi_webhook_registry_request_failures_total", &missing, 1.0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs_f64();
    for (kind, least) in [("serving", 6.0), ("ca", 3_000.0)] {
        let kind = format!("kind=\"{kind}\"");
        let least = now + least * 86_400.0;
        is_at_least(&webhook, "oras_csi_webhook_certificate_expiry_timestamp_seconds", &[&kind], least);
    }
    for secret in ["java-app", "none:v1", "\"metrics\""] {
        assert!(!webhook.contains(secret), "{secret} is in a label:\n{webhook}");
    }

    let driver = Driver::start(cluster.certs.path(), &[]);
    let reference = Reference::parse(&format!("{NAME}/java-app")).expect("a reference");
    let pinned = reference.pin(cluster.digest.parse().expect("a digest"));
    let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).expect("a recipe");
    if cannot_mount().is_none() {
        for pod in ["first", "second"] {
            driver.publish(pod, &recipe, None).await.expect("it is mounted");
            driver.unpublish(pod).await.expect("it is unmounted");
        }
        let text = driver.metrics();
        is_at_least(&text, "oras_csi_driver_publishes_total", &["outcome=\"done\""], 2.0);
        is_at_least(&text, "oras_csi_driver_content_bytes_total", &["source=\"registry\""], 11.0);
        is_at_least(&text, "oras_csi_driver_content_bytes_total", &["source=\"store\""], 11.0);
        is_at_least(&text, "oras_csi_driver_registry_request_duration_seconds_count", &registry, 2.0);
        is_at_least(&text, "oras_csi_driver_download_wait_seconds_count", &["priority=\"pods\""], 1.0);
        assert_eq!(value(&text, "oras_csi_driver_downloads_waiting", &[]).to_bits(), 0.0_f64.to_bits());
    }
    let families: Vec<Family> = [webhook, driver.metrics()].iter().flat_map(|text| parse(text)).collect();
    for alert in alerts() {
        check(
            &families,
            alert["alert"].as_str().expect("a name"),
            alert["expr"].as_str().expect("an expression"),
        );
    }
    for (title, expression) in dashboard_expressions() {
        check(&families, &title, &expression);
    }
}

/// docs/operate/logs.md, "Logs".
#[tokio::test(flavor = "multi_thread")]
async fn logs_are_json_or_text() {
    let certs = tempfile::tempdir().expect("a folder");
    let json_driver = Driver::start(certs.path(), &["--log-format=json"]);
    let text_driver = Driver::start(certs.path(), &["--log-format=text"]);
    for driver in [&json_driver, &text_driver] {
        oras_csi_tests::cluster::eventually("a log", Duration::from_secs(30), async || {
            if driver.log().contains("serving calls") { Ok(()) } else { Err(driver.log()) }
        })
        .await;
    }
    let log = json_driver.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    let line = lines.into_iter().find(|line| line["fields"]["message"] == "the driver is serving calls");
    let line = line.expect("the message");
    for key in ["timestamp", "level", "target"] {
        assert!(line[key].is_string(), "{line}");
    }
    assert_eq!((&line["level"], &line["fields"]["node"]), (&json!("INFO"), &json!("node1")));
    let log = text_driver.log();
    let line = log.lines().find(|line| line.contains("the driver is serving calls")).expect("the message");
    assert!(
        serde_json::from_str::<Value>(line).is_err()
            && line.contains(" INFO ")
            && line.contains("node=node1"),
        "{line}"
    );
    assert!(!log.contains('\u{1b}'), "no colours in a file: {log}");
}
