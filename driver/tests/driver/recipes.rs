//! The effect of overlay and remove steps on a tree.

use std::fs;

use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::PinnedReference;
use oras_csi_store::ErrorClass;
use oras_csi_store::Limits;
use oras_csi_store::pull::{PullError, PullErrorKind};
use rstest::rstest;
use tonic::Code;

use crate::calls::{Running, request_for};
use crate::namespace::entered;
use crate::registry::{Artifact, add, gzip};
use crate::trees::{Bench, TAR, globs, map, plain};

fn steps(steps: Vec<Step<PinnedReference>>) -> PinnedRecipe {
    PinnedRecipe::new(steps).unwrap()
}

fn remove(glob: &str) -> Step<PinnedReference> {
    Step::Remove(glob.parse().unwrap())
}

fn named(name: &str, digest: &Digest) -> Layer<PinnedReference> {
    Layer::new(format!("ghcr.io/acme/{name}@{digest}").parse().unwrap())
}

fn image(bench: &Bench, layers: &[&[(&str, &[u8])]]) -> Digest {
    let artifact = Artifact::new(&bench.registry);
    layers.iter().fold(artifact, |artifact, files| artifact.layer(TAR, &plain(files), &[])).push()
}

fn blob(files: &[(&str, &[u8])]) -> Digest {
    Digest::sha256_of(&plain(files))
}

#[tokio::test]
async fn whiteouts_of_an_overlay_remove_files_of_earlier_steps() {
    let bench = Bench::new();
    let base = Artifact::new(&bench.registry)
        .file("keep", b"k")
        .file("gone", b"g")
        .directory("dir", &[("old", b"o"), ("sub/older", b"o")])
        .file("replaced", b"old")
        .push();
    let patch = image(
        &bench,
        &[
            &[(".wh.gone", b""), ("dir/.wh..wh..opq", b""), ("dir/new", b"n"), ("replaced", b"new")],
            &[(".wh.never-was", b""), ("last", b"l")],
        ],
    );
    let recipe = steps(vec![
        Step::Add(add(&base)),
        Step::Add(add(&base).at("other".parse().unwrap())),
        Step::Overlay(add(&patch)),
    ]);
    let mut expected = map(&[("keep", "k"), ("dir/new", "n"), ("replaced", "new"), ("last", "l")]);
    for (name, text) in
        [("keep", "k"), ("gone", "g"), ("dir/old", "o"), ("dir/sub/older", "o"), ("replaced", "old")]
    {
        expected.insert(format!("other/{name}"), text.to_owned());
    }
    assert_eq!(bench.files(&recipe).await, expected);

    // Below a path it does not affect files outside that path.
    let recipe = steps(vec![
        Step::Add(add(&base)),
        Step::Add(add(&base).at("other".parse().unwrap())),
        Step::Overlay(add(&patch).at("other".parse().unwrap())),
    ]);
    let files = bench.files(&recipe).await;
    assert_eq!(
        (files["gone"].as_str(), files["dir/old"].as_str(), files["replaced"].as_str()),
        ("g", "o", "old")
    );
    assert!(!files.contains_key("other/gone") && !files.contains_key("other/dir/old"));
    assert_eq!(files["other/replaced"], "new");
}

#[tokio::test]
async fn whiteouts_of_an_added_artifact_affect_only_that_artifact() {
    let bench = Bench::new();
    let base = Artifact::new(&bench.registry).file("a", b"a").file("b", b"b").push();
    let added = image(&bench, &[&[("c", b"c"), ("d", b"d")], &[(".wh.a", b""), (".wh.c", b"")]]);
    let recipe = steps(vec![Step::Add(add(&base)), Step::Add(add(&added))]);
    assert_eq!(bench.files(&recipe).await, map(&[("a", "a"), ("b", "b"), ("d", "d")]));
    // In a directory of ORAS it is an ordinary file name, except in an overlay.
    let packed = Artifact::new(&bench.registry).directory("d", &[(".wh.x", b""), ("y", b"y")]).push();
    let below = Artifact::new(&bench.registry).file("d/x", b"x").file("d/z", b"z").push();
    let recipe = steps(vec![Step::Add(add(&below)), Step::Add(add(&packed))]);
    assert!(bench.files(&recipe).await.contains_key("d/.wh.x"));
    let recipe = steps(vec![Step::Add(add(&below)), Step::Overlay(add(&packed))]);
    assert_eq!(bench.files(&recipe).await, map(&[("d/y", "y"), ("d/z", "z")]));
    let titled = Artifact::new(&bench.registry).file("d/.wh.z", b"no bytes are needed").push();
    let recipe = steps(vec![Step::Add(add(&below)), Step::Overlay(add(&titled))]);
    assert_eq!(bench.files(&recipe).await, map(&[("d/x", "x")]));
    assert_eq!(bench.registry.requests_for(&Digest::sha256_of(b"no bytes are needed")), 0);
}

