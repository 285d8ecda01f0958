//! Which sets this node wants, and what is kept for them: pure.

use std::collections::BTreeMap;

use oras_csi_core::platform::Platform;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_store::{PreloadEntry, TreeKey};

use super::cluster_set::{ClusterSet, Content};

/// Labels of the node.
pub(super) type Labels = BTreeMap<String, String>;

/// A set that this node wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Desired {
    pub(super) set: String,
    pub(super) id: String,
    /// Of its spec, where that is known.
    pub(super) generation: Option<i64>,
    pub(super) what: What,
    /// What is kept for it: what it wants, or what it wanted last where that is not known.
    pub(super) kept: Option<PreloadEntry>,
}

/// What of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Tree(PinnedRecipe, TreeKey),
    Waits(String),
    Broken(String),
}

/// What a node with `labels` wants of these sets. `before` is what it wanted last: that stays where nobody knows better,
/// because the set is being resolved, or the node's labels are not known.
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
        let (what, kept) = match &set.content {
            Content::Recipe(recipe) => {
                let key = TreeKey::of(recipe, node);
                let kept = PreloadEntry::new(name, &set.id, recipe, &key);
                (What::Tree(recipe.clone(), key), Some(kept))
            }
            Content::Unresolved(words) => (What::Waits(words.clone()), earlier.cloned()),
            Content::Broken(words) => (What::Broken(words.clone()), earlier.cloned()),
        };
        let generation = Some(set.generation);
        all.push(Desired { set: name.clone(), id: set.id.clone(), generation, what, kept });
    }
    all
}

/// What was wanted last, while nobody says what is now.
pub(super) fn as_before(before: &[PreloadEntry]) -> Vec<Desired> {
    let wanted = before.iter().filter_map(|earlier| {
        let what = What::Tree(earlier.recipe()?, earlier.tree()?);
        let (set, id) = (earlier.set().to_owned(), earlier.id().to_owned());
        Some(Desired { set, id, generation: None, what, kept: Some(earlier.clone()) })
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

    fn look(
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
    #[case::not_asked_for(json!({}), Some(&[][..]), false)]
    #[case::switched_off(json!({"preload": false, "nodeSelector": {}}), Some(&[][..]), false)]
    #[case::selected(json!({"preload": true, "nodeSelector": {"gpu": "a100"}}), Some(&[("gpu", "a100"), ("x", "y")][..]), true)]
    #[case::another_value(json!({"preload": true, "nodeSelector": {"gpu": "a100"}}), Some(&[("gpu", "t4")][..]), false)]
    #[case::one_of_two(json!({"preload": true, "nodeSelector": {"gpu": "a100", "zone": "1"}}), Some(&[("gpu", "a100")][..]), false)]
    #[case::labels_unknown(json!({"preload": true, "nodeSelector": {"gpu": "a100"}}), None, false)]
    #[case::none_needed(json!({"preload": true, "nodeSelector": null}), None, true)]
    #[case::unreadable(json!({"preload": "yes"}), Some(&[][..]), false)]
    fn a_set_selects_nodes(
        #[case] spec: Value,
        #[case] labels: Option<&[(&str, &str)]>,
        #[case] is_wanted: bool,
    ) {
        let volume = volume('a');
        let found = look(&spec, &status(&volume, 2), labels, &[]);
        assert_eq!(found.len(), usize::from(is_wanted), "{found:?}");
        if let [found] = &found[..] {
            assert_eq!(found.kept, Some(tree(&volume)));
            assert_eq!(found.what, What::Tree(volume.recipe().clone(), tree(&volume).tree().unwrap()));
        }
    }

    #[test]
    fn what_is_not_known_now_stays_as_it_was() {
        let (old, new) = (volume('a'), volume('b'));
        let spec = json!({"preload": true, "nodeSelector": {"gpu": "a100"}});
        let gpu = Some(&[("gpu", "a100")][..]);
        let before = [tree(&old)];
        // Another recipe: the old one is kept no longer.
        assert_eq!(look(&spec, &status(&new, 2), gpu, &before)[0].kept, Some(tree(&new)));
        // A status of an earlier generation, none at all, and one that is wrong.
        let mut wrong = status(&new, 2);
        wrong["id"] = json!("models-0");
        let mut failed =
            json!({"conditions": [{"type": "Ready", "status": "False", "message": "no such tag"}]});
        failed["conditions"][0]["reason"] = json!("NotFound");
        for (status, words) in [
            (status(&new, 1), "was changed and is being resolved"),
            (Value::Null, "not resolved yet"),
            (failed, "not ready: no such tag"),
        ] {
            let found = look(&spec, &status, gpu, &before);
            assert!(matches!(&found[0].what, What::Waits(told) if told.contains(words)), "{found:?}");
            assert_eq!(found[0].kept, Some(tree(&old)));
            assert_eq!(look(&spec, &status, gpu, &[])[0].kept, None);
        }
        for broken in [wrong, json!({"id": "x", "recipe": "[]", "recipeGeneration": 2}), json!({"recipe": 7})]
        {
            let found = look(&spec, &broken, gpu, &before);
            assert!(matches!(&found[0].what, What::Broken(_)), "{found:?}");
            assert_eq!(found[0].kept, Some(tree(&old)));
        }
        // The node cannot be asked: what it wanted it wants, and what it did not it does not.
        assert_eq!(look(&spec, &status(&old, 2), None, &before).len(), 1);
        // It is selected no more.
        assert_eq!(look(&spec, &status(&old, 2), Some(&[]), &before), []);
        let [earlier] = &as_before(&before)[..] else { panic!("it is wanted") };
        assert_eq!((earlier.set.as_str(), earlier.kept.as_ref()), ("models", Some(&before[0])));
    }

    #[test]
    fn what_is_no_id_is_not_repeated() {
        let spec = json!({"preload": true});
        let found = look(&spec, &json!({"id": "../x", "recipe": "[]", "recipeGeneration": 2}), None, &[]);
        assert_eq!(found[0].id, "");
    }
}
