//! Writes and reads the manifest of a patch (docs/design.md, "Patches"). No other module does.

use serde_json::{Map, Value, json};

use super::{ARTIFACT_TYPE, Level, Part, Patch, PatchError, Target};
use crate::digest::Digest;
use crate::manifest::{Descriptor, ImageManifest, media};
use crate::reference::{PinnedReference, Reference};

/// The annotations about name and base (OCI image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const BASE_NAME: &str = "org.opencontainers.image.base.name";
const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";

/// Returns the annotation with the digest of a level.
fn digest_key(level: &str) -> String {
    format!("org.opencontainers.image.patch.{level}.digest")
}

/// Returns the annotation with the reference of a level: the digest alone does not name a repository.
fn reference_key(level: &str) -> String {
    format!("land.oras.csi.patch.{level}.ref")
}

impl Patch {
    /// Returns the manifest of this patch, attached to its base. The same patch and name always give the same bytes.
    ///
    /// `base` is the descriptor of the base. `name` is the target of the push: `HOST/REPOSITORY`, optionally with
    /// `:TAG`. Fails when `base` has another digest than the base of the patch.
    pub fn to_manifest(&self, base: &Descriptor, name: &str) -> Result<Vec<u8>, PatchError> {
        if *base.digest() != self.base.digest {
            return Err(PatchError::TwoBases {
                subject: base.digest().clone(),
                annotation: self.base.digest.clone(),
            });
        }
        let empty =
            json!({"mediaType": media::EMPTY, "digest": Digest::sha256_of(EMPTY), "size": EMPTY.len()});
        let mut annotations = vec![
            (REF_NAME.to_owned(), name.to_owned()),
            (BASE_NAME.to_owned(), base_name(&self.base.reference)),
            (BASE_DIGEST.to_owned(), self.base.digest.to_string()),
        ];
        for (level, target) in &self.levels {
            annotations.push((digest_key(level.as_str()), target.digest.to_string()));
            annotations.push((reference_key(level.as_str()), target.reference.to_string()));
        }
        annotations.sort();
        let annotations = annotations.into_iter().map(|(key, value)| (key, value.into()));
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

/// Returns the value of `base.name`, `HOST/REPOSITORY:TAG` (OCI image-spec, annotations.md). Without a tag it is the
/// reference with the digest.
fn base_name(reference: &Reference) -> String {
    match reference.tag() {
        Some(tag) => format!("{}:{tag}", reference.name()),
        None => reference.to_string(),
    }
}

/// Reads the patch that `own` names.
pub(super) fn read(own: &PinnedReference, image: &ImageManifest) -> Result<Patch, PatchError> {
    let reader = Reader { own, image };
    let base = reader.base()?;
    let mut levels = Vec::new();
    for level in Level::ALL {
        if let Some(reference) = reader.level(level, &base)? {
            levels.push((level, reference));
        }
    }
    Patch::new(base.reference, levels)
}

/// Reads the annotations of the patch that `own` names.
struct Reader<'a> {
    own: &'a PinnedReference,
    image: &'a ImageManifest,
}

impl Reader<'_> {
    /// Returns an annotation. An empty one counts as missing.
    fn text(&self, key: &str) -> Option<&str> {
        self.image.annotations().get(key).map(String::as_str).filter(|text| !text.is_empty())
    }

    fn digest(&self, key: &str) -> Result<Option<Digest>, PatchError> {
        let digest = self.text(key).map(str::parse).transpose();
        digest.map_err(|source| PatchError::Digest { key: key.into(), source })
    }

    /// Returns the reference with `digest` in the repository that the annotation `key` names, or else in the repository
    /// of `default`.
    fn reference(
        &self,
        part: Part,
        key: &str,
        digest: Digest,
        default: &Reference,
    ) -> Result<Reference, PatchError> {
        if digest == *self.own.digest() {
            return Err(PatchError::Circle { part });
        }
        let Some(text) = self.text(key) else { return Ok(default.pin(digest).into()) };
        let reference =
            Reference::parse(text).map_err(|source| PatchError::Reference { key: key.into(), source })?;
        match reference.digest() {
            Some(found) if *found != digest => {
                Err(PatchError::Differs { key: key.into(), found: found.clone(), part, expected: digest })
            }
            Some(_) => Ok(reference),
            None => Ok(reference.with_digest(digest)),
        }
    }

    fn base(&self) -> Result<Target, PatchError> {
        let subject = self.image.subject().map(|subject| subject.digest().clone());
        let digest = match (subject, self.digest(BASE_DIGEST)?) {
            (Some(subject), Some(annotation)) if subject != annotation => {
                return Err(PatchError::TwoBases { subject, annotation });
            }
            (Some(digest), _) | (None, Some(digest)) => digest,
            (None, None) => return Err(PatchError::NoBase),
        };
        let own = Reference::from(self.own.clone());
        let reference = self.reference(Part::Base, BASE_NAME, digest.clone(), &own)?;
        Ok(Target { reference, digest })
    }

    fn level(&self, level: Level, base: &Target) -> Result<Option<Reference>, PatchError> {
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
            let is_named = self.text(&reference).is_some();
            let found_here = self.reference(part, &reference, digest, &base.reference)?;
            // Two spellings of one level agree when they have the same digest and one of them has no reference.
            match &found {
                Some((_, other, true)) if !is_named && other.digest() == found_here.digest() => {}
                Some((first, other, other_is_named))
                    if *other != found_here && (*other_is_named || other.digest() != found_here.digest()) =>
                {
                    let (first, second) = (first.as_str().into(), key.as_str().into());
                    return Err(PatchError::Twice { level, first, second });
                }
                _ => found = Some((key, found_here, is_named)),
            }
        }
        Ok(found.map(|(_, reference, _)| reference))
    }
}
