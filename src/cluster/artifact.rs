//! The artifacts of a volume, as its attributes and the annotation `oras.land/pinned` name them.

use std::collections::BTreeMap;

use oras_csi_core::keys::canonical;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::reference::Reference;
use serde::Serialize;

use super::format::shown;

/// One artifact of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Artifact {
    /// The registry, the repository and, where it is known, the tag.
    pub(crate) reference: String,
    /// The digest that the volume is pinned to.
    pub(crate) digest: String,
    /// Whether the tag has another digest now. It is not known unless tags were checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tag: Option<TagState>,
}

/// What a tag names now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub(crate) enum TagState {
    /// The same digest.
    Same,
    /// Another digest.
    Moved {
        /// That digest.
        digest: String,
    },
    /// It could not be resolved.
    Unknown {
        /// Why.
        message: String,
    },
}

impl Artifact {
    /// Parses `host/repository:tag@digest`, as the webhook writes it. Other text is shown as it is.
    pub(crate) fn parse(line: &str) -> Self {
        match line.parse::<Reference>() {
            Ok(reference) => {
                let tag = reference.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
                let digest = reference.digest().map(ToString::to_string).unwrap_or_default();
                Self { reference: format!("{}{tag}", reference.name()), digest, tag: None }
            }
            Err(_) => Self { reference: shown(line), digest: String::new(), tag: None },
        }
    }

    /// Returns the reference with its tag, if it has one.
    pub(crate) fn tagged(&self) -> Option<Reference> {
        let reference = self.reference.parse::<Reference>().ok()?;
        let last = self.reference.rsplit('/').next()?;
        // A reference without a tag is parsed as `latest`, which no volume has requested then.
        last.contains(':').then_some(reference)
    }
}

/// Returns the artifacts of a volume: those of its recipe, with the tags of the annotation where both agree.
///
/// Any client with permission to write the pod can write the annotation, so only the digests of the recipe count.
pub(crate) fn artifacts(attributes: &BTreeMap<String, String>, pinned: &[String]) -> Vec<Artifact> {
    let recipe = attributes.get(canonical::RECIPE).map(|text| PinnedRecipe::from_json(text));
    let Some(Ok(recipe)) = recipe else { return Vec::new() };
    let artifact = |(step, reference): (usize, &oras_csi_core::reference::PinnedReference)| {
        let own = Artifact::parse(&reference.to_string());
        let written = pinned.get(step).map(|line| Artifact::parse(line));
        let is_same = |written: &Artifact| {
            let name = written.tagged().map(|tagged| tagged.name());
            written.digest == own.digest && name.is_some_and(|name| name == reference.name())
        };
        written.filter(is_same).unwrap_or(own)
    };
    recipe.references().enumerate().map(artifact).collect()
}

/// Returns the lines of the annotation `oras.land/pinned` by volume.
pub(crate) fn pinned_lines(annotation: Option<&str>) -> BTreeMap<String, Vec<String>> {
    annotation.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    fn of(recipe: &str, pinned: &[String]) -> Vec<Artifact> {
        let attributes = BTreeMap::from([(canonical::RECIPE.to_owned(), recipe.to_owned())]);
        artifacts(&attributes, pinned)
    }

    #[test]
    fn a_tag_counts_only_beside_the_digest_of_the_recipe() {
        let recipe = format!(r#"[{{"add":"ghcr.io/acme/model@{}"}}]"#, digest("ab"));
        let one = |reference: &str| {
            vec![Artifact { reference: reference.to_owned(), digest: digest("ab"), tag: None }]
        };
        let pinned = |text: String| of(&recipe, &[text]);
        assert_eq!(pinned(format!("ghcr.io/acme/model:v1@{}", digest("ab"))), one("ghcr.io/acme/model:v1"));
        assert_eq!(pinned(format!("ghcr.io/acme/model:v1@{}", digest("cd"))), one("ghcr.io/acme/model"));
        assert_eq!(pinned(format!("ghcr.io/other/model:v1@{}", digest("ab"))), one("ghcr.io/acme/model"));
        assert_eq!(pinned("\u{1b}[2J".to_owned()), one("ghcr.io/acme/model"));
        assert_eq!(of(&recipe, &[]), one("ghcr.io/acme/model"));
        assert_eq!(of("no recipe", &[]), []);
    }

    #[test]
    fn only_a_written_tag_is_a_tag() {
        let tag =
            |text: &str| Artifact::parse(text).tagged().and_then(|found| found.tag().map(str::to_owned));
        assert_eq!(tag(&format!("localhost:5000/a/b:v1@{}", digest("ab"))).as_deref(), Some("v1"));
        assert_eq!(tag(&format!("localhost:5000/a/b@{}", digest("ab"))), None);
        assert_eq!(tag("\u{1b}[31m"), None);
    }

    #[test]
    fn a_hostile_annotation_is_ignored() {
        for text in ["", "[]", "{\"v\":5}", "\u{0}"] {
            assert_eq!(pinned_lines(Some(text)), BTreeMap::new());
        }
        assert_eq!(pinned_lines(Some(r#"{"v":["a"]}"#))["v"], ["a"]);
    }
}
