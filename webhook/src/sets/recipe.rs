//! The recipe of a set, as its object has it. Pure.

use kube::core::Rule;
use oras_csi_core::path::Glob;
use oras_csi_core::recipe::{Layer, RecipeError, Step, WrittenRecipe, WrittenStep};
use oras_csi_core::reference::Reference;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::registries::Registries;

/// One step: exactly one of add, overlay, patch and remove.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = verbs()))]
pub struct SetStep {
    /// The artifact whose files are laid down: HOST/REPOSITORY[:TAG][@DIGEST].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub add: Option<String>,
    /// The artifact whose files are laid over what is there; whiteouts take away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub overlay: Option<String>,
    /// A patch, or the artifact of a recipe: it stands for all the steps that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub patch: Option<String>,
    /// Up to which level of the patch: minor, major or critical; left out, all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub level: Option<String>,
    /// Which files of earlier steps are taken away, as a glob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub remove: Option<String>,
    /// The directory that the files go to; left out, the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub path: Option<String>,
    /// Globs of the files that are wanted; left out, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "list_schema")]
    pub include: Vec<String>,
    /// Globs of the files that are not wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "list_schema")]
    pub exclude: Vec<String>,
    /// Media types of the layers that are wanted; left out, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "list_schema")]
    pub media_types: Vec<String>,
    /// Whose manifest of an image index: OS/ARCHITECTURE[/VARIANT]; left out, the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub platform: Option<String>,
}

fn verbs() -> [Rule; 3] {
    let alone = "!has(self.path) && !has(self.include) && !has(self.exclude) && !has(self.mediaTypes) && !has(self.platform)";
    [
        Rule::new("[has(self.add), has(self.overlay), has(self.patch), has(self.remove)].filter(is, is).size() == 1")
            .message("a step has exactly one of add, overlay, patch and remove"),
        Rule::new("!has(self.level) || has(self.patch)").message("level stands beside patch alone"),
        Rule::new(format!("!has(self.remove) || ({alone})")).message("remove stands alone"),
    ]
}

fn list_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": 64, "items": {"type": "string", "minLength": 1, "maxLength": 1024},
    })
}

/// Reads the steps of an object.
pub(crate) fn read(steps: &[SetStep], registries: &dyn Registries) -> Result<WrittenRecipe, RecipeError> {
    WrittenRecipe::from_yaml(&to_json(steps), &|host| registries.names(host))
}

fn to_json(steps: &[SetStep]) -> String {
    serde_json::to_string(steps).unwrap_or_default()
}

/// A recipe as an object has it.
pub(crate) fn steps_of(recipe: &WrittenRecipe) -> Vec<SetStep> {
    let texts = |list: &[Glob]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let layer = |layer: &Layer<Reference>| SetStep {
        path: Some(layer.path().to_string()).filter(|path| !path.is_empty()),
        include: texts(layer.include()),
        exclude: texts(layer.exclude()),
        media_types: layer.media_types().iter().map(ToString::to_string).collect(),
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
