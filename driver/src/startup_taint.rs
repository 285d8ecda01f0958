//! Removes the taint `oras.land/agent-not-ready` from the node when kubelet has registered the driver.
//!
//! An administrator lets kubelet register new nodes with this taint, so that no pod runs there before the node can mount its
//! volumes. Kubelet reports a successful registration after it has added the driver to the CSINode object, so a pod that is
//! scheduled after the removal finds the driver.
//!
//! The patch names each taint by its place in the list and tests its key. If another component changes the list at the same
//! time, the API server refuses the patch, and the driver reads the node again. So no other taint is ever removed.
//!
//! Some providers add the taint after the node has joined, and by then the driver may run already. Some set it again later, as
//! a change of a node group does. So the driver looks for the taint every 10 s during ten minutes after each registration, and
//! every five minutes after that.

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Api, Patch};
use oras_csi_core::jitter;
use oras_csi_core::keys::STARTUP_TAINT;
use oras_csi_kube_support::call::{CallError, call};
use oras_csi_kube_support::errors::{forbidden_message, is_conflict, message_with_causes};
use oras_csi_kube_support::field_manager::FieldManager;
use oras_csi_kube_support::repeated_failure::RepeatedFailure;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The name under which the API server records the patch.
const FIELD_MANAGER: FieldManager = FieldManager::new("oras-csi-driver");
/// How long the driver waits for an answer of the API server.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after a registration, or after a failure, the driver looks for the taint often.
const WATCH_TIME: Duration = Duration::from_mins(10);
/// How often it looks during that time.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How often it looks later.
const SLOW_INTERVAL: Duration = Duration::from_mins(5);
/// The delays before a retry.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(1);

/// The connection to the API server for the removal of the taint.
#[derive(Clone)]
pub struct StartupTaint {
    client: kube::Client,
}

impl StartupTaint {
    /// Uses `client` to reach the API server.
    pub fn new(client: kube::Client) -> Self {
        Self { client }
    }
}

impl fmt::Debug for StartupTaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartupTaint").finish_non_exhaustive()
    }
}

/// Removes the taint from `node` after each of the `registrations`, until `stop` is cancelled.
pub(crate) async fn run(
    taint: StartupTaint,
    node: String,
    mut registrations: watch::Receiver<u64>,
    stop: CancellationToken,
) {
    let removal = Removal { nodes: Api::all(taint.client), node, failures: RepeatedFailure::default() };
    stop.run_until_cancelled(removal.run(&mut registrations)).await;
    // Without a registration socket there are no registrations. That is no reason to stop the driver.
    stop.cancelled().await;
}

/// Why the taint was not removed.
#[derive(Debug, thiserror::Error)]
enum TaintError {
    /// The node was read, but its taints changed before the patch.
    #[error("another client changed the taints of the node at the same time")]
    Changed,
    /// RBAC, or the admission policy of the chart, denies it.
    #[error("{0}. The chart grants the permission with driver.startupTaint=true")]
    Forbidden(String),
    /// The API server failed, or did not answer.
    #[error("{0}")]
    Call(String),
}

struct Removal {
    nodes: Api<Node>,
    node: String,
    failures: RepeatedFailure,
}

impl Removal {
    async fn run(mut self, registrations: &mut watch::Receiver<u64>) {
        if registrations.changed().await.is_err() {
            return;
        }
        let mut until = Instant::now() + WATCH_TIME;
        let mut retry = FIRST_RETRY;
        loop {
            let wait = match self.remove().await {
                Ok(()) => {
                    retry = FIRST_RETRY;
                    self.failures.clear();
                    if Instant::now() < until { CHECK_INTERVAL } else { SLOW_INTERVAL }
                }
                Err(error) => {
                    let error = error.to_string();
                    if self.failures.is_new(&error) {
                        tracing::warn!(
                            node = self.node,
                            taint = STARTUP_TAINT,
                            error,
                            "cannot remove the startup taint of the node; no pod without a toleration starts there until it is removed; retrying"
                        );
                    }
                    let wait = retry;
                    retry = LAST_RETRY.min(retry * 2);
                    // A provider may have waited for the API server as well.
                    until = Instant::now() + WATCH_TIME;
                    wait
                }
            };
            let wait = wait.saturating_sub(jitter::up_to(wait / 4));
            if let Ok(changed) = tokio::time::timeout(wait, registrations.changed()).await {
                if changed.is_err() {
                    return;
                }
                until = Instant::now() + WATCH_TIME;
            }
        }
    }

    /// Removes the taint, whatever its effect and value. A node without it is not an error.
    async fn remove(&self) -> Result<(), TaintError> {
        let node = call(CALL_TIMEOUT, self.nodes.get(&self.node)).await.map_err(TaintError::new)?;
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let Some(patch) = removal_patch(&taints) else { return Ok(()) };
        let patch = serde_json::from_value(patch).map_err(|error| TaintError::Call(error.to_string()))?;
        let patch: Patch<Value> = Patch::Json(patch);
        let patched = call(CALL_TIMEOUT, self.nodes.patch(&self.node, &FIELD_MANAGER.patch(), &patch)).await;
        match patched {
            Ok(_) => {
                tracing::info!(
                    node = self.node,
                    taint = STARTUP_TAINT,
                    "removed the startup taint of the node"
                );
                Ok(())
            }
            Err(error) => Err(TaintError::new(error)),
        }
    }
}

impl TaintError {
    fn new(error: CallError) -> Self {
        let CallError::Api(error) = error else { return Self::Call(error.to_string()) };
        if let Some(message) = forbidden_message(&error) {
            return Self::Forbidden(message.to_owned());
        }
        // A test of a JSON patch that fails is an invalid request (422).
        let is_refused = matches!(&*error, kube::Error::Api(status) if status.code == 422);
        if is_refused || is_conflict(&error) {
            return Self::Changed;
        }
        Self::Call(message_with_causes(&error))
    }
}

