//! `oras-csi patch --set` and `--cluster-set`: updates an artifact set to a patch, as `kubectl patch` would.
//!
//! Only `spec.recipe` changes, by a JSON merge patch (RFC 7386). A GitOps tool that owns the set reverts this; change
//! the set in the tool's repository instead.

use clap::Args;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use oras_csi_core::display::Shown;
use oras_csi_core::dns_name::{InvalidName, ObjectName};
use oras_csi_core::reference::PinnedReference;
use serde_json::json;

use crate::api_client::{self, RetryPolicy};
use crate::exit_status::{ExitStatus, Failure};

/// The field manager of the update.
const FIELD_MANAGER: &str = "oras-csi-patch";

/// The set to update.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct SetOptions {
    /// Replace the spec.recipe of this ArtifactSet by the patch. The cluster is that of the pod this runs in, or of the
    /// kubeconfig.
    #[arg(long = "set", value_name = "[NAMESPACE/]NAME")]
    set: Option<String>,
    /// Replace the spec.recipe of this ClusterArtifactSet by the patch.
    #[arg(long, value_name = "NAME")]
    cluster_set: Option<String>,
}

/// A set, and the API of its kind.
pub(super) struct Set {
    api: Api<DynamicObject>,
    /// Kind, name and namespace, for messages.
    description: String,
    name: String,
}

impl SetOptions {
    /// Reads the set before the patch is pushed, so that a missing set or permission fails first.
    pub(super) async fn find(&self) -> Result<Option<Set>, Failure> {
        let resource =
            |kind: &str| ApiResource::from_gvk(&GroupVersionKind::gvk("oras.land", "v1alpha1", kind));
        let set = if let Some(name) = &self.cluster_set {
            check_name("--cluster-set", name)?;
            let client = api_client::connect(RetryPolicy::KubeDefault).await?;
            let api = Api::all_with(client, &resource("ClusterArtifactSet"));
            Set { api, description: format!("ClusterArtifactSet {}", Shown::new(name)), name: name.clone() }
        } else if let Some(text) = &self.set {
            let client = api_client::connect(RetryPolicy::KubeDefault).await?;
            let (namespace, name) = match text.split_once('/') {
                Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
                None => (client.default_namespace().to_owned(), text.clone()),
            };
            check_name("--set", &namespace)?;
            check_name("--set", &name)?;
            let description =
                format!("ArtifactSet {} in namespace {}", Shown::new(&name), Shown::new(&namespace));
            Set { api: Api::namespaced_with(client, &namespace, &resource("ArtifactSet")), description, name }
        } else {
            return Ok(None);
        };
        set.api.get(&set.name).await.map_err(|error| set.failure("read", &error))?;
        Ok(Some(set))
    }
}

/// Checks a name before it becomes part of a request to the API server.
fn check_name(option: &str, name: &str) -> Result<(), Failure> {
    let invalid =
        |error: InvalidName| Failure::bad_input(format!("\"{}\": {error}", Shown::new(name))).at(option);
    name.parse::<ObjectName>().map(drop).map_err(invalid)
}

impl Set {
    /// Replaces the recipe of the set by the patch.
    pub(super) async fn update(&self, patch: &PinnedReference, tag: Option<&str>) -> Result<(), Failure> {
        let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
        let reference = format!("{}{tag}@{}", patch.name(), patch.digest());
        let change = Patch::Merge(json!({"spec": {"recipe": [{"patch": reference}]}}));
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let updated = self.api.patch(&self.name, &parameters, &change).await;
        updated.map_err(|error| self.failure("update", &error))?;
        eprintln!("updated {}: its recipe is now {reference}", self.description);
        Ok(())
    }

    fn failure(&self, verb: &str, error: &kube::Error) -> Failure {
        let message = Shown::new(&error.to_string());
        let status = match error {
            kube::Error::Api(status) if status.code == 404 || status.code == 422 => ExitStatus::BadInput,
            kube::Error::Api(status) if status.code == 403 => ExitStatus::Denied,
            _ => ExitStatus::Failed,
        };
        Failure::new(status, format!("cannot {verb} {}: {message}", self.description))
    }
}
