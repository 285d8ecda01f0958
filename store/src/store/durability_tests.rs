use std::fs;
use std::time::{Duration, Instant};

use oras_csi_core::digest::Digest;

use super::*;
use crate::content::description::TreeContent;
use crate::disk::folders::names_in;
use crate::disk::{Totals, boot_id};
use crate::layout::{CHECKSUMS, LayerKey, LayerShape, TreeKey};

fn open(path: &Path) -> Store {
    Store::open(path, Limits::default()).unwrap()
}

fn key() -> TreeKey {
    TreeKey::parse(&"a".repeat(64)).unwrap()
}

fn layer_key() -> LayerKey {
    LayerKey::of(&Digest::sha256_of(b"layer"), &LayerShape::Image)
}

fn items() -> [Item; 3] {
    [Item::Tree(key()), Item::Layer(layer_key()), Item::Blob(Digest::sha256_of(b"blob"))]
}

fn make(store: &Store) {
    let totals = Totals { bytes: 0, inodes: 1 };
    store.stage().unwrap().commit_layer(&layer_key(), totals).unwrap();
    let made = TreeContent { totals, layers: vec![layer_key()], ..TreeContent::default() };
    store.stage().unwrap().commit_tree(&key(), &made).unwrap();
}

fn marks(path: &Path) -> Vec<String> {
    let mut names = names_in(&path.join("unsynced").join(boot_id())).unwrap();
    names.sort();
    names
}

fn until_none(path: &Path) {
    let begun = Instant::now();
    while !marks(path).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", marks(path));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_mark_is_there_before_what_it_marks_and_until_that_is_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let marked = store.mark_unsynced(&items()).unwrap();
    let both = [format!("layer-{}", layer_key()), format!("tree-{}", key())];
    assert_eq!(marks(folder.path()), both);
    make(&store);
    assert!(store.tree(&key()).unwrap().is_some());
    assert_eq!(marks(folder.path()), both, "somebody may still rename");
    drop(marked);
    until_none(folder.path());
    assert!(store.tree(&key()).unwrap().is_some());
}

#[test]
fn what_nobody_made_is_marked_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (first, second) = (store.mark_unsynced(&items()).unwrap(), store.mark_unsynced(&items()).unwrap());
    drop(first);
    assert_eq!(marks(folder.path()).len(), 2, "another pull is about to make the same");
    drop(second);
    assert!(marks(folder.path()).is_empty());
    assert!(!store.durability.note_rename(&Item::Tree(key())), "without a mark the disk comes first");
}

#[test]
fn the_last_to_close_the_store_waits_for_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let marked = store.mark_unsynced(&items()).unwrap();
    make(&store);
    drop(marked);
    drop(store);
    assert!(marks(folder.path()).is_empty());
}

/// What a killed process leaves is whole: the kernel has it.
#[test]
fn the_next_run_goes_on_with_what_waits() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    make(&store);
    drop(store);
    let left = folder.path().join("unsynced").join(boot_id());
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join(format!("tree-{}", key())), "").unwrap();
    let store = open(folder.path());
    until_none(folder.path());
    assert!(store.tree(&key()).unwrap().is_some());
}

/// What was not on the disk when the machine stopped may be anything.
#[test]
fn a_tree_of_an_earlier_start_of_the_machine_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for has_sums in [true, false] {
        let store = open(path);
        make(&store);
        drop(store);
        let left = path.join("unsynced/another");
        fs::create_dir_all(&left).unwrap();
        let odd = ["tree-..", "layer-../trees", "layer-", "else"].map(|name| name.replace('/', ":"));
        for name in odd.into_iter().chain([format!("tree-{}", key()), format!("layer-{}", layer_key())]) {
            fs::write(left.join(name), "").unwrap();
        }
        let layer = path.join("layers").join(layer_key().as_str());
        if !has_sums {
            fs::remove_file(layer.join(CHECKSUMS)).unwrap();
        }
        let store = open(path);
        assert!(store.tree(&key()).unwrap().is_none());
        assert_eq!(
            store.layer(&layer_key()).unwrap().is_some(),
            has_sums,
            "what can be compared is, before it is used"
        );
        assert!(!left.exists());
        let aside = names_in(&path.join("set-aside")).unwrap();
        assert!(aside.contains(&format!("{}.0", key())), "it may be mounted: {aside:?}");
        assert!(store.node_record().damage.is_empty(), "nobody knows of any damage");
    }
}

#[test]
fn what_the_disk_refused_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let marked = store.mark_unsynced(&items()).unwrap();
    make(&store);
    let blob = Item::Blob(Digest::sha256_of(b"blob"));
    store.mark_verified(blob.clone());
    store.durability.refuse_all();
    drop(marked);
    assert!(store.tree(&key()).unwrap().is_none());
    assert!(store.layer(&layer_key()).unwrap().is_none());
    let found = store.node_record().damage;
    assert!(found.iter().all(|damage| damage.found.contains("the disk did not take it")), "{found:?}");
    assert!(!store.is_intact(&blob).unwrap(), "nor is anything else believed that was compared before");
    assert_eq!(marks(folder.path()).len(), 2, "should the machine stop now");

    let marked = store.mark_unsynced(&items()).unwrap();
    make(&store);
    drop(marked);
    assert!(store.tree(&key()).unwrap().is_some());
    until_none(folder.path());
}
