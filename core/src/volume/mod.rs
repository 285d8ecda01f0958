//! Canonical volumes: the only form of a CSI volume that the driver accepts. The webhook rewrites every volume to it
//! (docs/design.md, "Canonical volume").

use std::collections::BTreeMap;

use crate::display::Shown;
use crate::dns_name;
use crate::keys::{KUBELET_PREFIX, canonical, nearest_attribute};
use crate::recipe::{PinnedRecipe, RecipeError};
use crate::seal::{Holder, PublicKeys, Seal, SealError, SealKey, SealedContent};
use crate::trace::TraceParent;
use crate::volume_id::{VolumeId, VolumeIdError};

/// A canonical volume: a pinned recipe with its id, the name of its cluster set, and its seal.
///
/// ```
/// use oras_csi_core::digest::Digest;
/// use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
/// use oras_csi_core::reference::Reference;
/// use oras_csi_core::volume::{CanonicalVolume, VolumeError};
///
/// let pinned = Reference::parse("kind-registry:5000/java-app:1")?.pin(Digest::sha256_of(b"manifest"));
/// let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))])?;
/// let volume = CanonicalVolume::new(None, recipe)?;
/// assert!(volume.id().as_str().starts_with("java-app-"));
///
/// // The webhook writes the attributes, and the driver parses them back.
/// let attributes = volume.to_attributes();
/// let texts = attributes.iter().map(|(key, value)| (*key, value.as_str()));
/// assert_eq!(CanonicalVolume::from_attributes(texts), Ok(volume));
///
/// let tag = [("oras.artifact.reference", "ghcr.io/acme/model:v1")];
/// let error = CanonicalVolume::from_attributes(tag).unwrap_err();
/// assert!(matches!(error, VolumeError::Unknown { .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalVolume {
    id: VolumeId,
    recipe: PinnedRecipe,
    set: Option<String>,
    seal: Option<Seal>,
}

/// The error for attributes that are not a canonical volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// A required attribute is missing.
    #[error(
        "the volume has no attribute \"{0}\": the driver accepts only volumes that the oras-csi webhook has rewritten; \
         check that the webhook is installed and that its configuration matches this pod"
    )]
    Missing(&'static str),
    /// An attribute is not one of a canonical volume.
    #[error(
        "the volume's attribute \"{key}\" is not one of a canonical volume (nearest: {nearest}): the driver accepts only \
         volumes that the oras-csi webhook has rewritten"
    )]
    Unknown {
        /// The unknown attribute.
        key: Shown,
        /// The known attribute that is nearest to it.
        nearest: &'static str,
    },
    /// The recipe is invalid.
    #[error("{key}: {0}", key = canonical::RECIPE)]
    Recipe(#[from] RecipeError),
    /// The id is invalid, or is not the id of the recipe.
    #[error("{key}: {0}", key = canonical::ID)]
    Id(#[from] VolumeIdError),
    /// The name of the set, the seal or the trace is invalid.
    #[error("the volume's attribute \"{key}\" has the value \"{value}\", which the webhook never writes")]
    Value {
        /// The attribute.
        key: &'static str,
        /// Its value.
        value: Shown,
    },
    /// The attributes are larger than a CSI volume can have.
    #[error(
        "the volume's attributes have {length} bytes: the maximum is {}; use fewer or shorter steps (about 20 fit), or \
         fewer filters",
        CanonicalVolume::MAX_BYTES
    )]
    TooLong {
        /// The length of all keys and values together, in bytes.
        length: usize,
    },
}

impl CanonicalVolume {
    /// The maximum length of all keys and values together without the trace, in bytes. CSI allows 4 KiB for the map of
    /// attributes, and kubelet adds its own attributes.
    pub const MAX_BYTES: usize = 3 * 1024;

    /// Creates a volume with that recipe and without a seal. `name` becomes the readable part of the id.
    ///
    /// Fails with [`VolumeError::TooLong`] when the attributes would not fit into a CSI volume together with a seal.
    pub fn new(name: Option<&str>, recipe: PinnedRecipe) -> Result<Self, VolumeError> {
        Self { id: VolumeId::new(name, &recipe), recipe, set: None, seal: None }.check_length()
    }

    /// Fails where [`Self::new`] does, without computing the id.
    pub fn check_fits(name: Option<&str>, recipe: &PinnedRecipe) -> Result<(), VolumeError> {
        check_length(VolumeId::length_for(name, recipe), recipe, None)
    }

    /// Sets the name of the ClusterArtifactSet that the recipe comes from. This removes the seal, which is for another
    /// set.
    pub fn with_set(self, set: &str) -> Result<Self, VolumeError> {
        let set = parse_set_name(set)?;
        Self { set: Some(set), seal: None, ..self }.check_length()
    }

    /// Signs the volume for `holder`. Signing is deterministic, so signing a volume again does not change it.
    #[must_use]
    pub fn sign(self, key: &SealKey, holder: Holder<'_>) -> Self {
        let seal = key.sign(self.sealed_content(), holder);
        Self { seal: Some(seal), ..self }
    }

