use std::fs;
use std::path::Path;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    arguments: Arguments,
}

/// Runs a subcommand of `oras-csi store`.
fn store(words: &[&str], path: &Path) -> Result<(), Failure> {
    let path = path.to_str().unwrap_or_default();
    let words = ["oras-csi"].iter().chain(words).copied().chain(["--store", path]);
    run(Cli::try_parse_from(words).map_err(Failure::bad_input)?.arguments)
}

/// Runs a subcommand that fails, and returns its exit status and message.
fn failure_of(words: &[&str], path: &Path) -> Option<(ExitStatus, String)> {
    store(words, path).err().map(|failure| (failure.status(), failure.to_string()))
}

/// Creates a store with one blob: its content is `bytes`, its name the digest of `named`.
fn with_blob(path: &Path, bytes: &[u8], named: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    drop(Store::open(path, Limits::default())?);
    let digest = oras_csi_core::digest::Digest::sha256_of(named);
    fs::write(path.join("blobs/sha256").join(digest.hex()), bytes)?;
    Ok(())
}

#[test]
fn a_folder_that_is_not_a_store_is_rejected_and_stays_unchanged() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    for words in [&["ls"][..], &["verify"], &["gc", "--all"]] {
        let (status, text) = failure_of(words, folder.path()).ok_or("it must fail")?;
        assert!(status == ExitStatus::BadInput && text.contains("is not a store"), "{text}");
        assert_eq!(fs::read_dir(folder.path())?.count(), 0);
        let (status, text) = failure_of(words, &folder.path().join("missing")).ok_or("it must fail")?;
        assert!(
            status == ExitStatus::BadInput && text.contains("does not exist or is not a store"),
            "{text}"
        );
    }
    Ok(())
}

#[test]
fn damage_has_its_own_exit_status() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    with_blob(folder.path(), b"right", b"right")?;
    store(&["verify"], folder.path())?;
    with_blob(folder.path(), b"wrong", b"other")?;
    let (status, text) = failure_of(&["verify"], folder.path()).ok_or("it must fail")?;
    assert_eq!(status, ExitStatus::Refused, "{text}");
    store(&["ls"], folder.path())?;
    store(&["ls", "-o", "json"], folder.path())?;
    Ok(())
}

#[test]
fn listing_needs_no_lock_and_garbage_collection_does() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    with_blob(folder.path(), b"right", b"right")?;
    let blobs = || fs::read_dir(folder.path().join("blobs/sha256")).map(Iterator::count);
    let open = Store::open(folder.path(), Limits::default())?;
    store(&["ls"], folder.path())?;
    store(&["verify"], folder.path())?;
    let (status, text) = failure_of(&["gc", "--all"], folder.path()).ok_or("it must fail")?;
    assert!(status == ExitStatus::Failed && text.contains("stop the driver first"), "{text}");
    drop(open);
    store(&["gc", "--to", "1Mi"], folder.path())?;
    assert_eq!(blobs()?, 1, "it is smaller than that");
    store(&["gc", "--to", "4"], folder.path())?;
    assert_eq!(blobs()?, 0);
    assert!(
        failure_of(&["gc", "--all", "--to", "4"], folder.path())
            .is_some_and(|end| end.0 == ExitStatus::BadInput)
    );
    Ok(())
}
