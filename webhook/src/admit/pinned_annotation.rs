//! The annotations `oras.land/pinned` and `oras.land/pinned-patch`.
//!
//! The first has, for people and tools, what each volume was pinned to. The second has what the patches, or the recipe
//! artifact, that the annotations name were pinned to, separated by blanks.

use std::collections::BTreeMap;

use oras_csi_core::digest::Digest;
use oras_csi_core::keys::annotation;
use oras_csi_core::recipe::Recipe;
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::volume::CanonicalVolume;

use crate::view::Pod;

/// Returns `host/repository:tag@digest`.
pub(super) fn line(reference: &Reference, digest: &Digest) -> String {
    match reference.tag() {
        Some(tag) => format!("{}:{tag}@{digest}", reference.name()),
        None => format!("{}@{digest}", reference.name()),
    }
}

/// The annotations of the pod in the request. They are untrusted input: each is used only for the tags beside digests that
/// the pod's volumes really have, and for a patch whose expansion is exactly the volume.
#[derive(Default)]
pub(super) struct PinnedAnnotation {
    lines: BTreeMap<String, Vec<Option<Reference>>>,
    patches: Vec<Reference>,
}

impl PinnedAnnotation {
    pub(super) fn read(pod: &Pod<'_>) -> Self {
        let text = pod.annotation(annotation::PINNED).unwrap_or("{}");
        let written: BTreeMap<String, Vec<String>> = serde_json::from_str(text).unwrap_or_default();
        let parse = |lines: Vec<String>| lines.iter().map(|line| line.parse().ok()).collect();
        let lines = written.into_iter().map(|(volume, lines)| (volume, parse(lines))).collect();
        let patches = pod.annotation(annotation::PINNED_PATCH).unwrap_or_default().split(' ');
        let patches = patches.filter_map(|text| text.parse().ok()).collect();
        Self { lines, patches }
    }

    /// Returns the digest that a patch was pinned to.
    pub(super) fn patch_digest(&self, written: &Reference) -> Option<&Digest> {
        let is_same = |pinned: &&Reference| {
            pinned.name() == written.name()
                && pinned.tag() == written.tag()
                && written.digest().is_none_or(|digest| pinned.digest() == Some(digest))
        };
        self.patches.iter().find(is_same)?.digest()
    }

    /// Returns the line of a step of a volume that has `pinned` there, with the tag if the annotation has it.
    pub(super) fn line(&self, volume: &str, step: usize, pinned: &PinnedReference) -> String {
        let annotated = self.annotated(volume, step, pinned);
        annotated.map_or_else(|| pinned.to_string(), |annotated| line(annotated, pinned.digest()))
    }

    /// Returns the lines of a canonical volume.
    pub(super) fn lines(&self, volume: &str, canonical: &CanonicalVolume) -> Vec<String> {
        let references = canonical.recipe().references().enumerate();
        references.map(|(step, pinned)| self.line(volume, step, pinned)).collect()
    }

    /// Reports whether a canonical volume is what a recipe requests: the same steps, each with the digest that is
    /// written, or with the digest that the annotation has beside the tag that is written.
    pub(super) fn confirms(&self, volume: &str, requested: &Recipe, canonical: &CanonicalVolume) -> bool {
        let mut references = canonical.recipe().references().enumerate();
        let pinned = requested.pin(|written| {
            let (step, pinned) = references.next().ok_or(())?;
            let agrees = self.agrees(volume, step, pinned, written);
            if agrees { Ok(pinned.digest().clone()) } else { Err(()) }
        });
        canonical.set().is_none() && pinned.as_ref() == Ok(canonical.recipe())
    }

    fn agrees(&self, volume: &str, step: usize, pinned: &PinnedReference, written: &Reference) -> bool {
        match written.digest() {
            Some(digest) => digest == pinned.digest(),
            None => {
                self.annotated(volume, step, pinned).is_some_and(|annotated| annotated.tag() == written.tag())
            }
        }
    }

    fn annotated(&self, volume: &str, step: usize, pinned: &PinnedReference) -> Option<&Reference> {
        let is_same = |annotated: &&Reference| {
            annotated.registry() == pinned.registry()
                && annotated.repository() == pinned.repository()
                && annotated.digest() == Some(pinned.digest())
        };
        let lines = self.lines.get(volume).map(Vec::as_slice).unwrap_or_default();
        lines.get(step).and_then(Option::as_ref).filter(is_same)
    }
}
