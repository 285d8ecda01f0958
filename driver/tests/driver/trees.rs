//! Pulls recipes into a store, without a mount.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::media;
use oras_csi_core::path::Glob;
use oras_csi_core::recipe::{Layer, PinnedRecipe};
use oras_csi_core::reference::PinnedReference;
use oras_csi_driver::NodeRoots;
use oras_csi_store::ErrorClass;
use oras_csi_store::Limits;
use oras_csi_store::pull::{Fetcher, NoProgress, Progress, PullError, PullErrorKind};
use oras_csi_store::{Store, Tree};
use rstest::rstest;
use serde_json::json;
use tempfile::TempDir;

use crate::registry::{Artifact, FakeRegistry, add, add_from, gzip, recipe, tar};

pub struct Bench {
    pub folder: TempDir,
    pub registry: Arc<FakeRegistry>,
    pub fetcher: Arc<Fetcher>,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        Self::inside(tempfile::tempdir().unwrap(), limits)
    }

    /// Opens a store in this folder.
    pub fn inside(folder: TempDir, limits: Limits) -> Self {
        let registry = FakeRegistry::new();
        let store = Store::open(&folder.path().join("store"), limits)
            .unwrap()
            .with_garbage_collection(Arc::new(NodeRoots));
        let fetcher = Arc::new(Fetcher::new(Arc::new(store), registry.clone()));
        Self { folder, registry, fetcher }
    }

    /// Opens the same folder again, as the next process does.
    pub fn reopened(self) -> Self {
        let Self { folder, registry, fetcher } = self;
        drop(fetcher);
        let store = Store::open(&folder.path().join("store"), Limits::default()).unwrap();
        let store = store.with_garbage_collection(Arc::new(NodeRoots));
        let fetcher = Arc::new(Fetcher::new(Arc::new(store), registry.clone()));
        Self { folder, registry, fetcher }
    }

    pub async fn pull(&self, recipe: &PinnedRecipe) -> Result<Tree, PullError> {
        let progress: Arc<dyn Progress> = Arc::new(NoProgress);
        let result = self.fetcher.tree(recipe, &progress).await;
        if result.is_err() {
            // A cancelled writer removes its files in its own thread.
            for _ in 0..200 {
                if self.names("tmp").is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(self.names("tmp"), Vec::<String>::new(), "a failed pull leaves nothing");
            assert_eq!(self.names("trees"), Vec::<String>::new());
        }
        result
    }

    /// Returns the error of a pull, while other trees are in the store.
    pub async fn fetcher_error(&self, recipe: &PinnedRecipe) -> PullError {
        let progress: Arc<dyn Progress> = Arc::new(NoProgress);
        self.fetcher.tree(recipe, &progress).await.unwrap_err()
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let listed = fs::read_dir(self.folder.path().join("store").join(folder)).unwrap();
        listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub fn root(&self, tree: &Tree) -> PathBuf {
        self.folder.path().join("store/trees").join(tree.key().as_str()).join("files")
    }

    /// Pulls a recipe, and returns its files and their content.
    pub async fn files(&self, recipe: &PinnedRecipe) -> BTreeMap<String, String> {
        let tree = self.pull(recipe).await.unwrap();
        let root = self.root(&tree);
        let mut files = BTreeMap::new();
        collect(&root, &root, &mut files);
        let bytes = files.values().map(|text| text.len() as u64).sum::<u64>();
        assert_eq!(tree.totals().bytes, bytes, "the totals are right");
        assert_eq!(tree.totals().inodes, count(&root), "the totals are right");
        files
    }

    pub async fn error(&self, recipe: &PinnedRecipe) -> (PullErrorKind, String) {
        let error = self.pull(recipe).await.unwrap_err();
        (error.kind(), error.to_string())
    }
}

fn count(folder: &Path) -> u64 {
    let below = fs::read_dir(folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() { count(&entry.path()) } else { 1 }
    });
    1 + below.sum::<u64>()
}

