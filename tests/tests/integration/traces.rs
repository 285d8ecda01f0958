//! One trace from the admission of a pod to the mount of its volumes, as a collector receives it (docs/operate/traces.md).

use std::time::Duration;

use kube::Api;
use kube::api::PostParams;
use oras_csi_tests::admission::{Cluster, create_in, pod, volume_attributes as attributes};
use oras_csi_tests::cluster::eventually;
use oras_csi_tests::collector::{Collector, Span};
use oras_csi_tests::driver::{Driver, cannot_mount};
use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::registry::{Distribution, files};
use oras_csi_tests::webhook::Webhook;
use serde_json::json;

const PARENT: &str = "csi.oras.land/traceparent";
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a span of a trace.
async fn span(collector: &Collector, trace: &str, service: &str, name: &str) -> Span {
    eventually(&format!("the span {name}"), PATIENCE, async || {
        let spans = collector.spans();
        let mut own = spans.iter().filter(|span| span.trace == trace && span.service() == service);
        let names = || spans.iter().map(|span| (span.name.clone(), span.trace.clone())).collect::<Vec<_>>();
        own.find(|span| span.name == name).cloned().ok_or_else(|| format!("{:?}", names()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_one_trace_from_its_admission_to_the_mount() {
    if cannot_mount().is_some() {
        return;
    }
    let collector = Collector::start().await;
    let endpoint = format!("--otlp-endpoint={}", collector.url());
    let cluster = Cluster::start("traces", &[&endpoint]).await;
    let reference = push(&cluster.registry, "traced:v1");
    let first =
        cluster.create(&pod("first", &json!({"oras.land/artifact": reference}))).await.expect("admitted");
    let first = attributes(&first);
    let parent: Vec<&str> = first[PARENT].split('-').collect();
    let (trace, admission) = (parent[1], parent[2]);

    let driver = Driver::start(cluster.certs.path(), &[&endpoint]);
    driver.publish_attributes("first", "traces", first.clone(), None).await.expect("publishes");

    let admitted = span(&collector, trace, "oras-csi-webhook", "admission").await;
    assert_eq!(admitted.id, admission, "the volume names the span of the admission");
    assert_eq!(admitted.parent, "");
    assert_eq!(admitted.attribute("k8s.namespace.name"), "traces");
    assert!(admitted.attribute("oras_csi.pinned").contains("@sha256:"), "{admitted:?}");
    let resolve = span(&collector, trace, "oras-csi-webhook", "resolve references").await;
    assert_eq!(resolve.parent, admission);
    let requests =
        collector.spans().into_iter().filter(|span| span.trace == trace && span.name == "HTTP request");
    let requests: Vec<_> = requests.filter(|span| span.service() == "oras-csi-webhook").collect();
    let of_tag = requests.iter().find(|span| span.attribute("url.path") == "/v2/traced/manifests/v1");
    assert_eq!(of_tag.expect("a request").attribute("http.response.status_code"), "200", "{requests:?}");

    let publish = span(&collector, trace, "oras-csi-driver", "NodePublishVolume").await;
    assert_eq!(publish.parent, admission, "the driver continues the trace");
    assert_eq!(publish.attribute("k8s.pod.name"), "first");
    assert_eq!(publish.attribute("k8s.node.name"), "node1");
    for (name, above) in [
        ("check pull permission", "NodePublishVolume"),
        ("wait for the pull", "NodePublishVolume"),
        ("pull", "wait for the pull"),
        ("read manifests", "pull"),
        ("fetch", "pull"),
        ("assemble", "pull"),
        ("mount", "NodePublishVolume"),
    ] {
        let one = span(&collector, trace, "oras-csi-driver", name).await;
        let above = span(&collector, trace, "oras-csi-driver", above).await;
        assert_eq!(one.parent, above.id, "{name} is below {}", above.name);
    }

    // Another pod has another trace. It finds the content in the store.
    let second =
        cluster.create(&pod("second", &json!({"oras.land/artifact": reference}))).await.expect("admitted");
    let second = attributes(&second);
    let other = second[PARENT].split('-').nth(1).expect("a trace").to_owned();
    assert_ne!(other, trace);
    driver.publish_attributes("second", "traces", second, None).await.expect("publishes");
    span(&collector, &other, "oras-csi-driver", "mount").await;
    let spans = collector.spans();
    assert!(!spans.iter().any(|span| span.trace == other && span.name == "pull"), "{spans:?}");

    // A failure says the same as the event of the pod.
    let missing = format!("{reference}-none");
    let denied = cluster.refusal(&pod("third", &json!({"oras.land/artifact": missing}))).await;
    let failed = eventually("the span of the denial", PATIENCE, async || {
        collector
            .spans()
            .into_iter()
            .find(|span| span.name == "admission" && span.attribute("oras_csi.code") == "404")
            .ok_or_else(|| "none".to_owned())
    })
    .await;
    assert!(denied.message.contains(&failed.status), "{}\n{}", denied.message, failed.status);
}

fn push(registry: &Distribution, repository_and_tag: &str) -> String {
    registry.push(repository_and_tag, files::one_file().path(), &["app.jar"]);
    format!("kind-registry:5000/{repository_and_tag}")
}

/// A pod that comes back with its trace, as when the API server calls the webhook again, keeps it. Where no traces are
/// sent, no volume has one, whatever the pod came with.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_admission_keeps_the_trace_and_a_webhook_without_traces_removes_it() {
    let collector = Collector::start().await;
    let endpoint = format!("--otlp-endpoint={}", collector.url());
    let cluster = Cluster::start("traces-again", &[&endpoint]).await;
    let reference = push(&cluster.registry, "again:v1");
    let created =
        cluster.create(&pod("one", &json!({"oras.land/artifact": reference}))).await.expect("admitted");
    let mut again = pod("two", &created["metadata"]["annotations"]);
    again["spec"]["volumes"] = created["spec"]["volumes"].clone();
    let kept = cluster.create(&again).await.expect("admitted");
    assert_eq!(attributes(&kept), attributes(&created));

    let mut forged = again.clone();
    forged["metadata"]["name"] = json!("three");
    let volumes = forged["spec"]["volumes"].as_array_mut().expect("volumes");
    for volume in volumes.iter_mut().filter(|volume| volume["csi"]["driver"] == "csi.oras.land") {
        volume["csi"]["volumeAttributes"][PARENT] = json!("00-zz");
    }
    let fresh = cluster.create(&forged).await.expect("the volume of the annotations is made again");
    assert_ne!(attributes(&fresh)[PARENT], "00-zz");

    let namespace = "traces-off";
    let webhook = Webhook::start(&cluster.client, namespace, cluster.certs.path(), &[]).await;
    let pods = Api::namespaced(cluster.client.clone(), namespace);
    let off = create_in(&pods, &again, &PostParams::default()).await.expect("admitted");
    assert!(!attributes(&off).contains_key(PARENT), "{off}");
    webhook.uninstall(&cluster.client).await;
}

/// Collectors that answer nothing and that do not exist delay neither an admission nor a mount, nor the end of the programs.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_delays_nothing() {
    if cannot_mount().is_some() {
        return;
    }
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("an address");
    for (name, address) in [("traces-silent", silent.to_string()), ("traces-away", "127.0.0.1:1".to_owned())]
    {
        let endpoint = format!("--otlp-endpoint=http://{address}");
        let mut cluster = Cluster::start(name, &[&endpoint]).await;
        let reference = push(&cluster.registry, "quick:v1");
        let mut driver = Driver::start(cluster.certs.path(), &[&endpoint]);
        for pod_name in ["one", "two", "three"] {
            // The API server gives the webhook ten seconds, and a failure denies the pod.
            let admitted = cluster.create(&pod(pod_name, &json!({"oras.land/artifact": reference}))).await;
            let attributes = attributes(&admitted.expect("admitted"));
            driver.publish_attributes(pod_name, name, attributes, None).await.expect("publishes");
        }
        // They end, with spans that were not sent.
        cluster.webhook.replace(&oras_csi());
        driver.replace(&oras_csi());
    }
}
