//! Where a pod stands on the way to its volumes, and what to do next. A pure function of [`Facts`].
//!
//! annotation → admission → policy → digest → credential → node → pull → mount

mod commands;
mod failure;
mod verdict;

#[cfg(test)]
mod tests;

use oras_csi_core::keys::{ANNOTATION_PREFIX, annotation, nearest_annotation};

use self::commands::{
    describe_pod, describe_workload, driver_logs, events_command, explain, follow, render, secrets,
    webhook_pods,
};
use self::failure::{Stop, stop_of};
use self::verdict::Steps;
pub(crate) use self::verdict::{Mark, StepName, Verdict};
use super::denial::{Place, Refusal, long};
use super::facts::{Decision, Facts, PolicyView};
use crate::cluster::events::{EventView, latest_failure};
use crate::cluster::format::{seconds_since, short_digest, shown, span};
use crate::cluster::list::Seen;
use crate::cluster::pod::{PodView, PodVolume};
use crate::cluster::volume_state::{MAX_REPORT_AGE, pull_of};
use crate::exit_status::ExitStatus;

/// Walks the path of a pod, up to the step at which it stands.
pub(crate) fn judge(facts: &Facts) -> Verdict {
    let mut steps = Steps::new(facts);
    walk(facts, &mut steps);
    steps.finish()
}

/// Adds the steps. Returns early at the step where the pod stands.
fn walk(facts: &Facts, steps: &mut Steps<'_>) {
    let refusal = facts.latest_refusal().map(|event| Refusal::of(&event.message));
    let Some(requesting) = facts.requesting() else { return not_found(facts, refusal.as_ref(), steps) };
    if !has_request(requesting, refusal.as_ref(), steps) {
        return;
    }
    // What the API server refused. A pod that exists was admitted, so only the next pod is refused.
    let refused_at =
        |place: Place| refusal.as_ref().filter(|refusal| facts.pod.is_none() && refusal.place == place);
    if let Some(refusal) = refused_at(Place::Annotation) {
        steps.fail(StepName::Annotation, &refusal.message, refusal.status);
        return steps
            .next("correct the annotation or the volume, and apply the manifest again", render(facts));
    }
    steps.done(StepName::Annotation, requests(requesting));
    if !is_admitted(facts, refusal.as_ref(), steps) {
        return;
    }
    if let Some(refusal) = refused_at(Place::Policy) {
        steps.fail(StepName::Policy, &refusal.message, refusal.status);
        return steps.next(
            "use another artifact, or ask the administrator to change the policy",
            "kubectl get artifactpolicies -o yaml",
        );
    }
    policies(facts, steps);
    if let Some(refusal) = refused_at(Place::Digest) {
        steps.fail(StepName::Digest, &refusal.message, refusal.status);
        return steps.next("check what the registry has under the reference", explain(requesting));
    }
    if let Some(refusal) = refused_at(Place::Credential) {
        steps.skip_as(StepName::Digest, "it is resolved with credentials");
        steps.fail(StepName::Credential, &refusal.message, refusal.status);
        return steps
            .next("name a Secret of the namespace that can pull the artifact", secrets(facts, requesting));
    }
    let Some(pod) = &facts.pod else { return };
    steps.done(StepName::Digest, digests(pod, facts));
    if let Some(refusal) = &refusal {
        steps.remark(format!("the controller cannot create the next pod: {}", refusal.message));
    }
    mount(facts, pod, steps);
}

/// The pod does not exist, and neither does a workload of its name.
fn not_found(facts: &Facts, refusal: Option<&Refusal>, steps: &mut Steps<'_>) {
    if let Some(refusal) = refusal {
        steps.fail(StepName::Admission, &refusal.message, refusal.status);
        return steps.next("correct what the message names", events_command(facts));
    }
    let what = format!("{} does not exist in the namespace {}", facts.target, shown(&facts.namespace));
    steps.fail(StepName::Annotation, &what, ExitStatus::BadInput);
    steps.next("list the pods of the namespace", format!("kubectl get pods -n {}", shown(&facts.namespace)));
}

