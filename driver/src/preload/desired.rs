//! Decides which sets this node preloads, and which trees it keeps for them. Pure functions.

use std::collections::BTreeMap;

use oras_csi_core::platform::Platform;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_store::{PreloadEntry, TreeKey};

use super::cluster_set::{ClusterSet, Content};

/// The labels of the node.
pub(super) type Labels = BTreeMap<String, String>;

/// A set that selects this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Desired {
    pub(super) set: String,
    pub(super) id: String,
    /// The generation of its spec, if it is known.
    pub(super) generation: Option<i64>,
    pub(super) content: DesiredContent,
    /// The tree that is kept from garbage collection: the present one, or the last one if the present one is not known.
    pub(super) kept: Option<PreloadEntry>,
}

/// The content of a set for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DesiredContent {
    /// The recipe, and the key of its tree for the platform of this node.
    Tree(PinnedRecipe, TreeKey),
    /// The set is not resolved yet, as this message explains.
    Unresolved(String),
    /// The status of the set is invalid, as this message explains.
    Invalid(String),
}

/// Returns the sets that select a node with these labels. `before` has the trees of the last decision: they stay while
/// a set is being resolved, or while the labels of the node are not known.
pub(super) fn desired(
    sets: &BTreeMap<String, ClusterSet>,
    labels: Option<&Labels>,
    before: &[PreloadEntry],
    node: &Platform,
) -> Vec<Desired> {
    let mut all = Vec::new();
    for (name, set) in sets {
        let earlier = before.iter().find(|wanted| wanted.set() == name);
        let selects = match labels {
            Some(labels) => set.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value)),
            None => set.node_selector.is_empty() || earlier.is_some(),
        };
        if !selects {
            continue;
        }
        let (content, kept) = match &set.content {
            Content::Recipe(recipe) => {
                let key = TreeKey::of(recipe, node);
                let kept = PreloadEntry::new(name, &set.id, recipe, &key);
                (DesiredContent::Tree(recipe.clone(), key), Some(kept))
            }
            Content::Unresolved(message) => (DesiredContent::Unresolved(message.clone()), earlier.cloned()),
            Content::Invalid(message) => (DesiredContent::Invalid(message.clone()), earlier.cloned()),
        };
        let generation = Some(set.generation);
        all.push(Desired { set: name.clone(), id: set.id.clone(), generation, content, kept });
    }
    all
}

/// Returns the sets of the last decision, for the time before the API server has answered.
pub(super) fn as_before(before: &[PreloadEntry]) -> Vec<Desired> {
    let wanted = before.iter().filter_map(|earlier| {
        let content = DesiredContent::Tree(earlier.recipe()?, earlier.tree()?);
        let (set, id) = (earlier.set().to_owned(), earlier.id().to_owned());
        Some(Desired { set, id, generation: None, content, kept: Some(earlier.clone()) })
    });
    wanted.collect()
}

#[cfg(test)]
mod tests {
    use kube::api::DynamicObject;
    use oras_csi_core::volume::CanonicalVolume;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::super::cluster_set::read;
    use super::*;

