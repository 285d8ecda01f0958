//! Writes the events of pods, at a bounded rate.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::Api;
use oras_csi_kube_support::call::{CallError, call};
use oras_csi_kube_support::errors::{forbidden_message, is_not_found, message_with_causes};
use oras_csi_kube_support::field_manager::FieldManager;
use oras_csi_kube_support::repeated_failure::RepeatedFailure;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::PodEvent;

/// The name under which the API server records the events.
const FIELD_MANAGER: FieldManager = FieldManager::new("oras-csi-driver");
/// How long the driver waits for an answer of the API server.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How many events are written at once after a pause (client-go, `EventSourceObjectSpamFilter`, has the same).
const BURST: u32 = 25;
/// How often one more event can be written.
const REFILL: Duration = Duration::from_millis(200);
/// The maximum length of `reportingInstance` (events.k8s.io/v1). The name of a node can be longer.
const MAX_INSTANCE_CHARS: usize = 128;
/// The maximum length of the name of an object.
const MAX_NAME_CHARS: usize = 253;

/// Writes events until it is stopped. What is not written then is dropped.
pub(crate) struct PodEventWriter {
    client: kube::Client,
    instance: String,
    events: mpsc::Receiver<PodEvent>,
    failures: RepeatedFailure,
    tokens: TokenBucket,
}

/// Counts how many events can be written now.
struct TokenBucket {
    tokens: u32,
    refilled: Instant,
}

impl TokenBucket {
    fn new(now: Instant) -> Self {
        Self { tokens: BURST, refilled: now }
    }

    /// Takes a token. Returns how long to wait for one if there is none.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let elapsed = now.saturating_duration_since(self.refilled);
        let more = u32::try_from(elapsed.as_millis() / REFILL.as_millis()).unwrap_or(u32::MAX);
        if self.tokens.saturating_add(more) >= BURST {
            (self.tokens, self.refilled) = (BURST, now);
        } else {
            self.tokens += more;
            self.refilled += REFILL * more;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Ok(())
            }
            None => Err(REFILL.saturating_sub(now.saturating_duration_since(self.refilled))),
        }
    }
}

impl PodEventWriter {
    pub(super) fn new(client: kube::Client, node: &str, events: mpsc::Receiver<PodEvent>) -> Self {
        let (failures, tokens) = (RepeatedFailure::default(), TokenBucket::new(Instant::now()));
        let instance = node.chars().take(MAX_INSTANCE_CHARS).collect();
        Self { client, instance, events, failures, tokens }
    }

    /// Writes events until `stop` is cancelled.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let writing = async {
            while let Some(event) = self.events.recv().await {
                while let Err(wait) = self.tokens.take(Instant::now()) {
                    tokio::time::sleep(wait).await;
                }
                self.write(event).await;
            }
        };
        stop.run_until_cancelled(writing).await;
        // The publisher may have been dropped already. That is no reason to stop the driver.
        stop.cancelled().await;
    }

    async fn write(&mut self, event: PodEvent) {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &event.namespace);
        let object = object(event, &self.instance);
        match call(CALL_TIMEOUT, events.create(&FIELD_MANAGER.post(), &object)).await {
            Ok(_) => {
                self.failures.clear();
            }
            // The namespace was deleted, or is being deleted.
            Err(CallError::Api(error)) if is_not_found(&error) || is_terminating(&error) => {}
            Err(error) => {
                let error = described(&error);
                if self.failures.is_new(&error) {
                    tracing::warn!(
                        error,
                        "cannot write events of pods; volumes are mounted nevertheless, and later events are tried"
                    );
                }
            }
        }
    }
}

/// Reports whether the API server refused because the namespace is being deleted (NamespaceLifecycle).
fn is_terminating(error: &kube::Error) -> bool {
    forbidden_message(error).is_some_and(|message| message.contains("being terminated"))
}

/// Returns the message of a failure, without the names of objects, so that the same failure is logged once.
fn described(error: &CallError) -> String {
    let CallError::Api(error) = error else { return error.to_string() };
    match forbidden_message(error) {
        Some(_) => {
            "the API server denies it. The chart grants the permission with driver.podEvents=true".to_owned()
        }
        None => message_with_causes(error),
    }
}

/// Makes the object of an event.
fn object(event: PodEvent, instance: &str) -> Event {
    let PodEvent { reason, namespace, pod, uid, note, at } = event;
    // As client-go names events: the name of the object and the time.
    let suffix = format!(".{:x}", at.as_nanosecond());
    let prefix: String = pod.chars().take(MAX_NAME_CHARS - suffix.len()).collect();
    let name = format!("{}{suffix}", prefix.trim_end_matches(['.', '-']));
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        action: Some(reason.action().to_owned()),
        event_time: Some(MicroTime(at)),
        note: Some(note),
        reason: Some(reason.as_str().to_owned()),
        // The same reference as in kubelet's own events, so that `kubectl describe pod` finds them.
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod),
            namespace: Some(namespace),
            uid: Some(uid),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(FIELD_MANAGER.name().to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(if reason.is_warning() { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_allows_a_burst_and_then_five_events_a_second() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(start);
        let mut written = 0;
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            while bucket.take(now).is_ok() {
                written += 1;
            }
        }
        // 25 at once, and one after each 200 ms of the ten seconds.
        assert_eq!(written, 25 + 49);
        let wait = bucket.take(start + Duration::from_millis(9_999)).unwrap_err();
        assert_eq!(wait, Duration::from_millis(1));
        // A pause fills the bucket, and no more.
        let later = start + Duration::from_hours(1);
        let burst = (0..100).filter(|_| bucket.take(later).is_ok()).count();
        assert_eq!(burst, 25);
    }
}
