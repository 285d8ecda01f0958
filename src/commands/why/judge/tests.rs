//! Each case is a set of facts, the step at which the pod stands, the exit status, and what to do.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use oras_csi_node_artifacts::{NodeArtifactsStatus, PullOnNode};
use rstest::rstest;
use serde_json::{Value, json};

use super::commands::quoted;
use super::*;

use crate::cluster::list::Hidden;
use crate::cluster::pod::tests::{admitted, pod};
use crate::commands::why::facts::{NodeFacts, Workload};
use crate::commands::why::report::render;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap_or_default()
}

fn event(reason: &str, message: &str) -> EventView {
    let at = Some(now());
    EventView { reason: reason.to_owned(), message: message.to_owned(), at, ..EventView::default() }
}

fn failed_mount(answer: &str) -> EventView {
    event("FailedMount", &format!("MountVolume.SetUp failed for volume \"oras-artifacts\" : {answer}"))
}

fn refusal(message: &str) -> EventView {
    event(
        "FailedCreate",
        &format!("Error creating: admission webhook \"pods.csi.oras.land\" denied the request: {message}"),
    )
}

fn forbidden<T>() -> Seen<T> {
    Seen::Hidden(Hidden::Forbidden("events in the namespace team".to_owned()))
}

/// Facts about a pod that waits for its volume on a node with the driver.
fn waiting() -> Facts {
    of_pod(admitted("web", &json!({"phase": "Pending"})))
}

fn of_pod(object: Value) -> Facts {
    let report = NodeArtifactsStatus {
        version: Some("0.1.0".to_owned()),
        reported: Some(Time(now())),
        ..NodeArtifactsStatus::default()
    };
    Facts {
        target: "web".parse().unwrap_or_else(|_| unreachable!("it is a name")),
        namespace: "team".to_owned(),
        pod: Some(pod(object)),
        workload: None,
        events: Seen::Known(Vec::new()),
        refusals: Seen::Known(Vec::new()),
        policies: Seen::Known(Vec::new()),
        pins: Seen::Known(Vec::new()),
        has_webhook: None,
        node: Some(NodeFacts {
            name: "node-1".to_owned(),
            registered: Seen::Known(true),
            report: Seen::Known(Some(report)),
        }),
        now: now(),
    }
}

/// Facts about a Deployment without a pod.
fn refused(message: Option<EventView>) -> Facts {
    let template = pod(json!({"metadata": {"annotations": {"oras.land/artifact": "ghcr.io/acme/model:v1"}}}));
    let workload = Workload { target: "deploy/web".to_owned(), template, replicas: Some(1) };
    Facts {
        target: "deploy/web".parse().unwrap_or_else(|_| unreachable!("it is a name")),
        pod: None,
        node: None,
        workload: Some(workload),
        refusals: Seen::Known(message.into_iter().collect()),
        ..waiting()
    }
}

fn with_events(events: Vec<EventView>) -> Facts {
    Facts { events: Seen::Known(events), ..waiting() }
}

/// Returns the step at which a pod stands, its mark, the exit status, and the whole text.
fn stands(facts: &Facts) -> (&'static str, Mark, u8, String) {
    let verdict = judge(facts);
    let names: Vec<StepName> = verdict.steps.iter().map(|step| step.name).collect();
    assert!(names.is_sorted() && names.len() == 8, "{names:?}");
    let at = verdict.steps.iter().find(|step| matches!(step.mark, Mark::Failed | Mark::Waiting));
    let (name, mark) = at.map_or(("none", Mark::Done), |step| (step.name.as_str(), step.mark));
    // Nothing after the step is called done.
    if let Some(at) = at {
        let later = verdict.steps.iter().filter(|step| step.name > at.name);
        assert!(later.clone().all(|step| step.mark == Mark::NotReached), "{verdict:#?}");
    }
    assert!(mark != Mark::Failed || !verdict.advice.is_empty() || !verdict.steps.is_empty());
    (name, mark, verdict.status.map_or(0, |status| status as u8), render(&verdict, false))
}