/// Checks that the pod requests an artifact.
fn has_request(pod: &PodView, refusal: Option<&Refusal>, steps: &mut Steps<'_>) -> bool {
    let is_ignored = pod.annotations.get(annotation::INJECT).is_some_and(|inject| inject == "false");
    if pod.requests_by_annotation() || !pod.volumes.is_empty() {
        return true;
    }
    if is_ignored && pod.requests().next().is_some() {
        let what =
            format!("the pod has {} \"false\", so the webhook ignores its annotations", annotation::INJECT);
        steps.fail(StepName::Annotation, &what, ExitStatus::BadInput);
        steps.next("remove that annotation from the manifest, and apply it again", "");
        return false;
    }
    // The webhook reports an annotation that it does not know.
    if let Some(refusal) = refusal.filter(|refusal| refusal.place != Place::Other) {
        steps.fail(StepName::Annotation, &refusal.message, refusal.status);
        return false;
    }
    let unknown = pod.annotations.keys().find(|key| !annotation::ALL.contains(&key.as_str()));
    let what = match unknown {
        Some(key) => format!(
            "the pod requests no artifact: {} is not an annotation of oras-csi (nearest: {})",
            shown(key),
            nearest_annotation(key)
        ),
        None => format!(
            "the pod requests no artifact: it has no annotation {ANNOTATION_PREFIX}artifact and no volume of csi.oras.land"
        ),
    };
    steps.fail(StepName::Annotation, &what, ExitStatus::BadInput);
    steps.next("add the annotation oras.land/artifact to the pod, in a workload to its template, and create the pod again", "");
    false
}

/// Checks that the webhook has processed the pod.
fn is_admitted(facts: &Facts, refusal: Option<&Refusal>, steps: &mut Steps<'_>) -> bool {
    let Some(pod) = &facts.pod else {
        match refusal {
            Some(refusal) if matches!(refusal.place, Place::Admission | Place::Other) => {
                steps.fail(StepName::Admission, &refusal.message, refusal.status);
                match refusal.place {
                    Place::Admission => steps.next("check the webhook", webhook_pods()),
                    _ => steps.next("another component than oras-csi refuses the pod", events_command(facts)),
                }
                return false;
            }
            Some(_) => {
                steps.done(StepName::Admission, "the webhook has read the pod and denied it".to_owned());
                return true;
            }
            None => {}
        }
        let replicas = facts.workload.as_ref().and_then(|workload| workload.replicas);
        let why = match (replicas, &facts.refusals) {
            (Some(0), _) => "the workload has 0 replicas".to_owned(),
            (_, Seen::Hidden(hidden)) => format!("no pod exists, and {}", hidden.line()),
            _ => "no pod exists, and no event says why".to_owned(),
        };
        steps.wait(StepName::Admission, &why);
        steps.next("look at the workload", describe_workload(facts));
        return false;
    };
    let raw = pod.volumes.iter().find(|volume| volume.id.is_none());
    let is_missing = pod.volumes.is_empty();
    if raw.is_none() && !is_missing {
        let names: Vec<String> = pod.volumes.iter().map(|volume| shown(&volume.name)).collect();
        steps.done(StepName::Admission, format!("the webhook has written the volume {}", names.join(", ")));
        return true;
    }
    let what = match &facts.has_webhook {
        Some(Seen::Known(false)) => {
            "the webhook has not processed the pod: the API server has no webhook configuration with pods.csi.oras.land"
        }
        Some(Seen::Known(true)) => {
            "the webhook has not processed the pod: the pod was created while the webhook was not configured, or its namespace is excluded"
        }
        _ => "the webhook has not processed the pod. Was it installed when the pod was created?",
    };
    steps.fail(StepName::Admission, what, ExitStatus::Failed);
    steps.next("check the webhook, and create the pod again", webhook_pods());
    false
}

