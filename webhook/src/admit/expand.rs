//! From what names a patch, or the artifact of a recipe, to what that says.
//!
//! What a patch names is content, and is not read again. The artifact of a recipe may have patches in its steps, and
//! these may name artifacts of recipes, and that is all: whatever is named, it ends. Policies have looked at a name
//! before anybody reads what is there.

use std::sync::Arc;

use oras_csi_core::digest::Digest;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::Keyring;

use super::Admission;
use super::revision::Fixed;
use super::volumes::{Case, Credentials, is_that};
use crate::denial::Denial;
use crate::intent::{Content, Origin, Patched, Read, ReadFrom, Steps, VolumeIntent, Wanted, check_count};
use crate::policy::ApplicablePolicies;
use crate::policy::evaluate::Findings;
use crate::resolve::Said;

/// How often something is read because something was read: an artifact of a recipe, then the patches in it.
const ROUNDS: usize = 2;

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

/// A name that is read.
#[derive(Clone, Copy)]
struct Written<'a> {
    reference: &'a Reference,
    origin: &'a Origin,
    past_cache: bool,
}

impl Admission {
    /// Reads the patches and recipes that volumes name, and finds what the revision has for the tags in them.
    pub(super) async fn expand(
        &self,
        mut volumes: Vec<Arc<VolumeIntent>>,
        credentials: &Credentials<'_>,
        (book, findings): (&ApplicablePolicies, &mut Findings),
        fixed: &mut Fixed,
        case: &Case<'_>,
    ) -> Result<Vec<Arc<VolumeIntent>>, Denial> {
        for _ in 0..ROUNDS {
            let mut read = Vec::new();
            for (volume, keyring) in volumes.iter_mut().zip(credentials.keyrings) {
                let content = match &volume.content {
                    Content::Patched(patched) => self.patched(volume, patched, keyring, fixed, case).await,
                    Content::Steps(steps) => {
                        self.steps(volume, steps, keyring, fixed, case).await.map(Content::Wanted)
                    }
                    _ => continue,
                };
                let content = content.map_err(|denial| credentials.explain(denial))?;
                *volume = Arc::new(VolumeIntent { content, ..VolumeIntent::clone(volume) });
                read.push(Arc::clone(volume));
            }
            if read.is_empty() {
                break;
            }
            check_count(read.iter().map(AsRef::as_ref))?;
            for named in read.iter().flat_map(|volume| volume.unseen()) {
                findings.check_name(book, &named, &self.metrics)?;
            }
            self.find_pins(&read, fixed, case).await?;
        }
        Ok(volumes)
    }

    /// What is wanted by the patch or recipe that is named: by what it was when the volume that came along was made,
    /// where that is what it says, else by what it is now.
    async fn patched(
        &self,
        volume: &VolumeIntent,
        patched: &Patched,
        keyring: &Keyring,
        fixed: &Fixed,
        case: &Case<'_>,
    ) -> Result<Content, Denial> {
        let (origin, past_cache) = (&patched.origin, patched.past_cache);
        let written = Written { reference: &patched.reference, origin, past_cache };
        let content = |read: Read| match read.said {
            Said::Patch(patch) => patched.with_patch(read.digest, read.is_fresh, &patch).map(Content::Wanted),
            Said::Recipe(yaml) => {
                patched.with_recipe(read.digest, read.is_fresh, &yaml, self.registries.as_ref())
            }
        };
        if let Some(there) = &volume.earlier
            && let Some(digest) = case.notes.patch(&patched.reference)
            && let Ok(read) = self.read_at(written, Some(digest), keyring, case).await
            && let Ok(Content::Wanted(wanted)) = content(read)
            && is_that(volume, &wanted, there, case.notes)
        {
            return Ok(Content::Wanted(wanted));
        }
        content(self.read(written, keyring, fixed, case).await?)
    }

    /// The same for a recipe with patches in it.
    async fn steps(
        &self,
        volume: &VolumeIntent,
        steps: &Steps,
        keyring: &Keyring,
        fixed: &Fixed,
        case: &Case<'_>,
    ) -> Result<Wanted, Denial> {
        let written: Vec<_> = steps.patches().map(|(origin, step)| (origin, step.reference())).collect();
        let past_cache = steps.past_cache;
        if let Some(there) = &volume.earlier {
            let mut read = Vec::new();
            for (origin, reference) in &written {
                let Some(digest) = case.notes.patch(reference) else { break };
                let Ok(one) = self
                    .read_at(Written { reference, origin, past_cache }, Some(digest), keyring, case)
                    .await
                else {
                    break;
                };
                read.push(one);
            }
            if read.len() == written.len()
                && let Ok(wanted) = steps.with(read, self.registries.as_ref())
                && is_that(volume, &wanted, there, case.notes)
            {
                return Ok(wanted);
            }
        }
        let mut read = Vec::new();
        for (origin, reference) in &written {
            read.push(self.read(Written { reference, origin, past_cache }, keyring, fixed, case).await?);
        }
        steps.with(read, self.registries.as_ref())
    }

    /// What is named, by what the revision has for its tag.
    async fn read(
        &self,
        written: Written<'_>,
        keyring: &Keyring,
        fixed: &Fixed,
        case: &Case<'_>,
    ) -> Result<Read, Denial> {
        let fixed = fixed.get(written.reference);
        let is_fresh = fixed.is_none() && written.reference.digest().is_none();
        Ok(Read { is_fresh, ..self.read_at(written, fixed, keyring, case).await? })
    }

    async fn read_at(
        &self,
        written: Written<'_>,
        digest: Option<&Digest>,
        keyring: &Keyring,
        case: &Case<'_>,
    ) -> Result<Read, Denial> {
        let Written { reference, origin, past_cache } = written;
        let asked: Reference =
            digest.map_or_else(|| reference.clone(), |digest| reference.pin(digest.clone()).into());
        let found = self.resolver.instructions(&asked, keyring, past_cache, case.deadline).await;
        let (digest, said) = found.map_err(|failure| {
            let denial = failure.denial(origin.at(), &asked);
            match case.revision.and_then(|revision| revision.place(reference)) {
                Some(place) if asked != *reference => denial.because(&format!(
                    "that is what {reference} was for the first pod of this revision: delete {place} to have what it is now"
                )),
                _ => denial,
            }
        })?;
        Ok(Read { digest, is_fresh: false, said })
    }
}
