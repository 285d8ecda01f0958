//! Checks that the documentation names only files and folders that exist.

use std::path::Path;
use std::process::Command;

use oras_csi_tests::parts::repository;
use oras_csi_tests::process::run;

/// Folders whose paths the documentation writes from the root of the repository.
const FOLDERS: &[&str] = &[
    "benches/",
    "certs/",
    "core/",
    "deploy/",
    "docs/",
    "driver/",
    "examples/",
    "fuzz/",
    "kube-support/",
    "node-artifacts/",
    "public-suffix/",
    "src/",
    "store/",
    "tests/",
    "webhook/",
];

/// Objects of Kubernetes that look like paths.
const OBJECTS: &[&str] = &["deploy/web"];

/// The paths in back quotes in a text. Patterns and placeholders are no paths.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted.filter(|word| {
        FOLDERS.iter().any(|folder| word.starts_with(folder))
            && !OBJECTS.contains(word)
            && word.chars().all(|character| character.is_ascii_alphanumeric() || "/._-".contains(character))
    })
}

#[test]
fn documentation_names_files_that_exist() {
    let root = repository();
    let listed = run(Command::new("git").arg("-C").arg(&root).args(["ls-files", "*.md"]));
    let (mut checked, mut missing) = (0, Vec::new());
    for page in listed.lines() {
        let text = std::fs::read_to_string(Path::new(&root).join(page)).expect("a page");
        for path in paths(&text) {
            checked += 1;
            if !Path::new(&root).join(path).exists() {
                missing.push(format!("{page}: {path}"));
            }
        }
    }
    assert!(checked > 100, "only {checked} paths were found: are they still written in back quotes?");
    assert!(missing.is_empty(), "these do not exist: {missing:#?}");
}