/// Reports the policies that select the namespace. A pod that exists was admitted.
fn policies(facts: &Facts, steps: &mut Steps<'_>) {
    let policies = match &facts.policies {
        Seen::Known(policies) => policies,
        Seen::Hidden(hidden) => return steps.unknown(StepName::Policy, &hidden.line()),
    };
    if policies.is_empty() {
        return steps.done(StepName::Policy, "no ArtifactPolicy selects the namespace".to_owned());
    }
    let line = |policy: &PolicyView| {
        let name = format!("{} ({})", shown(&policy.name), shown(&policy.mode));
        match &policy.decision {
            Decision::Passes => format!("{name} passes"),
            Decision::Broken { reference, rule } => {
                format!("{name} refuses {} now, rule {}", shown(reference), shown(rule))
            }
            Decision::Unreadable(why) => format!("{name} cannot be read: {}", shown(why)),
        }
    };
    steps.done(StepName::Policy, policies.iter().map(line).collect::<Vec<_>>().join("; "));
    let is_denied = |policy: &&PolicyView| policy.mode == "Enforce" && policy.decision != Decision::Passes;
    if let Some(policy) = policies.iter().find(is_denied) {
        steps.remark(format!(
            "ArtifactPolicy {} would refuse a new pod; it does not affect a pod that exists",
            shown(&policy.name)
        ));
    }
}

/// Reports credential, node, pull and mount of a pod.
fn mount(facts: &Facts, pod: &PodView, steps: &mut Steps<'_>) {
    let stop = first_stop(facts, pod);
    let fails_at = |name: StepName| stop.as_ref().filter(|(_, stop)| stop.step == name && !pod.has_started);
    if let Some((volume, stop)) = fails_at(StepName::Credential) {
        steps.stop(volume, stop);
        return steps.next("name a Secret of the namespace that can pull the artifact", secrets(facts, pod));
    }
    if pod.has_started {
        steps.done(StepName::Credential, credentials(pod));
    } else {
        steps.unknown(StepName::Credential, &credentials(pod));
    }
    if !has_node(facts, pod, steps) {
        return;
    }
    if pod.has_started || pod.has_ended() {
        steps.done(
            StepName::Pull,
            event_note(facts, "Pulled").unwrap_or_else(|| "the content is on the node".to_owned()),
        );
        let what =
            if pod.has_ended() { "the pod has ended" } else { "mounted, and the containers were started" };
        steps.done(
            StepName::Mount,
            event_note(facts, "Mounted").map_or_else(|| what.to_owned(), |note| format!("{note}; {what}")),
        );
        if let Some(waiting) = &pod.waiting {
            steps.remark(format!("a container waits for another reason: {}", shown(waiting)));
        }
        return;
    }
    if pod.is_deleted {
        return steps.wait(StepName::Pull, "the pod is being deleted");
    }
    let report = facts.node.as_ref().and_then(|node| node.report.known()).and_then(Option::as_ref);
    let mut ids = pod.volumes.iter().filter_map(|volume| volume.id.as_deref());
    if let Some(progress) = ids.find_map(|id| pull_of(report, id, facts.now)) {
        steps.wait(StepName::Pull, &format!("the driver downloads {}", progress.text()));
        return steps.next("wait, and follow the download", follow(facts));
    }
    let Some((volume, stop)) = stop else {
        steps.wait(StepName::Pull, "kubelet has not reported anything about the volume");
        return match &facts.events {
            Seen::Known(_) => steps.next(
                "wait some seconds. If nothing changes, look at the driver of the node",
                driver_logs(facts),
            ),
            Seen::Hidden(hidden) => steps.remark(hidden.line()),
        };
    };
    if stop.step == StepName::Mount {
        steps.done(StepName::Pull, "the driver has tried to mount the volume".to_owned());
    }
    steps.stop(&volume, &stop);
    let command = match stop.step {
        StepName::Admission => describe_pod(facts),
        _ if stop.status.is_none() => follow(facts),
        StepName::Digest | StepName::Pull if stop.is_about_registry => explain(pod),
        _ => driver_logs(facts),
    };
    steps.next(stop.advice, command);
}

/// Returns the volume that does not make progress, and why.
fn first_stop(facts: &Facts, pod: &PodView) -> Option<(String, Stop)> {
    let failures: Vec<_> = facts.events.known()?.iter().filter_map(EventView::mount_failure).collect();
    let stops = pod.volumes.iter().filter_map(|volume| {
        let failure = latest_failure(&failures, &volume.kubelet_name)?;
        Some((shown(&volume.name), stop_of(failure)))
    });
    // A volume that fails is reported before one that waits.
    stops.max_by_key(|(_, stop)| stop.status.is_some())
}