pub fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            collect(root, &entry.path(), files);
        } else {
            let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            files.insert(name, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

pub fn map(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

pub fn globs(texts: &[&str]) -> Vec<Glob> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

const TITLE: &str = "org.opencontainers.image.title";
pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

pub fn plain(files: &[(&str, &[u8])]) -> Vec<u8> {
    tar(&files.iter().map(|(name, data)| ((*name).to_owned(), *data)).collect::<Vec<_>>())
}

#[tokio::test]
async fn files_by_title_and_directories() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry)
        .file("app.jar", b"jar")
        .file("conf/app.yaml", b"yaml")
        .file("copy/of.jar", b"jar")
        .directory("data", &[("a.txt", b"a"), ("sub/b.txt", b"b")])
        .layer(TAR, &plain(&[("x", b"x")]), &[(TITLE, "kept.tar")])
        .layer("application/vnd.test.config", b"no name", &[])
        .push();
    let files = bench.files(&recipe([add(&digest)])).await;
    let names = files.keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(
        names,
        ["app.jar", "conf/app.yaml", "copy/of.jar", "data/a.txt", "data/sub/b.txt", "kept.tar"]
    );
    assert_eq!(files["data/sub/b.txt"], "b");
    assert_eq!(bench.registry.requests_for(&Digest::sha256_of(b"no name")), 0);
}

#[tokio::test]
async fn untitled_archives_in_any_compression() {
    let bench = Bench::new();
    let (a, b, c) = (plain(&[("a", b"1")]), plain(&[("b", b"2")]), plain(&[("c", b"3")]));
    let digest = Artifact::new(&bench.registry)
        .layer(TAR, &a, &[])
        .layer("application/vnd.docker.image.rootfs.diff.tar.gzip", &gzip(&b), &[])
        .layer("application/vnd.oci.image.layer.v1.tar+zstd", &zstd::encode_all(&c[..], 1).unwrap(), &[])
        .push();
    assert_eq!(bench.files(&recipe([add(&digest)])).await, map(&[("a", "1"), ("b", "2"), ("c", "3")]));
}

#[tokio::test]
async fn layers_of_an_image_hide_and_replace() {
    let bench = Bench::new();
    let lower = plain(&[
        ("keep", b"k"),
        ("gone", b"g"),
        ("dir/old", b"o"),
        ("dir/sub/older", b"o"),
        ("file", b"f"),
        ("d2/x", b"x"),
    ]);
    let upper = plain(&[
        (".wh.gone", b""),
        ("dir/.wh..wh..opq", b""),
        ("dir/new", b"n"),
        ("file/now-a-directory", b"d"),
        ("d2", b"now a file"),
        (".wh..wh.plnk", b""),
        (".wh.never-was", b""),
    ]);
    let digest = Artifact::new(&bench.registry).layer(TAR, &lower, &[]).layer(TAR, &upper, &[]).push();
    let files = bench.files(&recipe([add(&digest)])).await;
    assert_eq!(
        files,
        map(&[("keep", "k"), ("dir/new", "n"), ("file/now-a-directory", "d"), ("d2", "now a file")])
    );
    for evil in [".wh.", ".wh..", ".wh..."] {
        let bench = Bench::new();
        let evil = plain(&[("a", b"a"), (evil, b"")]);
        let digest = Artifact::new(&bench.registry).layer(TAR, &lower, &[]).layer(TAR, &evil, &[]).push();
        let (kind, words) = bench.error(&recipe([add(&digest)])).await;
        assert!(kind == PullErrorKind::Refused && words.contains("whiteout"), "{words}");
    }
}

#[tokio::test]
async fn selects_the_manifest_of_the_platform() {
    let bench = Bench::new();
    let image = |text: &[u8]| {
        let artifact = Artifact::new(&bench.registry).file("f", text);
        let size = serde_json::to_vec(&artifact.manifest()).unwrap().len();
        (artifact.push(), size)
    };
    let index = |entries: Vec<serde_json::Value>| {
        let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries});
        (bench.registry.put_manifest(&index), serde_json::to_vec(&index).unwrap().len())
    };
    let entry = |(digest, size): &(Digest, usize), kind: &str, arch: Option<&str>| {
        let mut entry = json!({"mediaType": kind, "digest": digest.to_string(), "size": size});
        if let Some(arch) = arch {
            entry["platform"] = json!({"os": "linux", "architecture": arch});
        }
        entry
    };
    let (amd, arm) = (image(b"amd64"), image(b"arm64"));
    let both = index(vec![
        entry(&arm, media::OCI_MANIFEST, Some("arm64")),
        entry(&amd, media::OCI_MANIFEST, Some("amd64")),
    ]);
    let outer = index(vec![entry(&both, media::OCI_INDEX, None)]);
    let for_platform = |digest: &Digest, text: &str| add(digest).for_platform(text.parse().unwrap());
    assert_eq!(bench.files(&recipe([for_platform(&both.0, "linux/arm64")])).await, map(&[("f", "arm64")]));

    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    let fetcher = Arc::new(Fetcher::new(Arc::new(store), bench.registry.clone()));
    let bench2 = Bench { folder, registry: bench.registry.clone(), fetcher };
    let progress: Arc<dyn Progress> = Arc::new(NoProgress);
    let pull = |recipe: PinnedRecipe| {
        let (fetcher, progress) = (bench2.fetcher.clone(), progress.clone());
        async move { fetcher.tree(&recipe, &progress).await.unwrap_err() }
    };
    let error = pull(recipe([for_platform(&both.0, "linux/s390x")])).await;
    assert!(error.to_string().contains("linux/arm64, linux/amd64"), "{error}");
    let third = index(vec![entry(&outer, media::OCI_INDEX, None)]);
    let fourth = index(vec![entry(&third, media::OCI_INDEX, None)]);
    let fifth = index(vec![entry(&fourth, media::OCI_INDEX, None)]);
    assert_eq!(bench.files(&recipe([for_platform(&fourth.0, "linux/amd64")])).await, map(&[("f", "amd64")]));
    // The policies of the webhook check four levels, so the driver follows no more.
    let error = pull(recipe([for_platform(&fifth.0, "linux/amd64")])).await;
    assert!(matches!(error, PullError::Nested { .. }), "{error}");
    let lying = index(vec![entry(&(amd.0.clone(), amd.1 + 1), media::OCI_MANIFEST, Some("amd64"))]);
    let error = pull(recipe([for_platform(&lying.0, "linux/amd64")])).await;
    assert!(matches!(error, PullError::ManifestSize { .. }), "{error}");
}

