//! Recipes: what a person writes becomes one canonical form, and only that form is read back.

#![no_main]
// A panic is how a fuzz target says that something is wrong.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod printable;

use std::convert::Infallible;

use libfuzzer_sys::{Corpus, fuzz_target};
use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::{PinnedRecipe, Recipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::CanonicalVolume;

/// More text than that is no recipe.
const LONGEST: usize = 64 * 1024;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(bytes) else { return Corpus::Reject };
    match PinnedRecipe::from_json(text) {
        Ok(pinned) => {
            assert_eq!(pinned.to_json(), text);
            check_volume(&pinned);
        }
        Err(error) => printable::check(&error.to_string()),
    }
    match Recipe::from_yaml(text, &|host| host == "kind") {
        Ok(recipe) => check_recipe(&recipe),
        Err(error) => printable::check(&error.to_string()),
    }
    Corpus::Keep
});

fn check_recipe(recipe: &Recipe) {
    let digest_of = |reference: &Reference| {
        let found = || Digest::sha256_of(reference.to_string().as_bytes());
        Ok::<_, Infallible>(reference.digest().cloned().unwrap_or_else(found))
    };
    let Ok(pinned) = recipe.pin(digest_of);
    assert_eq!(pinned.steps().len(), recipe.steps().len());
    assert_eq!(pinned.references().count(), recipe.references().count());
    for layer in pinned.steps().iter().filter_map(Step::layer) {
        assert!(layer.include().is_sorted_by(|one, next| one < next));
        assert!(layer.exclude().is_sorted_by(|one, next| one < next));
        assert!(layer.media_types().is_sorted_by(|one, next| one < next));
    }
    let json = pinned.to_json();
    // Aliases and digests make a recipe longer than what was written; a volume holds far less than that.
    if json.len() > LONGEST {
        assert!(CanonicalVolume::new(None, pinned.clone()).is_err());
        return;
    }
    let read = PinnedRecipe::from_json(json).expect("what is printed is read");
    assert_eq!((read.to_json(), &read), (json, &pinned));
    // JSON is a part of YAML: a recipe that a user copies from a volume into a pod has the same meaning. The parser takes
    // all of JSON but these two, which YAML 1.2 (5.1) allows in quotes and which are not used.
    if !json.contains(['\u{fffe}', '\u{ffff}']) {
        let copied = Recipe::from_yaml(json, &|_| false).expect("JSON is YAML");
        assert_eq!(copied.pin(|reference| reference.digest().cloned().ok_or(())).as_ref(), Ok(&pinned));
    }
    check_volume(&pinned);
}

fn check_volume(recipe: &PinnedRecipe) {
    for name in [None, Some(""), Some("Some \u{202e}Name/..")] {
        let Ok(volume) = CanonicalVolume::new(name, recipe.clone()) else { continue };
        let attributes = volume.to_attributes();
        let length: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert!(length <= CanonicalVolume::MAX_BYTES);
        let id = volume.id().as_str();
        assert!((1..=63).contains(&id.len()));
        assert!(id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'));
        let texts = attributes.iter().map(|(key, value)| (*key, value.as_str()));
        assert_eq!(CanonicalVolume::from_attributes(texts), Ok(volume));
    }
}
