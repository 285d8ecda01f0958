//! The order of work for the volumes of one request: sets, policy on names, credentials, patches, digests with the
//! policy on contents, pins, new sets, seals.

use oras_csi_core::trace::TARGET;
use tracing::{Instrument as _, trace_span};

use super::context::Context;
use super::locate::{Located, LocatedVolume, apply_set_pins, check_new_sets, look_up_sets};
use super::new_sets::{create_sets, record_set_pins};
use super::pin::pin_volumes;
use super::policy::PolicyChecks;
use super::revision::TagPins;
use super::seal::{SealedVolumes, seal_volumes};
use super::services::Services;
use super::{credentials, expand};
use crate::denial::{At, Code, Denial};
use crate::intent::RequestedVolume;

/// How often the work starts again because another pod of the revision recorded its pins first.
const MAX_ROUNDS: usize = 3;

/// Takes the volumes of a request through all stages.
pub(super) async fn run(
    services: &Services,
    volumes: Vec<RequestedVolume>,
    context: &Context<'_>,
) -> Result<SealedVolumes, Denial> {
    let volumes = look_up_sets(services, volumes, &context.pinned_annotation, context.scope)
        .instrument(trace_span!(target: TARGET, "look up sets"))
        .await?;
    let volumes = check_new_sets(services, volumes, context).await?;
    for _ in 0..MAX_ROUNDS {
        let volumes = apply_set_pins(volumes.clone(), context).await?;
        if let Some(sealed) = admit_located(services, volumes, context).await? {
            return Ok(sealed);
        }
    }
    Err(pins_keep_changing())
}

/// Takes located volumes through the other stages. Returns `None` where another pod of the revision meanwhile got
/// another recipe of a set.
async fn admit_located(
    services: &Services,
    volumes: Vec<LocatedVolume>,
    context: &Context<'_>,
) -> Result<Option<SealedVolumes>, Denial> {
    let book = services.policies.applicable_to(context.scope.namespace(), context.scope.deadline).await?;
    let mut policy = PolicyChecks::new(&book, &services.metrics);
    policy.check_names(volumes.iter().flat_map(LocatedVolume::names))?;
    tracing::debug!(namespace = context.scope.namespace(), volumes = volumes.len(), "intent is allowed");
    let volumes = credentials::attach(services, volumes, &policy, context)
        .instrument(trace_span!(target: TARGET, "read pull secrets"))
        .await?;
    let mut pins = TagPins::new();
    let names = volumes.iter().filter_map(|volume| match &volume.content {
        Located::Artifacts(request) => Some(request.source.names()),
        Located::Admitted(_) | Located::Set(_) => None,
    });
    expand::find_tag_pins(names.flatten().collect(), &mut pins, context)
        .instrument(trace_span!(target: TARGET, "read pins"))
        .await?;
    for _ in 0..MAX_ROUNDS {
        let mut policy = policy.clone();
        let expanded = expand::expand(services, volumes.clone(), &mut policy, &mut pins, context)
            .instrument(trace_span!(target: TARGET, "expand patches"))
            .await?;
        let pinned = pin_volumes(services, expanded, &mut policy, &pins, context)
            .instrument(trace_span!(target: TARGET, "resolve references"))
            .await?;
        if let Some(revision) = &context.revision {
            let new = pinned.iter().flat_map(|volume| volume.pinned.new_pins.iter().cloned());
            let others = revision
                .record_pins(&new.collect::<Vec<_>>())
                .instrument(trace_span!(target: TARGET, "record pins"))
                .await?;
            if !others.is_empty() {
                // Another pod of the revision was first: its digests count.
                pins.extend(others);
                continue;
            }
        }
        if !record_set_pins(&pinned, context).await? {
            return Ok(None);
        }
        create_sets(services, &pinned, context).await?;
        let volumes = seal_volumes(services, pinned, context.scope)?;
        return Ok(Some(SealedVolumes { volumes, findings: policy.findings }));
    }
    Err(pins_keep_changing())
}

fn pins_keep_changing() -> Denial {
    let (rule, instead) = ("have tags whose pins changed several times during this request", "try again");
    Denial::new(Code::Unavailable, At::Field("spec.volumes"), None, rule, instead)
}
