//! The folder: who wins, what is left behind, and who may read it.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Barrier};

use super::*;
use crate::contents::{Beside, Kept};
use crate::settings::Issuance;
use crate::testing::{names, now};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn kept(folder: &Folder) -> crate::contents::KeptAuthority {
    match folder.read().unwrap().meaning("here", Issuance::Automatic, now()).unwrap() {
        Kept::Authority(kept) => *kept,
        _ => panic!("no CA is kept"),
    }
}

#[test]
fn a_folder_is_made_private_and_keys_are_for_the_owner() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path().join("deep/certs"));
    folder.establish(&Authority::generate(now()).unwrap(), now()).unwrap();
    let renewed = folder.renew(&kept(&folder).authority, &names(), now()).unwrap();
    assert!(renewed.kept);
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
fn all_who_race_for_one_folder_end_with_one_ca_and_one_pair_that_matches() {
    const RACERS: usize = 8;
    for _ in 0..10 {
        let root = tempfile::tempdir().unwrap();
        let start = Arc::new(Barrier::new(RACERS));
        let racers: Vec<_> = (0..RACERS)
            .map(|_| {
                let (folder, start) = (Folder::new(root.path().join("certs")), Arc::clone(&start));
                std::thread::spawn(move || {
                    let proposed = Authority::generate(now()).unwrap();
                    start.wait();
                    folder.establish(&proposed, now()).unwrap();
                    let kept = kept(&folder);
                    let leaf = folder.renew(&kept.authority, &names(), now()).unwrap().leaf;
                    (kept.authority.certificate().clone(), leaf)
                })
            })
            .collect();
        let results: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
        assert!(results.iter().all(|result| *result == results[0]), "all agree");
        let kept = kept(&Folder::new(root.path().join("certs")));
        let Beside::Ours(Some(pair)) = kept.beside else { panic!("no pair of ours") };
        Leaf::parse("here", &pair.certificate, &pair.key, &names(), now()).unwrap();
    }
}

#[test]
fn a_ca_that_was_cut_short_is_finished_with_the_key_that_is_there() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path().to_owned());
    let dead = Authority::generate(now()).unwrap();
    std::fs::write(root.path().join("ca.key"), dead.key_pem()).unwrap();
    folder.establish(&Authority::generate(now()).unwrap(), now()).unwrap();
    let kept = kept(&folder);
    assert_eq!(kept.authority.key_pem(), dead.key_pem());
}

#[test]
fn a_renewal_that_was_cut_short_is_done_again() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path().to_owned());
    folder.establish(&Authority::generate(now()).unwrap(), now()).unwrap();
    let authority = kept(&folder).authority;
    folder.renew(&authority, &names(), now()).unwrap();
    let newer = authority.issue(&names(), now()).unwrap();
    std::fs::write(root.path().join("tls.crt"), newer.certificate_pem).unwrap();
    assert!(matches!(kept(&folder).beside, Beside::Ours(Some(_))), "the certificate tells whose it is");
    folder.renew(&authority, &names(), now()).unwrap();
    let Beside::Ours(Some(pair)) = kept(&folder).beside else { panic!("no pair of ours") };
    Leaf::parse("here", &pair.certificate, &pair.key, &names(), now()).unwrap();
}

#[test]
fn another_ones_pair_is_never_overwritten() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path().to_owned());
    folder.establish(&Authority::generate(now()).unwrap(), now()).unwrap();
    let theirs = Authority::generate(now()).unwrap().issue(&names(), now()).unwrap();
    std::fs::write(root.path().join("tls.crt"), &theirs.certificate_pem).unwrap();
    std::fs::write(root.path().join("tls.key"), &theirs.key_pem).unwrap();
    let renewed = folder.renew(&kept(&folder).authority, &names(), now()).unwrap();
    assert!(!renewed.kept);
    assert_eq!(std::fs::read_to_string(root.path().join("tls.crt")).unwrap(), theirs.certificate_pem);
    assert_eq!(std::fs::read_to_string(root.path().join("tls.key")).unwrap(), theirs.key_pem);
}

#[test]
fn a_folder_that_cannot_be_made_is_named_in_the_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let folder = Folder::new(file.path().join("certs"));
    let error = folder.establish(&Authority::generate(now()).unwrap(), now()).unwrap_err().to_string();
    assert!(error.contains(&file.path().display().to_string()), "{error}");
}

#[test]
fn where_nothing_can_be_written_a_leaf_is_used_all_the_same() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path().join("gone"));
    let authority = Authority::generate(now()).unwrap();
    let renewed = folder.renew(&authority, &names(), now()).unwrap();
    assert!(!renewed.kept && renewed.leaf.is_from(authority.certificate()));
}
