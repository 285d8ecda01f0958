//! `oras-csi patch --list`: the patches among a base's referrers.

use std::fmt::Write as _;
use std::sync::Arc;

use oras_csi_core::manifest::{IndexEntry, media};
use oras_csi_core::patch::{Instructions, Patch, PatchError};
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{HttpRegistry, Registry};
use serde_json::{Map, Value, json};

use super::{Arguments, Format, KIND};
use crate::documents::write_out;
use crate::failure::Failure;
use crate::registries::{access, digest_of};

/// More patches of one base are not read.
const MOST: usize = 256;

pub(super) async fn run(
    client: Arc<HttpRegistry>,
    base: &Reference,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let registry = access(client, arguments.registries.own_credentials()?);
    let digest = match base.digest() {
        Some(digest) => digest.clone(),
        None => digest_of(registry.as_ref(), base).await?,
    };
    let subject = base.pin(digest);
    let attached = registry.referrers(&subject).await;
    let attached =
        attached.map_err(|error| Failure::from(error).at(format_args!("what is attached to {subject}")))?;
    let mut patches = Vec::new();
    let candidates: Vec<_> = attached.iter().filter(|entry| may_be_patch(entry)).collect();
    if candidates.len() > MOST {
        eprintln!("oras-csi: only the first {MOST} of {} patches are listed", candidates.len());
    }
    for entry in candidates.into_iter().take(MOST) {
        let pinned = subject.with_digest(entry.descriptor().digest().clone());
        match read(registry.as_ref(), &pinned, &subject).await {
            Ok(Some(patch)) => patches.push((pinned, patch)),
            Ok(None) => {}
            Err(failure) => eprintln!("oras-csi: {pinned}: {failure}"),
        }
    }
    if patches.is_empty() {
        eprintln!("oras-csi: no patch is attached to {subject}");
    }
    write_out(&match arguments.output {
        Format::Text => patches.iter().map(|(pinned, patch)| lines(pinned, patch)).collect::<String>(),
        Format::Json => {
            let all: Vec<Value> = patches.iter().map(|(pinned, patch)| object(pinned, patch)).collect();
            format!("{}\n", Value::Array(all))
        }
    })
}

/// What the list says, or leaves out: some clients write no type there, the earlier form has none of its own, and
/// go-containerregistry's registry has the type of the config in its place, which in a patch is the empty one.
fn may_be_patch(entry: &IndexEntry) -> bool {
    match entry.artifact_type() {
        Some(kind) if kind != media::EMPTY => kind == KIND,
        _ => matches!(entry.descriptor().media_type(), media::OCI_MANIFEST | media::OCI_ARTIFACT),
    }
}

/// The patch; nothing, where it is none.
async fn read(
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
        // Whoever says nothing of its type may be anything.
        Ok(Instructions::Recipe(_)) | Err(PatchError::Kind { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn lines(pinned: &PinnedReference, patch: &Patch) -> String {
    let mut text = format!("{pinned}\n");
    for (level, reference) in patch.levels() {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "  {level:<9} {reference}");
    }
    text
}

fn object(pinned: &PinnedReference, patch: &Patch) -> Value {
    let levels: Map<String, Value> =
        patch.levels().map(|(level, reference)| (level.to_string(), json!(reference))).collect();
    json!({"reference": pinned, "base": patch.base(), "levels": levels})
}
