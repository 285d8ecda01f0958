//! The commands that `why` proposes. Names of objects are untrusted text.

use oras_csi_core::keys::annotation;

use crate::cluster::format::shown;
use crate::cluster::pod::PodView;
use crate::commands::why::facts::Facts;

pub(super) fn render(facts: &Facts) -> String {
    let kind =
        facts.workload.as_ref().map_or_else(|| facts.target.to_string(), |workload| workload.target.clone());
    format!("kubectl get {} -n {} -o yaml", shown(&kind), shown(&facts.namespace))
}

pub(super) fn explain(pod: &PodView) -> String {
    let reference = pod
        .volumes
        .iter()
        .flat_map(|volume| &volume.artifacts)
        .map(|artifact| artifact.reference.clone())
        .next();
    let written = || {
        let mut values = pod
            .requests()
            .filter(|(key, _)| key.starts_with(annotation::ARTIFACT) && *key != annotation::ARTIFACT_SET);
        values.next().map(|(_, value)| shown(value))
    };
    let reference = reference.or_else(written).unwrap_or_else(|| "REFERENCE".to_owned());
    format!("{} explain {}", crate::cli::program(), quoted(&reference))
}

/// Quotes a word for a shell, if it needs that.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@".contains(&byte);
    if word.bytes().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

pub(super) fn secrets(facts: &Facts, pod: &PodView) -> String {
    let named = pod.volumes.iter().find_map(|volume| volume.secret.as_deref());
    let secret = named.map(|secret| format!(" {}", shown(secret))).unwrap_or_default();
    format!("kubectl get secret{secret} -n {}", shown(&facts.namespace))
}

pub(super) fn describe_pod(facts: &Facts) -> String {
    let name = facts.pod.as_ref().map_or_else(|| facts.target.name.clone(), |pod| pod.name.clone());
    format!("kubectl describe pod {} -n {}", shown(&name), shown(&facts.namespace))
}

pub(super) fn describe_workload(facts: &Facts) -> String {
    let target =
        facts.workload.as_ref().map_or_else(|| facts.target.to_string(), |workload| workload.target.clone());
    format!("kubectl describe {} -n {}", shown(&target), shown(&facts.namespace))
}

pub(super) fn events_command(facts: &Facts) -> String {
    format!("kubectl get events -n {} --field-selector reason=FailedCreate", shown(&facts.namespace))
}

pub(super) fn follow(facts: &Facts) -> String {
    format!("{} status -n {} --watch", crate::cli::program(), shown(&facts.namespace))
}

pub(super) fn driver_logs(facts: &Facts) -> String {
    let node = facts.node.as_ref().map(|node| shown(&node.name)).unwrap_or_default();
    format!(
        "kubectl get pods -A -o wide -l app.kubernetes.io/component=driver --field-selector spec.nodeName={node}"
    )
}

pub(super) fn webhook_pods() -> String {
    "kubectl get pods -A -l app.kubernetes.io/name=oras-csi,app.kubernetes.io/component=webhook".to_owned()
}