#[test]
fn a_running_pod_has_its_volumes() {
    let running =
        json!({"phase": "Running", "conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]});
    let mut facts = of_pod(admitted("web", &running));
    // The failures of earlier attempts.
    facts.events = Seen::Known(vec![
        failed_mount("rpc error: code = Unavailable desc = no route"),
        event(
            "Pulled",
            "Pulled ghcr.io/acme/model@sha256:… for the volume \"oras-artifacts\" in 3.0 s: 1.0 GiB from the network",
        ),
        event("Pulled", "Successfully pulled image \"busybox\""),
    ]);
    facts.pins = Seen::Known(vec![("ghcr.io/acme/model:v1".to_owned(), "sha256:…".to_owned())]);
    let (name, mark, status, text) = stands(&facts);
    assert_eq!((name, mark, status), ("none", Mark::Done, 0), "{text}");
    assert!(text.contains("done        pull        Pulled ghcr.io/acme/model"), "{text}");
    assert!(text.contains("ghcr.io/acme/model:v1 is sha256:4fe6f3e48881"), "{text}");
    assert!(text.contains("node-1, driver 0.1.0, reported 0s ago"), "{text}");
    assert!(text.ends_with("pod/web in the namespace team has its volumes.\n"), "{text}");
}

#[rstest]
#[case(
    "PermissionDenied",
    "pod team/web cannot pull x: refused with 403",
    "credential",
    Mark::Failed,
    1,
    "kubectl get secret -n team"
)]
#[case(
    "PermissionDenied",
    "the volume has no seal",
    "admission",
    Mark::Failed,
    1,
    "kubectl describe pod web -n team"
)]
#[case("NotFound", "no host has it", "pull", Mark::Failed, 1, "explain ghcr.io/acme/model:v1")]
#[case(
    "Unavailable",
    "no route to host. Retrying.",
    "pull",
    Mark::Failed,
    1,
    "explain ghcr.io/acme/model:v1"
)]
#[case("ResourceExhausted", "the disk is full", "pull", Mark::Failed, 1, "spec.nodeName=node-1")]
#[case("DataLoss", "a digest does not match", "pull", Mark::Failed, 4, "explain ghcr.io/acme/model:v1")]
#[case(
    "FailedPrecondition",
    "a path leaves the tree",
    "pull",
    Mark::Failed,
    4,
    "explain ghcr.io/acme/model:v1"
)]
#[case(
    "InvalidArgument",
    "the volume has no attribute",
    "admission",
    Mark::Failed,
    2,
    "kubectl describe pod web -n team"
)]
#[case("Internal", "mount failed", "mount", Mark::Failed, 1, "spec.nodeName=node-1")]
#[case(
    "Aborted",
    "pulling model-1: 1.0 GiB of 2.0 GiB (50 %)",
    "pull",
    Mark::Waiting,
    0,
    "status -n team --watch"
)]
#[case("Aborted", "another call is in progress", "pull", Mark::Waiting, 0, "status -n team --watch")]
fn an_answer_of_the_driver_belongs_to_a_step(
    #[case] code: &str,
    #[case] message: &str,
    #[case] step: &str,
    #[case] mark: Mark,
    #[case] status: u8,
    #[case] command: &str,
) {
    let facts = with_events(vec![failed_mount(&format!("rpc error: code = {code} desc = {message}"))]);
    let (name, found, exit, text) = stands(&facts);
    assert_eq!((name, found, exit), (step, mark, status), "{text}");
    assert!(text.contains(message) && text.trim_end().ends_with(command), "{text}");
}

#[rstest]
#[case(
    "kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name csi.oras.land not found in the list of registered CSI drivers",
    "node",
    1
)]
#[case(
    "kubernetes.io/csi: mounter.SetUpAt failed: fetching NodePublishSecretRef team/pull failed: secrets \"pull\" not found",
    "credential",
    2
)]
fn an_answer_of_kubelet_belongs_to_a_step(#[case] message: &str, #[case] step: &str, #[case] status: u8) {
    let (name, mark, exit, text) = stands(&with_events(vec![failed_mount(message)]));
    assert_eq!((name, mark, exit), (step, Mark::Failed, status), "{text}");
}

#[test]
fn a_pull_of_the_report_says_how_far_it_is() {
    let mut facts =
        with_events(vec![failed_mount("rpc error: code = Unavailable desc = an earlier attempt")]);
    let pull = PullOnNode {
        id: "model-1".to_owned(),
        bytes: 1 << 30,
        total_bytes: 4 << 30,
        downloaded_bytes: 1 << 30,
        since: Time(Timestamp::from_second(1_799_999_900).unwrap_or_default()),
    };
    let report = NodeArtifactsStatus {
        pulls: vec![pull],
        reported: Some(Time(now())),
        ..NodeArtifactsStatus::default()
    };
    facts.node = Some(NodeFacts {
        name: "node-1".to_owned(),
        registered: Seen::Known(true),
        report: Seen::Known(Some(report)),
    });
    let (name, mark, status, text) = stands(&facts);
    assert_eq!((name, mark, status), ("pull", Mark::Waiting, 0), "{text}");
    assert!(text.contains("the driver downloads 25% of 4.0 GiB, 5m left"), "{text}");
}

