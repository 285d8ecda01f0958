//! The id of a volume: one text that is a DNS label, a path segment, a Kubernetes name and safe as an
//! overlayfs option at once.

use std::fmt;

use crate::display::Shown;
use crate::recipe::{PinnedRecipe, Step};

/// A slug for people, `-`, and the first 32 hexadecimal characters of the recipe's SHA-256.
///
/// Only `[a-z0-9-]`, at most 63 characters, alphanumeric at both ends. The same recipe with the same name
/// has the same id, different recipes never share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(String);

/// Why a text is not the id of a recipe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Characters or a length that no id has.
    #[error(
        "\"{0}\" is not a volume id: at most 63 characters of a-z, 0-9 and \"-\", alphanumeric at both ends"
    )]
    Shape(Shown),
    /// The hash of another recipe.
    #[error(
        "the volume id \"{id}\" does not belong to its recipe, whose id ends in -{hash}: let the webhook write both"
    )]
    OtherRecipe {
        /// What was given.
        id: Shown,
        /// What the recipe's id ends in.
        hash: String,
    },
}

const LONGEST: usize = 63;
const LONGEST_SLUG: usize = 30;
const HASH_LENGTH: usize = 32;
const SLUG_OF_NOTHING: &str = "artifact";

impl VolumeId {
    /// The id of `recipe`, under the name that was given, else under its first repository's last segment.
    pub fn new(name: Option<&str>, recipe: &PinnedRecipe) -> Self {
        let repository =
            recipe.steps().iter().find_map(Step::layer).map(|layer| layer.reference().repository());
        let named = name.or_else(|| repository.and_then(|repository| repository.rsplit('/').next()));
        Self(format!("{}-{}", slug(named.unwrap_or_default()), hash(recipe)))
    }

    /// Takes `text` as the id of `recipe`: its alphabet and its hash have to be right, the slug is anyone's.
    pub fn check(text: &str, recipe: &PinnedRecipe) -> Result<Self, IdError> {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let shape = text.len() <= LONGEST
            && text.bytes().next().is_some_and(alphanumeric)
            && text.bytes().next_back().is_some_and(alphanumeric)
            && text.bytes().all(|byte| alphanumeric(byte) || byte == b'-');
        if !shape {
            return Err(IdError::Shape(text.into()));
        }
        let hash = hash(recipe);
        match text.rsplit_once('-') {
            Some((_, end)) if end == hash => Ok(Self(text.to_owned())),
            _ => Err(IdError::OtherRecipe { id: text.into(), hash }),
        }
    }

    /// The part for people.
    pub fn slug(&self) -> &str {
        self.0.rsplit_once('-').map_or("", |(slug, _)| slug)
    }

    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn hash(recipe: &PinnedRecipe) -> String {
    let mut hash = recipe.digest().hex().to_owned();
    hash.truncate(HASH_LENGTH);
    hash
}

/// What people recognise of a text in a name: at most 30 characters of a-z, 0-9 and single dashes inside, never empty.
pub fn slug(text: &str) -> String {
    let mut slug = String::new();
    for character in text.chars().map(|character| character.to_ascii_lowercase()) {
        if slug.len() == LONGEST_SLUG {
            break;
        }
        if character.is_ascii_alphanumeric() {
            slug.push(character);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { SLUG_OF_NOTHING.to_owned() } else { slug.to_owned() }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::Digest;
    use crate::recipe::{Layer, tests::pinned_recipe};
    use crate::reference::Reference;

    fn recipe(reference: &str) -> PinnedRecipe {
        let pinned = Reference::parse(reference).expect("a reference").pin(Digest::sha256_of(b""));
        PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).expect("a recipe")
    }

    #[test]
    fn is_a_slug_and_a_hash() {
        let recipe = recipe("kind-registry:5000/java-app");
        let id = VolumeId::new(None, &recipe).to_string();
        assert_eq!(id, format!("java-app-{}", &recipe.digest().hex()[..32]));
        assert_eq!(
            VolumeId::new(Some("Mein Üb.er__Name"), &recipe).as_str().rsplit_once('-').map(|(s, _)| s),
            Some("mein-b-er-name")
        );
        assert!(VolumeId::new(Some("../.."), &recipe).as_str().starts_with("artifact-"));
        assert!(VolumeId::new(Some(""), &recipe).as_str().starts_with("artifact-"));
        assert_eq!(VolumeId::new(Some(&"x".repeat(100)), &recipe).as_str().len(), 63);
    }

    #[test]
    fn is_checked_against_its_recipe() {
        let (one, other) = (recipe("r.example/a"), recipe("r.example/b"));
        let id = VolumeId::new(None, &one).to_string();
        assert!(VolumeId::check(&id, &one).is_ok());
        assert!(VolumeId::check(&id.replace("a-", "another-slug-"), &one).is_ok());
        assert!(matches!(VolumeId::check(&id, &other), Err(IdError::OtherRecipe { .. })));
        let digest = one.digest();
        let hash = &digest.hex()[..32];
        for text in [
            "",
            "-",
            "a",
            &format!("-{hash}"),
            &format!("A-{hash}"),
            &format!("a/-{hash}"),
            &format!("a.-{hash}"),
            &format!("é-{hash}"),
            &format!("a-{hash}-"),
            &format!("{}-{hash}", "a".repeat(31)),
            &format!("a{hash}"),
            &format!("a-{}", one.digest().hex()),
        ] {
            assert!(VolumeId::check(text, &one).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn has_no_other_characters(name in proptest::option::of("\\PC*"), recipe in pinned_recipe()) {
            let id = VolumeId::new(name.as_deref(), &recipe);
            let text = id.as_str();
            prop_assert!((1..=63).contains(&text.len()));
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'));
            prop_assert!(!text.starts_with('-') && !text.ends_with('-'));
            prop_assert_eq!(VolumeId::check(text, &recipe), Ok(id.clone()));
        }

        #[test]
        fn is_of_one_recipe(name in "[a-z]{0,3}", left in pinned_recipe(), right in pinned_recipe()) {
            let same = VolumeId::new(Some(&name), &left) == VolumeId::new(Some(&name), &right);
            prop_assert_eq!(same, left == right);
        }
    }
}
