//! Which policies a command goes by: options, files, and what stands in a stream of manifests.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use oras_csi_core::pattern::RegistryPattern;
use oras_csi_webhook::credentials::StatedSecrets;
use oras_csi_webhook::policy::{
    ClusterNamespaces, Entry, Loaded, Namespaces, NoPolicy, Policies, is_policy, load,
};
use serde_json::Value;

use crate::documents::describe;
use crate::failure::Failure;

/// What may be used at all.
#[derive(Clone, Debug, Args)]
pub(crate) struct PolicyOptions {
    /// A registry that may be used; all others are denied before anything is sent to them. May be given
    /// several times: HOST, HOST/TEAM/*, *.example.org/** (* is one whole segment, ** any number)
    /// [default: every registry].
    #[arg(long = "allow-registry", value_name = "PATTERN")]
    allowed: Vec<RegistryPattern>,
    /// A file of ArtifactPolicy objects in YAML, or a folder of such files; may be given several times. Namespace
    /// objects beside them say which labels their selectors look at.
    #[arg(long = "policy", value_name = "PATH")]
    policy_files: Vec<PathBuf>,
    /// What becomes of a pod in a namespace that no ArtifactPolicy selects.
    #[arg(long, value_enum, default_value_t = WithoutPolicy::Allow)]
    no_policy: WithoutPolicy,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WithoutPolicy {
    /// It may use every artifact.
    Allow,
    /// It may use none.
    Deny,
}

impl PolicyOptions {
    /// The policies of the options and files, with those that are stated besides; a namespace of which neither
    /// says anything has all of them.
    pub(crate) fn policies(&self, besides: Loaded) -> Result<Arc<Policies>, Failure> {
        let mut loaded = load(&self.policy_files).map_err(Failure::bad_input)?;
        loaded.namespaces.extend(besides.namespaces);
        loaded.policies.extend(besides.policies);
        Ok(self.with(loaded.namespaces, loaded.policies))
    }

    /// The policies of the options and files, for the namespaces of a cluster.
    pub(crate) fn policies_of_cluster(
        &self,
        namespaces: ClusterNamespaces,
    ) -> Result<Arc<Policies>, Failure> {
        let loaded = load(&self.policy_files).map_err(Failure::bad_input)?;
        Ok(self.with(namespaces, loaded.policies))
    }

    fn with(&self, namespaces: impl Namespaces, entries: Vec<Entry>) -> Arc<Policies> {
        let no_policy = match self.no_policy {
            WithoutPolicy::Allow => NoPolicy::Allow,
            WithoutPolicy::Deny => NoPolicy::Deny,
        };
        let policies = Policies::new(self.allowed.clone(), no_policy, namespaces);
        policies.set_files(entries);
        Arc::new(policies)
    }

    /// The files, to be read again.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.policy_files
    }
}

/// The Secrets and service accounts of a stream of manifests; `namespace` is that of objects that name none.
pub(crate) fn stated_secrets(objects: &[Value], namespace: &str) -> StatedSecrets {
    let mut stated = StatedSecrets::default();
    for object in objects {
        stated.take(object, namespace);
    }
    stated
}

/// What a stream of manifests says of the cluster that it is for: its policies and its namespaces.
pub(crate) fn stated(objects: &[Value]) -> Result<Loaded, Failure> {
    let mut stated = Loaded::default();
    for object in objects {
        if is_policy(object) {
            let entry = Entry::from_manifest(object);
            stated.policies.push(entry.map_err(|error| {
                Failure::bad_input(format!("{} of the manifests {error}", describe(object)))
            })?);
        }
        stated.namespaces.take(object);
    }
    Ok(stated)
}