#[tokio::test]
async fn several_artifacts_make_one_tree() {
    let bench = Bench::new();
    let first = Artifact::new(&bench.registry).file("a", b"a").directory("shared", &[("one", b"1")]).push();
    let second = Artifact::new(&bench.registry).file("b", b"b").directory("shared", &[("two", b"2")]).push();
    let steps = [add(&first), add(&second), add(&second).at("deep/er".parse().unwrap())];
    assert_eq!(
        bench.files(&recipe(steps)).await,
        map(&[
            ("a", "a"),
            ("b", "b"),
            ("shared/one", "1"),
            ("shared/two", "2"),
            ("deep/er/b", "b"),
            ("deep/er/shared/two", "2"),
        ])
    );
}

#[tokio::test]
async fn a_conflict_names_both_steps() {
    let bench = Bench::new();
    let tool = |digest: &Digest, name: &str| {
        oras_csi_core::recipe::Layer::new(format!("ghcr.io/acme/{name}@{digest}").parse().unwrap())
    };
    let first = Artifact::new(&bench.registry).file("x", b"x").push();
    let second = Artifact::new(&bench.registry).directory("d", &[("same", b"1")]).push();
    let third = Artifact::new(&bench.registry).file("d/same", b"2").push();
    let file = Artifact::new(&bench.registry).file("d", b"a file").push();
    for (steps, path) in [
        ([tool(&first, "first"), tool(&second, "second"), tool(&third, "third")], "\"d/same\""),
        ([tool(&first, "first"), tool(&second, "second"), tool(&file, "third")], "\"d\""),
        ([tool(&first, "first"), tool(&file, "second"), tool(&third, "third")], "\"d\""),
    ] {
        let error = bench.pull(&recipe(steps)).await.unwrap_err();
        let words = error.to_string();
        assert!(
            words.contains(path) && words.contains("acme/second@") && words.contains("acme/third@"),
            "{words}"
        );
        assert_eq!(error.class(), ErrorClass::BadInput);
    }
    // Excluded files cannot collide.
    let excluded = tool(&third, "third").excluding(globs(&["d/same"])).including(globs(&["**"]));
    let (_, words) = bench.error(&recipe([tool(&second, "second"), excluded])).await;
    assert!(words.contains("match no file"), "{words}");
}

