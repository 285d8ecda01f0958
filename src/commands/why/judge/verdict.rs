//! The steps of a pod, where it stands, and what to do next.

use serde::{Serialize, Serializer};

use super::failure::Stop;
use crate::cluster::format::shown;
use crate::commands::why::facts::Facts;
use crate::exit_status::ExitStatus;

/// A step on the way of a pod to its volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum StepName {
    Annotation,
    Admission,
    Policy,
    Digest,
    Credential,
    Node,
    Pull,
    Mount,
}

/// All steps, in their order.
const ALL: [StepName; 8] = [
    StepName::Annotation,
    StepName::Admission,
    StepName::Policy,
    StepName::Digest,
    StepName::Credential,
    StepName::Node,
    StepName::Pull,
    StepName::Mount,
];

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Mark {
    Done,
    Waiting,
    Failed,
    /// The user is not allowed to read what would show it, or it shows only later.
    Unknown,
    /// An earlier step has not been passed.
    NotReached,
}

/// One step with its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    #[serde(rename = "step")]
    pub(crate) name: StepName,
    #[serde(rename = "state")]
    pub(crate) mark: Mark,
    pub(crate) detail: String,
}

/// Where a pod stands, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verdict {
    /// The pod or the workload, as `pod/web`.
    pub(crate) object: String,
    pub(crate) namespace: String,
    pub(crate) steps: Vec<Step>,
    /// Where it stands, in one sentence.
    pub(crate) summary: String,
    /// What to do; empty if nothing has to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) advice: String,
    /// The command for that.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) command: String,
    /// What is worth knowing besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) remarks: Vec<String>,
    /// The exit status; `None` if the pod has its volumes, or waits for something that goes on by itself.
    #[serde(rename = "exitStatus", serialize_with = "exit_status")]
    pub(crate) status: Option<ExitStatus>,
}

#[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn exit_status<S: Serializer>(status: &Option<ExitStatus>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(status.map_or(0, |status| status as u8))
}

impl StepName {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Annotation => "annotation",
            Self::Admission => "admission",
            Self::Policy => "policy",
            Self::Digest => "digest",
            Self::Credential => "credential",
            Self::Node => "node",
            Self::Pull => "pull",
            Self::Mount => "mount",
        }
    }
}

/// Collects the steps.
pub(super) struct Steps<'a> {
    facts: &'a Facts,
    list: Vec<Step>,
    advice: String,
    command: String,
    remarks: Vec<String>,
    status: Option<ExitStatus>,
}

impl<'a> Steps<'a> {
    pub(super) fn new(facts: &'a Facts) -> Self {
        let (advice, command) = (String::new(), String::new());
        Self { facts, list: Vec::new(), advice, command, remarks: Vec::new(), status: None }
    }

    /// Adds a step. A step that an event of kubelet shows to have failed may have been passed at first: then it replaces that
    /// step and those after it.
    fn add(&mut self, name: StepName, mark: Mark, detail: String) {
        if let Some(known) = self.list.iter().position(|step| step.name == name) {
            self.list.truncate(known);
        }
        self.list.push(Step { name, mark, detail });
    }

    /// The step is passed.
    pub(super) fn done(&mut self, name: StepName, detail: String) {
        self.add(name, Mark::Done, detail);
    }

    /// The pod does not get further without a change.
    pub(super) fn fail(&mut self, name: StepName, detail: &str, status: ExitStatus) {
        self.add(name, Mark::Failed, detail.to_owned());
        self.status = Some(status);
    }

    /// The pod waits at this step.
    pub(super) fn wait(&mut self, name: StepName, detail: &str) {
        self.add(name, Mark::Waiting, detail.to_owned());
    }

    /// The state of the step cannot be read.
    pub(super) fn unknown(&mut self, name: StepName, detail: &str) {
        self.add(name, Mark::Unknown, detail.to_owned());
    }

    /// The step comes after one that failed, although it is earlier in the list.
    pub(super) fn skip_as(&mut self, name: StepName, detail: &str) {
        self.add(name, Mark::NotReached, detail.to_owned());
    }

    /// The driver, or kubelet, has reported why a volume does not get further.
    pub(super) fn stop(&mut self, volume: &str, stop: &Stop) {
        let detail = format!("the volume {volume}: {}", stop.message);
        match stop.status {
            Some(status) => self.fail(stop.step, &detail, status),
            None => self.wait(stop.step, &detail),
        }
    }

    /// Sets what to do next.
    pub(super) fn next(&mut self, advice: &str, command: impl Into<String>) {
        (self.advice, self.command) = (advice.to_owned(), command.into());
    }

    /// Adds what is worth knowing besides.
    pub(super) fn remark(&mut self, remark: String) {
        self.remarks.push(remark);
    }

    /// Returns the verdict. The steps after the last one were not reached.
    pub(super) fn finish(mut self) -> Verdict {
        let at = self.list.iter().find(|step| matches!(step.mark, Mark::Failed | Mark::Waiting)).cloned();
        for name in ALL {
            if !self.list.iter().any(|step| step.name == name) {
                self.list.push(Step { name, mark: Mark::NotReached, detail: String::new() });
            }
        }
        self.list.sort_by_key(|step| step.name);
        let object = match &self.facts.pod {
            Some(pod) => format!("pod/{}", shown(&pod.name)),
            None => self.facts.target.to_string(),
        };
        let namespace = shown(&self.facts.namespace);
        let summary = match &at {
            Some(step) if step.mark == Mark::Failed => {
                format!("{object} in the namespace {namespace} fails at the step {}", step.name.as_str())
            }
            Some(step) => {
                format!("{object} in the namespace {namespace} waits at the step {}", step.name.as_str())
            }
            None => format!("{object} in the namespace {namespace} has its volumes"),
        };
        let Self { list: steps, advice, command, remarks, status, .. } = self;
        Verdict { object, namespace, steps, summary, advice, command, remarks, status }
    }
}
