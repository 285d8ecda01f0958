//! Asks kubelet which pods it has, over the socket of its `PodResources` service.
//!
//! The service is in every supported version of Kubernetes and needs no permission at the API server. Its list names pods by
//! namespace and name, static pods included. It has the pods that kubelet is to run. A pod that was deleted by force leaves it
//! before its containers have ended, and a kubelet that has just started adds its pods one by one.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oras_csi_core::display::Shown;
use tonic::transport::Endpoint;

use crate::proto::pod_resources::ListPodResourcesRequest;
use crate::proto::pod_resources::pod_resources_lister_client::PodResourcesListerClient;

/// How long the driver waits for the list.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer: the limit of kubelet's own clients (`DefaultPodResourcesMaxSize`).
const MAX_ANSWER: usize = 16 << 20;

/// The pod that the driver runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPod {
    pod: PodKey,
    check_interval: Duration,
}

/// A pod by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Why the pods of kubelet are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeletPodsError {
    /// Kubelet does not answer, or refuses.
    #[error("cannot list the pods of kubelet at {}: {reason}", .socket.display())]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        reason: Shown,
    },
    /// Kubelet has not read all pods yet.
    #[error(
        "the list of pods at {} is not complete: it does not have the pod of this driver, {}/{}. Kubelet probably just started", .socket.display(), .own.namespace, .own.name
    )]
    Incomplete {
        /// The socket.
        socket: PathBuf,
        /// The pod of the driver.
        own: PodKey,
    },
}

impl OwnPod {
    /// The pod `name` in `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        let pod = PodKey { namespace: namespace.into(), name: name.into() };
        Self { pod, check_interval: Duration::from_secs(30) }
    }

    /// Sets how often the driver looks for volumes that kubelet cannot unpublish; by default every 30 seconds.
    #[must_use]
    pub fn with_check_interval(self, check_interval: Duration) -> Self {
        Self { check_interval, ..self }
    }
}

/// The pods of the kubelet of this node.
#[derive(Clone, Debug)]
pub(crate) struct KubeletPods {
    kubelet_dir: PathBuf,
    own: OwnPod,
}

impl KubeletPods {
    pub(crate) fn new(kubelet_dir: &Path, own: OwnPod) -> Self {
        Self { kubelet_dir: kubelet_dir.to_owned(), own }
    }

    /// Returns the folder that has a folder for each pod.
    pub(crate) fn folder(&self) -> PathBuf {
        self.kubelet_dir.join("pods")
    }

    /// Returns how often the driver looks for volumes that kubelet cannot unpublish.
    pub(crate) fn check_interval(&self) -> Duration {
        self.own.check_interval
    }

    /// Returns the pods of kubelet, if they have the pod of this driver: a kubelet that has just started knows no pods before it
    /// has read them from the API server. Younger pods, and static ones, can still be missing, so one answer proves nothing.
    pub(crate) async fn list(&self) -> Result<HashSet<PodKey>, KubeletPodsError> {
        let socket = self.kubelet_dir.join("pod-resources/kubelet.sock");
        let listed = tokio::time::timeout(TIMEOUT, list(&socket)).await;
        let listed = listed.unwrap_or_else(|_| Err("it did not answer in time".to_owned()));
        let pods = listed.map_err(|reason| KubeletPodsError::NoAnswer {
            socket: socket.clone(),
            reason: Shown::new(&reason),
        })?;
        if pods.contains(&self.own.pod) {
            Ok(pods)
        } else {
            Err(KubeletPodsError::Incomplete { socket, own: self.own.pod.clone() })
        }
    }
}

async fn list(socket: &Path) -> Result<HashSet<PodKey>, String> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
    let channel = endpoint.map_err(|error| error.to_string())?.connect().await;
    // The message of tonic alone is no more than "transport error".
    let channel = channel.map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        cause.unwrap_or_else(|| error.to_string())
    })?;
    let mut kubelet = PodResourcesListerClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let answer = kubelet.list(ListPodResourcesRequest {}).await;
    let pods = answer.map_err(|status| status.message().to_owned())?.into_inner().pod_resources;
    Ok(pods.into_iter().map(|pod| PodKey { namespace: pod.namespace, name: pod.name }).collect())
}