/// Checks that the pod has a node with the driver.
fn has_node(facts: &Facts, pod: &PodView, steps: &mut Steps<'_>) -> bool {
    let Some(node) = &facts.node else {
        let why =
            pod.unscheduled.as_deref().map_or_else(|| "the scheduler has not chosen a node".to_owned(), long);
        steps.wait(StepName::Node, &why);
        steps.next("look at the scheduler's reason", describe_pod(facts));
        return false;
    };
    let name = shown(&node.name);
    let is_absent = node.registered == Seen::Known(false) && !pod.has_started && !pod.has_ended();
    if is_absent {
        let what = format!("kubelet of {name} has not registered the driver csi.oras.land");
        steps.fail(StepName::Node, &what, ExitStatus::Failed);
        let command = format!(
            "kubectl get pods -A -o wide -l app.kubernetes.io/component=driver --field-selector spec.nodeName={name}"
        );
        steps.next("check that a pod of the driver runs on the node", command);
        return false;
    }
    let report = match &node.report {
        Seen::Hidden(hidden) => format!("; {}", hidden.line()),
        Seen::Known(None) => "; its driver has not reported".to_owned(),
        Seen::Known(Some(report)) => {
            let version = report.version.as_deref().map(|version| format!(", driver {}", shown(version)));
            let age = report.reported.as_ref().map(|time| seconds_since(time.0, facts.now));
            let age = age.map(|age| {
                let late = if age > MAX_REPORT_AGE { ": the driver may not run" } else { "" };
                format!(", reported {} ago{late}", span(age))
            });
            format!("{}{}", version.unwrap_or_default(), age.unwrap_or_default())
        }
    };
    steps.done(StepName::Node, format!("{name}{report}"));
    true
}

/// Returns what the pod requests, on one line.
fn requests(pod: &PodView) -> String {
    let by_annotation = pod.requests().map(|(key, value)| format!("{}: {}", shown(key), shown(value)));
    let annotated: Vec<String> = by_annotation.collect();
    if !annotated.is_empty() {
        return annotated.join(", ");
    }
    let volume = |volume: &PodVolume| match &volume.claim {
        Some(claim) => format!("the volume {} of the claim {}", shown(&volume.name), shown(claim)),
        None => format!("the inline volume {}", shown(&volume.name)),
    };
    pod.volumes.iter().map(volume).collect::<Vec<_>>().join(", ")
}

/// Returns the digests of the volumes, and whether they are pinned for the pods of the controller.
fn digests(pod: &PodView, facts: &Facts) -> String {
    let artifacts = pod.volumes.iter().flat_map(|volume| &volume.artifacts);
    let mut parts: Vec<String> = artifacts
        .map(|artifact| format!("{} is sha256:{}", artifact.reference, short_digest(&artifact.digest)))
        .collect();
    if parts.len() > 3 {
        let more = parts.len() - 3;
        parts.truncate(3);
        parts.push(format!("and {more} more"));
    }
    if let Some(set) = pod.volumes.iter().find_map(|volume| volume.set.as_deref()) {
        parts.push(format!("from the ClusterArtifactSet {}", shown(set)));
    }
    if let (Seen::Known(pins), Some((kind, name))) = (&facts.pins, &pod.owner)
        && !pins.is_empty()
    {
        parts.push(format!("pinned for all pods of {}/{}", shown(kind), shown(name)));
    }
    parts.join(", ")
}

/// Returns the credentials that the driver tries.
fn credentials(pod: &PodView) -> String {
    let secrets: Vec<String> =
        pod.volumes.iter().filter_map(|volume| volume.secret.as_deref()).map(shown).collect();
    if let Some(set) = pod.volumes.iter().find_map(|volume| volume.set.as_deref()) {
        return format!("those of the ClusterArtifactSet {}", shown(set));
    }
    if secrets.is_empty() {
        return "no Secret: the driver tries the administrator's credentials, then none".to_owned();
    }
    format!("the Secret {}, then the administrator's credentials, then none", secrets.join(", "))
}

/// Returns the latest note of an event of the driver.
fn event_note(facts: &Facts, reason: &str) -> Option<String> {
    let events = facts.events.known()?.iter().filter(|event| event.reason == reason);
    // Kubelet has a reason Pulled as well, for images.
    let ours = events.filter(|event| {
        event.message.contains("for the volume \"") || event.message.contains(" as the volume \"")
    });
    ours.max_by_key(|event| event.at).map(|event| long(&event.message))
}