/// Returns the JSON patch that removes each taint with the key of the startup taint; `None` if there is none.
fn removal_patch(taints: &[Taint]) -> Option<Value> {
    // The last one first, because a removal changes the places of those behind it.
    let ours = taints.iter().enumerate().rev().filter(|(_, taint)| taint.key == STARTUP_TAINT);
    let operations = ours.flat_map(|(place, taint)| {
        let path = format!("/spec/taints/{place}");
        [
            json!({"op": "test", "path": format!("{path}/key"), "value": STARTUP_TAINT}),
            json!({"op": "test", "path": format!("{path}/effect"), "value": taint.effect}),
            json!({"op": "remove", "path": path}),
        ]
    });
    let operations: Vec<Value> = operations.collect();
    (!operations.is_empty()).then_some(Value::Array(operations))
}

#[cfg(test)]
mod tests {
    use http::Method;
    use oras_csi_testkit::api_server::ApiServer;

    use super::*;

    const NODE: &str = "/api/v1/nodes/node-1";

    fn node(taints: &[(&str, &str)]) -> Value {
        let taints: Vec<Value> =
            taints.iter().map(|(key, effect)| json!({"key": key, "effect": effect})).collect();
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": {"taints": taints}})
    }

    fn taints(server: &ApiServer) -> Vec<(String, String)> {
        let node = server.get(NODE).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let taints = node["spec"]["taints"].as_array().unwrap().iter();
        taints.map(|taint| (text(&taint["key"]), text(&taint["effect"]))).collect()
    }

    fn pairs(taints: &[(&str, &str)]) -> Vec<(String, String)> {
        taints.iter().map(|(key, effect)| ((*key).to_owned(), (*effect).to_owned())).collect()
    }

    /// Starts the removal. The caller reports registrations through the sender.
    fn start(server: &ApiServer) -> (watch::Sender<u64>, CancellationToken) {
        let (sender, receiver) = watch::channel(0);
        let stop = CancellationToken::new();
        tokio::spawn(run(StartupTaint::new(server.client()), "node-1".to_owned(), receiver, stop.clone()));
        (sender, stop)
    }

    async fn pass(time: Duration) {
        tokio::time::sleep(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_taint_is_removed_after_the_registration_with_every_effect() {
        let server = ApiServer::new();
        let others = [("node.kubernetes.io/not-ready", "NoExecute"), ("dedicated", "NoSchedule")];
        let [first, second] = others;
        server.put(NODE, node(&[(STARTUP_TAINT, "NoSchedule"), first, (STARTUP_TAINT, "NoExecute"), second]));
        let (registered, _stop) = start(&server);
        pass(Duration::from_mins(5)).await;
        assert_eq!(
            (taints(&server).len(), server.log().len()),
            (4, 0),
            "kubelet has not registered the driver"
        );
        registered.send_modify(|count| *count += 1);
        pass(Duration::from_secs(5)).await;
        assert_eq!(taints(&server), pairs(&others));
        // A provider adds the taint late.
        server.put(NODE, node(&[first, (STARTUP_TAINT, "NoExecute")]));
        pass(Duration::from_secs(15)).await;
        assert_eq!(taints(&server), pairs(&[first]));
        // Later, the node is read rarely, and a taint that comes then is removed as well.
        pass(WATCH_TIME * 2).await;
        let requests = server.log().len();
        server.put(NODE, node(&[first, (STARTUP_TAINT, "NoExecute")]));
        pass(WATCH_TIME).await;
        assert!(server.log().len() - requests <= 4, "{:?}", server.log());
        assert_eq!(taints(&server), pairs(&[first]));
        // Kubelet registers the driver again, as after its restart.
        server.put(NODE, node(&[(STARTUP_TAINT, "NoExecute")]));
        registered.send_modify(|count| *count += 1);
        pass(Duration::from_secs(5)).await;
        assert_eq!(taints(&server), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_taint_that_another_client_changes_meanwhile_stays() {
        let server = ApiServer::new();
        let other = ("dedicated", "NoExecute");
        server.put(NODE, node(&[(STARTUP_TAINT, "NoExecute"), other]));
        // Between the read and the patch, another taint gets the place of ours.
        server.meanwhile(Method::PATCH, move |objects| {
            objects.insert(NODE.to_owned(), node(&[other, (STARTUP_TAINT, "NoExecute")]));
        });
        let (registered, _stop) = start(&server);
        registered.send_modify(|count| *count += 1);
        pass(Duration::from_millis(500)).await;
        assert_eq!(taints(&server).len(), 2, "{:?}", server.log());
        pass(Duration::from_secs(5)).await;
        assert_eq!(taints(&server), pairs(&[other]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_removal_is_retried_until_it_succeeds() {
        let server = ApiServer::new();
        server.put(NODE, node(&[(STARTUP_TAINT, "NoExecute")]));
        server.go_down();
        let (registered, _stop) = start(&server);
        registered.send_modify(|count| *count += 1);
        pass(Duration::from_mins(30)).await;
        let tries = server.log().len();
        assert!((28..60).contains(&tries), "{tries}");
        server.come_up();
        server.refuse_at("/api/v1/nodes", Method::PATCH, 403);
        pass(Duration::from_mins(3)).await;
        assert_eq!(taints(&server), []);
    }

    #[test]
    fn a_node_without_the_taint_needs_no_patch() {
        let other = Taint { key: "dedicated".to_owned(), effect: "NoExecute".to_owned(), ..Taint::default() };
        assert_eq!(removal_patch(&[]), None);
        assert_eq!(removal_patch(&[other]), None);
    }
}
