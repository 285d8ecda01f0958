//! The sets of a stream of manifests: what stands in their status counts, where it is that of their spec; the others
//! are resolved as the webhook would, if a pod of the stream asks for them.

use std::collections::BTreeSet;
use std::sync::Arc;

use oras_csi_core::keys::{annotation, attribute};
use oras_csi_webhook::admit::Admission;
use oras_csi_webhook::policy::ManifestNamespaces;
use oras_csi_webhook::sets::{MemorySets, SetCatalog};
use serde_json::Value;

use crate::documents::{AskedAs, describe};
use crate::failure::Failure;
use crate::policies::stated_secrets;

/// The sets of a stream.
pub(crate) struct StatedSets {
    sets: Arc<MemorySets>,
    asked: BTreeSet<String>,
}

impl StatedSets {
    /// Reads them; an object that says it is a set and cannot be read is an error.
    pub(crate) fn read(objects: &[Value], asked_as: &AskedAs) -> Result<Self, Failure> {
        let mut namespaces = ManifestNamespaces::default();
        for object in objects {
            let taken = namespaces.take(object);
            taken.map_err(|error| Failure::bad_input(format!("in the manifests, {error}")))?;
        }
        let sets = MemorySets::new(namespaces);
        let mut asked = BTreeSet::new();
        for object in objects {
            let taken = sets.take(object, asked_as.namespace());
            let is_set = taken.map_err(|error| Failure::bad_input(error).at(describe(object)))?;
            if !is_set {
                collect(object, &mut asked);
            }
        }
        Ok(Self { sets: Arc::new(sets), asked })
    }

    /// What an admission goes by. The stream's Secrets are those of cluster sets as well.
    pub(crate) fn book(&self, objects: &[Value], asked_as: &AskedAs) -> SetCatalog {
        let secrets = stated_secrets(objects, asked_as.namespace());
        SetCatalog::new(self.sets.clone()).with_secrets(Arc::new(secrets), asked_as.namespace())
    }

    /// Looks up what the sets stand for that pods ask for. One that cannot be resolved is told of where it is asked for.
    pub(crate) async fn resolve(&self, admission: &Admission, asked_as: &AskedAs) {
        for name in &self.asked {
            admission.resolve_stated(&self.sets, name, asked_as.deadline()).await;
        }
    }
}

/// The names of sets that stand anywhere in an object.
fn collect(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                match member.as_str() {
                    Some(name) if [annotation::ARTIFACT_SET, attribute::NAME].contains(&key.as_str()) => {
                        names.insert(name.to_owned());
                    }
                    _ => collect(member, names),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_found_wherever_a_pod_stands() {
        let mut names = BTreeSet::new();
        let template = json!({"metadata": {"annotations": {"oras.land/artifact-set": "a"}}, "spec": {"volumes": [
            {"csi": {"volumeAttributes": {"oras-csi.name": "b"}}}]}});
        collect(&json!({"kind": "Deployment", "spec": {"template": template}}), &mut names);
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a", "b"]);
    }
}
