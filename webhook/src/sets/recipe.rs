//! The recipe in the spec of a set. No I/O.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the doc comments are descriptions of the CRD, which has no links"
)]

use kube::core::Rule;
use oras_csi_core::path::Glob;
use oras_csi_core::recipe::{Layer, RecipeError, Step, WrittenRecipe, WrittenStep};
use oras_csi_core::reference::Reference;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::registries::Registries;

/// One step of a recipe: exactly one of add, overlay, patch and remove.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = step_rules()))]
pub struct SetStep {
    /// Adds the files of an artifact: HOST/REPOSITORY[:TAG][@DIGEST].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub add: Option<String>,
    /// Applies the files of an artifact over the files of earlier steps. Whiteouts remove files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub overlay: Option<String>,
    /// A patch artifact, or an artifact that holds a recipe: it is replaced by all the steps that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub patch: Option<String>,
    /// The last level of the patch that applies: minor, major or critical. If left out, all levels apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub level: Option<String>,
    /// Removes files of earlier steps that match a glob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub remove: Option<String>,
    /// The directory for the files. If left out, the root of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub path: Option<String>,
    /// Globs of the files to include. If left out, all files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "list_schema")]
    pub include: Vec<String>,
    /// Globs of the files to exclude.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "list_schema")]
    pub exclude: Vec<String>,
    /// Media types of the layers to include. If left out, all layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "list_schema")]
    pub media_types: Vec<String>,
    /// The name of the one layer that has no title, among those of the media types. Layers without a name are left out.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub name: Option<String>,
    /// The platform in an image index: OS/ARCHITECTURE[/VARIANT]. If left out, the platform of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub platform: Option<String>,
}

/// CEL reserves the word "as", so Kubernetes calls the field `__as__` in rules.
fn step_rules() -> [Rule; 4] {
    let alone = "!has(self.path) && !has(self.include) && !has(self.exclude) && !has(self.mediaTypes) && !has(self.__as__) && !has(self.platform)";
    [
        Rule::new("[has(self.add), has(self.overlay), has(self.patch), has(self.remove)].filter(is, is).size() == 1")
            .message("a step must have exactly one of add, overlay, patch and remove"),
        Rule::new("!has(self.level) || has(self.patch)").message("level can be used only with patch"),
        Rule::new("!has(self.__as__) || !has(self.patch)").message("as can be used only with add or overlay"),
        Rule::new(format!("!has(self.remove) || ({alone})")).message("remove cannot be combined with another field"),
    ]
}

fn list_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": 64, "items": {"type": "string", "minLength": 1, "maxLength": 1024},
    })
}

/// Parses the steps of an object.
pub(crate) fn read(steps: &[SetStep], registries: &dyn Registries) -> Result<WrittenRecipe, RecipeError> {
    WrittenRecipe::from_yaml(&to_json(steps), &|host| registries.names(host))
}

fn to_json(steps: &[SetStep]) -> String {
    serde_json::to_string(steps).unwrap_or_default()
}

/// Returns the steps of a recipe as an object has them.
pub(crate) fn steps_of(recipe: &WrittenRecipe) -> Vec<SetStep> {
    let texts = |list: &[Glob]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let layer = |layer: &Layer<Reference>| SetStep {
        path: Some(layer.path().to_string()).filter(|path| !path.is_empty()),
        include: texts(layer.include()),
        exclude: texts(layer.exclude()),
        media_types: layer.media_types().iter().map(ToString::to_string).collect(),
        name: layer.name().map(ToString::to_string),
        platform: layer.platform().map(ToString::to_string),
        ..SetStep::default()
    };
    let step = |step: &WrittenStep| match step {
        WrittenStep::Plain(Step::Add(one)) => {
            SetStep { add: Some(one.reference().to_string()), ..layer(one) }
        }
        WrittenStep::Plain(Step::Overlay(one)) => {
            SetStep { overlay: Some(one.reference().to_string()), ..layer(one) }
        }
        WrittenStep::Plain(Step::Remove(glob)) => {
            SetStep { remove: Some(glob.to_string()), ..SetStep::default() }
        }
        WrittenStep::Patch(patch) => SetStep {
            patch: Some(patch.reference().to_string()),
            level: patch.level().map(|level| level.as_str().to_owned()),
            ..layer(patch.layer())
        },
    };
    recipe.steps().iter().map(step).collect()
}
