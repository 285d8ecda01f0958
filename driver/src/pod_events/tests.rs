//! Tests of events of pods, with an API server in memory.

use std::collections::HashMap;

use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_testkit::api_server::ApiServer;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::proto::csi::volume_capability::{AccessType, MountVolume};
use crate::proto::csi::{NodePublishVolumeRequest, VolumeCapability};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/team/events";

fn request(pod: &str, references: usize) -> PublishRequest {
    let step = |number: usize| {
        let text = format!("ghcr.io/acme/m{number}@sha256:{}", "ab".repeat(32));
        Step::Add(Layer::new(text.parse().unwrap()).at(format!("m{number}").parse().unwrap()))
    };
    let recipe = PinnedRecipe::new((0..references).map(step).collect()).unwrap();
    let volume = CanonicalVolume::new(None, recipe).unwrap();
    let attributes = volume.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value));
    let mut volume_context: HashMap<String, String> = attributes.collect();
    for (key, value) in [("pod.name", pod), ("pod.namespace", "team"), ("pod.uid", "u1")] {
        volume_context.insert(format!("csi.storage.k8s.io/{key}"), value.to_owned());
    }
    PublishRequest::parse(&NodePublishVolumeRequest {
        volume_id: "csi-1".to_owned(),
        target_path: format!("/kubelet/pods/{pod}/volumes/kubernetes.io~csi/model/mount"),
        volume_capability: Some(VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume::default())),
            ..VolumeCapability::default()
        }),
        volume_context,
        ..NodePublishVolumeRequest::default()
    })
    .unwrap()
}

fn start(server: &ApiServer) -> (PodEventSender, CancellationToken) {
    let (sender, writer) = PodEvents::new(server.client()).start("node-1");
    let stop = CancellationToken::new();
    tokio::spawn(writer.run(stop.clone()));
    (sender, stop)
}

fn written(server: &ApiServer) -> Vec<Value> {
    server
        .objects()
        .into_iter()
        .filter(|(path, _)| path.starts_with(EVENTS))
        .map(|(_, object)| object)
        .collect()
}

fn notes(server: &ApiServer) -> Vec<String> {
    let line =
        |event: &Value| format!("{} {}", event["reason"].as_str().unwrap(), event["note"].as_str().unwrap());
    written(server).iter().map(line).collect()
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn each_event_is_written_once_about_the_pod() {
    let server = ApiServer::new();
    let (events, _stop) = start(&server);
    let pod = request("web-0", 1);
    for _ in 0..3 {
        events.pulling(&pod);
        events.pulled(&pod, Pulled { downloaded: 3 << 30, unpacked: 4_096 });
        events.mounted(&pod);
    }
    pass(Duration::from_secs(1)).await;
    let written = written(&server);
    assert_eq!(written.len(), 3, "{written:#?}");
    let notes = notes(&server);
    let digest = format!("ghcr.io/acme/m0@sha256:{}", "ab".repeat(32));
    for note in [
        format!("Pulling Pulling {digest} for the volume \"model\""),
        format!("Mounted Mounted {digest} as the volume \"model\""),
    ] {
        assert!(notes.contains(&note), "{notes:#?}");
    }
    let pulled = notes.iter().find(|note| note.starts_with("Pulled ")).unwrap();
    assert!(pulled.ends_with("ms: 3.0 GiB from the network, 4.0 KiB of files"), "{pulled}");
    for event in &written {
        let regarding = &event["regarding"];
        assert_eq!(
            (&regarding["kind"], &regarding["name"], &regarding["uid"]),
            (&"Pod".into(), &"web-0".into(), &"u1".into())
        );
        assert_eq!(regarding["namespace"], "team");
        assert_eq!((&event["reportingInstance"], &event["type"]), (&"node-1".into(), &"Normal".into()));
        assert!(!event["action"].as_str().unwrap().is_empty() && !event["eventTime"].is_null());
    }
}

#[tokio::test(start_paused = true)]
async fn content_of_the_node_differs_from_a_pull_that_ended_between_two_calls() {
    let server = ApiServer::new();
    let (events, _stop) = start(&server);
    events.found(&request("warm", 1), 1 << 20);
    let slow = request("slow", 1);
    events.pulling(&slow);
    events.found(&slow, 1 << 20);
    events.rate_limited(&request("throttled", 1), &"GET https://ghcr.io: too many requests");
    pass(Duration::from_secs(1)).await;
    let notes = notes(&server);
    let has = |part: &str| notes.iter().filter(|note| note.contains(part)).count();
    assert_eq!(has("in the cache of the node: 1.0 MiB of files, nothing from the network"), 1, "{notes:#?}");
    assert_eq!(has("ms from the network: 1.0 MiB of files"), 1, "{notes:#?}");
    assert_eq!(has("too many requests"), 1);
    let throttled = written(&server).into_iter().find(|event| event["reason"] == "RateLimited").unwrap();
    assert_eq!(throttled["type"], "Warning");
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_bounded_and_never_blocks() {
    let server = ApiServer::new();
    let (events, _stop) = start(&server);
    for pod in 0..2_000 {
        events.mounted(&request(&format!("pod-{pod}"), 1));
    }
    pass(Duration::from_millis(100)).await;
    assert!(written(&server).len() <= 26, "{}", written(&server).len());
    pass(Duration::from_mins(10)).await;
    assert_eq!(written(&server).len(), QUEUE, "the rest was dropped");
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_events_are_dropped() {
    let server = ApiServer::new();
    server.go_down();
    let (events, _stop) = start(&server);
    for pod in 0..30 {
        events.mounted(&request(&format!("pod-{pod}"), 1));
    }
    pass(Duration::from_mins(10)).await;
    assert_eq!(server.log().len(), 30, "each is tried once");
    server.come_up();
    events.mounted(&request("later", 1));
    pass(Duration::from_secs(1)).await;
    assert_eq!(notes(&server).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn long_and_hostile_texts_fit_into_an_event() {
    let server = ApiServer::new();
    let (events, _stop) = start(&server);
    let name = "a".repeat(253);
    events.pulling(&request(&name, 20));
    events.rate_limited(&request(&name, 20), &"ü".repeat(5_000));
    pass(Duration::from_secs(1)).await;
    for event in written(&server) {
        assert!(event["note"].as_str().unwrap().len() <= 1_024, "{event}");
        assert!(event["metadata"]["name"].as_str().unwrap().len() <= 253);
    }
    let notes = notes(&server);
    assert_eq!(notes.len(), 2);
    assert!(notes.iter().any(|note| note.contains(" and 18 more for the volume")), "{notes:#?}");
}

#[test]
fn without_a_connection_nothing_is_sent() {
    let events = PodEventSender::default();
    events.pulling(&request("web-0", 1));
    assert_eq!(events.time_since_pulling(&request("web-0", 1)), None);
}
