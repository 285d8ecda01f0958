//! The folder: which writer wins, which files stay, and their permissions.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Barrier};

use super::*;
use crate::entries::{Stored, StoredLeaf};
use crate::settings::Issuance;
use crate::testing::{names, now};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn stored(folder: &CaFolder) -> crate::entries::StoredCa {
    match folder.read().unwrap().interpret("here", Issuance::Automatic, now()).unwrap() {
        Stored::Authority(stored) => *stored,
        _ => panic!("no CA is stored"),
    }
}

#[test]
fn a_new_folder_and_its_keys_are_private() {
    let root = tempfile::tempdir().unwrap();
    let folder = CaFolder::new(root.path().join("deep/certs"));
    folder.store_ca(&Authority::generate(now()).unwrap(), now()).unwrap();
    let renewed = folder.renew(&stored(&folder).authority, &names(), now()).unwrap();
    assert!(renewed.is_stored);
    let path = root.path().join("deep/certs");
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("ca.key")), 0o600);
    assert_eq!(mode(&path.join("tls.key")), 0o600);
    assert_eq!(mode(&path.join("ca.crt")), 0o644);
    let mut left: Vec<_> = std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["ca.crt", "ca.key", "tls.crt", "tls.key"], "no temporary file stays");
}

#[test]
fn racing_processes_end_with_one_ca_and_one_matching_pair() {
    const RACERS: usize = 8;
    for _ in 0..10 {
        let root = tempfile::tempdir().unwrap();
        let start = Arc::new(Barrier::new(RACERS));
        let racers: Vec<_> = (0..RACERS)
            .map(|_| {
                let (folder, start) = (CaFolder::new(root.path().join("certs")), Arc::clone(&start));
                std::thread::spawn(move || {
                    let proposed = Authority::generate(now()).unwrap();
                    start.wait();
                    folder.store_ca(&proposed, now()).unwrap();
                    let stored = stored(&folder);
                    let leaf = folder.renew(&stored.authority, &names(), now()).unwrap().leaf;
                    (stored.authority.certificate().clone(), leaf)
                })
            })
            .collect();
        let results: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
        assert!(results.iter().all(|result| *result == results[0]), "all agree");
        let stored = stored(&CaFolder::new(root.path().join("certs")));
        let StoredLeaf::Ours(Some(pair)) = stored.leaf else { panic!("no pair of ours") };
        Leaf::parse("here", &pair.certificate, &pair.key, &names(), now()).unwrap();
    }
}

#[test]
fn an_incomplete_ca_is_completed_with_the_existing_key() {
    let root = tempfile::tempdir().unwrap();
    let folder = CaFolder::new(root.path().to_owned());
    let dead = Authority::generate(now()).unwrap();
    std::fs::write(root.path().join("ca.key"), dead.key_pem()).unwrap();
    folder.store_ca(&Authority::generate(now()).unwrap(), now()).unwrap();
    let stored = stored(&folder);
    assert_eq!(stored.authority.key_pem(), dead.key_pem());
}

#[test]
fn an_interrupted_renewal_is_repeated() {
    let root = tempfile::tempdir().unwrap();
    let folder = CaFolder::new(root.path().to_owned());
    folder.store_ca(&Authority::generate(now()).unwrap(), now()).unwrap();
    let authority = stored(&folder).authority;
    folder.renew(&authority, &names(), now()).unwrap();
    let newer = authority.issue(&names(), now()).unwrap();
    std::fs::write(root.path().join("tls.crt"), newer.certificate_pem).unwrap();
    assert!(
        matches!(stored(&folder).leaf, StoredLeaf::Ours(Some(_))),
        "the certificate shows which CA issued the pair"
    );
    folder.renew(&authority, &names(), now()).unwrap();
    let StoredLeaf::Ours(Some(pair)) = stored(&folder).leaf else { panic!("no pair of ours") };
    Leaf::parse("here", &pair.certificate, &pair.key, &names(), now()).unwrap();
}

#[test]
fn an_external_pair_is_never_overwritten() {
    let root = tempfile::tempdir().unwrap();
    let folder = CaFolder::new(root.path().to_owned());
    folder.store_ca(&Authority::generate(now()).unwrap(), now()).unwrap();
    let theirs = Authority::generate(now()).unwrap().issue(&names(), now()).unwrap();
    std::fs::write(root.path().join("tls.crt"), &theirs.certificate_pem).unwrap();
    std::fs::write(root.path().join("tls.key"), &theirs.key_pem).unwrap();
    let renewed = folder.renew(&stored(&folder).authority, &names(), now()).unwrap();
    assert!(!renewed.is_stored);
    assert_eq!(std::fs::read_to_string(root.path().join("tls.crt")).unwrap(), theirs.certificate_pem);
    assert_eq!(std::fs::read_to_string(root.path().join("tls.key")).unwrap(), theirs.key_pem);
}

#[test]
fn a_folder_that_cannot_be_made_is_named_in_the_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let folder = CaFolder::new(file.path().join("certs"));
    let error = folder.store_ca(&Authority::generate(now()).unwrap(), now()).unwrap_err().to_string();
    assert!(error.contains(&file.path().display().to_string()), "{error}");
}

#[test]
fn a_leaf_is_used_even_if_nothing_can_be_written() {
    let root = tempfile::tempdir().unwrap();
    let folder = CaFolder::new(root.path().join("missing"));
    let authority = Authority::generate(now()).unwrap();
    let renewed = folder.renew(&authority, &names(), now()).unwrap();
    assert!(!renewed.is_stored && renewed.leaf.is_from(authority.certificate()));
}
