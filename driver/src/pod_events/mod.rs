//! Events about the volumes of a pod, as `kubectl describe pod` shows them. Kubelet itself reports only failures.
//!
//! ```text
//! publish ─► PodEventSender (each event once) ─► queue ─► PodEventWriter (token bucket) ─► API server
//! ```
//!
//! Architecture Invariant: a publish never waits for an event. The queue is bounded, and an event that does not fit is
//! dropped. An event that cannot be written is dropped as well, and the log has the failure once.
//!
//! The driver only creates events and never changes one, so its permission is `create` alone.

mod seen;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use oras_csi_core::display::Shown;
use oras_csi_store::pull::ByteSize;
use tokio::sync::mpsc;

use self::seen::Seen;
pub(crate) use self::writer::PodEventWriter;
use crate::publish::PublishRequest;

/// How many events wait to be written.
const QUEUE: usize = 256;
/// The maximum length of a note, in bytes. The API server accepts 1,024 (events.k8s.io/v1).
const MAX_NOTE_BYTES: usize = 1_000;
/// How many references of a volume an event names.
const MAX_REFERENCES: usize = 2;

/// The connection to the API server for events of pods.
#[derive(Clone)]
pub struct PodEvents {
    client: kube::Client,
}

impl PodEvents {
    /// Uses `client` to reach the API server.
    pub fn new(client: kube::Client) -> Self {
        Self { client }
    }

    /// Returns the sender for the publisher, and the writer that must run.
    pub(crate) fn start(self, node: &str) -> (PodEventSender, PodEventWriter) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let sender = PodEventSender(Some(Arc::new(Queue { sender, seen: Mutex::default() })));
        (sender, PodEventWriter::new(self.client, node, receiver))
    }
}

impl fmt::Debug for PodEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodEvents").finish_non_exhaustive()
    }
}

/// What happened. The names are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    Pulling,
    Pulled,
    Mounted,
    RateLimited,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pulling => "Pulling",
            Self::Pulled => "Pulled",
            Self::Mounted => "Mounted",
            Self::RateLimited => "RateLimited",
        }
    }

    /// The action in progress (events.k8s.io/v1).
    fn action(self) -> &'static str {
        match self {
            Self::Pulling | Self::Pulled | Self::RateLimited => "Pull",
            Self::Mounted => "Mount",
        }
    }

    fn is_warning(self) -> bool {
        self == Self::RateLimited
    }
}

/// An event that waits to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodEvent {
    reason: Reason,
    namespace: String,
    pod: String,
    uid: String,
    note: String,
    at: Timestamp,
}

/// What a pull has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pulled {
    /// The bytes that came from the network.
    pub(crate) downloaded: u64,
    /// The bytes of the files of the volume.
    pub(crate) unpacked: u64,
}

/// Passes events on, each of them once for a volume of a pod. The default sends none.
#[derive(Clone, Default)]
pub struct PodEventSender(Option<Arc<Queue>>);

struct Queue {
    sender: mpsc::Sender<PodEvent>,
    seen: Mutex<Seen>,
}

impl PodEventSender {
    /// Reports that a pull for the volume starts.
    pub(crate) fn pulling(&self, request: &PublishRequest) {
        self.send(request, Reason::Pulling, |artifact, volume| {
            format!("Pulling {artifact} for the volume \"{volume}\"")
        });
    }

    /// Reports that the pull of this call, or of an earlier call that it joined, has ended.
    pub(crate) fn pulled(&self, request: &PublishRequest, pulled: Pulled) {
        let time = self.time_since_pulling(request);
        self.send(request, Reason::Pulled, |artifact, volume| {
            format!(
                "Pulled {artifact} for the volume \"{volume}\"{}: {} from the network, {} of files",
                in_seconds(time),
                ByteSize(pulled.downloaded),
                ByteSize(pulled.unpacked)
            )
        });
    }

