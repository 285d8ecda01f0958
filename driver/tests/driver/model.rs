//! Compares recipes of a few steps with a model of their meaning: a map from paths to files and directories.
//!
//! The model has no descriptors, links and layer trees. It follows the OCI specification: first all whiteouts of a layer,
//! then all its entries.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use oras_csi_core::path::Glob;
use oras_csi_core::recipe::{PinnedRecipe, Step};
use oras_csi_store::Limits;
use oras_csi_store::Store;
use oras_csi_store::pull::{Fetcher, NoProgress, Progress, PullError};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::registry::{Artifact, FakeRegistry, add};
use crate::trees::{TAR, globs};

/// Maps a path to the text of a file, or to `None` for a directory. The root is not in the map.
type Model = BTreeMap<String, Option<String>>;

#[derive(Clone, Copy, Debug)]
enum Entry {
    File,
    Directory,
    Whiteout,
    Opaque,
}

#[derive(Clone, Debug)]
struct Image {
    layers: Vec<Vec<(String, Entry)>>,
    path: &'static str,
    include: Vec<&'static str>,
    exclude: Vec<&'static str>,
}

#[derive(Clone, Debug)]
enum Move {
    Add(Image),
    Overlay(Image),
    Remove(&'static str),
}

/// A layer as it is unpacked, without combinations that one archive cannot contain.
#[derive(Debug, Default)]
struct Layer {
    entries: Model,
    hidden: BTreeSet<String>,
    opaque: BTreeSet<String>,
    archive: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Conflict,
    Nothing,
    RemovesNothing,
    Emptied,
}

fn parents(path: &str) -> Vec<String> {
    path.match_indices('/').map(|(slash, _)| path[..slash].to_owned()).collect()
}

fn is_beneath(path: &str, directory: &str) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

fn join(base: &str, path: &str) -> String {
    match (base, path) {
        ("", path) => path.to_owned(),
        (base, "") => base.to_owned(),
        _ => format!("{base}/{path}"),
    }
}

/// Builds the archive with times of its own, so that no two steps share a layer.
fn layer(entries: &[(String, Entry)], number: u64) -> Layer {
    let mut layer = Layer::default();
    let mut builder = tar::Builder::new(Vec::new());
    for (path, entry) in entries {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let above = match entry {
            Entry::Opaque => parents(&join(path, "x")),
            _ => parents(path),
        };
        let is_file = |path: &String| matches!(layer.entries.get(path), Some(Some(_)));
        if above.iter().any(is_file) || layer.entries.contains_key(path) && !matches!(entry, Entry::Opaque) {
            continue;
        }
        layer.entries.extend(above.into_iter().map(|path| (path, None)));
        let text = format!("{path} of {number}");
        let (archived, kind, data) = match entry {
            Entry::File => {
                layer.entries.insert(path.clone(), Some(text.clone()));
                (path.clone(), tar::EntryType::Regular, text.as_bytes())
            }
            Entry::Directory => {
                layer.entries.insert(path.clone(), None);
                (path.clone(), tar::EntryType::Directory, &b""[..])
            }
            Entry::Whiteout => {
                layer.hidden.insert(path.clone());
                (join(directory, &format!(".wh.{name}")), tar::EntryType::Regular, &b""[..])
            }
            Entry::Opaque => {
                layer.opaque.insert(path.clone());
                (join(path, ".wh..wh..opq"), tar::EntryType::Regular, &b""[..])
            }
        };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(1_000_000_000 + number);
        builder.append_data(&mut header, archived, data).unwrap();
    }
    layer.archive = builder.into_inner().unwrap();
    layer
}

struct Filter {
    include: Vec<Glob>,
    exclude: Vec<Glob>,
}

impl Filter {
    fn named(globs: &[Glob], path: &str) -> bool {
        !path.is_empty()
            && parents(path)
                .iter()
                .map(String::as_str)
                .chain([path])
                .any(|path| globs.iter().any(|glob| glob.matches(path)))
    }

    fn prunes(&self, path: &str) -> bool {
        Self::named(&self.exclude, path)
    }