#[rstest]
#[case(&[], &[], &["a.txt", "d/one.bin", "d/sub/two.txt", "e/three.txt"])]
#[case(&["*.txt"], &[], &["a.txt"])]
#[case(&["**/*.txt"], &[], &["a.txt", "d/sub/two.txt", "e/three.txt"])]
#[case(&["d"], &[], &["d/one.bin", "d/sub/two.txt"])]
#[case(&["d/sub", "e/**"], &[], &["d/sub/two.txt", "e/three.txt"])]
#[case(&[], &["d/**"], &["a.txt", "e/three.txt"])]
#[case(&[], &["d"], &["a.txt", "e/three.txt"])]
#[case(&["**"], &["**/*.txt"], &["d/one.bin"])]
#[tokio::test]
async fn filters_select_files(#[case] include: &[&str], #[case] exclude: &[&str], #[case] left: &[&str]) {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry)
        .file("a.txt", b"a")
        .directory("d", &[("one.bin", b"1"), ("sub/two.txt", b"2")])
        .layer(TAR, &plain(&[("e/three.txt", b"3")]), &[])
        .push();
    let step = add(&digest).including(globs(include)).excluding(globs(exclude));
    let files = bench.files(&recipe([step])).await;
    assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), left);
}

#[tokio::test]
async fn excluded_files_are_not_downloaded() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("big.bin", b"big").file("small.txt", b"small").push();
    bench.files(&recipe([add(&digest).including(globs(&["*.txt"]))])).await;
    assert_eq!(bench.registry.requests_for(&Digest::sha256_of(b"big")), 0);
}

#[tokio::test]
async fn media_types_select_layers() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry)
        .layer("application/vnd.jar", b"jar", &[(TITLE, "a.jar")])
        .layer("application/vnd.doc", b"doc", &[(TITLE, "a.doc")])
        .push();
    let chosen = |media_type: &str| add(&digest).with_media_types(vec![media_type.parse().unwrap()]);
    let (kind, words) = bench.error(&recipe([chosen("application/vnd.none")])).await;
    assert!(kind == PullErrorKind::Refused && words.contains("application/vnd.none"), "{words}");
    assert!(words.contains("1 of type application/vnd.doc, 1 of type application/vnd.jar"), "{words}");
    assert_eq!(bench.files(&recipe([chosen("application/vnd.jar")])).await, map(&[("a.jar", "jar")]));
}

