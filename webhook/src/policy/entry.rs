//! One policy and its state: in force, or broken.

use std::collections::BTreeMap;

use kube::Resource as _;
use kube::core::{Selector, SelectorExt as _};
use oras_csi_core::display::Shown;
use oras_csi_core::policy::{Author, Policy};
use serde_json::Value;

use super::SpecError;
use super::object::{ArtifactPolicy, ArtifactPolicySpec};
use crate::manifest::said_kind;

/// A policy and the namespaces that it selects.
#[derive(Clone, Debug)]
pub struct Entry {
    name: String,
    selector: Selector,
    content: Content,
    is_stale: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Policy(Policy),
    /// No generation of it can be read.
    Broken(String),
}

/// Why an object is not a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The object has another kind, or another version of it.
    #[error("{}: only an ArtifactPolicy of oras.land/v1alpha1 can be read here", said_kind(.kind, .api_version))]
    Kind {
        /// The `kind` of the object.
        kind: String,
        /// The `apiVersion` of the object.
        api_version: String,
    },
    /// There is a field beside `spec`: a rule there would not apply.
    #[error("ArtifactPolicy {name}: \"{key}\" is not a field of an object: write rules in spec")]
    Key {
        /// The name of the policy.
        name: Shown,
        /// The field.
        key: Shown,
    },
    /// The object has no `metadata.name`.
    #[error("is an ArtifactPolicy without metadata.name")]
    Unnamed,
    /// The spec is invalid.
    #[error("ArtifactPolicy {name}: {source}")]
    Spec {
        /// The name of the policy.
        name: Shown,
        /// What is wrong with the spec.
        source: SpecError,
    },
}

/// Reports whether a manifest is an `ArtifactPolicy`, of any version.
pub fn is_policy(manifest: &Value) -> bool {
    let group = manifest["apiVersion"].as_str().and_then(|version| version.split('/').next());
    group == Some("oras.land") && manifest["kind"] == "ArtifactPolicy"
}

impl Entry {
    /// Reads a manifest of an `ArtifactPolicy`.
    pub fn from_manifest(manifest: &Value) -> Result<Self, EntryError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, api_version) = (text(&manifest["kind"]), text(&manifest["apiVersion"]));
        if kind != ArtifactPolicy::kind(&()) || api_version != ArtifactPolicy::api_version(&()) {
            return Err(EntryError::Kind { kind, api_version });
        }
        let name = manifest["metadata"]["name"].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or(EntryError::Unnamed)?;
        let is_known = |key: &str| matches!(key, "apiVersion" | "kind" | "metadata" | "spec" | "status");
        let keys = manifest.as_object().into_iter().flat_map(serde_json::Map::keys);
        if let Some(key) = keys.map(String::as_str).find(|key| !is_known(key)) {
            return Err(EntryError::Key { name: name.into(), key: key.into() });
        }
        Self::from_spec(name, manifest.get("spec").unwrap_or(&Value::Null))
            .map_err(|source| EntryError::Spec { name: name.into(), source })
    }

    /// Reads the spec of the policy of that name.
    pub(super) fn from_spec(name: &str, spec: &Value) -> Result<Self, SpecError> {
        let spec = ArtifactPolicySpec::read(spec)?;
        let policy = Policy::new(Author::Object(name.to_owned()), spec.mode(), spec.rules()?);
        Ok(Self {
            name: name.to_owned(),
            selector: spec.selector()?,
            content: Content::Policy(policy),
            is_stale: false,
        })
    }

    /// Makes the entry of a policy that cannot be read. If its selector cannot be read either, it selects everything.
    pub(super) fn broken(name: &str, spec: &Value, problem: &SpecError) -> Self {
        let selector = spec
            .get("namespaceSelector")
            .cloned()
            .and_then(|selector| serde_json::from_value(selector).ok())
            .map(|namespace_selector| ArtifactPolicySpec {
                namespace_selector,
                ..ArtifactPolicySpec::default()
            })
            .and_then(|spec| spec.selector().ok())
            .unwrap_or_default();
        Self {
            name: name.to_owned(),
            selector,
            content: Content::Broken(problem.to_string()),
            is_stale: true,
        }
    }

    /// Marks an earlier generation, which stays in force because the last one cannot be read.
    pub(super) fn stale(self) -> Self {
        Self { is_stale: true, ..self }
    }

    /// Reports whether the last generation cannot be read.
    pub(super) fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn content(&self) -> &Content {
        &self.content
    }

    /// Reports whether it selects every namespace, whatever its labels.
    pub(super) fn selects_all(&self) -> bool {
        self.selector.selects_all()
    }

    /// Reports whether it selects a namespace with these labels.
    pub(super) fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.matches(labels)
    }
}
