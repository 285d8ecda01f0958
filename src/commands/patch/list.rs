//! `oras-csi patch --list`: lists the patches among the referrers of a base.

use std::fmt::Write as _;
use std::sync::Arc;

use oras_csi_core::manifest::{IndexEntry, media};
use oras_csi_core::patch::{ARTIFACT_TYPE, Instructions, Patch, PatchError};
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{HttpRegistry, Registry};
use serde_json::{Map, Value, json};

use super::arguments::Arguments;
use crate::exit_status::Failure;
use crate::options::output::OutputFormat;
use crate::registry_client::{resolve_digest, with_credentials};
use crate::standard_output::write_stdout;

/// The largest number of patches that are read and listed.
const MAX_PATCHES: usize = 256;

/// Prints the patches of a base.
pub(super) async fn list_patches(
    client: Arc<HttpRegistry>,
    base: &Reference,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let registry = with_credentials(client, arguments.registries.user_credentials()?);
    let subject = base.pin(resolve_digest(registry.as_ref(), base).await?);
    let referrers = registry.referrers(&subject).await;
    let referrers = referrers
        .map_err(|error| Failure::from(error).at(format_args!("cannot list the referrers of {subject}")))?;
    let mut patches = Vec::new();
    let candidates: Vec<_> = referrers.iter().filter(|entry| can_be_patch(entry)).collect();
    if candidates.len() > MAX_PATCHES {
        eprintln!(
            "oras-csi: the base has {} patches; only the first {MAX_PATCHES} are listed",
            candidates.len()
        );
    }
    for entry in candidates.into_iter().take(MAX_PATCHES) {
        let pinned = subject.with_digest(entry.descriptor().digest().clone());
        match read_patch(registry.as_ref(), &pinned, &subject).await {
            Ok(Some(patch)) => patches.push((pinned, patch)),
            Ok(None) => {}
            Err(failure) => eprintln!("oras-csi: {pinned}: {failure}"),
        }
    }
    if patches.is_empty() {
        eprintln!("oras-csi: {subject} has no patches in its repository");
    }
    write_stdout(&match arguments.output {
        OutputFormat::Text => {
            patches.iter().map(|(pinned, patch)| to_text(pinned, patch)).collect::<String>()
        }
        OutputFormat::Json => {
            let all: Vec<Value> = patches.iter().map(|(pinned, patch)| to_json(pinned, patch)).collect();
            format!("{}\n", Value::Array(all))
        }
    })
}

/// Reports whether a referrer can be a patch, by its entry in the list.
///
/// An entry without an artifact type can be one too: some clients write none, the earlier manifest form has none, and
/// go-containerregistry's registry writes the media type of the config instead, which in a patch is the empty one.
fn can_be_patch(entry: &IndexEntry) -> bool {
    match entry.artifact_type() {
        Some(kind) if kind != media::EMPTY => kind == ARTIFACT_TYPE,
        _ => matches!(entry.descriptor().media_type(), media::OCI_MANIFEST | media::OCI_ARTIFACT),
    }
}

/// Reads a referrer. Returns `None` if it is not a patch.
async fn read_patch(
    registry: &dyn Registry,
    pinned: &PinnedReference,
    subject: &PinnedReference,
) -> Result<Option<Patch>, Failure> {
    let document = registry.manifest(pinned).await?.into_manifest();
    match Instructions::read(pinned, &document) {
        Ok(Instructions::Patch(patch)) => {
            patch.check_base(subject.digest())?;
            Ok(Some(patch))
        }
        // The entry of the list did not say what it is.
        Ok(Instructions::Recipe(_)) | Err(PatchError::Kind { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn to_text(pinned: &PinnedReference, patch: &Patch) -> String {
    let mut text = format!("{pinned}\n");
    for (level, reference) in patch.levels() {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "  {level:<9} {reference}");
    }
    text
}

fn to_json(pinned: &PinnedReference, patch: &Patch) -> Value {
    let levels: Map<String, Value> =
        patch.levels().map(|(level, reference)| (level.to_string(), json!(reference))).collect();
    json!({"reference": pinned, "base": patch.base(), "levels": levels})
}