#[tokio::test]
async fn names_one_layer_without_a_title() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry)
        .layer("application/vnd.acme.weights", b"weights", &[])
        .layer("application/vnd.acme.notes", b"notes", &[])
        .layer("application/vnd.oci.empty.v1+json", b"{}", &[])
        .layer("text/plain", b"text", &[(TITLE, "README")])
        .push();
    let named = |name: &str| add(&digest).with_name(name.parse().unwrap());
    let of_type = |layer: Layer<PinnedReference>, media_type: &str| {
        layer.with_media_types(vec![media_type.parse().unwrap()])
    };
    let one = of_type(named("model/weights.bin"), "application/vnd.acme.weights");
    assert_eq!(bench.files(&recipe([one])).await, map(&[("model/weights.bin", "weights")]));
    // The same artifact under another name is another tree.
    let other = of_type(named("other"), "application/vnd.acme.weights").at("p".parse().unwrap());
    assert_eq!(bench.files(&recipe([other])).await, map(&[("p/other", "weights")]));
    for (layer, words) in [
        (named("x"), "2 of the selected layers are like that"),
        (of_type(named("x"), "text/plain"), "0 of the selected layers are like that"),
    ] {
        let said = bench.fetcher_error(&recipe([layer])).await;
        assert!(said.class() == ErrorClass::Refused && said.to_string().contains(words), "{said}");
    }
}

/// Kaniko and others push a layer without changes as no bytes at all.
#[tokio::test]
async fn an_image_layer_of_zero_bytes_is_empty() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry)
        .layer(TAR, &plain(&[("f", b"x")]), &[])
        .layer("application/vnd.docker.image.rootfs.diff.tar.gzip", b"", &[])
        .push();
    assert_eq!(bench.files(&recipe([add(&digest)])).await, map(&[("f", "x")]));
}

#[tokio::test]
async fn a_layer_of_an_image_that_cannot_be_read_is_not_left_out() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry)
        .layer(TAR, &plain(&[("f", b"x")]), &[])
        .layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", b"?", &[])
        .push();
    let (kind, said) = bench.error(&recipe([add(&digest)])).await;
    assert!(kind == PullErrorKind::Refused && said.contains("layer 2 is a part of an image"), "{said}");
}

#[tokio::test]
async fn reports_that_there_is_nothing_to_mount() {
    let bench = Bench::new();
    let none = Artifact::new(&bench.registry).push();
    let unnamed = Artifact::new(&bench.registry).layer("application/vnd.x", b"x", &[]).push();
    let empty = Artifact::new(&bench.registry).layer(TAR, &plain(&[]), &[]).push();
    for (digest, words) in [
        (none, "no layers at all"),
        (unnamed, "1 of type application/vnd.x"),
        (empty, "its archives are empty"),
    ] {
        let (kind, said) = bench.error(&recipe([add(&digest)])).await;
        assert!(kind == PullErrorKind::Refused && said.contains(words), "{said}");
    }
}

#[rstest]
#[case("../evil", "leave")]
#[case("/etc/evil", "absolute")]
#[case("a\nb", "control")]
#[case("a\u{0}b", "control")]
#[case(".", "does not name a file")]
#[case("./", "does not name a file")]
#[tokio::test]
async fn rejects_titles_that_leave_the_tree(#[case] title: &str, #[case] words: &str) {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file(title, b"x").push();
    let error = bench.pull(&recipe([add(&digest)])).await.unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(error.class(), ErrorClass::Refused);
}

#[tokio::test]
async fn accepts_unusual_titles() {
    let bench = Bench::new();
    let long = "x".repeat(255);
    let titles = ["a:b", "./c//d/", "\u{fc}\u{1f600}", "A", "a", long.as_str(), "..x"];
    let artifact =
        titles.iter().fold(Artifact::new(&bench.registry), |artifact, title| artifact.file(title, b"x"));
    assert_eq!(bench.files(&recipe([add(&artifact.push())])).await.len(), titles.len());
    for title in ["x".repeat(256), "x/".repeat(2_500) + "x"] {
        let bench = Bench::new();
        let digest = Artifact::new(&bench.registry).file(&title, b"x").push();
        assert_eq!(bench.error(&recipe([add(&digest)])).await.0, PullErrorKind::Refused);
    }
}

