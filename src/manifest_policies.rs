//! Policies, Namespaces, Secrets and service accounts that `render` and `explain` read from the manifests themselves.

use oras_csi_webhook::credentials::ManifestSecrets;
use oras_csi_webhook::policy::{Entry, Loaded, is_policy};
use serde_json::Value;

use crate::exit_status::Failure;
use crate::yaml_documents::describe;

/// Reads the Secrets and service accounts of the manifests. `namespace` is that of objects that do not name one.
pub(crate) fn secrets_in_manifests(objects: &[Value], namespace: &str) -> ManifestSecrets {
    let mut secrets = ManifestSecrets::default();
    for object in objects {
        secrets.take(object, namespace);
    }
    secrets
}

/// Reads the policies and namespaces of the manifests.
pub(crate) fn policies_in_manifests(objects: &[Value]) -> Result<Loaded, Failure> {
    let mut loaded = Loaded::default();
    for object in objects {
        if is_policy(object) {
            let entry = Entry::from_manifest(object);
            loaded.policies.push(entry.map_err(|error| {
                Failure::bad_input(format!("{} of the manifests {error}", describe(object)))
            })?);
        }
        let taken = loaded.namespaces.take(object);
        taken.map_err(|error| Failure::bad_input(format!("in the manifests, {error}")))?;
    }
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::policy::PolicyOptions;
    use crate::yaml_documents::parse;

    fn namespace(label: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: team, labels: {{trust: {label}}}}}\n")
    }

    #[test]
    fn manifests_cannot_change_the_labels_of_an_administrators_namespace()
    -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("policies.yaml");
        std::fs::write(&file, namespace("low"))?;
        let file = file.to_string_lossy().into_owned();
        let policies = PolicyOptions::of(&["--policy", &file])?;
        let with = |stream: &str| policies.policies(policies_in_manifests(&parse(stream)?)?).map(|_| ());
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
