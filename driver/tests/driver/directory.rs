//! `into_directory`: the command's way.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_driver::ErrorClass;
use oras_csi_driver::pull::{DirectoryError, Progress, Silent, into_directory};

use crate::registry::{Artifact, add, recipe};
use crate::trees::Bench;

async fn pull(bench: &Bench, recipe: &PinnedRecipe, path: &Path) -> Result<(), DirectoryError> {
    let progress: Arc<dyn Progress> = Arc::new(Silent);
    into_directory(&bench.fetcher, recipe, path, &progress).await.map(|_| ())
}

#[tokio::test]
async fn files_are_copies() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("a", b"hello").directory("d", &[("b", b"b")]).push();
    let recipe = recipe([add(&digest)]);
    let new = bench.folder.path().join("out/new");
    pull(&bench, &recipe, &new).await.unwrap();
    assert_eq!(fs::read(new.join("d/b")).unwrap(), b"b");
    let found = fs::metadata(new.join("a")).unwrap();
    assert_eq!((found.nlink(), found.permissions().mode() & 0o200), (1, 0o200));
    fs::write(new.join("a"), "changed").unwrap();
    assert_eq!(fs::metadata(new.join("d/b")).unwrap().mtime(), 1_600_000_000);

    // An empty one that is there, and the store has what it had.
    let empty = bench.folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    pull(&bench, &recipe, &empty).await.unwrap();
    assert_eq!(fs::read(empty.join("a")).unwrap(), b"hello");
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 2);
    assert_eq!(fs::read_dir(bench.folder.path().join("out")).unwrap().count(), 1);
}

#[tokio::test]
async fn nothing_is_overwritten() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("a", b"hello").push();
    let recipe = recipe([add(&digest)]);
    let full = bench.folder.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("other"), "precious").unwrap();
    let link = bench.folder.path().join("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    for path in [&full, &full.join("other"), &link] {
        let error = pull(&bench, &recipe, path).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::BadInput, "{error}");
    }
    assert_eq!(bench.registry.asked(), 0, "it is said before anything is fetched");
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
}