    /// Verifies that one of `keys` signed this volume for `holder`.
    pub fn verify_seal(&self, keys: &PublicKeys, holder: Holder<'_>) -> Result<(), SealError> {
        let seal = self.seal.as_ref().ok_or(SealError::Missing)?;
        keys.verify(seal, self.sealed_content(), holder)
    }

    /// Returns the values that the seal signs: all attributes except the seal.
    fn sealed_content(&self) -> SealedContent<'_> {
        SealedContent {
            set: self.set.as_deref().unwrap_or_default(),
            id: self.id.as_str(),
            recipe: self.recipe.to_json(),
        }
    }

    /// Returns the volume without a seal.
    #[must_use]
    pub fn without_seal(self) -> Self {
        Self { seal: None, ..self }
    }

    /// Parses the attributes of a CSI volume. Attributes of kubelet are ignored, any other unknown attribute is an error.
    ///
    /// The seal is parsed but not verified: see [`Self::verify_seal`]. The trace must be valid, but it belongs to the pod
    /// and not to the content, so it is not kept: see [`trace_parent`].
    pub fn from_attributes<'a>(
        attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, VolumeError> {
        let mut known_values = BTreeMap::new();
        for (key, value) in attributes {
            if key.starts_with(KUBELET_PREFIX) {
                continue;
            }
            let Some(known) = canonical::ALL.into_iter().find(|known| *known == key) else {
                return Err(VolumeError::Unknown { key: key.into(), nearest: nearest_attribute(key) });
            };
            known_values.insert(known, value);
        }
        let trace = known_values.remove(canonical::TRACE_PARENT);
        if let Some(value) = trace.filter(|value| value.parse::<TraceParent>().is_err()) {
            return Err(VolumeError::Value { key: canonical::TRACE_PARENT, value: value.into() });
        }
        let length = known_values.iter().map(|(key, value)| key.len() + value.len()).sum();
        if length > Self::MAX_BYTES {
            return Err(VolumeError::TooLong { length });
        }
        let required = |key: &'static str| known_values.get(key).copied().ok_or(VolumeError::Missing(key));
        let (id, recipe) = (required(canonical::ID)?, required(canonical::RECIPE)?);
        let recipe = PinnedRecipe::from_json(recipe)?;
        let id = VolumeId::parse_for(id, &recipe)?;
        let set = known_values.get(canonical::SET).copied().map(parse_set_name).transpose()?;
        let seal = known_values.get(canonical::SEAL).map(|text| {
            text.parse().map_err(|_| VolumeError::Value { key: canonical::SEAL, value: (*text).into() })
        });
        Self { id, recipe, set, seal: seal.transpose()? }.check_length()
    }

    /// Returns the attributes, as the webhook writes them.
    pub fn to_attributes(&self) -> BTreeMap<&'static str, String> {
        let mut attributes = BTreeMap::from([
            (canonical::ID, self.id.to_string()),
            (canonical::RECIPE, self.recipe.to_json().to_owned()),
        ]);
        attributes.extend(self.set.clone().map(|set| (canonical::SET, set)));
        attributes.extend(self.seal.as_ref().map(|seal| (canonical::SEAL, seal.to_string())));
        attributes
    }

    /// Returns the id, which belongs to the recipe.
    pub fn id(&self) -> &VolumeId {
        &self.id
    }

    /// Returns the recipe.
    pub fn recipe(&self) -> &PinnedRecipe {
        &self.recipe
    }

    /// Returns the name of the ClusterArtifactSet that the recipe comes from, if any.
    pub fn set(&self) -> Option<&str> {
        self.set.as_deref()
    }

    /// Returns the seal. It is not verified: see [`Self::verify_seal`].
    pub fn seal(&self) -> Option<&Seal> {
        self.seal.as_ref()
    }

    /// Fails when the attributes are too long together with a seal, so a volume that is accepted can always be signed.
    fn check_length(self) -> Result<Self, VolumeError> {
        check_length(self.id.as_str().len(), &self.recipe, self.set.as_deref())?;
        Ok(self)
    }
}

/// Returns the trace of a volume from its attributes, if it has a valid one.
pub fn trace_parent<'a>(attributes: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<TraceParent> {
    let mut attributes = attributes.into_iter();
    attributes.find(|(key, _)| *key == canonical::TRACE_PARENT).and_then(|(_, value)| value.parse().ok())
}

fn check_length(id: usize, recipe: &PinnedRecipe, set: Option<&str>) -> Result<(), VolumeError> {
    let set = set.map_or(0, |set| canonical::SET.len() + set.len());
    let seal = canonical::SEAL.len() + Seal::LENGTH;
    let length = canonical::ID.len() + id + canonical::RECIPE.len() + recipe.to_json().len() + set + seal;
    if length > CanonicalVolume::MAX_BYTES { Err(VolumeError::TooLong { length }) } else { Ok(()) }
}

fn parse_set_name(set: &str) -> Result<String, VolumeError> {
    if dns_name::is_subdomain(set) {
        Ok(set.to_owned())
    } else {
        Err(VolumeError::Value { key: canonical::SET, value: set.into() })
    }
}

#[cfg(test)]
mod tests;
