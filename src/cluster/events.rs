//! Events of the API server, and what kubelet's events say about volumes.

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventView {
    /// The object that it is about.
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    /// When it was last seen.
    pub(crate) at: Option<Timestamp>,
}

/// A mount that failed, as kubelet reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountFailure {
    /// The volume as kubelet names it, if the event names one.
    pub(crate) volume: Option<String>,
    /// The gRPC code of the driver's answer, if the driver has answered.
    pub(crate) code: Option<Code>,
    /// The message of the driver, or of kubelet.
    pub(crate) message: String,
    pub(crate) at: Option<Timestamp>,
}

/// A gRPC code, as `driver/src/status.rs` assigns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Aborted,
    Unavailable,
    ResourceExhausted,
    NotFound,
    PermissionDenied,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    AlreadyExists,
    Internal,
    /// Any other one, as from a kubelet that did not get an answer in time.
    Other,
}

impl Code {
    fn parse(text: &str) -> Self {
        match text {
            "Aborted" => Self::Aborted,
            "Unavailable" => Self::Unavailable,
            "ResourceExhausted" => Self::ResourceExhausted,
            "NotFound" => Self::NotFound,
            "PermissionDenied" => Self::PermissionDenied,
            "DataLoss" => Self::DataLoss,
            "FailedPrecondition" => Self::FailedPrecondition,
            "InvalidArgument" => Self::InvalidArgument,
            "AlreadyExists" => Self::AlreadyExists,
            "Internal" => Self::Internal,
            _ => Self::Other,
        }
    }
}

impl EventView {
    /// Reads an event.
    pub(crate) fn of(event: Event) -> Self {
        let times = [
            event.series.and_then(|series| series.last_observed_time).map(|time| time.0),
            event.last_timestamp.map(|time| time.0),
            event.event_time.map(|time| time.0),
            event.metadata.creation_timestamp.map(|time| time.0),
        ];
        let object = event.involved_object;
        Self {
            kind: object.kind.unwrap_or_default(),
            name: object.name.unwrap_or_default(),
            uid: object.uid.unwrap_or_default(),
            reason: event.reason.unwrap_or_default(),
            message: event.message.unwrap_or_default(),
            at: times.into_iter().flatten().max(),
        }
    }

    /// Returns what a FailedMount event says.
    ///
    /// `MountVolume.SetUp failed for volume "NAME" : rpc error: code = CODE desc = MESSAGE` is what kubelet writes if the
    /// driver has answered.
    pub(crate) fn mount_failure(&self) -> Option<MountFailure> {
        if self.reason != "FailedMount" {
            return None;
        }
        let text = self.message.as_str();
        let volume = text.split_once("for volume \"").and_then(|(_, rest)| rest.split_once('"'));
        let (name, rest) = match volume {
            Some((name, rest)) => (Some(name.to_owned()), rest.trim_start_matches([' ', ':'])),
            None => (None, text),
        };
        let answer = rest.split_once("code = ").and_then(|(_, rest)| rest.split_once(" desc = "));
        let (code, message) = match answer {
            Some((code, message)) => (Some(Code::parse(code.trim())), message),
            None => (None, rest),
        };
        Some(MountFailure { volume: name, code, message: message.to_owned(), at: self.at })
    }
}

/// Returns the latest failure of a volume: the latest that names it, or else the latest that names none.
pub(crate) fn latest_failure<'a>(
    failures: impl IntoIterator<Item = &'a MountFailure>,
    kubelet_name: &str,
) -> Option<&'a MountFailure> {
    let (mut named, mut unnamed): (Option<&MountFailure>, Option<&MountFailure>) = (None, None);
    for failure in failures {
        let latest = match failure.volume.as_deref() {
            Some(name) if name == kubelet_name => &mut named,
            Some(_) => continue,
            None => &mut unnamed,
        };
        if latest.is_none_or(|latest| latest.at <= failure.at) {
            *latest = Some(failure);
        }
    }
    named.or(unnamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(message: &str, second: i64) -> Option<MountFailure> {
        let at = Timestamp::from_second(second).ok();
        let (reason, message) = ("FailedMount".to_owned(), message.to_owned());
        EventView { reason, message, at, ..EventView::default() }.mount_failure()
    }

    #[test]
    fn an_answer_of_the_driver_has_a_code_and_a_message() {
        let text = "MountVolume.SetUp failed for volume \"models\" : rpc error: code = PermissionDenied desc = pod team/web \
                    cannot pull x: code = y desc = z";
        let found = failure(text, 1).unwrap_or_else(|| unreachable!("it is a failure"));
        assert_eq!((found.volume.as_deref(), found.code), (Some("models"), Some(Code::PermissionDenied)));
        assert_eq!(found.message, "pod team/web cannot pull x: code = y desc = z");
        let text = "MountVolume.SetUp failed for volume \"models\" : kubernetes.io/csi: mounter.SetUpAt failed to get CSI \
                    client: driver name csi.oras.land not found in the list of registered CSI drivers";
        let found = failure(text, 1).unwrap_or_else(|| unreachable!("it is a failure"));
        assert_eq!((found.volume.as_deref(), found.code), (Some("models"), None));
        assert!(found.message.starts_with("kubernetes.io/csi: mounter.SetUpAt failed"), "{found:?}");
        assert_eq!(EventView { reason: "Pulled".to_owned(), ..EventView::default() }.mount_failure(), None);
    }

    #[test]
    fn the_latest_failure_of_the_volume_counts() {
        let failures: Vec<_> = [
            ("MountVolume.SetUp failed for volume \"a\" : one", 1),
            ("MountVolume.SetUp failed for volume \"a\" : two", 3),
            ("MountVolume.SetUp failed for volume \"b\" : three", 4),
            ("Unable to attach or mount volumes: timed out", 5),
        ]
        .into_iter()
        .filter_map(|(text, second)| failure(text, second))
        .collect();
        let message = |name: &str| latest_failure(&failures, name).map(|found| found.message.as_str());
        assert_eq!(message("a"), Some("two"));
        assert_eq!(message("c"), Some("Unable to attach or mount volumes: timed out"));
        assert_eq!(latest_failure(&failures[..3], "c"), None);
    }
}
