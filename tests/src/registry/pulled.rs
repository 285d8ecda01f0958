//! Runs `oras-csi pull` against these registries, and checks the result.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use crate::parts::oras_csi;
use crate::process::try_run;

/// The result of `oras-csi pull`.
#[derive(Debug)]
pub struct Pulled {
    output: Output,
    folder: tempfile::TempDir,
}

/// Pulls with a `certs.d` folder and these arguments, into a folder and a store of its own.
pub fn pull(certs: &Path, arguments: &[&str]) -> Pulled {
    pull_with(certs, arguments, &[])
}

/// The same with variables of the environment; it has no other proxies.
pub fn pull_with(certs: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Pulled {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(oras_csi());
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.arg("pull").args(arguments).arg(folder.path().join("tree")).arg("--certs-dir").arg(certs);
    let output = try_run(command.envs(environment.iter().copied()));
    let pulled = Pulled { output, folder };
    eprintln!("{}", pulled.words());
    pulled
}

impl Pulled {
    /// Returns its standard error.
    pub fn words(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Fails unless it wrote exactly the files of this folder.
    pub fn is(&self, folder: &Path) {
        assert_eq!(self.output.status.code(), Some(0), "{}", self.words());
        assert_same_files(&self.folder.path().join("tree"), folder);
    }

    /// Fails unless it failed with this exit status and these words, and left nothing behind.
    pub fn failed(&self, status: i32, words: &[&str]) {
        let said = self.words();
        assert_eq!(self.output.status.code(), Some(status), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in: {said}");
        let left: Vec<_> = std::fs::read_dir(self.folder.path()).expect("a folder").collect();
        assert!(left.is_empty(), "nothing is left behind: {left:?}");
    }
}

/// Compares all files of two folders, by name and by byte.
pub fn assert_same_files(found: &Path, expected: &Path) {
    let (found, expected) = (files(found), files(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        // The bytes themselves would be too many to print.
        assert!(
            found[name] == *bytes,
            "{name} has {} bytes that differ from {}",
            found[name].len(),
            bytes.len()
        );
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").display().to_string();
                files.insert(name, std::fs::read(&path).expect("reads"));
            }
        }
    }
    files
}
