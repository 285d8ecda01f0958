//! The state of a volume of a pod, from the pod, its events and the report of its node. No I/O.

use k8s_openapi::jiff::Timestamp;
use oras_csi_node_artifacts::{NodeArtifactsStatus, PullOnNode};
use serde::Serialize;

use super::events::{Code, MountFailure};
use super::format::{bytes, seconds_since, shown, size, span};
use super::pod::{PodView, PodVolume};

/// A report that is older says nothing about the present. The driver reports at least every ten minutes.
pub(crate) const MAX_REPORT_AGE: u64 = 900;

/// The state of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeState {
    /// The state in one word.
    pub(crate) state: Kind,
    /// What kubelet, the driver or the scheduler says.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
    /// How far a pull is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) progress: Option<Progress>,
}

/// The state of a volume in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    /// The pod has no node.
    Unscheduled,
    /// The webhook has not processed the volume.
    NotAdmitted,
    /// Kubelet has not tried to mount it, or tries again.
    Waiting,
    /// The driver pulls it.
    Pulling,
    /// It is mounted.
    Mounted,
    /// The last attempt failed.
    Failed,
    /// The pod is being deleted.
    Terminating,
    /// The pod has ended.
    Ended,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Progress {
    pub(crate) bytes: u64,
    /// 0 if it is not known yet.
    pub(crate) total_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seconds_left: Option<u64>,
}

impl Kind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Unscheduled => "unscheduled",
            Self::NotAdmitted => "not admitted",
            Self::Waiting => "waiting",
            Self::Pulling => "pulling",
            Self::Mounted => "mounted",
            Self::Failed => "failed",
            Self::Terminating => "terminating",
            Self::Ended => "ended",
        }
    }
}

impl Progress {
    /// Reads a pull of a report. The time left follows from the rate of this pull up to the report.
    fn of(pull: &PullOnNode, reported: Option<Timestamp>, now: Timestamp) -> Self {
        let (done, total) = (bytes(pull.bytes), bytes(pull.total_bytes));
        let reported = reported.unwrap_or(now);
        let elapsed = u128::from(seconds_since(pull.since.0, reported));
        let downloaded = u128::from(bytes(pull.downloaded_bytes));
        let left = (downloaded > 0 && elapsed > 0 && total > 0)
            .then(|| u128::from(total.saturating_sub(done)) * elapsed / downloaded);
        let left = left.map(|left| u64::try_from(left).unwrap_or(u64::MAX));
        let seconds_left = left.map(|left| left.saturating_sub(seconds_since(reported, now)).max(1));
        Self { bytes: done.min(total), total_bytes: total, seconds_left }
    }

    /// Returns the part that is done in percent, if the size is known.
    pub(crate) fn percent(self) -> Option<u64> {
        let percent = (u128::from(self.bytes) * 100).checked_div(u128::from(self.total_bytes))?;
        u64::try_from(percent).ok()
    }

    /// Returns `30% of 4.0 GiB, 4m left`.
    pub(crate) fn text(self) -> String {
        let Some(percent) = self.percent() else { return "reading the manifest".to_owned() };
        let left = match self.seconds_left {
            _ if self.bytes >= self.total_bytes => ", unpacking".to_owned(),
            Some(left) => format!(", {} left", span(left)),
            None => String::new(),
        };
        format!("{percent}% of {}{left}", size(self.total_bytes))
    }
}

impl VolumeState {
    fn new(state: Kind, detail: impl Into<String>) -> Self {
        Self { state, detail: detail.into(), progress: None }
    }

    /// Returns the state and its detail, as `pulling 30% of 4.0 GiB, 4m left`.
    pub(crate) fn text(&self) -> String {
        match (&self.progress, self.detail.as_str()) {
            (Some(progress), _) => format!("{} {}", self.state.word(), progress.text()),
            (None, "") => self.state.word().to_owned(),
            (None, detail) => format!("{}: {detail}", self.state.word()),
        }
    }
}

/// Returns the state of a volume of a pod. `failure` is kubelet's latest event about it, `report` the report of its node.
pub(crate) fn volume_state(
    pod: &PodView,
    volume: &PodVolume,
    failure: Option<&MountFailure>,
    report: Option<&NodeArtifactsStatus>,
    now: Timestamp,
) -> VolumeState {
    if pod.has_ended() {
        return VolumeState::new(Kind::Ended, pod.phase.clone());
    }
    if pod.is_deleted {
        return VolumeState::new(Kind::Terminating, "");
    }
    if pod.has_started {
        return VolumeState::new(Kind::Mounted, "");
    }
    let Some(id) = &volume.id else {
        return VolumeState::new(Kind::NotAdmitted, "the webhook has not processed this volume");
    };
    if pod.node.is_none() {
        return VolumeState::new(Kind::Unscheduled, shown(pod.unscheduled.as_deref().unwrap_or_default()));
    }
    if let Some(progress) = pull_of(report, id, now) {
        return VolumeState { progress: Some(progress), ..VolumeState::new(Kind::Pulling, "") };
    }
    let Some(failure) = failure else {
        return VolumeState::new(Kind::Waiting, "kubelet has not reported anything about this volume");
    };
    let message = shown(&failure.message);
    match failure.code {
        Some(Code::Aborted) if failure.message.starts_with("pulling ") => {
            VolumeState::new(Kind::Pulling, message)
        }
        Some(Code::Aborted) => VolumeState::new(Kind::Waiting, message),
        _ => VolumeState::new(Kind::Failed, message),
    }
}