#[test]
fn nodes_without_a_driver_and_pods_without_a_node_are_found() {
    let mut facts = waiting();
    facts.node = Some(NodeFacts {
        name: "node-1".to_owned(),
        registered: Seen::Known(false),
        report: Seen::Known(None),
    });
    let (name, mark, status, text) = stands(&facts);
    assert_eq!((name, mark, status), ("node", Mark::Failed, 1), "{text}");
    // What cannot be read is no failure.
    facts.node = Some(NodeFacts { name: "node-1".to_owned(), registered: forbidden(), report: forbidden() });
    let (name, mark, status, text) = stands(&facts);
    assert_eq!((name, mark, status), ("pull", Mark::Waiting, 0), "{text}");
    assert!(text.contains("RBAC does not allow it"), "{text}");

    let mut object = admitted(
        "web",
        &json!({"phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]}),
    );
    object["spec"]["nodeName"] = Value::Null;
    let facts = Facts { node: None, ..of_pod(object) };
    let (name, mark, status, text) = stands(&facts);
    assert_eq!((name, mark, status), ("node", Mark::Waiting, 0), "{text}");
    assert!(text.contains("0/3 nodes are available"), "{text}");
}

#[rstest]
#[case(
    "annotation oras.land/artifact: \"a.b/c:1\" is refused by ArtifactPolicy team, rule registries.deny (x): y",
    "policy",
    3
)]
#[case("annotation oras.land/artifact: \"a.b/c:1\" does not exist: push it", "digest", 1)]
#[case(
    "annotation oras.land/artifact: \"a.b/c:1\" cannot be pulled: the registry denied access: name a Secret",
    "credential",
    1
)]
#[case("annotation oras.land/mount-path: \"mnt\" is not an absolute path: write /mnt", "annotation", 2)]
fn a_denial_belongs_to_a_step(#[case] denial: &str, #[case] step: &str, #[case] status: u8) {
    let (name, mark, exit, text) = stands(&refused(Some(refusal(denial))));
    assert_eq!((name, mark, exit), (step, Mark::Failed, status), "{text}");
    assert!(text.contains(denial) && text.contains("Next: "), "{text}");
}

#[test]
fn refusals_of_other_components_and_missing_pods_are_found() {
    let quota = event("FailedCreate", "Error creating: pods \"web-1\" is forbidden: exceeded quota: team");
    let (name, mark, status, text) = stands(&refused(Some(quota)));
    assert_eq!((name, mark, status), ("admission", Mark::Failed, 1), "{text}");
    assert!(text.contains("exceeded quota") && text.contains("another component"), "{text}");
    let down = event(
        "FailedCreate",
        "Error creating: Internal error occurred: failed calling webhook \"pods.csi.oras.land\": refused",
    );
    let (name, _, status, text) = stands(&refused(Some(down)));
    assert_eq!((name, status), ("admission", 1), "{text}");
    assert!(text.contains("component=webhook"), "{text}");
    let (name, mark, status, text) = stands(&refused(None));
    assert_eq!((name, mark, status), ("admission", Mark::Waiting, 0), "{text}");
    assert!(text.trim_end().ends_with("kubectl describe deploy/web -n team"), "{text}");

    let nothing = Facts { pod: None, node: None, workload: None, ..waiting() };
    let (name, mark, status, text) = stands(&nothing);
    assert_eq!((name, mark, status), ("annotation", Mark::Failed, 2), "{text}");
    assert!(text.contains("pod/web does not exist in the namespace team"), "{text}");
}