#[tokio::test]
async fn files_and_directories_replace_each_other_in_an_overlay() {
    let bench = Bench::new();
    let base =
        Artifact::new(&bench.registry).file("file", b"f").directory("dir", &[("in/side", b"i")]).push();
    let over = Artifact::new(&bench.registry).file("file/now", b"d").file("dir", b"now a file").push();
    let recipe = steps(vec![Step::Add(add(&base)), Step::Overlay(add(&over))]);
    assert_eq!(bench.files(&recipe).await, map(&[("file/now", "d"), ("dir", "now a file")]));
    // The same holds if the path of the step itself is a file.
    let at = add(&over).at("file".parse().unwrap());
    let recipe = steps(vec![Step::Add(add(&base)), Step::Overlay(at)]);
    assert_eq!(
        bench.files(&recipe).await,
        map(&[("file/file/now", "d"), ("file/dir", "now a file"), ("dir/in/side", "i")])
    );
    // If one overlay has the same file twice, the later one wins.
    let twice = Artifact::new(&bench.registry).file("d/x", b"1").directory("d", &[("x", b"2")]).push();
    let recipe = steps(vec![Step::Add(add(&base)), Step::Overlay(add(&twice))]);
    assert_eq!(bench.files(&recipe).await["d/x"], "2");
}

#[rstest]
// The base has a, b, d/x.txt and d/y.bin. `.wh.a` and the opaque `d` hide some of them; the overlay adds e.
#[case(&[], &[], &["b", "d/new.txt", "e"])]
#[case(&["e"], &[], &["a", "b", "d/x.txt", "d/y.bin", "e"])]
#[case(&["a"], &[], &["b", "d/x.txt", "d/y.bin"])]
#[case(&["d"], &[], &["a", "b", "d/new.txt"])]
#[case(&["**/*.txt"], &[], &["a", "b", "d/new.txt", "d/y.bin"])]
#[case(&[], &["d"], &["b", "d/x.txt", "d/y.bin", "e"])]
#[case(&[], &["d/y.bin"], &["b", "d/new.txt", "d/y.bin", "e"])]
#[case(&[], &["a"], &["a", "b", "d/new.txt", "e"])]
#[tokio::test]
async fn filters_apply_to_files_and_whiteouts_of_an_overlay(
    #[case] include: &[&str],
    #[case] exclude: &[&str],
    #[case] left: &[&str],
) {
    let bench = Bench::new();
    let base = image(&bench, &[&[("a", b"a"), ("b", b"b"), ("d/x.txt", b"x"), ("d/y.bin", b"y")]]);
    let over = image(&bench, &[&[(".wh.a", b""), ("d/.wh..wh..opq", b""), ("d/new.txt", b"n"), ("e", b"e")]]);
    let overlay = add(&over).including(globs(include)).excluding(globs(exclude));
    let files = bench.files(&steps(vec![Step::Add(add(&base)), Step::Overlay(overlay)])).await;
    assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), left);
}

