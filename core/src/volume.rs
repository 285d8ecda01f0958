//! The canonical volume: the one form in which the webhook hands a volume to the driver.

use std::collections::BTreeMap;

use crate::display::Shown;
use crate::dns_name;
use crate::keys::{KUBELET_PREFIX, canonical, nearest_attribute};
use crate::recipe::{PinnedRecipe, RecipeError};
use crate::seal::Seal;
use crate::volume_id::{IdError, VolumeId};

/// A pinned recipe and its id, as the attributes of a CSI volume (design §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalVolume {
    id: VolumeId,
    recipe: PinnedRecipe,
    set: Option<String>,
    seal: Option<Seal>,
}

/// Why attributes are not a canonical volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// An attribute that has to be there is not.
    #[error(
        "the volume has no attribute \"{0}\": the driver takes only volumes that the oras-csi webhook has rewritten; \
         check that the webhook is installed and that its configuration matches this pod"
    )]
    Missing(&'static str),
    /// An attribute that no canonical volume has.
    #[error(
        "the volume's attribute \"{key}\" is not one of a canonical volume (nearest: {nearest}): the driver takes only \
         volumes that the oras-csi webhook has rewritten"
    )]
    Unknown {
        /// What was given.
        key: Shown,
        /// The known one that is nearest.
        nearest: &'static str,
    },
    /// The recipe does not parse.
    #[error("{key}: {0}", key = canonical::RECIPE)]
    Recipe(#[from] RecipeError),
    /// The id is not the recipe's.
    #[error("{key}: {0}", key = canonical::ID)]
    Id(#[from] IdError),
    /// The set's name or the seal is no such thing.
    #[error("the volume's attribute \"{key}\" has the value \"{value}\", which the webhook never writes")]
    Value {
        /// Which attribute.
        key: &'static str,
        /// What was given.
        value: Shown,
    },
    /// More than a CSI volume can carry.
    #[error(
        "the volume's attributes have {length} bytes, and CSI leaves room for {}: use fewer or shorter steps (some 20 \
         fit), or fewer filters",
        CanonicalVolume::LONGEST
    )]
    TooLong {
        /// Keys and values together.
        length: usize,
    },
}

impl CanonicalVolume {
    /// What our attributes may have together: CSI has 4 KiB for the map, and kubelet adds its own.
    pub const LONGEST: usize = 3 * 1024;

    /// A volume of that recipe, under a name for people where there is one.
    pub fn new(name: Option<&str>, recipe: PinnedRecipe) -> Result<Self, VolumeError> {
        Self { id: VolumeId::new(name, &recipe), recipe, set: None, seal: None }.fitting()
    }

    /// The same volume as that of a cluster set, whose name it carries. A seal does not outlive that.
    pub fn with_set(self, set: &str) -> Result<Self, VolumeError> {
        let set = checked_set(set)?;
        Self { set: Some(set), seal: None, ..self }.fitting()
    }

    /// The same volume with the webhook's word for it.
    #[must_use]
    pub(crate) fn with_seal(self, seal: Seal) -> Self {
        Self { seal: Some(seal), ..self }
    }

    /// The same volume without anybody's word.
    #[must_use]
    pub fn without_seal(self) -> Self {
        Self { seal: None, ..self }
    }

    /// Reads the attributes of a volume; kubelet's own are passed over, any other is an error.
    pub fn from_attributes<'a>(
        attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, VolumeError> {
        let mut ours = BTreeMap::new();
        for (key, value) in attributes {
            if key.starts_with(KUBELET_PREFIX) {
                continue;
            }
            let Some(known) = canonical::ALL.into_iter().find(|known| *known == key) else {
                return Err(VolumeError::Unknown { key: key.into(), nearest: nearest_attribute(key) });
            };
            ours.insert(known, value);
        }
        let length = ours.iter().map(|(key, value)| key.len() + value.len()).sum();
        if length > Self::LONGEST {
            return Err(VolumeError::TooLong { length });
        }
        let required = |key: &'static str| ours.get(key).copied().ok_or(VolumeError::Missing(key));
        let (id, recipe) = (required(canonical::ID)?, required(canonical::RECIPE)?);
        let recipe = PinnedRecipe::from_json(recipe)?;
        let id = VolumeId::check(id, &recipe)?;
        let set = ours.get(canonical::SET).copied().map(checked_set).transpose()?;
        let seal = ours.get(canonical::SEAL).map(|text| {
            text.parse().map_err(|_| VolumeError::Value { key: canonical::SEAL, value: (*text).into() })
        });
        Self { id, recipe, set, seal: seal.transpose()? }.fitting()
    }

