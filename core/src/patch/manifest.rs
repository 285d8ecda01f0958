//! A patch as a manifest: the one way to write it, and the one way to read it (design §7).

use serde_json::{Map, Value, json};

use super::{ARTIFACT_TYPE, Level, Noted, Part, Patch, PatchError};
use crate::digest::Digest;
use crate::manifest::ImageManifest;
use crate::manifest::{Descriptor, media};
use crate::reference::{PinnedReference, Reference};

/// The names of annotations (OCI image-spec, annotations.md, and design §7).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const BASE_NAME: &str = "org.opencontainers.image.base.name";
const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";

fn digest_key(level: &str) -> String {
    format!("org.opencontainers.image.patch.{level}.digest")
}

/// Where a level is: a digest alone names no repository.
fn reference_key(level: &str) -> String {
    format!("land.oras.csi.patch.{level}.ref")
}

impl Patch {
    /// The manifest of this patch, attached to its base: the same patch under the same name always has the same bytes.
    ///
    /// `base` is the base's own descriptor, and `name` where the patch goes: `HOST/REPOSITORY` or with `:TAG`.
    pub fn to_manifest(&self, base: &Descriptor, name: &str) -> Result<Vec<u8>, PatchError> {
        if *base.digest() != self.base.digest {
            return Err(PatchError::TwoBases {
                subject: base.digest().clone(),
                annotation: self.base.digest.clone(),
            });
        }
        let empty =
            json!({"mediaType": media::EMPTY, "digest": Digest::sha256_of(EMPTY), "size": EMPTY.len()});
        let mut said = vec![
            (REF_NAME.to_owned(), name.to_owned()),
            (BASE_NAME.to_owned(), without_digest(&self.base.reference)),
            (BASE_DIGEST.to_owned(), self.base.digest.to_string()),
        ];
        for (level, noted) in &self.levels {
            said.push((digest_key(level.as_str()), noted.digest.to_string()));
            said.push((reference_key(level.as_str()), noted.reference.to_string()));
        }
        said.sort();
        let annotations = said.into_iter().map(|(key, value)| (key, value.into()));
        let annotations = annotations.collect::<Map<String, Value>>();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": empty,
            "layers": [empty],
            "subject": {"mediaType": base.media_type(), "digest": base.digest(), "size": base.size()},
            "annotations": annotations,
        });
        Ok(manifest.to_string().into_bytes())
    }
}

/// The empty JSON object (image-spec, manifest.md, "Guidance for an Empty Descriptor").
pub(super) const EMPTY: &[u8] = b"{}";

/// `HOST/REPOSITORY:TAG`, as the specification has `base.name`; where no tag is known, the digest says it.
fn without_digest(reference: &Reference) -> String {
    match reference.tag() {
        Some(tag) => format!("{}:{tag}", reference.name()),
        None => reference.to_string(),
    }
}

/// Reads the patch that `own` names.
pub(super) fn read(own: &PinnedReference, image: &ImageManifest) -> Result<Patch, PatchError> {
    let said = Said { own, image };
    let base = said.base()?;
    let mut levels = Vec::new();
    for level in Level::ALL {
        if let Some(reference) = said.level(level, &base)? {
            levels.push((level, reference));
        }
    }
    Patch::new(base.reference, levels)
}

/// What a manifest says.
struct Said<'a> {
    own: &'a PinnedReference,
    image: &'a ImageManifest,
}

impl Said<'_> {
    /// An annotation; an empty one says nothing.
    fn text(&self, key: &str) -> Option<&str> {
        self.image.annotations().get(key).map(String::as_str).filter(|text| !text.is_empty())
    }

    fn digest(&self, key: &str) -> Result<Option<Digest>, PatchError> {
        let digest = self.text(key).map(str::parse).transpose();
        digest.map_err(|source| PatchError::Digest { key: key.into(), source })
    }

    /// The artifact that has `digest`, in the repository that the annotation `key` names, else in that of `beside`.
    fn noted(
        &self,
        part: Part,
        key: &str,
        digest: Digest,
        beside: &Reference,
    ) -> Result<Reference, PatchError> {
        if digest == *self.own.digest() {
            return Err(PatchError::Circle { part });
        }
        let Some(text) = self.text(key) else { return Ok(beside.pin(digest).into()) };
        let named =
            Reference::parse(text).map_err(|source| PatchError::Reference { key: key.into(), source })?;
        match named.digest() {
            Some(found) if *found != digest => {
                Err(PatchError::Differs { key: key.into(), found: found.clone(), part, wanted: digest })
            }
            Some(_) => Ok(named),
            None => Ok(named.with_digest(digest)),
        }
    }

    fn base(&self) -> Result<Noted, PatchError> {
        let subject = self.image.subject().map(|subject| subject.digest().clone());
        let digest = match (subject, self.digest(BASE_DIGEST)?) {
            (Some(subject), Some(annotation)) if subject != annotation => {
                return Err(PatchError::TwoBases { subject, annotation });
            }
            (Some(digest), _) | (None, Some(digest)) => digest,
            (None, None) => return Err(PatchError::NoBase),
        };
        let own = Reference::from(self.own.clone());
        let reference = self.noted(Part::Base, BASE_NAME, digest.clone(), &own)?;
        Ok(Noted { reference, digest })
    }

    fn level(&self, level: Level, base: &Noted) -> Result<Option<Reference>, PatchError> {
        let part = Part::Level(level);
        let mut found: Option<(String, Reference, bool)> = None;
        for spelling in level.spellings() {
            let (key, reference) = (digest_key(spelling), reference_key(spelling));
            let Some(digest) = self.digest(&key)? else {
                if self.text(&reference).is_some() {
                    let (reference, missing) = (reference.as_str().into(), key.as_str().into());
                    return Err(PatchError::NoDigest { part, reference, missing });
                }
                continue;
            };
            let is_placed = self.text(&reference).is_some();
            let one = self.noted(part, &reference, digest, &base.reference)?;
            // Two spellings of one level say the same where one of them leaves out where it is.
            match &found {
                Some((_, other, true)) if !is_placed && other.digest() == one.digest() => {}
                Some((first, other, was_placed))
                    if *other != one && (*was_placed || other.digest() != one.digest()) =>
                {
                    let (first, second) = (first.as_str().into(), key.as_str().into());
                    return Err(PatchError::Twice { level, first, second });
                }
                _ => found = Some((key, one, is_placed)),
            }
        }
        Ok(found.map(|(_, reference, _)| reference))
    }
}
