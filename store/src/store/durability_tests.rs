use std::fs;
use std::time::{Duration, Instant};

use oras_csi_core::digest::Digest;

use super::*;
use crate::content::description::{TreeContent, TreeUsage};
use crate::disk::folders::names_in;
use crate::disk::{Totals, Usage, boot_id};
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
    store.stage().unwrap().commit_layer(&layer_key(), totals, Usage::default()).unwrap();
    let made = TreeContent { totals, layers: vec![layer_key()], ..TreeContent::default() };
    store.stage().unwrap().commit_tree(&key(), &made, TreeUsage::default()).unwrap();
}

/// Returns the marked items. They are in one file for each pull.
fn marks(path: &Path) -> Vec<String> {
    let folder = path.join("unsynced").join(boot_id());
    let read = |name: String| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let mut names: Vec<String> = names_in(&folder)
        .unwrap()
        .into_iter()
        .flat_map(|name| read(name).lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    names.sort();
    names
}

#[test]
fn the_marks_of_a_pull_take_one_inode() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let layers = (0..4_096_u32).map(|number| {
        Item::Layer(LayerKey::of(&Digest::sha256_of(&number.to_le_bytes()), &LayerShape::Image))
    });
    let layers: Vec<Item> = layers.collect();
    let marked = store.mark_unsynced(&layers).unwrap();
    assert_eq!(names_in(&folder.path().join("unsynced").join(boot_id())).unwrap().len(), 1);
    assert_eq!(marks(folder.path()).len(), 4_096);
    drop(marked);
    assert!(marks(folder.path()).is_empty());
}

fn wait_until_no_marks(path: &Path) {
    let begun = Instant::now();
    while !marks(path).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", marks(path));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_mark_exists_from_before_the_item_until_the_item_is_synced() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let marked = store.mark_unsynced(&items()).unwrap();
    let both = [format!("layer-{}", layer_key()), format!("tree-{}", key())];
    assert_eq!(marks(folder.path()), both);
    make(&store);
    assert!(store.tree(&key()).unwrap().is_some());
    assert_eq!(marks(folder.path()), both, "another rename under these marks is still possible");
    drop(marked);
    wait_until_no_marks(folder.path());
    assert!(store.tree(&key()).unwrap().is_some());
}

#[test]
fn marks_of_items_that_were_not_created_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (first, second) = (store.mark_unsynced(&items()).unwrap(), store.mark_unsynced(&items()).unwrap());
    drop(first);
    assert_eq!(marks(folder.path()).len(), 2, "another pull is about to create the same items");
    drop(second);
    assert!(marks(folder.path()).is_empty());
    assert!(
        !store.durability.record_rename(&Item::Tree(key())),
        "without a mark the item must be synced first"
    );
}

#[test]
fn closing_the_store_waits_for_the_sync() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let marked = store.mark_unsynced(&items()).unwrap();
    make(&store);
    drop(marked);
    drop(store);
    assert!(marks(folder.path()).is_empty());
}

/// Items of a killed process are complete, because the kernel has their data.
#[test]
fn the_next_run_syncs_items_that_are_still_marked() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    make(&store);
    drop(store);
    let left = folder.path().join("unsynced").join(boot_id());
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("pull-7"), format!("tree-{}\nlayer-{}\n", key(), layer_key())).unwrap();
    // By an earlier version.
    fs::write(left.join(format!("tree-{}", key())), "").unwrap();
    let store = open(folder.path());
    let marked = store.mark_unsynced(&items()).unwrap();
    assert!(fs::exists(left.join("pull-8")).unwrap());
    drop(marked);
    wait_until_no_marks(folder.path());
    assert!(store.tree(&key()).unwrap().is_some());
}

/// After a power cut the content of an unsynced item is unknown.
#[test]
fn a_tree_that_was_unsynced_in_an_earlier_boot_is_quarantined() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for has_sums in [true, false] {
        let store = open(path);
        make(&store);
        drop(store);
        let left = path.join("unsynced/another");
        fs::create_dir_all(&left).unwrap();
        let odd = "tree-..\nlayer-../trees\nlayer-\nelse\n\n\0";
        fs::write(left.join("pull-1"), format!("{odd}\ntree-{}\n", key())).unwrap();
        // By an earlier version.
        let odd = ["tree-..", "layer-../trees", "layer-", "else"].map(|name| name.replace('/', ":"));
        for name in odd.into_iter().chain([format!("layer-{}", layer_key())]) {
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
            "a layer with checksums stays, and is verified before it is used"
        );
        assert!(!left.exists());
        let quarantined = names_in(&path.join("set-aside")).unwrap();
        assert!(quarantined.contains(&format!("{}.0", key())), "the tree may be mounted: {quarantined:?}");
        assert!(store.node_record().damage.is_empty(), "no damage was detected");
    }
}

#[test]
fn items_that_could_not_be_synced_count_as_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let marked = store.mark_unsynced(&items()).unwrap();
    make(&store);
    let blob = Item::Blob(Digest::sha256_of(b"blob"));
    store.mark_verified(blob.clone());
    store.durability.fail_next_sync();
    drop(marked);
    assert!(store.tree(&key()).unwrap().is_none());
    assert!(store.layer(&layer_key()).unwrap().is_none());
    let found = store.node_record().damage;
    assert!(found.iter().all(|damage| damage.found.contains("the disk refused to sync it")), "{found:?}");
    assert!(!store.is_intact(&blob).unwrap(), "earlier verifications no longer count either");
    assert_eq!(marks(folder.path()).len(), 2, "the marks stay in case the machine stops now");

    let marked = store.mark_unsynced(&items()).unwrap();
    make(&store);
    drop(marked);
    assert!(store.tree(&key()).unwrap().is_some());
    wait_until_no_marks(folder.path());
}
