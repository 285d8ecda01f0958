//! Pointing a set at a patch, as somebody with `kubectl` would.
//!
//! Only `spec.recipe` changes, by a JSON merge patch (RFC 7386): who else owns the set sees it as an edit. Where a GitOps
//! tool does, it takes the edit back, and the change belongs into its repository.

use clap::Args;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use oras_csi_core::display::Shown;
use oras_csi_core::reference::PinnedReference;
use serde_json::json;

use crate::failure::{Failure, Status};

/// Who the API server says it was.
const MANAGER: &str = "oras-csi-patch";

/// Which set is to have the patch.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct SetOptions {
    /// Have this ArtifactSet of the namespace hold the patch and nothing else: its spec.recipe is replaced, in the
    /// cluster of the pod that this runs in, or of the kubeconfig.
    #[arg(long = "set", value_name = "[NAMESPACE/]NAME")]
    set: Option<String>,
    /// The same for a ClusterArtifactSet.
    #[arg(long, value_name = "NAME")]
    cluster_set: Option<String>,
}

/// A set to be changed, and the way to its cluster.
pub(super) struct Set {
    api: Api<DynamicObject>,
    shown: String,
    name: String,
}

impl SetOptions {
    /// Finds the set before anything is pushed: what could not be pointed at is not made.
    pub(super) async fn find(&self) -> Result<Option<Set>, Failure> {
        let resource =
            |kind: &str| ApiResource::from_gvk(&GroupVersionKind::gvk("oras.land", "v1alpha1", kind));
        let set = if let Some(name) = &self.cluster_set {
            let client = client().await?;
            let api = Api::all_with(client, &resource("ClusterArtifactSet"));
            Set { api, shown: format!("ClusterArtifactSet {}", Shown::new(name)), name: name.clone() }
        } else if let Some(text) = &self.set {
            let client = client().await?;
            let (namespace, name) = match text.split_once('/') {
                Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
                None => (client.default_namespace().to_owned(), text.clone()),
            };
            let shown = format!("ArtifactSet {} in namespace {}", Shown::new(&name), Shown::new(&namespace));
            Set { api: Api::namespaced_with(client, &namespace, &resource("ArtifactSet")), shown, name }
        } else {
            return Ok(None);
        };
        set.api.get(&set.name).await.map_err(|error| set.failure("be read", &error))?;
        Ok(Some(set))
    }
}

impl Set {
    /// Has the set hold the patch.
    pub(super) async fn point_at(&self, patch: &PinnedReference, tag: Option<&str>) -> Result<(), Failure> {
        let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
        let reference = format!("{}{tag}@{}", patch.name(), patch.digest());
        let change = Patch::Merge(json!({"spec": {"recipe": [{"patch": reference}]}}));
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let changed = self.api.patch(&self.name, &parameters, &change).await;
        changed.map_err(|error| self.failure("be changed", &error))?;
        eprintln!("{} holds {reference}", self.shown);
        Ok(())
    }

    fn failure(&self, what: &str, error: &kube::Error) -> Failure {
        let words = Shown::new(&error.to_string());
        let status = match error {
            kube::Error::Api(status) if status.code == 404 || status.code == 422 => Status::BadInput,
            kube::Error::Api(status) if status.code == 403 => Status::Denied,
            _ => Status::Failed,
        };
        Failure::new(status, format!("the {} cannot {what}: {words}", self.shown))
    }
}

async fn client() -> Result<kube::Client, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("no way to a cluster: {error}: run this in a pod, or with a kubeconfig"))
    };
    let config = kube::Config::infer().await.map_err(|error| failed(&error))?;
    kube::Client::try_from(config).map_err(|error| failed(&error))
}
