//! `oras-csi render`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use oras_csi_webhook::admit::Admission;
use oras_csi_webhook::metrics::Metrics;
use serde_json::Value;
use tokio::time::Instant;

use crate::documents::{parse, pod_path, read_text, to_yaml};
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
    /// The namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// How to write.
    #[arg(short, long, value_enum, default_value_t = Format::Yaml)]
    output: Format,
    /// Seconds that registries may take for one object.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
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
    let mut documents = Vec::new();
    let mut comments = false;
    for file in &arguments.files {
        let text = read_text(file)?;
        comments |= text.lines().any(|line| line.trim_start().starts_with('#'));
        for document in parse(&text).map_err(|failure| failure.at(file.display()))? {
            documents.extend(flatten(document));
        }
    }
    for document in &mut documents {
        render(&admission, document, &arguments).await?;
    }
    if comments {
        eprintln!("oras-csi: comments are not kept");
    }
    match arguments.output {
        Format::Yaml => print!("{}", to_yaml(&documents)?),
        Format::Json => documents.iter().for_each(|document| println!("{document}")),
    }
    Ok(())
}

/// The items of a `kind: List`, as `kubectl` applies them.
fn flatten(document: Value) -> Vec<Value> {
    let is_list =
        document.get("apiVersion") == Some(&"v1".into()) && document.get("kind") == Some(&"List".into());
    match document {
        Value::Object(mut list) if is_list => match list.remove("items") {
            Some(Value::Array(items)) => items.into_iter().flat_map(flatten).collect(),
            _ => Vec::new(),
        },
        document => vec![document],
    }
}

async fn render(admission: &Admission, document: &mut Value, arguments: &Arguments) -> Result<(), Failure> {
    let Some(path) = pod_path(document) else {
        return Ok(());
    };
    let name = describe(document);
    let namespace = document["metadata"]["namespace"].as_str().unwrap_or(&arguments.namespace).to_owned();
    let mut pod = document;
    for key in path {
        pod = pod
            .get_mut(*key)
            .filter(|value| value.is_object())
            .ok_or_else(|| Failure::bad_input(format!("{name} has no {}", path.join("."))))?;
    }
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
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

/// `Deployment/name`, as people look for it in the file.
fn describe(document: &Value) -> String {
    let metadata = &document["metadata"];
    let name = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str()).unwrap_or("(no name)");
    format!("{}/{name}", document["kind"].as_str().unwrap_or("(no kind)"))
}
