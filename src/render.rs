//! `oras-csi render`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use oras_csi_core::display::Shown;
use oras_csi_core::keys::{ANNOTATION_PREFIX, DRIVER};
use oras_csi_core::registry::Registry;
use oras_csi_webhook::admit::Admission;
use oras_csi_webhook::credentials::CredentialSources;
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::seal::{self, Sealer};
use serde_json::Value;

use crate::asking::Asking;
use crate::documents::{AskedAs, Manifests, describe, read_manifests, to_json_lines, to_yaml, write_out};
use crate::failure::Failure;
use crate::lock::Locked;
use crate::policies::{PolicyOptions, stated, stated_secrets};
use crate::registries::{RegistryOptions, admission, client};
use crate::sets::StatedSets;

/// Writes manifests as the webhook would have them: tags resolved, volumes canonical, mounts read-only.
///
/// Reads a YAML stream of pods, workloads and PersistentVolumes (any other object passes through, with a warning
/// where it asks for artifacts) and writes it to standard output. ArtifactPolicy objects of the stream are obeyed,
/// beside those of --policy; Namespace objects say which of them select a namespace, and one of which nothing is
/// said has them all; two that differ about one namespace are an error, so that a stream cannot take itself
/// out of a policy. ArtifactSet and ClusterArtifactSet objects of the stream are those that its pods may ask for; one
/// whose status is not that of its spec is resolved. Pull secrets are taken from the Secrets of the stream; for one that is not there, the
/// docker config of whoever runs this stands in. Comments are lost.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The manifests; - is standard input.
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// How to write.
    #[arg(short, long, value_enum, default_value_t = Format::Yaml)]
    output: Format,
    /// Seal the volumes with the private key in this file, as the webhook does with its own [default: no seal; the
    /// webhook seals at admission].
    #[arg(long, value_name = "FILE")]
    seal_key: Option<PathBuf>,
    /// Keep what registries say in this file, and take from it what it has: with a complete one, nothing is asked
    /// any more. Delete it to have tags looked up again.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    #[command(flatten)]
    asked: AskedAs,
    #[command(flatten)]
    registries: RegistryOptions,
    #[command(flatten)]
    policies: PolicyOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A stream of YAML documents.
    Yaml,
    /// One JSON object a line.
    Json,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let hosts = arguments.registries.hosts()?;
    let Manifests { mut objects, had_comments } = read_manifests(&arguments.files)?;
    let policies = arguments.policies.policies(stated(&objects)?)?;
    let registry: Arc<dyn Registry> = client(&hosts);
    let lock = arguments.lock.as_deref().map(|path| Locked::open(path, Arc::clone(&registry)));
    let lock = lock.transpose()?.map(Arc::new);
    let registry = lock.clone().map_or(registry, |lock| lock);
    let credentials = CredentialSources {
        secrets: Box::new(stated_secrets(&objects, arguments.asked.namespace())),
        administrator: arguments.registries.own_credentials()?,
    };
    let sealer = match &arguments.seal_key {
        None => Sealer::none(),
        Some(file) => Sealer::with_key(seal::read_key(file).map_err(Failure::bad_input)?),
    };
    let admission = admission(registry, &hosts, policies, credentials, &Arc::new(Metrics::new()));
    let sets = StatedSets::read(&objects, &arguments.asked)?;
    let admission = admission.with_sealer(sealer).with_sets(sets.book(&objects, &arguments.asked));
    sets.resolve(&admission, &arguments.asked).await;
    for object in &mut objects {
        render(&admission, object, &arguments).await?;
    }
    if let Some(lock) = lock {
        lock.save()?;
    }
    if had_comments {
        eprintln!("oras-csi: comments are not kept");
    }
    write_out(&match arguments.output {
        Format::Yaml => to_yaml(&objects)?,
        Format::Json => to_json_lines(&objects),
    })
}

async fn render(admission: &Admission, document: &mut Value, arguments: &Arguments) -> Result<(), Failure> {
    let (name, namespace) = (describe(document), arguments.asked.namespace_of(document));
    let unknown = asks_at(document);
    let deadline = arguments.asked.deadline();
    let Some(asking) = Asking::of(document)? else {
        if let Some(place) = unknown {
            eprintln!(
                "Warning: {name}: asks for artifacts at {place}, and render does not know this kind: it is written as it \
                 was, and its pods meet the webhook when they are made"
            );
        }
        return Ok(());
    };
    let outcome = asking.admit(admission, &namespace, deadline).await;
    let outcome = outcome.map_err(|denial| Failure::from(denial).at(format_args!("{name} is denied")))?;
    json_patch::patch(asking.into_object(), outcome.patch())
        .map_err(|error| Failure::failed(format!("{name}: the patch does not apply: {error}")))?;
    for warning in outcome.warnings() {
        eprintln!("Warning: {name}: {warning}");
    }
    Ok(())
}

/// Where an object of a kind without a pod that we know has an annotation or a volume of ours, if anywhere. A
/// `PersistentVolume` is none of those whose pods would be missed.
fn asks_at(document: &Value) -> Option<String> {
    fn find(value: &Value, path: &str, in_annotations: bool) -> Option<String> {
        match value {
            Value::Object(map) => map.iter().find_map(|(key, value)| {
                let path = format!("{path}.{key}");
                let is_ours = (in_annotations && key.starts_with(ANNOTATION_PREFIX))
                    || (key == "driver" && value == DRIVER);
                if is_ours {
                    return Some(Shown::new(path.trim_start_matches('.')).to_string());
                }
                find(value, &path, key.ends_with("nnotations"))
            }),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .find_map(|(index, value)| find(value, &format!("{path}[{index}]"), false)),
            _ => None,
        }
    }
    if document["kind"] == "PersistentVolume" { None } else { find(document, "", false) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unknown_kind_that_asks_is_told_of() {
        let template =
            json!({"metadata": {"annotations": {"example.org/a": "b", "oras.land/artifact": "r.io/a"}}});
        let rollout =
            json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "spec": {"template": template}});
        let place = "spec.template.metadata.annotations.oras.land/artifact";
        assert_eq!(asks_at(&rollout).as_deref(), Some(place));
        let volume = json!({"name": "v", "csi": {"driver": "csi.oras.land"}});
        let workflow =
            json!({"kind": "Workflow", "spec": {"templates": [{"volumes": [{"name": "x"}, volume]}]}});
        assert_eq!(asks_at(&workflow).as_deref(), Some("spec.templates[0].volumes[1].csi.driver"));
        for silent in [
            json!({"kind": "CSIDriver", "metadata": {"name": "csi.oras.land", "labels": {"oras.land/x": "y"}}}),
            json!({"kind": "ConfigMap", "data": {"pod.yaml": "oras.land/artifact: r.io/a"}}),
            json!({"kind": "PersistentVolume", "spec": {"csi": {"driver": "csi.oras.land"}}}),
            json!({"kind": "Rollout", "spec": {"template": {"metadata": {"annotations": {"a": "oras.land/"}}}}}),
        ] {
            assert_eq!(asks_at(&silent), None);
        }
    }
}
