//! `oras-csi render`: admits manifests without an API server, for GitOps and CI.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use oras_csi_core::registry::Registry;
use oras_csi_webhook::admit::Admission;
use oras_csi_webhook::credentials::CredentialSources;
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::seal::{self, Sealer};
use serde_json::Value;

use crate::admission::admission;
use crate::admission_object::AdmissionObject;
use crate::exit_status::Failure;
use crate::lock_file::LockedRegistry;
use crate::manifest_policies::{policies_in_manifests, secrets_in_manifests};
use crate::manifest_sets::ManifestSets;
use crate::options::admission::AdmissionOptions;
use crate::options::policy::PolicyOptions;
use crate::options::registry::RegistryOptions;
use crate::registry_client::interactive_client;
use crate::standard_output::write_stdout;
use crate::unrendered;
use crate::yaml_documents::{Manifests, describe, read_manifests, to_json_lines, to_yaml};

/// Write manifests as the webhook would admit them: tags pinned, volumes canonical, mounts read-only.
///
/// Reads YAML streams of pods, workloads and PersistentVolumes and writes the result to standard output. Other objects
/// are written unchanged, with a warning that names each of their pod templates that requests artifacts. YAML comments
/// are lost.
///
/// The manifests also configure the result. ArtifactPolicy objects apply together with those of --policy. Namespace
/// objects give the labels that policies select by; without labels, every policy applies to a namespace. Two objects
/// with different labels for one namespace are an error, so that manifests cannot escape a policy. ArtifactSet and
/// ClusterArtifactSet objects can be requested by the pods; a set is resolved if its status does not match its spec.
/// Pull secrets come from the Secrets in the manifests; for a missing one, the docker config of the current user is
/// used.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// File with manifests; - is standard input; can be repeated.
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Yaml)]
    output: Format,
    /// File with the private key that seals the volumes [default: no seal; the webhook adds it at admission].
    #[arg(long, value_name = "FILE")]
    seal_key: Option<PathBuf>,
    /// Lock file: store registry answers in this file and use the stored ones, so that a later run gives the same
    /// result offline. Delete the file to resolve tags again.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    #[command(flatten)]
    admission: AdmissionOptions,
    #[command(flatten)]
    registries: RegistryOptions,
    #[command(flatten)]
    policies: PolicyOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// YAML documents.
    Yaml,
    /// One JSON object per line.
    Json,
}

const EXAMPLES: &str = "\
Examples:
  # Show what the webhook makes of a pod or a workload
  oras-csi render -f pod.yaml

  # In a pipeline: apply policies from the repository, and fail with exit status 3 on a denial
  kustomize build . | oras-csi render -f - --policy ./policies > rendered.yaml

  # Pin the digests in a lock file, so that later runs need no registry
  oras-csi render -f deployment.yaml --lock artifacts.lock";

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let hosts = arguments.registries.hosts()?;
    let Manifests { mut objects, had_comments } = read_manifests(&arguments.files)?;
    let policies = arguments.policies.policies(policies_in_manifests(&objects)?)?;
    let registry: Arc<dyn Registry> = interactive_client(&hosts);
    let lock = arguments.lock.as_deref().map(|path| LockedRegistry::open(path, Arc::clone(&registry)));
    let lock = lock.transpose()?.map(Arc::new);
    let registry = lock.clone().map_or(registry, |lock| lock);
    let credentials = CredentialSources {
        secrets: Box::new(secrets_in_manifests(&objects, arguments.admission.namespace())),
        administrator: arguments.registries.user_credentials()?,
    };
    let sealer = match &arguments.seal_key {
        None => Sealer::none(),
        Some(file) => Sealer::with_key(seal::read_key(file).map_err(Failure::bad_input)?),
    };
    let admission = admission(registry, &hosts, policies, credentials, &Arc::new(Metrics::new()));
    let sets = ManifestSets::read(&objects, &arguments.admission)?;
    let admission = admission.with_sealer(sealer).with_sets(sets.book(&objects, &arguments.admission));
    sets.resolve(&admission, &arguments.admission).await;
    for object in &mut objects {
        render_object(&admission, object, &arguments).await?;
    }
    if let Some(lock) = lock {
        lock.save()?;
    }
    if had_comments {
        eprintln!("oras-csi: YAML comments are not in the output");
    }
    write_stdout(&match arguments.output {
        Format::Yaml => to_yaml(&objects)?,
        Format::Json => to_json_lines(&objects),
    })
}

/// Replaces an object by the result of its admission.
async fn render_object(
    admission: &Admission,
    document: &mut Value,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let (name, namespace) = (describe(document), arguments.admission.namespace_of(document));
    for warning in unrendered::warnings(document) {
        eprintln!("Warning: {name}: {warning}");
    }
    let deadline = arguments.admission.deadline();
    let Some(object) = AdmissionObject::find(document)? else { return Ok(()) };
    let outcome = object.admit(admission, &namespace, deadline).await;
    let outcome = outcome.map_err(|denial| Failure::from(denial).at(format_args!("{name} is denied")))?;
    json_patch::patch(object.into_object(), outcome.patch())
        .map_err(|error| Failure::failed(format!("{name}: cannot apply the JSON patch: {error}")))?;
    for warning in outcome.warnings() {
        eprintln!("Warning: {name}: {warning}");
    }
    Ok(())
}
