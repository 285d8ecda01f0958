//! `--allow-registry`, `--policy` and `--no-policy`: the policies that do not come from the API server.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use oras_csi_core::pattern::RegistryPattern;
use oras_csi_webhook::policy::{ClusterNamespaces, Entry, Loaded, Namespaces, NoPolicy, Policies, load};

use crate::exit_status::Failure;

/// Which artifacts are allowed.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Policies")]
pub(crate) struct PolicyOptions {
    /// Allow this registry and deny all others, before any request is sent to them; can be repeated. Patterns: HOST,
    /// HOST/TEAM/*, *.example.org/** (* matches one whole segment, ** any number) [default: every registry].
    #[arg(long = "allow-registry", value_name = "PATTERN")]
    allowed: Vec<RegistryPattern>,
    /// File with ArtifactPolicy objects in YAML, or a folder of such files; can be repeated. Namespace objects in the
    /// files give the labels that namespace selectors match.
    #[arg(long = "policy", value_name = "PATH")]
    policy_files: Vec<PathBuf>,
    /// Whether pods may use artifacts in a namespace that no ArtifactPolicy selects.
    #[arg(long, value_enum, default_value_t = DefaultDecision::Allow)]
    no_policy: DefaultDecision,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DefaultDecision {
    /// Allow every artifact.
    Allow,
    /// Deny every artifact.
    Deny,
}

impl PolicyOptions {
    /// Returns the policies of the flags and files, together with those of the manifests. All policies apply to a
    /// namespace whose labels neither the files nor the manifests give.
    pub(crate) fn policies(&self, manifests: Loaded) -> Result<Arc<Policies>, Failure> {
        let mut loaded = load(&self.policy_files).map_err(Failure::bad_input)?;
        loaded
            .namespaces
            .extend(manifests.namespaces)
            .map_err(|error| Failure::bad_input(format!("in --policy and in the manifests, {error}")))?;
        loaded.policies.extend(manifests.policies);
        Ok(self.build(loaded.namespaces, loaded.policies))
    }

    /// Returns the policies of the flags and files, for the namespaces of a cluster.
    pub(crate) fn policies_of_cluster(
        &self,
        namespaces: ClusterNamespaces,
    ) -> Result<Arc<Policies>, Failure> {
        let loaded = load(&self.policy_files).map_err(Failure::bad_input)?;
        Ok(self.build(namespaces, loaded.policies))
    }

    fn build(&self, namespaces: impl Namespaces, entries: Vec<Entry>) -> Arc<Policies> {
        let no_policy = match self.no_policy {
            DefaultDecision::Allow => NoPolicy::Allow,
            DefaultDecision::Deny => NoPolicy::Deny,
        };
        let policies = Policies::new(self.allowed.clone(), no_policy, namespaces);
        policies.set_files(entries);
        Arc::new(policies)
    }

    /// Returns the paths of `--policy`, which the webhook watches.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.policy_files
    }
}

#[cfg(test)]
impl PolicyOptions {
    /// Parses these arguments.
    pub(crate) fn of(arguments: &[&str]) -> Result<Self, clap::Error> {
        #[derive(clap::Parser)]
        #[command(no_binary_name = true)]
        struct Command {
            #[command(flatten)]
            policies: PolicyOptions,
        }
        <Command as clap::Parser>::try_parse_from(arguments).map(|command| command.policies)
    }
}
