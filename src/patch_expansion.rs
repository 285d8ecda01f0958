//! Reads patches and recipe artifacts from a registry, and replaces the `patch` steps of a recipe by their content.

use futures_util::TryStreamExt as _;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::patch::{Instructions, PatchError};
use oras_csi_core::recipe::{Recipe, RecipeError, WrittenRecipe, artifact};
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::Registry;
use oras_csi_core::registry::hosts::HostsConfig;

use crate::exit_status::{ExitStatus, Failure};
use crate::parsing::parse_recipe;
use crate::registry_client::resolve_digest;

/// Returns the recipe with each `patch` step replaced by the steps of the patch or recipe artifact that it names.
pub(crate) async fn expand_patches(
    registry: &dyn Registry,
    written: &WrittenRecipe,
    hosts: &HostsConfig,
) -> Result<Recipe, Failure> {
    let mut expanded = Vec::new();
    for (number, step) in written.patches() {
        let at = |failure: Failure| failure.at(format_args!("step {number}: {}", step.reference()));
        let (pinned, instructions) = read_instructions(registry, step.reference()).await.map_err(at)?;
        expanded.push(match instructions {
            Instructions::Patch(patch) => patch.steps_for(step),
            Instructions::Recipe(layer) => {
                let yaml = read_recipe_yaml(registry, &pinned, &layer).await.map_err(at)?;
                let recipe = parse_recipe(&yaml, hosts).map_err(at)?;
                step.steps_from(&recipe).map_err(|error| at(Failure::bad_input(error)))?
            }
        });
    }
    let mut expanded = expanded.into_iter();
    let (recipe, _) = written
        .expand(|_, _| Ok::<_, RecipeError>(expanded.next().unwrap_or_default()))
        .map_err(Failure::bad_input)?;
    Ok(recipe)
}

/// Reads the manifest of a patch or of a recipe artifact.
pub(crate) async fn read_instructions(
    registry: &dyn Registry,
    reference: &Reference,
) -> Result<(PinnedReference, Instructions), Failure> {
    let pinned = reference.pin(resolve_digest(registry, reference).await?);
    let document = registry.manifest(&pinned).await?.into_manifest();
    let instructions = Instructions::read(&pinned, &document)?;
    Ok((pinned, instructions))
}

/// Downloads the YAML of a recipe artifact and verifies its digest.
pub(crate) async fn read_recipe_yaml(
    registry: &dyn Registry,
    pinned: &PinnedReference,
    layer: &Descriptor,
) -> Result<String, Failure> {
    let pieces: Vec<bytes::Bytes> = registry.blob(pinned, layer, 0).await?.try_collect().await?;
    let bytes = pieces.concat();
    if !layer.digest().matches(&bytes) {
        let message = format!(
            "cannot read blob {}: the bytes that the registry sent have another digest",
            layer.digest()
        );
        return Err(Failure::new(ExitStatus::Refused, message));
    }
    Ok(artifact::text(bytes).map_err(PatchError::Recipe)?)
}
