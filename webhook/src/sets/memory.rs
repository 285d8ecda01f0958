//! Sets in a stream of manifests.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use kube::Resource as _;
use oras_csi_core::display::Shown;
use serde_json::Value;

use super::object::{ArtifactSet, ClusterArtifactSet};
use super::{SetError, SetStore};
use crate::policy::{Labels, ManifestNamespaces, Namespaces as _};

/// The sets in a stream of manifests.
#[derive(Debug, Default)]
pub struct MemorySets {
    cluster: Mutex<BTreeMap<String, ClusterArtifactSet>>,
    namespaced: Mutex<BTreeMap<(String, String), ArtifactSet>>,
    namespaces: ManifestNamespaces,
}

/// Why a manifest cannot be read as a set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be read as a set of oras.land/v1alpha1: {0}")]
pub struct TakeError(Shown);

/// Reports whether a manifest is a set, of any version.
pub fn is_set(manifest: &Value) -> bool {
    let group = manifest["apiVersion"].as_str().and_then(|version| version.split('/').next());
    let kind = manifest["kind"].as_str();
    group == Some("oras.land") && matches!(kind, Some("ArtifactSet" | "ClusterArtifactSet"))
}

impl MemorySets {
    /// Makes an empty store, with the labels of namespaces.
    pub fn new(namespaces: ManifestNamespaces) -> Self {
        Self { namespaces, ..Self::default() }
    }

    /// Adds a manifest if it is a set, and reports whether it is. `namespace` is used for a manifest without one.
    pub fn take(&self, manifest: &Value, namespace: &str) -> Result<bool, TakeError> {
        if !is_set(manifest) {
            return Ok(false);
        }
        let failed = |error: serde_json::Error| TakeError(Shown::new(&error.to_string()));
        if manifest["apiVersion"] != ArtifactSet::api_version(&()).as_ref() {
            return Err(TakeError("it has another version".into()));
        }
        let name = manifest["metadata"]["name"].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| TakeError("it has no metadata.name".into()))?.to_owned();
        if manifest["kind"] == "ClusterArtifactSet" {
            let set = serde_json::from_value(manifest.clone()).map_err(failed)?;
            self.put_cluster(name, set);
        } else {
            let namespace = manifest["metadata"]["namespace"].as_str().unwrap_or(namespace).to_owned();
            let set = serde_json::from_value(manifest.clone()).map_err(failed)?;
            self.put_namespaced(namespace, name, set);
        }
        Ok(true)
    }

    /// Returns all cluster sets, by name.
    pub fn cluster_sets(&self) -> Vec<(String, ClusterArtifactSet)> {
        let sets = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        sets.iter().map(|(name, set)| (name.clone(), set.clone())).collect()
    }

    /// Returns all sets of namespaces, by namespace and name.
    pub fn namespaced_sets(&self) -> Vec<((String, String), ArtifactSet)> {
        let sets = self.namespaced.lock().unwrap_or_else(PoisonError::into_inner);
        sets.iter().map(|(name, set)| (name.clone(), set.clone())).collect()
    }

    /// Stores a cluster set under a name, and replaces another one of that name.
    pub fn put_cluster(&self, name: String, set: ClusterArtifactSet) {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner).insert(name, set);
    }

    /// Stores a set under a namespace and a name, and replaces another one of that name.
    pub fn put_namespaced(&self, namespace: String, name: String, set: ArtifactSet) {
        self.namespaced.lock().unwrap_or_else(PoisonError::into_inner).insert((namespace, name), set);
    }
}

#[async_trait]
impl SetStore for MemorySets {
    async fn cluster_set(&self, name: &str) -> Result<Option<ClusterArtifactSet>, SetError> {
        Ok(self.cluster.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned())
    }

    async fn namespaced_set(&self, namespace: &str, name: &str) -> Result<Option<ArtifactSet>, SetError> {
        let key = (namespace.to_owned(), name.to_owned());
        Ok(self.namespaced.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned())
    }

    async fn labels(&self, namespace: &str) -> Result<Labels, SetError> {
        let labels = self.namespaces.labels(namespace).await;
        labels.map_err(|error| SetError::Unavailable(error.0.as_str().into()))
    }

    async fn names(&self, namespace: &str) -> Vec<String> {
        let namespaced = self.namespaced_sets().into_iter().filter(|((other, _), _)| other == namespace);
        let cluster = self.cluster_sets().into_iter().map(|(name, _)| name);
        cluster.chain(namespaced.map(|((_, name), _)| name)).collect()
    }

    async fn create(&self, namespace: &str, set: &ArtifactSet) -> Result<Option<ArtifactSet>, SetError> {
        let name = set.metadata.name.clone().unwrap_or_default();
        let mut sets = self.namespaced.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), name);
        if let Some(existing) = sets.get(&key) {
            return Ok(Some(existing.clone()));
        }
        sets.insert(key, set.clone());
        Ok(None)
    }
}
