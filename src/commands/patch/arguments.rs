//! The arguments of `oras-csi patch`.

use clap::Args;

use super::set::SetOptions;
use crate::options::output::OutputFormat;
use crate::options::plain_http::PlainHttpOption;
use crate::options::registry::RegistryOptions;

/// Create a patch of an artifact: a small artifact that names a base and the artifacts that overlay it, by digest.
///
/// A level is a reference, or a digest in the base's repository; tags are resolved. A volume that names the patch gets
/// the base, overlaid by minor, major and critical in this order. The patch has the base as its subject and is pushed to
/// the base's repository without a tag, where the referrers API lists it; --push selects another place. Its pinned
/// reference is written to standard output: use it in the annotation oras.land/patch.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Reference of the artifact that is patched.
    #[arg(value_name = "BASE")]
    pub(super) base: String,
    /// Artifact that overlays the base first.
    #[arg(long, value_name = "REF")]
    pub(super) minor: Option<String>,
    /// Artifact that overlays the base and the minor level.
    #[arg(long, value_name = "REF")]
    pub(super) major: Option<String>,
    /// Artifact that overlays the base and all other levels.
    #[arg(long, visible_alias = "crit", value_name = "REF")]
    pub(super) critical: Option<String>,
    /// Push to HOST/REPOSITORY or HOST/REPOSITORY:TAG [default: the base's repository, without a tag].
    #[arg(long, value_name = "REPO[:TAG]")]
    pub(super) push: Option<String>,
    /// Write the manifest to standard output and push nothing.
    #[arg(long, conflicts_with_all = ["set", "cluster_set"])]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) set: SetOptions,
    /// List the patches of the base and create none.
    #[arg(long, conflicts_with_all = ["minor", "major", "critical", "push", "dry_run", "set", "cluster_set"])]
    pub(super) list: bool,
    /// Output format of the list.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text, requires = "list")]
    pub(super) output: OutputFormat,
    #[command(flatten)]
    pub(super) plain_http: PlainHttpOption,
    #[command(flatten)]
    pub(super) registries: RegistryOptions,
}

const EXAMPLES: &str = "\
Examples:
  # Create a patch in the base's repository
  oras-csi patch ghcr.io/acme/app:1.0 --critical ghcr.io/acme/app-fixes:cve-1

  # Push it with a tag, and update a set in the cluster
  oras-csi patch ghcr.io/acme/app:1.0 --minor ghcr.io/acme/app-fixes:2 \\
    --push ghcr.io/acme/app:1.0-patched --cluster-set app

  # List the patches of an artifact
  oras-csi patch --list ghcr.io/acme/app:1.0";
