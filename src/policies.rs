//! Which policies a command goes by: options, files, and what stands in a stream of manifests.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use oras_csi_core::pattern::RegistryPattern;
use oras_csi_webhook::credentials::ManifestSecrets;
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
        loaded
            .namespaces
            .extend(besides.namespaces)
            .map_err(|error| Failure::bad_input(format!("in --policy and in the manifests, {error}")))?;
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
pub(crate) fn stated_secrets(objects: &[Value], namespace: &str) -> ManifestSecrets {
    let mut stated = ManifestSecrets::default();
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
        let taken = stated.namespaces.take(object);
        taken.map_err(|error| Failure::bad_input(format!("in the manifests, {error}")))?;
    }
    Ok(stated)
}

#[cfg(test)]
impl PolicyOptions {
    /// What these words at a prompt say.
    pub(crate) fn of(words: &[&str]) -> Result<Self, clap::Error> {
        #[derive(clap::Parser)]
        #[command(no_binary_name = true)]
        struct Command {
            #[command(flatten)]
            policies: PolicyOptions,
        }
        <Command as clap::Parser>::try_parse_from(words).map(|command| command.policies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::parse;

    fn namespace(label: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: team, labels: {{trust: {label}}}}}\n")
    }

    #[test]
    fn a_stream_does_not_talk_an_administrators_policies_away() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("policies.yaml");
        std::fs::write(&file, namespace("low"))?;
        let file = file.to_string_lossy().into_owned();
        let policies = PolicyOptions::of(&["--policy", &file])?;
        let with = |stream: &str| policies.policies(stated(&parse(stream)?)?).map(|_| ());
        assert_eq!(with(&namespace("low")), Ok(()));
        assert_eq!(with("apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n"), Ok(()));
        let twice = format!("{}---\n{}", namespace("low"), namespace("high"));
        for stream in [namespace("high"), twice, namespace("7")] {
            let failure = with(&stream).err().ok_or(stream)?;
            assert!(failure.to_string().contains("Namespace team"), "{failure}");
            assert_eq!(failure.exit_code(), std::process::ExitCode::from(2));
        }
        Ok(())
    }
}
