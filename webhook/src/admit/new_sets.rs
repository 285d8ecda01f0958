//! Creates the sets that volumes name together with a recipe, and records the pins of sets.

use kube::api::ObjectMeta;
use tokio::time::timeout_at;

use super::context::Context;
use super::expand::Expanded;
use super::locate::timed_out;
use super::pin::{NeededSecret, Pinned, PinnedVolume};
use super::revision::Writes;
use super::services::Services;
use super::set_volume::SetPin;
use crate::denial::Denial;
use crate::intent::NewSet;
use crate::sets::object::{ArtifactSet, ArtifactSetSpec, SecretName};
use crate::sets::recipe::steps_of;
use crate::sets::{Resolved, resolved_now};

const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "oras-csi");

/// Records which recipes of sets the first pod of the revision gets. Returns whether these volumes have those recipes:
/// if they do not, another pod of the revision was admitted first.
pub(super) async fn record_set_pins(volumes: &[PinnedVolume], context: &Context<'_>) -> Result<bool, Denial> {
    let Some(revision) = &context.revision else { return Ok(true) };
    let mut is_first = true;
    for PinnedVolume { expanded, pinned } in volumes {
        if let Expanded::Set(set) = &expanded.content
            && set.pin == SetPin::Missing
        {
            let digest = pinned.canonical.recipe().digest();
            is_first &= revision.record_set_pin(set, &digest).await? == digest;
        }
    }
    Ok(is_first)
}

/// Creates the sets that volumes name together with a recipe.
pub(super) async fn create_sets(
    services: &Services,
    volumes: &[PinnedVolume],
    context: &Context<'_>,
) -> Result<(), Denial> {
    let Some(sets) = services.sets.as_ref().filter(|_| context.writes == Writes::Yes) else {
        return Ok(());
    };
    let (namespace, registries) = (context.scope.namespace(), services.registries.as_ref());
    for PinnedVolume { expanded, pinned } in volumes {
        let Expanded::Recipe(recipe) = &expanded.content else { continue };
        let Some(new) = &recipe.new_set else { continue };
        let set = set_object(new, namespace, pinned);
        let made = timeout_at(context.scope.deadline, sets.create(namespace, &set, &new.recipe, registries));
        let made = made.await.unwrap_or_else(|_| Err(timed_out()));
        made.map_err(|error| error.denial(new.at(), &new.name))?;
    }
    Ok(())
}

fn set_object(new: &NewSet, namespace: &str, pinned: &Pinned) -> ArtifactSet {
    let pull_secret = match &pinned.secret {
        NeededSecret::Named(name) => Some(SecretName { name: name.clone() }),
        NeededSecret::None | NeededSecret::Unchanged => None,
    };
    let spec = ArtifactSetSpec { recipe: steps_of(&new.recipe), refresh_interval: None, pull_secret };
    let (label, value) = MANAGED_BY;
    let metadata = ObjectMeta {
        name: Some(new.name.clone()),
        namespace: Some(namespace.to_owned()),
        labels: Some([(label.to_owned(), value.to_owned())].into()),
        generation: Some(1),
        ..ObjectMeta::default()
    };
    let resolved = Resolved {
        recipe: pinned.canonical.recipe().to_json().to_owned(),
        id: pinned.canonical.id().to_string(),
        references: pinned.lines.clone(),
    };
    ArtifactSet { metadata, spec, status: Some(resolved_now(1, resolved)) }
}