    fn volume(letter: char) -> CanonicalVolume {
        let digest = letter.to_string().repeat(64);
        let recipe = format!(r#"[{{"add":"ghcr.io/acme/model@sha256:{digest}"}}]"#);
        CanonicalVolume::new(Some("models"), PinnedRecipe::from_json(&recipe).unwrap()).unwrap()
    }

    fn status(volume: &CanonicalVolume, generation: i64) -> Value {
        json!({"id": volume.id().as_str(), "recipe": volume.recipe().to_json(), "recipeGeneration": generation,
            "observedGeneration": generation, "fromTheFuture": 1})
    }

    fn sets(spec: &Value, status: &Value) -> BTreeMap<String, ClusterSet> {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "oras.land/v1alpha1", "kind": "ClusterArtifactSet",
            "metadata": {"name": "models", "generation": 2}, "spec": spec, "status": status,
        }))
        .unwrap();
        read(&object).map(|set| ("models".to_owned(), set)).into_iter().collect()
    }

    fn tree(volume: &CanonicalVolume) -> PreloadEntry {
        let key = TreeKey::of(volume.recipe(), &Platform::node());
        PreloadEntry::new("models", volume.id().as_str(), volume.recipe(), &key)
    }

    fn decide(
        spec: &Value,
        status: &Value,
        labels: Option<&[(&str, &str)]>,
        before: &[PreloadEntry],
    ) -> Vec<Desired> {
        let labels = labels.map(|labels| {
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Labels>()
        });
        desired(&sets(spec, status), labels.as_ref(), before, &Platform::node())
    }

    #[rstest]
    #[case::everywhere(json!({"preload": true}), Some(&[][..]), true)]
    #[case::not_requested(json!({}), Some(&[][..]), false)]
    #[case::switched_off(json!({"preload": false, "nodeSelector": {}}), Some(&[][..]), false)]
    #[case::selected(json!({"preload": true, "nodeSelector": {"gpu": "a100"}}), Some(&[("gpu", "a100"), ("x", "y")][..]), true)]
    #[case::another_value(json!({"preload": true, "nodeSelector": {"gpu": "a100"}}), Some(&[("gpu", "t4")][..]), false)]
    #[case::one_of_two(json!({"preload": true, "nodeSelector": {"gpu": "a100", "zone": "1"}}), Some(&[("gpu", "a100")][..]), false)]
    #[case::labels_unknown(json!({"preload": true, "nodeSelector": {"gpu": "a100"}}), None, false)]
    #[case::no_selector(json!({"preload": true, "nodeSelector": null}), None, true)]
    #[case::unreadable(json!({"preload": "yes"}), Some(&[][..]), false)]
    fn selects_nodes_by_their_labels(
        #[case] spec: Value,
        #[case] labels: Option<&[(&str, &str)]>,
        #[case] is_wanted: bool,
    ) {
        let volume = volume('a');
        let found = decide(&spec, &status(&volume, 2), labels, &[]);
        assert_eq!(found.len(), usize::from(is_wanted), "{found:?}");
        if let [found] = &found[..] {
            assert_eq!(found.kept, Some(tree(&volume)));
            assert_eq!(
                found.content,
                DesiredContent::Tree(volume.recipe().clone(), tree(&volume).tree().unwrap())
            );
        }
    }

    #[test]
    fn unknown_content_stays_as_before() {
        let (old, new) = (volume('a'), volume('b'));
        let spec = json!({"preload": true, "nodeSelector": {"gpu": "a100"}});
        let gpu = Some(&[("gpu", "a100")][..]);
        let before = [tree(&old)];
        // Another recipe: the old tree is no longer kept.
        assert_eq!(decide(&spec, &status(&new, 2), gpu, &before)[0].kept, Some(tree(&new)));
        // A status of an earlier generation, none at all, and one that is wrong.
        let mut wrong = status(&new, 2);
        wrong["id"] = json!("models-0");
        let mut failed =
            json!({"conditions": [{"type": "Ready", "status": "False", "message": "no such tag"}]});
        failed["conditions"][0]["reason"] = json!("NotFound");
        for (status, expected) in [
            (status(&new, 1), "was changed and is being resolved"),
            (Value::Null, "not resolved yet"),
            (failed, "not ready: no such tag"),
        ] {
            let found = decide(&spec, &status, gpu, &before);
            assert!(
                matches!(&found[0].content, DesiredContent::Unresolved(message) if message.contains(expected)),
                "{found:?}"
            );
            assert_eq!(found[0].kept, Some(tree(&old)));
            assert_eq!(decide(&spec, &status, gpu, &[])[0].kept, None);
        }
        for invalid in
            [wrong, json!({"id": "x", "recipe": "[]", "recipeGeneration": 2}), json!({"recipe": 7})]
        {
            let found = decide(&spec, &invalid, gpu, &before);
            assert!(matches!(&found[0].content, DesiredContent::Invalid(_)), "{found:?}");
            assert_eq!(found[0].kept, Some(tree(&old)));
        }
        // The labels of the node are not known: the sets of the last decision stay, and no other set is added.
        assert_eq!(decide(&spec, &status(&old, 2), None, &before).len(), 1);
        // The set no longer selects the node.
        assert_eq!(decide(&spec, &status(&old, 2), Some(&[]), &before), []);
        let [earlier] = &as_before(&before)[..] else { panic!("the set stays") };
        assert_eq!((earlier.set.as_str(), earlier.kept.as_ref()), ("models", Some(&before[0])));
    }

    #[test]
    fn drops_an_invalid_id() {
        let spec = json!({"preload": true});
        let found = decide(&spec, &json!({"id": "../x", "recipe": "[]", "recipeGeneration": 2}), None, &[]);
        assert_eq!(found[0].id, "");
    }
}
