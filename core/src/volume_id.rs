//! Volume ids. An id is valid as a DNS label, a path segment, a Kubernetes name and an overlayfs option
//! (docs/design.md, "Canonical volume").

use std::fmt;

use crate::display::Shown;
use crate::recipe::{PinnedRecipe, Step};

/// The id of a volume: a readable slug, `-`, and the first 32 hexadecimal characters of the recipe's SHA-256.
///
/// It has only `[a-z0-9-]`, at most 63 characters, and is alphanumeric at both ends. The same recipe with the same name
/// has the same id, and different recipes never share an id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(String);

/// The error for a text that is not the id of a recipe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeIdError {
    /// The text has invalid characters or an invalid length.
    #[error(
        "\"{0}\" is not a volume id: an id has at most 63 characters of a-z, 0-9 and \"-\", and a-z or 0-9 at both ends"
    )]
    Shape(Shown),
    /// The hash in the id is that of another recipe.
    #[error(
        "the volume id \"{id}\" does not belong to its recipe, whose id ends in -{hash}: let the webhook write both"
    )]
    OtherRecipe {
        /// The id.
        id: Shown,
        /// The end of the id that belongs to the recipe.
        hash: String,
    },
}

const MAX_LEN: usize = 63;
const MAX_SLUG_LEN: usize = 30;
const HASH_LENGTH: usize = 32;
const DEFAULT_SLUG: &str = "artifact";

impl VolumeId {
    /// Returns the id of `recipe`. The slug comes from `name`, or else from the last segment of the first repository.
    pub fn new(name: Option<&str>, recipe: &PinnedRecipe) -> Self {
        Self(format!("{}-{}", slug_of(name, recipe), hash(recipe)))
    }

    /// Returns how many bytes the id of `recipe` has, without its hash.
    pub(crate) fn length_for(name: Option<&str>, recipe: &PinnedRecipe) -> usize {
        slug_of(name, recipe).len() + "-".len() + HASH_LENGTH
    }

    /// Parses `text` as the id of `recipe`. Its characters and its hash must be right; the slug can be any text.
    pub fn parse_for(text: &str, recipe: &PinnedRecipe) -> Result<Self, VolumeIdError> {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let has_valid_shape = text.len() <= MAX_LEN
            && text.bytes().next().is_some_and(alphanumeric)
            && text.bytes().next_back().is_some_and(alphanumeric)
            && text.bytes().all(|byte| alphanumeric(byte) || byte == b'-');
        if !has_valid_shape {
            return Err(VolumeIdError::Shape(text.into()));
        }
        let hash = hash(recipe);
        match text.rsplit_once('-') {
            Some((_, end)) if end == hash => Ok(Self(text.to_owned())),
            _ => Err(VolumeIdError::OtherRecipe { id: text.into(), hash }),
        }
    }

    /// Returns the readable part of the id.
    pub fn slug(&self) -> &str {
        self.0.rsplit_once('-').map_or("", |(slug, _)| slug)
    }

    /// Returns the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn slug_of(name: Option<&str>, recipe: &PinnedRecipe) -> String {
    let repository = recipe.steps().iter().find_map(Step::layer).map(|layer| layer.reference().repository());
    let source = name.or_else(|| repository.and_then(|repository| repository.rsplit('/').next()));
    slug(source.unwrap_or_default())
}

fn hash(recipe: &PinnedRecipe) -> String {
    let mut hash = recipe.digest().hex().to_owned();
    hash.truncate(HASH_LENGTH);
    hash
}

/// Converts a text to a slug: at most 30 characters of a-z and 0-9 with single dashes inside, never empty.
pub fn slug(text: &str) -> String {
    let mut slug = String::new();
    for character in text.chars().map(|character| character.to_ascii_lowercase()) {
        if slug.len() == MAX_SLUG_LEN {
            break;
        }
        if character.is_ascii_alphanumeric() {
            slug.push(character);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { DEFAULT_SLUG.to_owned() } else { slug.to_owned() }
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
    fn has_a_slug_and_a_hash() {
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
    fn is_parsed_for_one_recipe_only() {
        let (one, other) = (recipe("r.example/a"), recipe("r.example/b"));
        let id = VolumeId::new(None, &one).to_string();
        assert!(VolumeId::parse_for(&id, &one).is_ok());
        assert!(VolumeId::parse_for(&id.replace("a-", "another-slug-"), &one).is_ok());
        assert!(matches!(VolumeId::parse_for(&id, &other), Err(VolumeIdError::OtherRecipe { .. })));
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
            assert!(VolumeId::parse_for(text, &one).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn has_only_allowed_characters(name in proptest::option::of("\\PC*"), recipe in pinned_recipe()) {
            let id = VolumeId::new(name.as_deref(), &recipe);
            let text = id.as_str();
            prop_assert!((1..=63).contains(&text.len()));
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'));
            prop_assert!(!text.starts_with('-') && !text.ends_with('-'));
            prop_assert_eq!(VolumeId::parse_for(text, &recipe), Ok(id.clone()));
            prop_assert_eq!(VolumeId::length_for(name.as_deref(), &recipe), text.len());
        }

        #[test]
        fn differs_between_recipes(name in "[a-z]{0,3}", left in pinned_recipe(), right in pinned_recipe()) {
            let same = VolumeId::new(Some(&name), &left) == VolumeId::new(Some(&name), &right);
            prop_assert_eq!(same, left == right);
        }
    }
}