#[tokio::test]
async fn remove_deletes_files_and_whole_directories() {
    let bench = Bench::new();
    let base = Artifact::new(&bench.registry)
        .file("a.txt", b"a")
        .directory("d", &[("b.txt", b"b"), ("sub/c.txt", b"c"), ("keep.bin", b"k")])
        .push();
    let left = async |globs: &[&str]| {
        let removes = globs.iter().map(|glob| remove(glob));
        let recipe = steps([Step::Add(add(&base))].into_iter().chain(removes).collect());
        bench.files(&recipe).await.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(left(&["d"]).await, ["a.txt"]);
    assert_eq!(left(&["d/sub"]).await, ["a.txt", "d/b.txt", "d/keep.bin"]);
    assert_eq!(left(&["**/*.txt"]).await, ["d/keep.bin"]);
    assert_eq!(left(&["*.txt", "d/*.txt"]).await, ["d/keep.bin", "d/sub/c.txt"]);
    // Removed files can be added again.
    let again = Artifact::new(&bench.registry).file("a.txt", b"another").push();
    let recipe = steps(vec![Step::Add(add(&base)), remove("a.txt"), Step::Add(add(&again))]);
    assert_eq!(bench.files(&recipe).await["a.txt"], "another");
}

#[tokio::test]
async fn rejects_steps_without_effect() {
    let bench = Bench::new();
    let base = Artifact::new(&bench.registry).file("a.txt", b"a").push();
    let under = || add(&base).at("model".parse().unwrap());
    let beside = || Step::Add(add(&base));
    let only_whiteouts = image(&bench, &[&[(".wh.a.txt", b"")]]);
    for (recipe, words) in [
        (vec![beside(), remove("b.txt")], &["\"remove: b.txt\"", "matches nothing"][..]),
        (vec![beside(), remove("**")], &["nothing is left at \".\"", "java-app@"]),
        (vec![beside(), Step::Add(under()), remove("model")], &["nothing is left at \"model\"", "java-app@"]),
        (vec![beside(), Step::Add(under()), remove("model/**")], &["nothing is left at \"model\""]),
        (vec![beside(), Step::Overlay(add(&only_whiteouts))], &["nothing is left at \".\""]),
        (
            vec![beside(), Step::Overlay(add(&base).including(globs(&["b"])))],
            &["match no file of", "include b"],
        ),
        (
            vec![beside(), Step::Add(under().excluding(globs(&["*.txt"])))],
            &["match no file of", "exclude *.txt"],
        ),
    ] {
        let error = bench.pull(&steps(recipe)).await.unwrap_err();
        let said = error.to_string();
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
        assert_eq!((error.kind(), error.class()), (PullErrorKind::Refused, ErrorClass::BadInput));
    }
    // It is enough if another step adds a file there.
    let recipe = steps(vec![Step::Add(under()), remove("model/**"), Step::Add(under())]);
    assert_eq!(bench.files(&recipe).await, map(&[("model/a.txt", "a")]));
}

#[tokio::test]
async fn a_conflict_names_the_last_step_that_wrote_the_file() {
    let bench = Bench::new();
    let one = Artifact::new(&bench.registry).file("x", b"1").push();
    let two = Artifact::new(&bench.registry).file("x", b"2").push();
    let three = Artifact::new(&bench.registry).file("x", b"3").push();
    let recipe = steps(vec![
        Step::Add(named("one", &one)),
        Step::Overlay(named("two", &two)),
        Step::Add(named("three", &three)),
    ]);
    let said = bench.pull(&recipe).await.unwrap_err().to_string();
    assert!(said.contains("\"x\"") && said.contains("acme/two@") && said.contains("acme/three@"), "{said}");
    // A step that excludes the file did not write it.
    let more = Artifact::new(&bench.registry).file("x", b"2").file("y", b"2").push();
    let more = named("more", &more).excluding(globs(&["x"]));
    let recipe =
        steps(vec![Step::Add(named("one", &one)), Step::Add(more), Step::Add(named("three", &three))]);
    let said = bench.pull(&recipe).await.unwrap_err().to_string();
    assert!(said.contains("acme/one@") && said.contains("acme/three@"), "{said}");
}

const BASE: &[(&str, &[u8])] = &[("etc/base", b"base"), ("etc/fixed", b"vulnerable")];
const MIDDLE: &[(&str, &[u8])] = &[("usr/tool", b"tool")];
const MINOR: &[(&str, &[u8])] = &[("etc/fixed", b"minor"), ("usr/.wh.tool", b""), ("usr/other", b"o")];
const MAJOR: &[(&str, &[u8])] = &[("etc/major", b"major")];

#[tokio::test]
async fn an_overlay_downloads_only_the_layers_above_its_base() {
    let bench = Bench::new();
    let base = image(&bench, &[BASE, MIDDLE]);
    let minor = image(&bench, &[BASE, MIDDLE, MINOR]);
    let major = image(&bench, &[BASE, MIDDLE, MAJOR]);
    let recipe = steps(vec![
        Step::Add(named("base", &base)),
        Step::Overlay(named("minor", &minor)),
        Step::Overlay(named("major", &major)),
    ]);
    let expected = [("etc/base", "base"), ("etc/fixed", "minor"), ("etc/major", "major"), ("usr/other", "o")];
    assert_eq!(bench.files(&recipe).await, map(&expected));
    for files in [BASE, MIDDLE, MINOR, MAJOR] {
        assert_eq!(bench.registry.requests_for(&blob(files)), 1);
    }
    // At another path the base does not count, and the whole image is overlaid.
    let elsewhere = named("minor", &minor).at("elsewhere".parse().unwrap());
    let recipe = steps(vec![Step::Add(named("base", &base)), Step::Overlay(elsewhere)]);
    assert_eq!(bench.files(&recipe).await["elsewhere/etc/base"], "base");
    // The same image adds nothing, which is not an error.
    let recipe =
        steps(vec![Step::Add(named("base", &base)), remove("usr/tool"), Step::Overlay(named("base", &base))]);
    assert_eq!(bench.files(&recipe).await, map(&[("etc/base", "base"), ("etc/fixed", "vulnerable")]));
}

#[tokio::test]
async fn an_overlay_downloads_layers_that_no_earlier_step_has() {
    let bench = Bench::new();
    let base = image(&bench, &[BASE, MIDDLE]);
    let minor = image(&bench, &[BASE, MIDDLE, MINOR]);
    // The base was filtered: the overlay without a filter adds the excluded files.
    let some = named("base", &base).including(globs(&["usr"]));
    let recipe = steps(vec![Step::Add(some.clone()), Step::Overlay(named("minor", &minor))]);
    assert_eq!(bench.files(&recipe).await["etc/base"], "base");
    // With the same filter the layer is already there.
    let patch = named("minor", &minor).including(globs(&["usr"]));
    let recipe = steps(vec![Step::Add(some), Step::Overlay(patch)]);
    assert_eq!(bench.files(&recipe).await, map(&[("usr/other", "o")]));
    // An image that shares only the second layer is overlaid from its first layer on.
    let other = image(&bench, &[MINOR, MIDDLE]);
    let recipe = steps(vec![Step::Add(named("base", &base)), Step::Overlay(named("other", &other))]);
    assert_eq!(bench.files(&recipe).await["usr/tool"], "tool");
}

#[tokio::test]
async fn a_layer_is_unpacked_once_and_its_files_are_links() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let base = image(&bench, &[BASE]);
    let one = bench.pull(&steps(vec![Step::Add(add(&base))])).await.unwrap();
    let two = steps(vec![
        Step::Add(add(&base).at("a".parse().unwrap())),
        Step::Overlay(add(&base).at("b".parse().unwrap())),
    ]);
    let two = bench.pull(&two).await.unwrap();
    let inode = |path: std::path::PathBuf| fs::metadata(path).unwrap().ino();
    let first = inode(bench.root(&one).join("etc/base"));
    assert_eq!(first, inode(bench.root(&two).join("a/etc/base")));
    assert_eq!(first, inode(bench.root(&two).join("b/etc/base")));
    assert_eq!(bench.registry.requests_for(&blob(BASE)), 1);
}

