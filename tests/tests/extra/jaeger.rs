//! Jaeger itself receives the traces of the running webhook and driver, and shows one trace for a pod.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use oras_csi_tests::admission::{Cluster, pod, volume_attributes};
use oras_csi_tests::driver::{Driver, cannot_mount};
use oras_csi_tests::parts::testbed;
use oras_csi_tests::process::{Running, free_port, http_get, listens};
use serde_json::{Value, json};

use crate::programs::{PATIENCE, wait_until};

struct Jaeger {
    _running: Running,
    receiver: u16,
    query: u16,
    _folder: tempfile::TempDir,
}

impl Jaeger {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let [receiver, query] = [free_port(), free_port()];
        let mut command = Command::new(testbed("jaeger"));
        command.env("SPAN_STORAGE_TYPE", "memory");
        for (name, port) in [
            ("collector.otlp.http", receiver),
            ("query.http-server", query),
            ("collector.otlp.grpc", free_port()),
            ("collector.grpc-server", free_port()),
            ("collector.http-server", free_port()),
            ("query.grpc-server", free_port()),
            ("admin.http", free_port()),
        ] {
            command.arg(format!("--{name}.host-port=127.0.0.1:{port}"));
        }
        let mut running = Running::start(&mut command, "jaeger", folder.path());
        running.wait_until("listening", PATIENCE, || listens(receiver) && listens(query));
        Self { _running: running, receiver, query, _folder: folder }
    }

    /// Returns the spans of a trace, if Jaeger has it.
    fn trace(&self, id: &str) -> Option<Value> {
        let host = format!("127.0.0.1:{}", self.query);
        let stream = TcpStream::connect(&host).expect("it listens");
        // The trace alone is an error of HTTP until Jaeger has it.
        let all = http_get(stream, &host, "/api/traces?service=oras-csi-webhook&limit=100");
        let all: Value = serde_json::from_str(&all).expect("JSON");
        all["data"].as_array().expect("traces").iter().find(|trace| trace["traceID"] == id).cloned()
    }
}

/// Returns the spans of a trace as an indented list with their durations, from below the span `parent`.
fn tree(trace: &Value, parent: Option<&str>, depth: usize) -> String {
    let above = |span: &Value| span["references"][0]["spanID"].as_str().map(str::to_owned);
    let spans = trace["spans"].as_array().expect("spans").iter();
    let mut below: Vec<_> = spans.filter(|span| above(span).as_deref() == parent).collect();
    below.sort_by_key(|span| span["startTime"].as_u64());
    let line = |span: &&Value| {
        let (name, micros) = (span["operationName"].as_str().expect("a name"), span["duration"].as_u64());
        let tag = |key: &str| {
            let mut tags = span["tags"].as_array().expect("tags").iter();
            let found = tags.find(|tag| tag["key"] == key).map(|tag| tag["value"].clone());
            found.map_or_else(String::new, |value| {
                format!(" {}", value.as_str().unwrap_or(&value.to_string()))
            })
        };
        let milliseconds = Duration::from_micros(micros.expect("a duration")).as_secs_f64() * 1_000.0;
        let tags = tag("http.request.method") + &tag("url.path");
        let own = format!("{}{name}{tags}: {milliseconds:.1} ms\n", "  ".repeat(depth));
        own + &tree(trace, span["spanID"].as_str(), depth + 1)
    };
    below.iter().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn jaeger_shows_one_trace_from_the_admission_to_the_mount() {
    if cannot_mount().is_some() {
        return;
    }
    let jaeger = Jaeger::start();
    let endpoint = format!("--otlp-endpoint=http://127.0.0.1:{}", jaeger.receiver);
    let cluster = Cluster::start("jaeger", &[&endpoint]).await;
    let pod = pod("traced", &json!({"oras.land/artifact": "kind-registry:5000/java-app:v1"}));
    let pod = cluster.create(&pod).await.expect("admitted");
    let attributes = volume_attributes(&pod);
    let parent = attributes["csi.oras.land/traceparent"].clone();
    let id = parent.split('-').nth(1).expect("an id");

    let driver = Driver::start(cluster.certs.path(), &[&endpoint]);
    driver.publish_attributes("traced", "jaeger", attributes, None).await.expect("publishes");

    let wanted = BTreeSet::from([
        "oras-csi-webhook admission",
        "oras-csi-driver NodePublishVolume",
        "oras-csi-driver mount",
    ]);
    let trace = wait_until("Jaeger has the trace", || {
        let trace = jaeger.trace(id).ok_or("it has no trace")?;
        let spans = trace["spans"].as_array().expect("spans");
        let title = |span: &Value| {
            let process = span["processID"].as_str().expect("a process");
            let service = trace["processes"][process]["serviceName"].as_str().expect("a service");
            format!("{service} {}", span["operationName"].as_str().expect("a name"))
        };
        let names: BTreeSet<String> = spans.iter().map(title).collect();
        if wanted.iter().all(|name| names.contains(*name)) { Ok(trace) } else { Err(format!("{names:?}")) }
    });
    eprintln!("{}", tree(&trace, None, 0));
    let roots = trace["spans"].as_array().expect("spans").iter();
    let roots = roots.filter(|span| span["references"].as_array().is_none_or(Vec::is_empty));
    let names: Vec<_> = roots.map(|span| span["operationName"].as_str().expect("a name")).collect();
    assert_eq!(names, ["admission"], "one trace with one beginning: {trace:#}");
    assert!(
        trace["spans"].as_array().expect("spans").iter().all(|span| span["warnings"].is_null()),
        "{trace:#}"
    );
}
