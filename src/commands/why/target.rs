//! The object that a user names: a pod or a workload, as kubectl names them.

use std::fmt;
use std::str::FromStr;

use oras_csi_core::display::Shown;
use oras_csi_core::dns_name::{InvalidName, is_subdomain};

/// A pod or a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// Whether the kind was written. Without one, a workload of that name is found if there is no such pod.
    pub(crate) is_explicit: bool,
}

/// The kinds of objects that `why` explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pod,
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    Job,
}

/// The workloads that a name without a kind can mean, in the order in which they are looked up.
pub(crate) const WORKLOADS: [Kind; 4] = [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet, Kind::Job];

/// Why a text names no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    /// The kind is not known.
    #[error("\"{0}\" is not a kind that can be explained: write pod, deploy, rs, sts, ds or job")]
    Kind(Shown),
    /// The name is no name of an object.
    #[error("\"{0}\" is not the name of an object: {InvalidName}")]
    Name(Shown),
}

impl Kind {
    fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "pod" | "pods" | "po" => Self::Pod,
            "deployment" | "deployments" | "deploy" | "deployment.apps" | "deployments.apps" => {
                Self::Deployment
            }
            "replicaset" | "replicasets" | "rs" | "replicaset.apps" => Self::ReplicaSet,
            "statefulset" | "statefulsets" | "sts" | "statefulset.apps" => Self::StatefulSet,
            "daemonset" | "daemonsets" | "ds" | "daemonset.apps" => Self::DaemonSet,
            "job" | "jobs" | "job.batch" => Self::Job,
            _ => return None,
        })
    }

    /// Returns the kind as an object has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::ReplicaSet => "ReplicaSet",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::Job => "Job",
        }
    }

    /// Returns the kind as kubectl takes it.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Deployment => "deploy",
            Self::ReplicaSet => "rs",
            Self::StatefulSet => "sts",
            Self::DaemonSet => "ds",
            Self::Job => "job",
        }
    }

    /// Returns the kind of a controller.
    pub(crate) fn of_controller(kind: &str) -> Option<Self> {
        [Self::Deployment, Self::ReplicaSet, Self::StatefulSet, Self::DaemonSet, Self::Job]
            .into_iter()
            .find(|known| known.as_str() == kind)
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => {
                (Some(Kind::parse(kind).ok_or_else(|| TargetError::Kind(kind.into()))?), name)
            }
            None => (None, text),
        };
        if !is_subdomain(name) {
            return Err(TargetError::Name(name.into()));
        }
        let is_explicit = kind.is_some();
        Ok(Self { kind: kind.unwrap_or(Kind::Pod), name: name.to_owned(), is_explicit })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.short(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("web-0", "pod/web-0")]
    #[case("pod/web-0", "pod/web-0")]
    #[case("Deployments.apps/web", "deploy/web")]
    #[case("sts/web", "sts/web")]
    #[case("job/x.y", "job/x.y")]
    fn a_target_is_a_kind_and_a_name(#[case] text: &str, #[case] target: &str) {
        assert_eq!(text.parse::<Target>().map(|target| target.to_string()), Ok(target.to_owned()));
    }

    #[rstest]
    #[case("service/web", "not a kind that can be explained: write pod, deploy")]
    #[case("", "not the name of an object")]
    #[case("pod/../secrets/x", "not the name of an object")]
    #[case("\u{1b}[2J", "not the name of an object")]
    fn other_texts_name_nothing(#[case] text: &str, #[case] message: &str) {
        let error = text.parse::<Target>().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(message) && !error.contains('\u{1b}'), "{error}");
    }
}
