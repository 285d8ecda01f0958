//! `pull_into_directory`, which the command `oras-csi pull` uses.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_store::ErrorClass;
use oras_csi_store::Limits;
use oras_csi_store::Store;
use oras_csi_store::pull::{DirectoryError, Fetcher, NoProgress, Progress, pull_into_directory};
use tar::EntryType;

use crate::registry::{Artifact, FakeRegistry, add, gzip, recipe};
use crate::trees::Bench;

async fn pull(bench: &Bench, recipe: &PinnedRecipe, path: &Path) -> Result<(), DirectoryError> {
    let progress: Arc<dyn Progress> = Arc::new(NoProgress);
    pull_into_directory(&bench.fetcher, recipe, path, &progress).await.map(|_| ())
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

    // An existing empty directory is accepted, and the store is unchanged.
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
    assert_eq!(bench.registry.requests(), 0, "it is said before anything is fetched");
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
}

/// Builds a directory with hard links, symbolic links, modes and times.
fn directory(registry: &FakeRegistry, title: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut entry = |kind: EntryType, name: &str, mode: u32, mtime: u64, link: Option<&str>, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(mtime);
        header.set_size(data.len() as u64);
        let name = format!("{title}/{name}");
        match link {
            Some(link) => builder.append_link(&mut header, name, link).unwrap(),
            None => builder.append_data(&mut header, name, data).unwrap(),
        }
    };
    entry(EntryType::Directory, "", 0o700, 1_000, None, b"");
    entry(EntryType::Regular, "run", 0o4555, 2_000, None, b"#!");
    entry(EntryType::Directory, "deep", 0o777, 3_000, None, b"");
    entry(EntryType::Regular, "deep/secret", 0o400, 4_000, None, b"one");
    entry(EntryType::Link, "deep/again", 0, 0, Some(&format!("{title}/deep/secret")), b"");
    entry(EntryType::Link, "again", 0, 0, Some(&format!("{title}/deep/secret")), b"");
    entry(EntryType::Symlink, "link", 0, 0, Some("deep/secret"), b"");
    entry(EntryType::Directory, "empty", 0o755, 5_000, None, b"");
    let archive = gzip(&builder.into_inner().unwrap());
    registry.put_blob(&archive);
    archive
}

/// Lists everything that a user sees of a directory.
fn seen(root: &Path, folder: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display();
        let mode = found.permissions().mode();
        // Entries without a time in an archive get the time of their pull, which differs between two pulls.
        let mtime = if found.mtime() <= 5_000 { found.mtime().to_string() } else { "now".to_owned() };
        if found.is_dir() {
            lines.push(format!("{name}/ {mode:o} {mtime}"));
            seen(root, &path, lines);
        } else if found.is_symlink() {
            lines.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
        } else {
            let text = fs::read_to_string(&path).unwrap();
            lines.push(format!("{name} {mode:o} {mtime} {} {text}", found.nlink()));
        }
    }
    lines.sort();
}

#[tokio::test]
async fn files_moved_out_of_a_store_equal_copied_files() {
    let bench = Bench::new();
    let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
    let unpack = |title| [("org.opencontainers.image.title", title), ("io.deis.oras.content.unpack", "true")];
    let (one, two) = (directory(&bench.registry, "one"), directory(&bench.registry, "two/deep"));
    let artifact = || Artifact::new(&bench.registry);
    let full = artifact()
        .layer(tar, &one, &unpack("one"))
        .layer(tar, &two, &unpack("two/deep"))
        .file("a", b"hello")
        .file("two/b", b"hello")
        .file("one/deep/more", b"more")
        .push();
    let twice = artifact().layer(tar, &one, &unpack("one")).push();
    let image = artifact().layer(tar, &one, &[]).push();
    let at = |digest, path: &str| add(digest).at(path.parse().unwrap());
    let recipes = [
        recipe([add(&full)]),
        recipe([at(&full, "below/here")]),
        recipe([at(&twice, "x"), at(&twice, "y")]),
        recipe([add(&image)]),
        recipe([add(&full).including(crate::trees::globs(&["**/deep/**"]))]),
    ];
    for (number, recipe) in recipes.iter().enumerate() {
        let copied = bench.folder.path().join(format!("copied-{number}"));
        pull(&bench, recipe, &copied).await.unwrap();
        let folder = bench.folder.path().join(format!("store-{number}"));
        let store = Store::open(&folder, Limits::default()).unwrap().ephemeral();
        let fetcher = Arc::new(Fetcher::new(Arc::new(store), bench.registry.clone()));
        let moved = bench.folder.path().join(format!("moved-{number}"));
        let progress: Arc<dyn Progress> = Arc::new(NoProgress);
        pull_into_directory(&fetcher, recipe, &moved, &progress).await.unwrap();
        fs::remove_dir_all(folder).unwrap();
        let (mut wanted, mut found) = (Vec::new(), Vec::new());
        seen(&copied, &copied, &mut wanted);
        seen(&moved, &moved, &mut found);
        assert!(wanted.len() > 3, "{wanted:#?}");
        assert_eq!(found, wanted, "{recipe:?}");
        assert!(!found.iter().any(|line| line.contains(" 2 ")), "no file has two names: {found:#?}");
    }
}