    /// The attributes, as the webhook writes them.
    pub fn to_attributes(&self) -> BTreeMap<&'static str, String> {
        let mut attributes = BTreeMap::from([
            (canonical::ID, self.id.to_string()),
            (canonical::RECIPE, self.recipe.to_json().to_owned()),
        ]);
        attributes.extend(self.set.clone().map(|set| (canonical::SET, set)));
        attributes.extend(self.seal.as_ref().map(|seal| (canonical::SEAL, seal.to_string())));
        attributes
    }

    /// The id, which is the recipe's.
    pub fn id(&self) -> &VolumeId {
        &self.id
    }

    /// What the volume holds.
    pub fn recipe(&self) -> &PinnedRecipe {
        &self.recipe
    }

    /// The cluster set that gave the recipe, where one did.
    pub fn set(&self) -> Option<&str> {
        self.set.as_deref()
    }

    /// The webhook's word, as written: [`crate::seal::PublicKeys::check`] says whether it counts.
    pub fn seal(&self) -> Option<&Seal> {
        self.seal.as_ref()
    }

    /// With room for a seal, so that what fits without one fits with it.
    fn fitting(self) -> Result<Self, VolumeError> {
        let mut attributes = self.to_attributes();
        attributes.remove(canonical::SEAL);
        let length = attributes.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        let length = length + canonical::SEAL.len() + Seal::LENGTH;
        if length > Self::LONGEST { Err(VolumeError::TooLong { length }) } else { Ok(self) }
    }
}

fn checked_set(set: &str) -> Result<String, VolumeError> {
    if dns_name::is_subdomain(set) {
        Ok(set.to_owned())
    } else {
        Err(VolumeError::Value { key: canonical::SET, value: set.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::recipe::{Layer, Step};
    use crate::reference::Reference;

    fn recipe(steps: usize) -> PinnedRecipe {
        let step = |number: usize| {
            let reference = format!("kind-registry:5000/java-app{number}");
            let pinned = Reference::parse(&reference).expect("valid").pin(Digest::sha256_of(b""));
            Step::Add(Layer::new(pinned).at(format!("p{number}").parse().expect("a path")))
        };
        PinnedRecipe::new((0..steps).map(step).collect()).expect("a recipe")
    }

    fn read(attributes: &BTreeMap<&'static str, String>) -> Result<CanonicalVolume, VolumeError> {
        CanonicalVolume::from_attributes(attributes.iter().map(|(key, value)| (*key, value.as_str())))
    }

    fn volume() -> CanonicalVolume {
        CanonicalVolume::new(Some("mine"), recipe(2)).expect("fits")
    }

    #[test]
    fn reads_what_it_writes_and_passes_over_kubelets_own() {
        let mut attributes = volume().to_attributes();
        assert_eq!(read(&attributes), Ok(volume()));
        attributes.insert("csi.storage.k8s.io/pod.namespace", "default".to_owned());
        assert_eq!(read(&attributes), Ok(volume()));
    }

    #[test]
    fn takes_nothing_that_is_not_canonical() {
        let mut earlier = BTreeMap::from([("oras.artifact.reference", "ghcr.io/a/b:v1".to_owned())]);
        assert!(matches!(read(&earlier), Err(VolumeError::Unknown { .. })));
        earlier.clear();
        assert!(matches!(read(&earlier), Err(VolumeError::Missing(_))));

        let broken: [(&'static str, &str); 8] = [
            (canonical::ID, "../../etc"),
            (canonical::ID, "mine-00000000000000000000000000000000"),
            (canonical::RECIPE, "[]"),
            (canonical::RECIPE, r#"[{"add":"ghcr.io/a/b:v1"}]"#),
            (canonical::SET, "../x"),
            (canonical::SEAL, "v2.a.b"),
            (canonical::SEAL, "v1.a."),
            ("csi.oras.land/unknown", "x"),
        ];
        for (key, value) in broken {
            let mut attributes = volume().to_attributes();
            attributes.insert(key, value.to_owned());
            assert!(read(&attributes).is_err(), "{key}={value}");
        }
    }

    #[test]
    fn keeps_room_for_kubelet() {
        let fits = (1..100).take_while(|steps| CanonicalVolume::new(None, recipe(*steps)).is_ok()).count();
        assert!((20..40).contains(&fits), "{fits} steps fit");
        assert!(matches!(CanonicalVolume::new(None, recipe(fits + 1)), Err(VolumeError::TooLong { .. })));
    }
}
