//! Checks the layers of this crate: a module uses only modules of lower layers, so there are no import cycles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules, from the lowest layer to the highest. Modules of one layer do not use each other.
const LAYERS: &[&[&str]] = &[
    &["display", "dns_name", "go_duration", "keys", "jitter"],
    &["artifact_name", "digest", "media_type", "patch_level", "platform", "trace"],
    &["path", "reference", "seal"],
    &["entry_path"],
    &["manifest"],
    &["pattern", "recipe"],
    &["policy", "patch", "volume_id"],
    &["volume", "credentials"],
    &["registry"],
];

/// The source files of a module, without those that have only tests.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path());
    let sources = entries.filter(|path| !matches!(path.file_stem(), Some(stem) if stem == "tests"));
    sources
        .flat_map(|path| files(&path))
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
        .collect()
}

/// The modules of this crate that the code of a file uses, without its comments and its tests.
fn used_modules(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut modules = BTreeSet::new();
    for rest in lines.flat_map(|line| line.split("crate::").skip(1)) {
        let end = rest.find(|character: char| !character.is_alphanumeric() && character != '_');
        modules.insert(rest[..end.unwrap_or(rest.len())].to_owned());
    }
    modules
}

#[test]
fn modules_use_only_modules_of_lower_layers() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let ranks = LAYERS.iter().zip(0..).flat_map(|(layer, rank)| layer.iter().map(move |name| (*name, rank)));
    let ranks: BTreeMap<&str, usize> = ranks.collect();
    let declared = fs::read_to_string(source.join("lib.rs")).expect("lib.rs");
    for line in declared.lines().filter_map(|line| line.strip_prefix("pub mod ")) {
        assert!(ranks.contains_key(line.trim_end_matches(';')), "add to LAYERS: {line}");
    }
    for (module, rank) in &ranks {
        let (file, folder) = (source.join(format!("{module}.rs")), source.join(module));
        let paths = [file, folder].into_iter().filter(|path| path.exists());
        let paths: Vec<_> = paths.flat_map(|path| files(&path)).collect();
        assert!(!paths.is_empty(), "the module {module} has no files: remove it from LAYERS");
        for path in paths {
            for used in used_modules(&fs::read_to_string(&path).expect("a source file")) {
                let is_lower = ranks.get(used.as_str()).is_some_and(|lower| lower < rank);
                assert!(
                    used == *module || is_lower,
                    "{}: the module {module} must not use {used}: it is not in a lower layer",
                    path.display()
                );
            }
        }
    }
}