#[tokio::test]
async fn limits_apply_to_the_whole_tree_and_name_themselves() {
    let files = |prefix: &str, count: usize| {
        let names = (0..count).map(|number| format!("{prefix}{number}")).collect::<Vec<_>>();
        crate::registry::tar(&names.into_iter().map(|name| (name, &b"0123456789"[..])).collect::<Vec<_>>())
    };
    let refused = async |limits: Limits, words: &str, build: &dyn Fn(&Bench) -> PinnedRecipe| {
        let bench = Bench::with(limits);
        let recipe = build(&bench);
        for _ in 0..3 {
            // A retry uses what is unpacked already, and does not unpack it again.
            let (kind, said) = bench.error(&recipe).await;
            assert!(kind == PullErrorKind::Refused && said.contains(words), "{words} in {said}");
        }
    };
    let limits = Limits::default();
    let many = |bench: &Bench| {
        let artifact = Artifact::new(&bench.registry);
        let layers = ["a", "b", "c", "d"].map(|prefix| files(prefix, 8));
        let artifact = layers.iter().fold(artifact, |artifact, layer| artifact.layer(TAR, &gzip(layer), &[]));
        steps(vec![Step::Add(add(&artifact.push()))])
    };
    refused(limits.with_entries(20), "more than 20 entries", &many).await;
    // 4 × 9 KiB, with the headers of the archives.
    refused(limits.with_unpacked(20_000), "more than 20000 bytes", &many).await;
    refused(limits.with_layers(3), "the manifest has 4 layers: the limit is 3", &many).await;
    // One layer at two paths.
    let twice = |bench: &Bench| {
        let digest = Artifact::new(&bench.registry).layer(TAR, &files("x", 8), &[]).push();
        let at = |path: &str| Step::Overlay(add(&digest).at(path.parse().unwrap()));
        steps(vec![at("a"), at("b"), at("c")])
    };
    refused(limits.with_entries(20), "the volume would have more than 20 entries", &twice).await;
    // Files without archives.
    let big = |bench: &Bench| {
        let digest = Artifact::new(&bench.registry).file("a", &[1; 900]).file("b", &[2; 900]).push();
        steps(vec![Step::Add(add(&digest))])
    };
    refused(limits.with_unpacked(1_000), "the volume would take more than 1000 bytes of the disk", &big)
        .await;
    let deep = |bench: &Bench| {
        let digest = Artifact::new(&bench.registry).file("a/b/c/d", b"x").push();
        steps(vec![Step::Add(add(&digest).at("p/q/r".parse().unwrap()))])
    };
    refused(limits.with_depth(5), "6 directories deep: the limit is 5", &deep).await;
    refused(limits.with_path(10), "11 bytes: the limit is 10", &deep).await;
}