#[tokio::test]
async fn rejects_titles_that_collide() {
    let bench = Bench::new();
    for (artifact, words) in [
        (Artifact::new(&bench.registry).file("a", b"1").file("./a", b"2"), "have the title"),
        (Artifact::new(&bench.registry).file("a", b"1").file("a/b", b"2"), "is a directory in another"),
        (Artifact::new(&bench.registry).file("d/x", b"1").directory("d", &[("x", b"2")]), "exists twice"),
    ] {
        let (kind, said) = bench.error(&recipe([add(&artifact.push())])).await;
        assert!(kind == PullErrorKind::Refused && said.contains(words), "{said}");
    }
    let same = Artifact::new(&bench.registry).file("a", b"1").file("a", b"1").push();
    assert_eq!(bench.files(&recipe([add(&same)])).await, map(&[("a", "1")]));
}

/// `oras push d d/f` packs the file twice. An ephemeral store moves layers instead of linking them, and is used once.
#[rstest]
#[tokio::test]
async fn a_file_that_a_directory_has_as_well_must_be_equal(#[values(true, false)] is_persistent: bool) {
    const WHOLE: [(&str, &[u8]); 3] = [("f", b"1"), ("g", b"2"), ("s/h", b"3")];
    let open = || {
        let mut bench = Bench::new();
        if !is_persistent {
            let store = Store::open(&bench.folder.path().join("ephemeral"), Limits::default()).unwrap();
            let store = Arc::new(store.ephemeral());
            bench.fetcher = Arc::new(Fetcher::new(store, bench.registry.clone()));
        }
        bench
    };
    let equal: [fn(Artifact<'_>) -> Artifact<'_>; 4] = [
        |artifact| artifact.directory("d", &WHOLE).file("d/f", b"1"),
        |artifact| artifact.file("d/f", b"1").directory("d", &WHOLE),
        |artifact| {
            let artifact = artifact.directory("d", &WHOLE);
            artifact.directory("d/s", &[("h", b"3")]).file("d/s/h", b"3")
        },
        |artifact| artifact.directory("d/s", &[("h", b"3")]).directory("d", &WHOLE),
    ];
    for add_layers in equal {
        let bench = open();
        let artifact = add_layers(Artifact::new(&bench.registry)).push();
        let tree = bench.pull(&recipe([add(&artifact)])).await.unwrap();
        let store = if is_persistent { "store" } else { "ephemeral" };
        let files = bench.folder.path().join(store).join("trees").join(tree.key().as_str()).join("files");
        for (name, data) in WHOLE {
            assert_eq!(fs::read(files.join("d").join(name)).unwrap(), data);
        }
    }
    let different: [fn(Artifact<'_>) -> Artifact<'_>; 5] = [
        |artifact| artifact.directory("d", &[("f", b"1")]).file("d/f", b"x"),
        |artifact| artifact.directory("d", &[("f", b"1")]).file("d/f", b"11"),
        |artifact| artifact.file("d/f", b"x").directory("d", &[("f", b"1")]),
        |artifact| artifact.file("d/s", b"x").directory("d", &[("s/h", b"1")]),
        |artifact| {
            let mut large = vec![7; 600_000];
            let artifact = artifact.directory("d", &[("f", &large)]);
            large[599_999] = 8;
            artifact.file("d/f", &large)
        },
    ];
    for add_layers in different {
        let bench = open();
        let artifact = add_layers(Artifact::new(&bench.registry)).push();
        let (kind, said) = bench.error(&recipe([add(&artifact)])).await;
        assert!(kind == PullErrorKind::Refused && said.contains("exists twice"), "{said}");
    }
}

#[tokio::test]
async fn equal_files_of_two_artifacts_are_a_conflict() {
    let bench = Bench::new();
    let (one, two) = (
        Artifact::new(&bench.registry).file("f", b"1").push(),
        Artifact::new(&bench.registry).file("f", b"1").file("g", b"").push(),
    );
    let (kind, said) = bench.error(&recipe([add(&one), add(&two)])).await;
    assert_eq!(kind, PullErrorKind::Refused, "{said}");
}

#[tokio::test]
async fn the_same_content_from_two_registries_is_one_tree() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("a", b"a").push();
    let from = |host: &str| {
        recipe([oras_csi_core::recipe::Layer::new(format!("{host}/x@{digest}").parse().unwrap())])
    };
    let first = bench.pull(&from("ghcr.io")).await.unwrap();
    let asked = bench.registry.requests();
    let second = bench.pull(&from("quay.io")).await.unwrap();
    assert_eq!(first, second);
    assert!(bench.registry.requests() > asked, "the other registry has to have it as well");
    assert_eq!(bench.registry.requests_for(&Digest::sha256_of(b"a")), 2);
    let asked = bench.registry.requests();
    for host in ["ghcr.io", "quay.io"] {
        bench.pull(&from(host)).await.unwrap();
    }
    assert_eq!(bench.registry.requests(), asked, "a tree that both gave asks no registry");
}

#[tokio::test]
async fn a_blob_is_stored_once_for_all_trees() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let one = Artifact::new(&bench.registry).file("a", b"the same").push();
    let two = Artifact::new(&bench.registry).file("b", b"the same").file("c", b"other").push();
    let first = bench.pull(&recipe([add(&one)])).await.unwrap();
    let second = bench.pull(&recipe([add(&two)])).await.unwrap();
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(bench.root(&first).join("a")), inode(bench.root(&second).join("b")));
    assert_eq!(bench.registry.requests_for(&Digest::sha256_of(b"the same")), 1);
}

