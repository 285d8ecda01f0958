use std::fs;
use std::path::Path;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    arguments: Arguments,
}

fn store(words: &[&str], path: &Path) -> Result<(), Failure> {
    let path = path.to_str().unwrap_or_default();
    let words = ["oras-csi"].iter().chain(words).copied().chain(["--store", path]);
    run(Cli::try_parse_from(words).map_err(Failure::bad_input)?.arguments)
}

fn ends(words: &[&str], path: &Path) -> Option<(Status, String)> {
    store(words, path).err().map(|failure| (failure.status(), failure.to_string()))
}

/// A store with one blob in it, which has these bytes and another's name or its own.
fn with_blob(path: &Path, bytes: &[u8], named: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    drop(Store::open(path, Limits::default())?);
    let digest = oras_csi_core::digest::Digest::sha256_of(named);
    fs::write(path.join("blobs/sha256").join(digest.hex()), bytes)?;
    Ok(())
}

#[test]
fn what_is_no_store_is_said_and_left_alone() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    for words in [&["ls"][..], &["verify"], &["gc", "--all"]] {
        let (status, text) = ends(words, folder.path()).ok_or("it must fail")?;
        assert!(status == Status::BadInput && text.contains("is not a store"), "{text}");
        assert_eq!(fs::read_dir(folder.path())?.count(), 0);
        assert_eq!(ends(words, &folder.path().join("missing")).map(|end| end.0), Some(Status::Failed));
    }
    Ok(())
}

#[test]
fn damage_has_an_exit_status_of_its_own() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    with_blob(folder.path(), b"right", b"right")?;
    store(&["verify"], folder.path())?;
    with_blob(folder.path(), b"wrong", b"other")?;
    let (status, text) = ends(&["verify"], folder.path()).ok_or("it must fail")?;
    assert_eq!(status, Status::Refused, "{text}");
    store(&["ls"], folder.path())?;
    store(&["ls", "-o", "json"], folder.path())?;
    Ok(())
}

#[test]
fn looking_needs_no_lock_and_collecting_does() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    with_blob(folder.path(), b"right", b"right")?;
    let blobs = || fs::read_dir(folder.path().join("blobs/sha256")).map(Iterator::count);
    let open = Store::open(folder.path(), Limits::default())?;
    store(&["ls"], folder.path())?;
    store(&["verify"], folder.path())?;
    let (status, text) = ends(&["gc", "--all"], folder.path()).ok_or("it must fail")?;
    assert!(status == Status::Failed && text.contains("stop the driver first"), "{text}");
    drop(open);
    store(&["gc", "--to", "1Mi"], folder.path())?;
    assert_eq!(blobs()?, 1, "it is smaller than that");
    store(&["gc", "--to", "4"], folder.path())?;
    assert_eq!(blobs()?, 0);
    assert!(ends(&["gc", "--all", "--to", "4"], folder.path()).is_some_and(|end| end.0 == Status::BadInput));
    Ok(())
}
