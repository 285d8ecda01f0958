//! The threads that create pods. They use a client of their own, because a `kubectl` for each request would take most of
//! the processor time of the node.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use super::counts::State;
use super::{CONTENT, LABEL, annotations};
use crate::cluster::client;
use crate::node::on_this_node;

/// How often a pod is created that does not start.
const CREATE_EVERY: Duration = Duration::from_millis(200);
/// How often the state of a pod is read.
const POLL: Duration = Duration::from_millis(200);
/// How long one request can take. The webhook has 10 seconds.
const REQUEST: Duration = Duration::from_secs(20);
/// How long a pod can take to start, in a change that delays it.
const START: Duration = Duration::from_mins(3);
/// The pods of the Deployment.
const REPLICAS: usize = 2;
const DEPLOYMENT: &str = "restarted";

/// Creates and deletes pods behind a scheduling gate until the load ends.
pub(super) fn create_all_the_time(state: &State, reference: &str) {
    block_on(async {
        let pods = pods().await;
        let mut number = 0_u64;
        while state.goes_on() {
            number += 1;
            let name = format!("created-{number}");
            let mut pod = pod(&name, reference, "true");
            pod["spec"]["schedulingGates"] = json!([{"name": "tests.oras.land/never"}]);
            if create(state, &pods, &pod).await {
                // A pod that is left is deleted at the end of the load.
                let _ = within(pods.delete(&name, &at_once())).await;
            }
            tokio::time::sleep(CREATE_EVERY).await;
        }
    });
}

/// Starts a pod that reads its volume, and replaces a pod of the Deployment, in turns until the load ends.
pub(super) fn start_all_the_time(state: &State, reference: &str) {
    block_on(async {
        let pods = pods().await;
        let mut number = 0_u64;
        while state.goes_on() {
            number += 1;
            start(state, &pods, &format!("started-{number}"), reference).await;
            restart(state, &pods).await;
        }
    });
}

async fn start(state: &State, pods: &Api<Pod>, name: &str, reference: &str) {
    let script = format!("[ \"$(cat /mnt/oras/file)\" = {CONTENT} ]");
    let begun = Instant::now();
    if !create(state, pods, &pod(name, reference, &script)).await {
        tokio::time::sleep(POLL).await;
        return;
    }
    while state.goes_on() {
        let phase = match within(pods.get_opt(name)).await {
            // A drain evicts it.
            Ok(None) => return,
            Ok(Some(pod)) if pod.metadata.deletion_timestamp.is_some() => String::new(),
            // A reboot of the node ends it while it reads.
            Ok(Some(pod)) if was_killed(&pod) => break,
            Ok(Some(pod)) => pod.status.and_then(|status| status.phase).unwrap_or_default(),
            Err(_) => String::new(),
        };
        match phase.as_str() {
            "Succeeded" => {
                let mut counts = state.counts();
                counts.started += 1;
                counts.start_times.push(begun.elapsed());
                counts.last_begun = Some(begun);
                break;
            }
            "Failed" => {
                state.cannot_read(format!("pod {name} has read something else"));
                break;
            }
            _ if begun.elapsed() > START => {
                state.cannot_read(format!("pod {name} did not start in {START:?}"));
                break;
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
    let _ = within(pods.delete(name, &at_once())).await;
}

/// Deletes a pod of the Deployment and waits until its successor runs.
async fn restart(state: &State, pods: &Api<Pod>) {
    let selected = ListParams::default().labels(&format!("{LABEL}={DEPLOYMENT}"));
    let begun = Instant::now();
    let mut deleted = None;
    while state.goes_on() {
        let found = within(pods.list(&selected)).await.map(|list| list.items).unwrap_or_default();
        let ready = found.iter().filter(|pod| pod.metadata.uid != deleted && is_ready(pod)).count();
        match (&deleted, found.first()) {
            (None, Some(pod)) if ready == REPLICAS => {
                let name = pod.metadata.name.clone().unwrap_or_default();
                if within(pods.delete(&name, &at_once())).await.is_ok() {
                    deleted = pod.metadata.uid.clone();
                }
            }
            (Some(_), _) if ready == REPLICAS => {
                state.counts().restarted += 1;
                return;
            }
            _ if begun.elapsed() > START => {
                state.cannot_read(format!("the Deployment had no {REPLICAS} ready pods in {START:?}"));
                return;
            }
            _ => {}
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Reports whether the container ended by SIGKILL.
fn was_killed(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let mut states =
        statuses.into_iter().flatten().filter_map(|status| status.state.as_ref()?.terminated.as_ref());
    states.any(|terminated| terminated.exit_code == 128 + 9)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Creates a pod and counts the result. A pod without its volume counts as not created.
async fn create(state: &State, pods: &Api<Pod>, pod: &Value) -> bool {
    let pod = serde_json::from_value(pod.clone()).expect("a pod");
    match within(pods.create(&PostParams::default(), &pod)).await {
        Ok(pod) if has_volume(&pod) => {
            state.counts().created += 1;
            true
        }
        Ok(_) => {
            state.failed("the pod was admitted without its volume".to_owned());
            true
        }
        Err(message) => {
            state.failed(message);
            false
        }
    }
}

fn has_volume(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes
        .into_iter()
        .flatten()
        .filter_map(|volume| volume.csi.as_ref())
        .any(|csi| csi.driver == "csi.oras.land")
}

fn pod(name: &str, reference: &str, script: &str) -> Value {
    on_this_node(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {LABEL: "pod"}, "annotations": annotations(reference)},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": "busybox", "command": ["sh", "-c", script]}]}}))
}

/// The Deployment whose pods are replaced.
pub(super) fn deployment(reference: &str) -> Value {
    let labels = json!({LABEL: DEPLOYMENT});
    on_this_node(json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": DEPLOYMENT, "labels": labels},
        "spec": {"replicas": REPLICAS, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels, "annotations": annotations(reference)},
                "spec": {"terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "app", "image": "busybox",
                        "command": ["sh", "-c", "cat /mnt/oras/file && exec sleep 1000000"]}]}}}}))
}

async fn pods() -> Api<Pod> {
    Api::namespaced(client().await, "default")
}

fn at_once() -> DeleteParams {
    DeleteParams::default().grace_period(0)
}

/// Waits for an answer, with a time limit.
async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(Err(kube::Error::Api(status))) => Err(status.message),
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer in {REQUEST:?}")),
    }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future);
}