#[test]
fn a_pod_that_the_webhook_has_not_processed_is_found() {
    let mut object = admitted("web", &json!({"phase": "Pending"}));
    object["spec"]["volumes"] = json!([]);
    for (webhook, words) in [
        (Some(Seen::Known(false)), "has no webhook configuration"),
        (Some(Seen::Known(true)), "its namespace is excluded"),
        (Some(forbidden()), "Was it installed"),
    ] {
        let (name, mark, status, text) = stands(&Facts { has_webhook: webhook, ..of_pod(object.clone()) });
        assert_eq!((name, mark, status), ("admission", Mark::Failed, 1), "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[rstest]
#[case(json!({}), "the pod requests no artifact: it has no annotation oras.land/artifact")]
#[case(json!({"oras.land/artefact": "a.b/c"}), "oras.land/artefact is not an annotation of oras-csi (nearest: oras.land/artifact)")]
#[case(json!({"oras.land/artifact": "a.b/c", "oras.land/inject": "false"}), "the webhook ignores its annotations")]
fn a_pod_that_requests_nothing_is_found(#[case] annotations: Value, #[case] words: &str) {
    let object = json!({"metadata": {"name": "web", "namespace": "team", "annotations": annotations}});
    let (name, mark, status, text) = stands(&of_pod(object));
    assert_eq!((name, mark, status), ("annotation", Mark::Failed, 2), "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn policies_of_the_present_are_shown_and_do_not_affect_a_pod() {
    let policy = |name: &str, mode: &str, decision: Decision| PolicyView {
        name: name.to_owned(),
        mode: mode.to_owned(),
        decision,
    };
    let broken = Decision::Broken {
        reference: "ghcr.io/acme/model:v1".to_owned(),
        rule: "registries.deny (x)".to_owned(),
    };
    let mut facts = waiting();
    facts.policies = Seen::Known(vec![
        policy("base", "Enforce", Decision::Passes),
        policy("new", "Enforce", broken),
        policy("bad", "Enforce", Decision::Unreadable("spec: \u{1b}[2J".to_owned())),
    ]);
    let (name, _, status, text) = stands(&facts);
    assert_eq!((name, status), ("pull", 0), "{text}");
    assert!(
        text.contains("base (Enforce) passes; new (Enforce) refuses ghcr.io/acme/model:v1 now"),
        "{text}"
    );
    assert!(
        text.contains("Note: ArtifactPolicy new would refuse a new pod") && !text.contains('\u{1b}'),
        "{text}"
    );
    facts.policies = forbidden();
    assert!(stands(&facts).3.contains("unknown     policy"));
}

#[test]
fn a_pod_that_exists_is_explained_although_the_next_one_is_refused() {
    let running =
        json!({"phase": "Running", "conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]});
    let mut facts = of_pod(admitted("web", &running));
    facts.refusals =
        Seen::Known(vec![refusal("annotation oras.land/artifact: \"a.b/c:1\" does not exist: push it")]);
    let (name, _, status, text) = stands(&facts);
    assert_eq!((name, status), ("none", 0), "{text}");
    assert!(text.contains("Note: the controller cannot create the next pod: annotation"), "{text}");
}

#[test]
fn hostile_names_and_messages_cannot_reach_the_terminal() {
    let evil = "\u{1b}]0;x\u{7}\u{202e}evil\n\u{9b}2J";
    let mut object = admitted("web", &json!({"phase": "Pending"}));
    object["metadata"]["annotations"]["oras.land/artifact"] = json!(evil);
    object["metadata"]["name"] = json!(evil);
    object["spec"]["volumes"][0]["name"] = json!(evil);
    object["spec"]["volumes"][0]["csi"]["nodePublishSecretRef"] = json!({"name": evil});
    let mut facts = of_pod(object);
    facts.events =
        Seen::Known(vec![event("FailedMount", &format!("rpc error: code = NotFound desc = {evil}"))]);
    facts.policies = Seen::Known(vec![PolicyView {
        name: evil.to_owned(),
        mode: evil.to_owned(),
        decision: Decision::Unreadable(evil.to_owned()),
    }]);
    let (_, _, _, text) = stands(&facts);
    let is_bad = |character: char| (character.is_control() && character != '\n') || character == '\u{202e}';
    assert!(!text.contains(is_bad), "{text:?}");
    assert!(text.contains("evil"), "{text}");
    assert_eq!(quoted("a;b'c"), "'a;b'\\''c'");
}

#[test]
fn terminals_get_symbols_and_json_has_the_same_steps() {
    let facts = with_events(vec![failed_mount("rpc error: code = NotFound desc = no host has it")]);
    let verdict = judge(&facts);
    let text = render(&verdict, true);
    assert!(text.contains("  ✓ annotation  oras.land/artifact: ghcr.io/acme/model:v1\n"), "{text}");
    assert!(text.contains("  ✗ pull        the volume oras-artifacts: no host has it\n"), "{text}");
    assert!(text.contains("  - mount\n"), "{text}");
    let json = json!(verdict);
    assert_eq!((&json["exitStatus"], &json["steps"][6]["state"]), (&json!(1), &json!("failed")));
    assert_eq!((&json["object"], &json["steps"][7]["state"]), (&json!("pod/web"), &json!("notReached")));
}
