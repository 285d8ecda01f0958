//! Sets of a stream of manifests.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use kube::Resource as _;
use oras_csi_core::display::Shown;
use serde_json::Value;

use super::object::{ArtifactSet, ClusterArtifactSet};
use super::{SetError, SetStore};
use crate::policy::{Labels, Namespaces as _, StatedNamespaces};

/// What manifests say of sets, and nothing else.
#[derive(Debug, Default)]
pub struct MemorySets {
    cluster: Mutex<BTreeMap<String, ClusterArtifactSet>>,
    own: Mutex<BTreeMap<(String, String), ArtifactSet>>,
    namespaces: StatedNamespaces,
}

/// Why a manifest is no set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be read as a set of oras.land/v1alpha1: {0}")]
pub struct TakeError(Shown);

/// Whether a manifest is a set, of whatever version.
pub fn is_set(manifest: &Value) -> bool {
    let group = manifest["apiVersion"].as_str().and_then(|version| version.split('/').next());
    let kind = manifest["kind"].as_str();
    group == Some("oras.land") && matches!(kind, Some("ArtifactSet" | "ClusterArtifactSet"))
}

impl MemorySets {
    /// In namespaces with these labels.
    pub fn new(namespaces: StatedNamespaces) -> Self {
        Self { namespaces, ..Self::default() }
    }

    /// Takes a manifest in, if it is a set; `namespace` is that of one that names none. It says whether it was.
    pub fn take(&self, manifest: &Value, namespace: &str) -> Result<bool, TakeError> {
        if !is_set(manifest) {
            return Ok(false);
        }
        let failed = |error: serde_json::Error| TakeError(Shown::new(&error.to_string()));
        if manifest["apiVersion"] != ArtifactSet::api_version(&()).as_ref() {
            return Err(TakeError("it is of another version".into()));
        }
        let name = manifest["metadata"]["name"].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| TakeError("it has no metadata.name".into()))?.to_owned();
        if manifest["kind"] == "ClusterArtifactSet" {
            let set = serde_json::from_value(manifest.clone()).map_err(failed)?;
            self.put_cluster(name, set);
        } else {
            let namespace = manifest["metadata"]["namespace"].as_str().unwrap_or(namespace).to_owned();
            let set = serde_json::from_value(manifest.clone()).map_err(failed)?;
            self.put_own(namespace, name, set);
        }
        Ok(true)
    }

    /// All cluster sets.
    pub fn cluster_sets(&self) -> Vec<(String, ClusterArtifactSet)> {
        let sets = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        sets.iter().map(|(name, set)| (name.clone(), set.clone())).collect()
    }

    /// All others, by namespace and name.
    pub fn own_sets(&self) -> Vec<((String, String), ArtifactSet)> {
        let sets = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        sets.iter().map(|(name, set)| (name.clone(), set.clone())).collect()
    }

    /// Puts a cluster set in the place of that name.
    pub fn put_cluster(&self, name: String, set: ClusterArtifactSet) {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner).insert(name, set);
    }

    /// Puts a set in the place of that name.
    pub fn put_own(&self, namespace: String, name: String, set: ArtifactSet) {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).insert((namespace, name), set);
    }
}

#[async_trait]
impl SetStore for MemorySets {
    async fn cluster_set(&self, name: &str) -> Result<Option<ClusterArtifactSet>, SetError> {
        Ok(self.cluster.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned())
    }

    async fn own_set(&self, namespace: &str, name: &str) -> Result<Option<ArtifactSet>, SetError> {
        let key = (namespace.to_owned(), name.to_owned());
        Ok(self.own.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned())
    }

    async fn labels(&self, namespace: &str) -> Result<Labels, SetError> {
        let labels = self.namespaces.labels(namespace).await;
        labels.map_err(|error| SetError::Unavailable(error.0.as_str().into()))
    }

    async fn names(&self, namespace: &str) -> Vec<String> {
        let own = self.own_sets().into_iter().filter(|((other, _), _)| other == namespace);
        let cluster = self.cluster_sets().into_iter().map(|(name, _)| name);
        cluster.chain(own.map(|((_, name), _)| name)).collect()
    }

    async fn make(&self, namespace: &str, set: &ArtifactSet) -> Result<Option<ArtifactSet>, SetError> {
        let name = set.metadata.name.clone().unwrap_or_default();
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), name);
        if let Some(there) = own.get(&key) {
            return Ok(Some(there.clone()));
        }
        own.insert(key, set.clone());
        Ok(None)
    }
}