/// Returns the pull of a volume, if a recent report has it.
pub(crate) fn pull_of(report: Option<&NodeArtifactsStatus>, id: &str, now: Timestamp) -> Option<Progress> {
    let report = report?;
    let reported = report.reported.as_ref().map(|time| time.0);
    if reported.is_some_and(|reported| seconds_since(reported, now) > MAX_REPORT_AGE) {
        return None;
    }
    let pull = report.pulls.iter().find(|pull| pull.id == id)?;
    Some(Progress::of(pull, reported, now))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::pod::tests::{admitted, pod};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap_or_default()
    }

    fn report(pulls: Vec<PullOnNode>) -> NodeArtifactsStatus {
        NodeArtifactsStatus { pulls, reported: Some(Time(at(0))), ..NodeArtifactsStatus::default() }
    }

    fn pull(id: &str, bytes: i64, total: i64, downloaded: i64) -> PullOnNode {
        let (total_bytes, downloaded_bytes) = (total, downloaded);
        PullOnNode { id: id.to_owned(), bytes, total_bytes, downloaded_bytes, since: Time(at(-10)) }
    }

    fn failure(code: Option<Code>, message: &str) -> MountFailure {
        MountFailure { volume: None, code, message: message.to_owned(), at: None }
    }

    fn state(object: Value, failure: Option<&MountFailure>, report: Option<&NodeArtifactsStatus>) -> String {
        let view = pod(object);
        volume_state(&view, &view.volumes[0], failure, report, at(5)).text()
    }

    #[test]
    fn the_state_follows_from_pod_node_and_events() {
        let pending = json!({"phase": "Pending"});
        let waits = admitted("web", &pending);
        let running = json!({"phase": "Running", "conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]});
        let denied = failure(Some(Code::PermissionDenied), "no\u{1b}[2J");
        let pulls = report(vec![pull("other", 1, 2, 1), pull("model-1", 30, 100, 20)]);
        // An event of an earlier attempt says nothing about a volume that is mounted.
        assert_eq!(state(admitted("web", &running), Some(&denied), None), "mounted");
        assert_eq!(state(waits.clone(), Some(&denied), None), "failed: no");
        // 20 bytes in the ten seconds up to the report, 70 are left, and the report is five seconds old.
        assert_eq!(state(waits.clone(), Some(&denied), Some(&pulls)), "pulling 30% of 100 B, 30s left");
        let aborted = failure(Some(Code::Aborted), "pulling model-1: 1 GiB of 2 GiB (50 %)");
        assert_eq!(
            state(waits.clone(), Some(&aborted), Some(&report(Vec::new()))),
            "pulling: pulling model-1: 1 GiB of 2 GiB (50 %)"
        );
        let busy = failure(Some(Code::Aborted), "another call is in progress");
        assert_eq!(state(waits.clone(), Some(&busy), None), "waiting: another call is in progress");
        assert!(state(waits.clone(), None, None).starts_with("waiting: kubelet"));

        let mut ended = waits.clone();
        ended["status"] = json!({"phase": "Succeeded"});
        assert_eq!(state(ended, None, None), "ended: Succeeded");
        let mut deleted = waits.clone();
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(state(deleted, Some(&denied), None), "terminating");
        let mut unscheduled = waits.clone();
        unscheduled["spec"]["nodeName"] = Value::Null;
        unscheduled["status"]["conditions"] =
            json!([{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]);
        assert_eq!(state(unscheduled, None, None), "unscheduled: 0/3 nodes are available");
        let mut raw = waits;
        raw["spec"]["volumes"][0]["csi"]["volumeAttributes"] = json!({"oras.artifact.reference": "a.b/c:1"});
        assert!(state(raw, None, None).starts_with("not admitted"));
    }

    #[test]
    fn an_old_report_says_nothing() {
        let pulls = report(vec![pull("model-1", 30, 100, 20)]);
        assert!(pull_of(Some(&pulls), "model-1", at(900)).is_some());
        assert_eq!(pull_of(Some(&pulls), "model-1", at(901)), None);
    }

    #[test]
    fn progress_without_a_size_or_a_rate_has_no_time() {
        let text = |bytes, total, downloaded| {
            pull_of(Some(&report(vec![pull("m", bytes, total, downloaded)])), "m", at(0)).map(Progress::text)
        };
        assert_eq!(text(0, 0, 0).as_deref(), Some("reading the manifest"));
        assert_eq!(text(50, 100, 0).as_deref(), Some("50% of 100 B"));
        assert_eq!(text(100, 100, 100).as_deref(), Some("100% of 100 B, unpacking"));
        assert_eq!(text(i64::MAX, i64::MAX, 1).as_deref(), Some("100% of 8388607.9 TiB, unpacking"));
        assert_eq!(text(-5, -7, -1).as_deref(), Some("reading the manifest"));
    }
}
