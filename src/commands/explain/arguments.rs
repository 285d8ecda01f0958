//! The arguments of `oras-csi explain`.

use std::path::PathBuf;

use clap::Args;

use crate::options::admission::AdmissionOptions;
use crate::options::output::OutputFormat;
use crate::options::policy::PolicyOptions;
use crate::options::registry::RegistryOptions;

/// Show how a reference is parsed, which policies apply and which digest it resolves to.
///
/// For REF the output has the host, repository, tag and digest, the recipe and id of the volume, and the decision of
/// each policy. With -f it has the same for each reference that the pods of the manifests request. The exit status is 3
/// if a policy denies a reference.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Reference, as in an annotation.
    #[arg(value_name = "REF", required_unless_present = "files", conflicts_with = "files")]
    pub(super) reference: Option<String>,
    /// File with manifests of pods and workloads; - is standard input; can be repeated.
    #[arg(short, long = "filename", value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    /// Output format. JSON is one object; with --filename, one per pod or workload, each on its own line.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub(super) output: OutputFormat,
    /// Send no registry requests. Tags are not resolved, and policy rules about content (type, size) are not checked.
    #[arg(long)]
    pub(super) offline: bool,
    #[command(flatten)]
    pub(super) admission: AdmissionOptions,
    #[command(flatten)]
    pub(super) registries: RegistryOptions,
    #[command(flatten)]
    pub(super) policies: PolicyOptions,
}

const EXAMPLES: &str = "\
Examples:
  # Show which digest a tag resolves to
  oras-csi explain ghcr.io/acme/model:v1

  # Check a reference against policies, without network
  oras-csi explain ghcr.io/acme/model:v1 --policy ./policies --namespace team --offline

  # Show what a workload requests, as JSON
  oras-csi explain -f deployment.yaml -o json";
