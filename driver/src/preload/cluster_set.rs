//! The fields of a `ClusterArtifactSet` that the driver reads. The webhook defines the type and its custom resource
//! definition.

use std::collections::BTreeMap;

use kube::ResourceExt as _;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use oras_csi_core::display::Shown;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::volume_id::VolumeId;
use serde::Deserialize;
use serde_json::Value;

/// Returns the API resource of cluster sets.
pub(super) fn resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("oras.land", "v1alpha1", "ClusterArtifactSet");
    ApiResource::from_gvk_with_plural(&kind, "clusterartifactsets")
}

/// A cluster set with `preload: true`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClusterSet {
    /// The labels that a node must have.
    pub(super) node_selector: BTreeMap<String, String>,
    /// The generation of its spec.
    pub(super) generation: i64,
    /// The id in its status; empty if there is none.
    pub(super) id: String,
    pub(super) content: Content,
}

/// The content of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The pinned recipe.
    Recipe(PinnedRecipe),
    /// The present generation is not resolved yet, as this message explains.
    Unresolved(String),
    /// The status is invalid, as this message explains.
    Invalid(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    preload: bool,
    #[serde(default)]
    node_selector: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pull_secret: Option<SecretName>,
}

#[derive(Deserialize)]
pub(super) struct SecretName {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    id: String,
    recipe: Option<String>,
    recipe_generation: i64,
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    message: String,
}

/// Reads a set. Returns `None` if it does not request preloading, or if its spec cannot be read.
pub(super) fn read(object: &DynamicObject) -> Option<ClusterSet> {
    let spec = part::<Spec>(object, "spec");
    let spec = match spec {
        Ok(spec) if spec.preload => spec,
        Ok(_) => return None,
        Err(error) => {
            tracing::warn!(set = object.name_any(), %error, "cannot read the spec of a ClusterArtifactSet; it is not preloaded");
            return None;
        }
    };
    let (id, content) = match part::<Status>(object, "status") {
        Ok(status) => {
            let content = content(object.metadata.generation.unwrap_or_default(), &status);
            (status.id, content)
        }
        Err(error) => {
            let message = format!("cannot read the status of the set: {}", Shown::new(&error.to_string()));
            (String::new(), Content::Invalid(message))
        }
    };
    // An invalid id must not reach the status of NodeArtifacts.
    let id = if matches!(content, Content::Recipe(_)) || is_id(&id) { id } else { String::new() };
    Some(ClusterSet {
        node_selector: spec.node_selector.unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        id,
        content,
    })
}

/// Returns the name of the pull secret of a set.
pub(super) fn pull_secret(object: &DynamicObject) -> Result<Option<String>, serde_json::Error> {
    Ok(part::<Spec>(object, "spec")?.pull_secret.map(|secret| secret.name))
}

fn part<T: for<'de> Deserialize<'de>>(object: &DynamicObject, name: &str) -> Result<T, serde_json::Error> {
    let part = object.data.get(name).filter(|part| !part.is_null()).cloned();
    serde_json::from_value(part.unwrap_or_else(|| Value::Object(serde_json::Map::new())))
}

fn is_id(text: &str) -> bool {
    text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn content(generation: i64, status: &Status) -> Content {
    let Some(recipe) = status.recipe.as_deref().filter(|_| status.recipe_generation == generation) else {
        let not_ready = status.conditions.iter().find(|one| one.kind == "Ready" && one.status == "False");
        let message = match (not_ready, &status.recipe) {
            (Some(condition), _) if !condition.message.is_empty() => {
                format!("the set is not ready: {}", Shown::new(&condition.message))
            }
            (_, Some(_)) => "the set was changed and is being resolved".to_owned(),
            (_, None) => "the set is not resolved yet".to_owned(),
        };
        return Content::Unresolved(message);
    };
    let recipe = match PinnedRecipe::from_json(recipe) {
        Ok(recipe) => recipe,
        Err(error) => {
            return Content::Invalid(format!("the recipe in the status of the set is invalid: {error}"));
        }
    };
    match VolumeId::parse_for(&status.id, &recipe) {
        Ok(_) => Content::Recipe(recipe),
        Err(error) => Content::Invalid(format!(
            "the id in the status of the set does not belong to its recipe: {error}"
        )),
    }
}
