//! From what names a patch, or the artifact of a recipe, to what that says.
//!
//! One step, and no more: what a patch or a recipe names is content. Policies have looked at the name before, and look
//! at each of the names in it before any of those is asked for.

use std::sync::Arc;

use oras_csi_core::digest::Digest;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::Keyring;

use super::Admission;
use super::revision::Fixed;
use super::volumes::{Case, Credentials, is_that};
use crate::denial::Denial;
use crate::intent::{Content, Named, Patched, ReadFrom, VolumeIntent, Wanted, check_count};
use crate::resolve::Said;

/// A volume of which it is known what it shall hold.
pub(super) enum Expanded {
    /// It was known without reading anything.
    Before(Arc<VolumeIntent>),
    /// It was read.
    Now(Arc<VolumeIntent>),
}

impl Expanded {
    /// What policies have not seen yet.
    pub(super) fn new_names(&self) -> Option<Vec<Named>> {
        match self {
            Self::Before(_) => None,
            Self::Now(intent) => Some(intent.references()),
        }
    }

    pub(super) fn into_intent(self) -> Arc<VolumeIntent> {
        match self {
            Self::Before(intent) | Self::Now(intent) => intent,
        }
    }
}

impl ReadFrom {
    /// What the user is told of the patch itself.
    pub(super) fn tell(&self, warnings: &mut Vec<String>) {
        let at = self.origin.at();
        if let (Some(tag), None) = (self.reference.tag(), self.reference.digest()) {
            warnings.push(format!("{at}: {}:{tag} is pinned to {}", self.reference.name(), self.digest));
        }
        if self.is_bare {
            warnings.push(format!(
                "{at}: {} has no level up to the one that is wanted: its base is mounted as it is",
                self.reference
            ));
        }
    }
}

impl Admission {
    /// Reads the patches and recipes that volumes name, and finds what the revision has for the tags in them.
    pub(super) async fn expand(
        &self,
        volumes: &[Arc<VolumeIntent>],
        credentials: &Credentials<'_>,
        fixed: &mut Fixed,
        case: &Case<'_>,
    ) -> Result<Vec<Expanded>, Denial> {
        let mut expanded = Vec::new();
        let mut read = Vec::new();
        for (volume, keyring) in volumes.iter().zip(credentials.keyrings) {
            let Content::Patched(patched) = &volume.content else {
                expanded.push(Expanded::Before(Arc::clone(volume)));
                continue;
            };
            let wanted = self.read(volume, patched, keyring, fixed, case).await;
            let wanted = wanted.map_err(|denial| credentials.explain(denial))?;
            let intent = VolumeIntent { content: Content::Wanted(wanted), ..VolumeIntent::clone(volume) };
            let intent = Arc::new(intent);
            read.push(Arc::clone(&intent));
            expanded.push(Expanded::Now(intent));
        }
        if !read.is_empty() {
            check_count(read.iter().map(AsRef::as_ref))?;
            self.find_pins(&read, fixed, case).await?;
        }
        Ok(expanded)
    }

    /// What is wanted by the patch or recipe that is named: by what it was when the volume that came along was made,
    /// where that is what it says, else by what it is now.
    async fn read(
        &self,
        volume: &VolumeIntent,
        patched: &Patched,
        keyring: &Keyring,
        fixed: &Fixed,
        case: &Case<'_>,
    ) -> Result<Wanted, Denial> {
        if let Some(there) = &volume.earlier
            && let Some(digest) = case.notes.patch(&patched.reference)
            && let Ok(wanted) = self.read_at(patched, Some(digest), false, keyring, case).await
            && is_that(volume, &wanted, there, case.notes)
        {
            return Ok(wanted);
        }
        let fixed = fixed.get(&patched.reference);
        let is_fresh = fixed.is_none() && patched.reference.digest().is_none();
        self.read_at(patched, fixed, is_fresh, keyring, case).await
    }

    async fn read_at(
        &self,
        patched: &Patched,
        digest: Option<&Digest>,
        is_fresh: bool,
        keyring: &Keyring,
        case: &Case<'_>,
    ) -> Result<Wanted, Denial> {
        let written = &patched.reference;
        let asked: Reference =
            digest.map_or_else(|| written.clone(), |digest| written.pin(digest.clone()).into());
        let found = self.resolver.instructions(&asked, keyring, patched.past_cache, case.deadline).await;
        let (digest, said) = found.map_err(|failure| {
            let denial = failure.denial(patched.origin.at(), &asked);
            match case.revision.and_then(|revision| revision.place(written)) {
                Some(place) if asked != *written => denial.because(&format!(
                    "that is what {written} was for the first pod of this revision: delete {place} to have what it is now"
                )),
                _ => denial,
            }
        })?;
        match said {
            Said::Patch(patch) => patched.with_patch(digest, is_fresh, &patch),
            Said::Recipe(yaml) => patched.with_recipe(digest, is_fresh, &yaml, self.registries.as_ref()),
        }
    }
}