    fn keeps(&self, path: &str) -> bool {
        !self.prunes(path) && (self.include.is_empty() || Self::named(&self.include, path))
    }
}

/// Removes the files that the filter includes at and below the paths `hidden` of the tree.
///
/// All paths at once, because a directory goes when it becomes empty, whichever of its whiteouts emptied it.
fn hide(tree: &mut Model, base: &str, hidden: &BTreeSet<String>, filter: &Filter) -> bool {
    let within =
        |known: &str| if base.is_empty() { known.to_owned() } else { known[base.len() + 1..].to_owned() };
    let is_hidden = |known: &str| hidden.iter().any(|top| known == top || is_beneath(known, top));
    let meant: Vec<String> = tree.keys().filter(|known| is_hidden(known)).cloned().collect();
    let mut gone = Vec::new();
    // The deepest first, so that a directory is checked after everything in it.
    for known in meant.iter().rev() {
        let kept = filter.keeps(&within(known));
        let goes = if tree[known].is_some() {
            kept
        } else {
            let lost = gone.iter().any(|gone: &String| is_beneath(gone, known));
            let empty = !tree.keys().any(|other| is_beneath(other, known));
            (kept || lost) && empty
        };
        if goes {
            tree.remove(known);
            gone.push(known.clone());
        }
    }
    !gone.is_empty()
}

/// Makes a path and its parents directories, and replaces files that are in the way.
fn make_directories(tree: &mut Model, path: &str) {
    if path.is_empty() {
        return;
    }
    for directory in parents(path).into_iter().chain([path.to_owned()]) {
        tree.insert(directory, None);
    }
}

/// Overlays one layer over the tree. Returns whether it had any effect.
fn overlay(tree: &mut Model, layer: &Layer, base: &str, filter: &Filter) -> bool {
    let mut changed = layer.hidden.iter().any(|path| filter.keeps(path))
        || layer.opaque.iter().any(|directory| !filter.prunes(directory));
    let mut hidden: BTreeSet<String> = layer.hidden.iter().map(|path| join(base, path)).collect();
    for directory in &layer.opaque {
        let above = join(base, directory);
        let below = |known: &&String| {
            is_beneath(known, &above) && !known[above.len() + usize::from(!above.is_empty())..].contains('/')
        };
        hidden.extend(tree.keys().filter(below).cloned());
    }
    changed |= hide(tree, base, &hidden, filter);
    if filter.keeps("") {
        make_directories(tree, base);
    }
    for (path, text) in &layer.entries {
        if !filter.keeps(path) {
            continue;
        }
        changed = true;
        let place = join(base, path);
        match text {
            None => make_directories(tree, &place),
            Some(text) => {
                make_directories(tree, place.rsplit_once('/').map_or("", |(above, _)| above));
                tree.retain(|known, _| !is_beneath(known, &place));
                tree.insert(place, Some(text.clone()));
            }
        }
    }
    changed
}

fn merge(tree: &mut Model, apart: &Model, base: &str) -> Result<(), Refusal> {
    let above = if base.is_empty() { Vec::new() } else { parents(&join(base, "x")) };
    let placed = apart.iter().map(|(path, text)| (join(base, path), text.clone()));
    for (place, text) in above.into_iter().map(|path| (path, None)).chain(placed) {
        match tree.get(&place) {
            None => drop(tree.insert(place, text)),
            Some(None) if text.is_none() => {}
            Some(_) => return Err(Refusal::Conflict),
        }
    }
    Ok(())
}

fn filter_of(image: &Image) -> Filter {
    Filter { include: globs(&image.include), exclude: globs(&image.exclude) }
}

fn expect(moves: &[Move], layers: &[Vec<Layer>]) -> Result<Model, Refusal> {
    let mut tree = Model::new();
    for (position, step) in moves.iter().enumerate() {
        match step {
            Move::Add(image) => {
                let mut apart = Model::new();
                for layer in &layers[position] {
                    overlay(&mut apart, layer, "", &filter_of(image));
                }
                if apart.is_empty() {
                    return Err(Refusal::Nothing);
                }
                merge(&mut tree, &apart, image.path)?;
            }
            Move::Overlay(image) => {
                let mut changed = false;
                for layer in &layers[position] {
                    changed |= overlay(&mut tree, layer, image.path, &filter_of(image));
                }
                if !changed {
                    return Err(Refusal::Nothing);
                }
            }
            Move::Remove(glob) => {
                let glob: Glob = glob.parse().unwrap();
                let before = tree.len();
                let named: Vec<String> = tree.keys().filter(|path| glob.matches(path)).cloned().collect();
                tree.retain(|path, _| !named.iter().any(|named| path == named || is_beneath(path, named)));
                if tree.len() == before {
                    return Err(Refusal::RemovesNothing);
                }
            }
        }
    }
    for step in moves {
        if let Move::Add(image) | Move::Overlay(image) = step
            && !tree.keys().any(|path| is_beneath(path, image.path))
        {
            return Err(Refusal::Emptied);
        }
    }
    Ok(tree)
}

fn read(root: &Path, folder: &Path, tree: &mut Model) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            tree.insert(name, None);
            read(root, &path, tree);
        } else {
            tree.insert(name, Some(fs::read_to_string(&path).unwrap()));
        }
    }
}