#[tokio::test]
async fn overlay_and_add_make_different_trees() {
    let bench = Bench::new();
    let base = Artifact::new(&bench.registry).file("a", b"a").push();
    let key = |recipe: Vec<Step<PinnedReference>>| bench.fetcher.key(&steps(recipe));
    let keys = [
        key(vec![Step::Add(named("x", &base))]),
        key(vec![Step::Overlay(named("x", &base))]),
        key(vec![Step::Add(named("x", &base)), remove("a")]),
        key(vec![Step::Add(named("x", &base)), remove("b")]),
    ];
    assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
    assert_eq!(keys[1], key(vec![Step::Overlay(named("y", &base))]), "a repository is no part of it");
    let error = bench.pull(&steps(vec![Step::Add(named("x", &base)), remove("b")])).await.unwrap_err();
    assert!(matches!(error, PullError::RemovesNothing { .. }));
}

#[tokio::test]
async fn a_pod_sees_overlaid_files_and_gets_errors() {
    if !entered("recipes::a_pod_sees_overlaid_files_and_gets_errors") {
        return;
    }
    let driver = Running::start().await;
    let base = Artifact::new(&driver.registry).file("a", b"a").file("b", b"b").push();
    let over = Artifact::new(&driver.registry).layer(TAR, &plain(&[(".wh.a", b""), ("b", b"B")]), &[]).push();
    let target = driver.target("a");
    let recipe = steps(vec![Step::Add(add(&base)), Step::Overlay(add(&over)), Step::Add(named("x", &over))]);
    // The whiteout of an added artifact does not affect other artifacts, and its file already exists.
    let status = driver.publish(request_for("csi-1", &target, recipe)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("two steps of the recipe contain \"b\""), "{status}");
    let recipe = steps(vec![Step::Add(add(&base)), Step::Overlay(add(&over)), remove("c")]);
    let status = driver.publish(request_for("csi-1", &target, recipe)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("\"remove: c\" matches nothing"), "{status}");
    assert!(!target.exists());
    let recipe = steps(vec![Step::Add(add(&base)), Step::Overlay(add(&over))]);
    driver.publish(request_for("csi-1", &target, recipe)).await.unwrap();
    let names: Vec<_> = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["b"]);
    assert_eq!(fs::read(target.join("b")).unwrap(), b"B");
    driver.stop().await.unwrap();
}
