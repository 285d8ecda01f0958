//! `oras-csi render`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use oras_csi_webhook::admit::Admission;
use oras_csi_webhook::metrics::Metrics;
use serde_json::Value;

use crate::documents::{
    AskedAs, Manifests, describe, pod_of, read_manifests, to_json_lines, to_yaml, write_out,
};
use crate::failure::Failure;
use crate::registries::{RegistryOptions, RuleOptions, admission};

/// Writes manifests as the webhook would have them: tags resolved, volumes canonical, mounts read-only.
///
/// Reads a YAML stream of pods and workloads (any other object passes through) and writes it to standard
/// output. Comments are lost. The seal is not written: the webhook seals at admission.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The manifests; - is standard input.
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// How to write.
    #[arg(short, long, value_enum, default_value_t = Format::Yaml)]
    output: Format,
    #[command(flatten)]
    asked: AskedAs,
    #[command(flatten)]
    registries: RegistryOptions,
    #[command(flatten)]
    rules: RuleOptions,
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
    let admission = admission(&hosts, &arguments.rules, &Arc::new(Metrics::new()));
    let Manifests { mut objects, had_comments } = read_manifests(&arguments.files)?;
    for object in &mut objects {
        render(&admission, object, &arguments).await?;
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
    let Some(pod) = pod_of(document)? else { return Ok(()) };
    let deadline = arguments.asked.deadline();
    let outcome = admission
        .admit_pod(pod, &namespace, deadline)
        .await
        .map_err(|denial| Failure::from(denial).at(format_args!("{name} is denied")))?;
    json_patch::patch(pod, outcome.patch())
        .map_err(|error| Failure::failed(format!("{name}: the patch does not apply: {error}")))?;
    for warning in outcome.warnings() {
        eprintln!("Warning: {name}: {warning}");
    }
    Ok(())
}