fn pull(moves: &[Move], layers: &[Vec<Layer>]) -> Result<Model, Refusal> {
    let folder = tempfile::tempdir().unwrap();
    let registry = FakeRegistry::new();
    let steps = moves.iter().zip(layers).map(|(step, layers)| {
        let artifact = |image: &Image| {
            let artifact = Artifact::new(&registry);
            let artifact =
                layers.iter().fold(artifact, |artifact, layer| artifact.layer(TAR, &layer.archive, &[]));
            add(&artifact.push())
                .at(image.path.parse().unwrap())
                .including(globs(&image.include))
                .excluding(globs(&image.exclude))
        };
        match step {
            Move::Add(image) => Step::Add(artifact(image)),
            Move::Overlay(image) => Step::Overlay(artifact(image)),
            Move::Remove(glob) => Step::Remove(glob.parse().unwrap()),
        }
    });
    let recipe = PinnedRecipe::new(steps.collect()).unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap().ephemeral();
    let fetcher = Arc::new(Fetcher::new(Arc::new(store), registry.clone()));
    let progress: Arc<dyn Progress> = Arc::new(NoProgress);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match runtime.block_on(fetcher.tree(&recipe, &progress)) {
        Ok(made) => {
            let root = folder.path().join("trees").join(made.key().as_str()).join("files");
            let mut tree = Model::new();
            read(&root, &root, &mut tree);
            let bytes = tree.values().flatten().map(|text| text.len() as u64).sum::<u64>();
            assert_eq!((made.totals().bytes, made.totals().inodes), (bytes, tree.len() as u64 + 1));
            Ok(tree)
        }
        Err(PullError::Conflict { .. }) => Err(Refusal::Conflict),
        Err(PullError::Filtered { .. } | PullError::Empty { .. }) => Err(Refusal::Nothing),
        Err(PullError::RemovesNothing { .. }) => Err(Refusal::RemovesNothing),
        Err(PullError::Emptied { .. }) => Err(Refusal::Emptied),
        Err(other) => panic!("{other}"),
    }
}

const GLOBS: [&str; 9] = ["a", "b", "a/**", "**/b", "a/b", "*", "b/*", "**/c", "a/b/c"];

fn images() -> impl Strategy<Value = Image> {
    let path = vec(select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"));
    let kinds = vec![Entry::File, Entry::File, Entry::File, Entry::Directory, Entry::Whiteout, Entry::Opaque];
    let layers = vec(vec((path, select(kinds)), 1..7), 1..3);
    let some = || prop_oneof![3 => Just(Vec::new()), 1 => vec(select(GLOBS.to_vec()), 1..3)];
    let at = select(vec!["", "", "a", "a/b"]);
    (layers, at, some(), some()).prop_map(|(layers, path, include, exclude)| Image {
        layers,
        path,
        include,
        exclude,
    })
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let step = prop_oneof![
        2 => images().prop_map(Move::Add),
        5 => images().prop_map(Move::Overlay),
        2 => select(GLOBS.to_vec()).prop_map(Move::Remove),
    ];
    (images(), vec(step, 1..4)).prop_map(|(first, rest)| [vec![Move::Add(first)], rest].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn a_recipe_gives_the_same_tree_as_the_model(moves in moves()) {
        let mut number = 0;
        let layers: Vec<Vec<Layer>> = moves.iter().map(|step| match step {
            Move::Add(image) | Move::Overlay(image) => image.layers.iter().map(|entries| {
                number += 1;
                layer(entries, number)
            }).collect(),
            Move::Remove(_) => Vec::new(),
        }).collect();
        prop_assert_eq!(pull(&moves, &layers), expect(&moves, &layers));
    }
}