    /// Reports that the content was in the store when the volume was published: from the cache, or because a pull ended
    /// between two calls of kubelet.
    pub(crate) fn found(&self, request: &PublishRequest, unpacked: u64) {
        let time = self.time_since_pulling(request);
        self.send(request, Reason::Pulled, |artifact, volume| {
            let unpacked = ByteSize(unpacked);
            if time.is_some() {
                let time = in_seconds(time);
                format!("Pulled {artifact} for the volume \"{volume}\"{time} from the network: {unpacked} of files")
            } else {
                format!(
                    "Found {artifact} for the volume \"{volume}\" in the cache of the node: {unpacked} of files, nothing from the network"
                )
            }
        });
    }

    /// Reports that the volume is mounted.
    pub(crate) fn mounted(&self, request: &PublishRequest) {
        self.send(request, Reason::Mounted, |artifact, volume| {
            format!("Mounted {artifact} as the volume \"{volume}\"")
        });
    }

    /// Reports that the registry limits the rate of requests.
    pub(crate) fn rate_limited(&self, request: &PublishRequest, error: &dyn fmt::Display) {
        self.send(request, Reason::RateLimited, |_, volume| {
            format!("The registry limits the rate of requests; the volume \"{volume}\" waits: {error}")
        });
    }

    /// Returns how long ago the start of a pull was reported for the volume, if it was.
    fn time_since_pulling(&self, request: &PublishRequest) -> Option<Duration> {
        let queue = self.0.as_ref()?;
        let seen = queue.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.since(request.target().path(), Reason::Pulling).map(|since| since.elapsed())
    }

    fn send(&self, request: &PublishRequest, reason: Reason, note: impl FnOnce(&str, &Shown) -> String) {
        let Some(queue) = &self.0 else { return };
        // Other clients than kubelet may send neither.
        let (Some(pod), uid) = (request.pod_name(), request.pod_uid()) else { return };
        if pod.is_empty() || uid.is_empty() {
            return;
        }
        let path = request.target().path();
        if !queue.seen.lock().unwrap_or_else(PoisonError::into_inner).add(path, reason, Instant::now()) {
            return;
        }
        let event = PodEvent {
            reason,
            namespace: request.namespace().to_owned(),
            pod: pod.to_owned(),
            uid: uid.to_owned(),
            note: cut(note(&artifact(request), &volume_name(path))),
            at: Timestamp::now(),
        };
        if let Err(error) = queue.sender.try_send(event) {
            tracing::debug!(%error, "dropped an event of a pod");
        }
    }
}

impl fmt::Debug for PodEventSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PodEventSender").field(&self.0.is_some()).finish()
    }
}

/// Returns the references of the volume: the first ones, and how many more there are.
fn artifact(request: &PublishRequest) -> String {
    let all: Vec<String> = request.recipe().references().map(ToString::to_string).collect();
    let more = all.len().saturating_sub(MAX_REFERENCES);
    let first = all.iter().take(MAX_REFERENCES).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

/// Returns the name of the volume in kubelet's target path `…/volumes/kubernetes.io~csi/NAME/mount`.
fn volume_name(target: &Path) -> Shown {
    let name = target.parent().and_then(Path::file_name).unwrap_or_default();
    Shown::new(&name.to_string_lossy())
}

fn in_seconds(time: Option<Duration>) -> String {
    time.map_or_else(String::new, |time| match time.as_millis() {
        milliseconds @ 0..1_000 => format!(" in {milliseconds} ms"),
        _ => format!(" in {:.1} s", time.as_secs_f64()),
    })
}

/// Cuts a note at the maximum length, between two characters.
fn cut(mut note: String) -> String {
    if note.len() > MAX_NOTE_BYTES {
        let end =
            note.char_indices().map(|(place, _)| place).take_while(|place| *place <= MAX_NOTE_BYTES - 3);
        let end = end.last().unwrap_or_default();
        note.truncate(end);
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests;
