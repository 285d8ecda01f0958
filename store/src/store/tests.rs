use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use bytes::Bytes;
use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::Descriptor;
use tokio::sync::mpsc;

use super::*;
use crate::content::blob_reader::{BlobReader, StreamFault};
use crate::content::description::{TreeContent, TreeUsage};
use crate::disk::Totals;
use crate::error_class::ErrorClass;
use crate::layout::TreeKey;

fn open(path: &Path) -> Store {
    Store::open(path, Limits::default()).unwrap()
}

fn reader(descriptor: &Descriptor, pieces: &[&[u8]]) -> BlobReader {
    let (sender, receiver) = mpsc::channel(16);
    for piece in pieces {
        sender.try_send(Ok(Bytes::copy_from_slice(piece))).unwrap();
    }
    BlobReader::new(descriptor.clone(), receiver)
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::new("application/octet-stream", Digest::sha256_of(bytes), bytes.len() as u64)
}

#[test]
fn a_second_open_of_the_same_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let error = Store::open(folder.path(), Limits::default()).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    drop(store);
    open(folder.path());
    assert_eq!(fs::metadata(folder.path().join("tmp")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn refuses_a_folder_with_foreign_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.tex"), "").unwrap();
    let error = Store::open(folder.path(), Limits::default()).unwrap_err();
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(error.class(), ErrorClass::BadInput);
}

#[test]
fn refuses_a_newer_or_damaged_format() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let format = folder.path().join("format");
    assert_eq!(fs::read_to_string(&format).unwrap(), "oras-csi store 3\n");
    for (text, words) in
        [("oras-csi store 4\n", "format 4"), ("", "the file is damaged"), ("garbage", "the file is damaged")]
    {
        fs::write(&format, text).unwrap();
        let error = Store::open(folder.path(), Limits::default()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn opening_deletes_unfinished_work() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    fs::create_dir_all(folder.path().join("tmp/7/files/deep")).unwrap();
    fs::write(folder.path().join("tmp/8"), "half").unwrap();
    drop(open(folder.path()));
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_blob_is_visible_only_after_verification() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let blob = descriptor(b"hello world");
    for pieces in [&[&b"hello"[..], b" there"][..], &[b"hello world!"], &[b"hello"], &[]] {
        let error = store.write_blob(&blob, reader(&blob, pieces), &Reservation::none()).unwrap_err();
        assert!(!matches!(error, StreamFault::Disk(_)), "{error}");
        assert!(!store.has_blob(&blob).unwrap());
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    }
    store.write_blob(&blob, reader(&blob, &[b"hello", b"", b" world"]), &Reservation::none()).unwrap();
    assert!(store.has_blob(&blob).unwrap());
    let path = folder.path().join("blobs/sha256").join(blob.digest().hex());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o444);
    // A second writer of the same blob is not an error.
    store.write_blob(&blob, reader(&blob, &[b"hello world"]), &Reservation::none()).unwrap();
    assert_eq!(store.read_blob(blob.digest(), 100).unwrap().unwrap(), b"hello world");
    assert_eq!(store.read_blob(blob.digest(), 10).unwrap(), None);
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn stores_an_empty_blob() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let blob = descriptor(b"");
    store.write_blob(&blob, reader(&blob, &[]), &Reservation::none()).unwrap();
    assert!(store.has_blob(&blob).unwrap());
}

#[test]
fn a_damaged_blob_counts_as_missing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let blob = descriptor(b"hello world");
    let path = folder.path().join("blobs/sha256").join(blob.digest().hex());
    fs::write(&path, "short").unwrap();
    assert!(!store.has_blob(&blob).unwrap());
    store.write_blob(&blob, reader(&blob, &[b"hello world"]), &Reservation::none()).unwrap();
    assert!(store.has_blob(&blob).unwrap());
    // A manifest with a wrong size does not affect the blob of a correct manifest.
    let lie = Descriptor::new("x/y", blob.digest().clone(), 5);
    assert!(!store.has_blob(&lie).unwrap());
    store.write_blob(&lie, reader(&lie, &[b"hello", b" world"]), &Reservation::none()).unwrap_err();
    assert!(store.has_blob(&blob).unwrap());
    fs::write(&path, "hello_world").unwrap();
    let (mut lease, begun) = (store.lease(), Instant::now());
    lease.add_blocking([Item::Blob(blob.digest().clone())]);
    assert_eq!(store.read_blob(blob.digest(), 100).unwrap(), None);
    assert!(!path.exists());
    let committed = store.leases().commit(begun, [Item::Blob(blob.digest().clone())], || Ok(()));
    assert!(committed.is_err(), "a tree that was begun before can contain the damaged blob");
}

#[test]
fn an_absent_item_is_looked_up_while_another_is_quarantined() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let quarantining = store.quarantine_lock.lock().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let look_up = || store.tree(&TreeKey::parse(&"ab".repeat(32)).unwrap());
        scope.spawn(move || sender.send(look_up()));
        let found = receiver.recv_timeout(std::time::Duration::from_secs(20));
        drop(quarantining);
        assert!(found.expect("it waits for the lock").unwrap().is_none());
    });
}

#[test]
fn a_blob_larger_than_the_free_space_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    let error = store.reserve(Usage::blob(1 << 60)).unwrap_err();
    assert!(error.is_full(), "{error}");
}

#[test]
fn a_tree_is_visible_only_when_committed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let key = TreeKey::parse(&"ab".repeat(32)).unwrap();
    let made = TreeContent { totals: Totals { bytes: 3, inodes: 2 }, ..TreeContent::default() };
    {
        let staging = store.stage().unwrap();
        fs::write(folder.path().join("tmp/0/files/f"), "abc").unwrap();
        assert!(store.tree(&key).unwrap().is_none());
        drop(staging);
    }
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    store.stage().unwrap().commit_tree(&key, &made, TreeUsage::default()).unwrap();
    assert_eq!(store.tree(&key).unwrap().unwrap().totals(), made.totals);
    // A second copy is discarded.
    store.stage().unwrap().commit_tree(&key, &TreeContent::default(), TreeUsage::default()).unwrap();
    assert_eq!(store.tree(&key).unwrap().unwrap().totals(), made.totals);
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    // A damaged tree is quarantined.
    fs::write(folder.path().join("trees").join(key.as_str()).join("tree.json"), "").unwrap();
    assert!(store.tree(&key).unwrap().is_none());
    store.stage().unwrap().commit_tree(&key, &made, TreeUsage::default()).unwrap();
    assert!(store.tree(&key).unwrap().is_some());
}
