//! The recipe of a set, as its object has it. Pure.

use kube::core::Rule;
use oras_csi_core::path::Glob;
use oras_csi_core::recipe::{Layer, Recipe, RecipeError, Step};
use oras_csi_core::reference::{Reference, ReferenceError};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::intent::Registries;

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

fn verbs() -> [Rule; 2] {
    let alone = "!has(self.path) && !has(self.include) && !has(self.exclude) && !has(self.mediaTypes) && !has(self.platform)";
    [
        Rule::new("[has(self.add), has(self.overlay), has(self.patch), has(self.remove)].filter(is, is).size() == 1")
            .message("a step has exactly one of add, overlay, patch and remove"),
        Rule::new(format!("has(self.add) || has(self.overlay) || ({alone})"))
            .message("path, include, exclude, mediaTypes and platform go with add and overlay alone"),
    ]
}

fn list_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": 64, "items": {"type": "string", "minLength": 1, "maxLength": 1024},
    })
}

/// A recipe of a set that was read: what is written, where patches have yet to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetRecipe(Vec<Part>);

/// A step, or what stands for several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Step(Step<Reference>),
    Patch(Reference),
}

/// Why the recipe of a set cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SetRecipeError {
    #[error("{0}")]
    Recipe(#[from] RecipeError),
    #[error("step {step} of the recipe: {source}")]
    Patch { step: usize, source: ReferenceError },
    #[error(
        "step {step} of the recipe needs exactly one of add, overlay, patch and remove, and nothing beside patch"
    )]
    Verb { step: usize },
}

impl SetRecipe {
    /// Reads the steps of an object.
    pub(crate) fn read(steps: &[SetStep], registries: &dyn Registries) -> Result<Self, SetRecipeError> {
        let is_registry = |host: &str| registries.names(host);
        if steps.iter().all(|step| step.patch.is_none()) {
            // As a whole, so that errors know the number of their step.
            let recipe = Recipe::from_yaml(&to_json(steps), &is_registry)?;
            return Ok(Self(recipe.steps().iter().cloned().map(Part::Step).collect()));
        }
        let mut parts = Vec::new();
        for (one, step) in steps.iter().zip(1..) {
            match one {
                SetStep { patch: Some(text), .. } => {
                    if *one != (SetStep { patch: Some(text.clone()), ..SetStep::default() }) {
                        return Err(SetRecipeError::Verb { step });
                    }
                    let reference = Reference::parse_knowing(text, &is_registry);
                    let reference = reference.map_err(|source| SetRecipeError::Patch { step, source })?;
                    parts.push(Part::Patch(reference));
                }
                SetStep { remove: Some(glob), add: None, overlay: None, .. } if !parts.is_empty() => {
                    // `remove` may be no recipe's first step, so it is read by itself.
                    let glob = glob.parse::<Glob>().map_err(|_| SetRecipeError::Verb { step })?;
                    parts.push(Part::Step(Step::Remove(glob)));
                }
                other => {
                    let recipe = Recipe::from_yaml(&to_json(std::slice::from_ref(other)), &is_registry)?;
                    parts.extend(recipe.steps().iter().cloned().map(Part::Step));
                }
            }
        }
        Ok(Self(parts))
    }

    /// What is written, in order.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The recipe, where there is no patch in it.
    pub(crate) fn plain(&self) -> Option<Recipe> {
        let steps = self.0.iter().map(|part| match part {
            Part::Step(step) => Some(step.clone()),
            Part::Patch(_) => None,
        });
        Recipe::new(steps.collect::<Option<Vec<_>>>()?).ok()
    }
}

fn to_json(steps: &[SetStep]) -> String {
    serde_json::to_string(steps).unwrap_or_default()
}

/// A recipe as an object has it.
pub(crate) fn steps_of(recipe: &Recipe) -> Vec<SetStep> {
    let texts = |list: &[Glob]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let layer = |layer: &Layer<Reference>| SetStep {
        path: Some(layer.path().to_string()).filter(|path| !path.is_empty()),
        include: texts(layer.include()),
        exclude: texts(layer.exclude()),
        media_types: layer.media_types().iter().map(ToString::to_string).collect(),
        platform: layer.platform().map(ToString::to_string),
        ..SetStep::default()
    };
    let step = |step: &Step<Reference>| match step {
        Step::Add(one) => SetStep { add: Some(one.reference().to_string()), ..layer(one) },
        Step::Overlay(one) => SetStep { overlay: Some(one.reference().to_string()), ..layer(one) },
        Step::Remove(glob) => SetStep { remove: Some(glob.to_string()), ..SetStep::default() },
    };
    recipe.steps().iter().map(step).collect()
}