#[tokio::test]
async fn cached_content_gives_no_pull_permission() {
    let bench = Bench::new();
    let (secret, blob) = (b"weights of a", Digest::sha256_of(b"weights of a"));
    let owned = Artifact::new(&bench.registry).file("model", secret).push();
    let of_owner = recipe([add_from("a.example", &owned)]);
    bench.pull(&of_owner).await.unwrap();

    // A user who knows the digests can push another manifest and index with them.
    let named = Artifact::new(&bench.registry).file("mine", secret).push();
    let size = bench.registry.manifest_size(&owned);
    let index = bench.registry.put_manifest(&serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": owned, "size": size}]}));
    for lacked in [&blob, &owned] {
        bench.registry.missing.lock().unwrap().insert(("b.example".to_owned(), lacked.clone()));
    }
    let stolen = [&named, &index, &owned].map(|digest| recipe([add_from("b.example", digest)]));
    for wanted in &stolen {
        let error = bench.fetcher_error(wanted).await;
        assert_eq!(error.kind(), PullErrorKind::NotFound, "{error}");
    }
    // The result is the same for another attempt and for another process of the same node.
    let again = bench.reopened();
    for wanted in &stolen {
        assert_eq!(again.fetcher_error(wanted).await.kind(), PullErrorKind::NotFound);
    }
    let asked = again.registry.requests_for(&blob);
    again.pull(&of_owner).await.unwrap();
    assert_eq!(again.registry.requests_for(&blob), asked, "who gave it need not give it again");

    // A registry that has the content serves it once, and it is stored once.
    again.registry.missing.lock().unwrap().clear();
    for wanted in &stolen {
        let tree = again.pull(wanted).await.unwrap();
        let file = if *wanted == stolen[0] { "mine" } else { "model" };
        assert_eq!(fs::read(again.root(&tree).join(file)).unwrap(), secret);
    }
    assert_eq!(again.registry.requests_for(&blob), asked + 1);
    assert_eq!(again.names("blobs/sha256").iter().filter(|name| *name == blob.hex()).count(), 1);
}
