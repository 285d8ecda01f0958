//! The artifact sets that `render` and `explain` read from the manifests.
//!
//! The status of a set counts if it is that of the set's spec. Other sets are resolved as the webhook does, if an
//! object of the manifests requests them.

use std::collections::BTreeSet;
use std::sync::Arc;

use oras_csi_core::keys::{annotation, attribute, canonical};
use oras_csi_webhook::admit::Admission;
use oras_csi_webhook::policy::ManifestNamespaces;
use oras_csi_webhook::sets::{MemorySets, SetCatalog, UsableSecrets};
use serde_json::Value;

use crate::exit_status::Failure;
use crate::manifest_policies::secrets_in_manifests;
use crate::options::admission::AdmissionOptions;
use crate::yaml_documents::describe;

/// The sets of the manifests, and the names of the sets that their objects request.
pub(crate) struct ManifestSets {
    sets: Arc<MemorySets>,
    requested: BTreeSet<String>,
}

impl ManifestSets {
    /// Reads the sets. An object of a set's kind that cannot be parsed is an error.
    pub(crate) fn read(objects: &[Value], options: &AdmissionOptions) -> Result<Self, Failure> {
        let mut namespaces = ManifestNamespaces::default();
        for object in objects {
            let taken = namespaces.take(object);
            taken.map_err(|error| Failure::bad_input(format!("in the manifests, {error}")))?;
        }
        let sets = MemorySets::new(namespaces);
        let mut requested = BTreeSet::new();
        for object in objects {
            let taken = sets.take(object, options.namespace());
            let is_set = taken.map_err(|error| Failure::bad_input(error).at(describe(object)))?;
            if !is_set {
                collect_set_names(object, &mut requested);
            }
        }
        Ok(Self { sets: Arc::new(sets), requested })
    }

    /// Returns the sets for an admission. The Secrets of the manifests serve as pull secrets of cluster sets too.
    pub(crate) fn book(&self, objects: &[Value], options: &AdmissionOptions) -> SetCatalog {
        let secrets = secrets_in_manifests(objects, options.namespace());
        SetCatalog::new(self.sets.clone()).with_secrets(
            Arc::new(secrets),
            options.namespace(),
            UsableSecrets::All,
        )
    }

    /// Resolves the sets that the objects request. An error is reported later, at each object that requests the set.
    pub(crate) async fn resolve(&self, admission: &Admission, options: &AdmissionOptions) {
        for name in &self.requested {
            admission.update_set_statuses(&self.sets, name, options.deadline()).await;
        }
    }
}

/// The annotation and the attributes that have the name of a set.
const SET_KEYS: [&str; 3] = [annotation::ARTIFACT_SET, attribute::NAME, canonical::SET];

/// Collects the names of sets anywhere in an object.
fn collect_set_names(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                match member.as_str() {
                    Some(name) if SET_KEYS.contains(&key.as_str()) => {
                        names.insert(name.to_owned());
                    }
                    _ => collect_set_names(member, names),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_set_names(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finds_set_names_in_pod_templates() {
        let mut names = BTreeSet::new();
        let template = json!({"metadata": {"annotations": {"oras.land/artifact-set": "a"}}, "spec": {"volumes": [
            {"csi": {"volumeAttributes": {"oras-csi.name": "b"}}},
            {"csi": {"volumeAttributes": {"csi.oras.land/set": "c"}}}]}});
        collect_set_names(&json!({"kind": "Deployment", "spec": {"template": template}}), &mut names);
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
