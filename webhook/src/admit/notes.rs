//! `oras.land/pinned`: what each volume was pinned to, for people and for tools; and `oras.land/pinned-patch`: what the
//! patches were pinned to that the annotations name, or their recipe, with a space between two.

use std::collections::BTreeMap;

use oras_csi_core::digest::Digest;
use oras_csi_core::keys::annotation;
use oras_csi_core::reference::{PinnedReference, Reference};

use crate::view::Pod;

/// `host/repository:tag@digest`, as people read it.
pub(super) fn line(reference: &Reference, digest: &Digest) -> String {
    match reference.tag() {
        Some(tag) => format!("{}:{tag}@{digest}", reference.name()),
        None => format!("{}@{digest}", reference.name()),
    }
}

/// What our annotations said when the pod came: of use only for the tags beside digests that the pod really has, and
/// for a patch that says just that.
#[derive(Default)]
pub(super) struct Notes {
    lines: BTreeMap<String, Vec<Option<Reference>>>,
    patches: Vec<Reference>,
}

impl Notes {
    pub(super) fn read(pod: &Pod<'_>) -> Self {
        let text = pod.annotation(annotation::PINNED).unwrap_or("{}");
        let written: BTreeMap<String, Vec<String>> = serde_json::from_str(text).unwrap_or_default();
        let parse = |lines: Vec<String>| lines.iter().map(|line| line.parse().ok()).collect();
        let lines = written.into_iter().map(|(volume, lines)| (volume, parse(lines))).collect();
        let patches = pod.annotation(annotation::PINNED_PATCH).unwrap_or_default().split(' ');
        let patches = patches.filter_map(|text| text.parse().ok()).collect();
        Self { lines, patches }
    }

    /// What the patch that is written was pinned to before.
    pub(super) fn patch(&self, written: &Reference) -> Option<&Digest> {
        let is_it = |noted: &&Reference| {
            noted.name() == written.name()
                && noted.tag() == written.tag()
                && written.digest().is_none_or(|digest| noted.digest() == Some(digest))
        };
        self.patches.iter().find(is_it)?.digest()
    }

    /// The line of a step of a volume that has `pinned` there.
    pub(super) fn line(&self, volume: &str, step: usize, pinned: &PinnedReference) -> String {
        let noted = self.noted(volume, step, pinned);
        noted.map_or_else(|| pinned.to_string(), |noted| line(noted, pinned.digest()))
    }

    /// Whether that step says that `pinned` is what `written` was pinned to: the same digest where one is written,
    /// else the same tag.
    pub(super) fn agree(
        &self,
        volume: &str,
        step: usize,
        pinned: &PinnedReference,
        written: &Reference,
    ) -> bool {
        match written.digest() {
            Some(digest) => digest == pinned.digest(),
            None => self.noted(volume, step, pinned).is_some_and(|noted| noted.tag() == written.tag()),
        }
    }

    fn noted(&self, volume: &str, step: usize, pinned: &PinnedReference) -> Option<&Reference> {
        let is_it = |noted: &&Reference| {
            noted.registry() == pinned.registry()
                && noted.repository() == pinned.repository()
                && noted.digest() == Some(pinned.digest())
        };
        let lines = self.lines.get(volume).map(Vec::as_slice).unwrap_or_default();
        lines.get(step).and_then(Option::as_ref).filter(is_it)
    }
}
