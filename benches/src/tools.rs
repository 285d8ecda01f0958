//! Where the programs are.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

/// Returns the path of the release binary of oras-csi.
pub(crate) fn ours() -> Result<PathBuf> {
    let path = std::env::var_os("ORAS_CSI_BIN").map(PathBuf::from);
    let path = path.context("ORAS_CSI_BIN names no binary of oras-csi: run `make bench`")?;
    ensure!(path.exists(), "{} is not built: run `make binary`", path.display());
    Ok(path)
}

/// Returns the path of a program that `tests/testbed/build bench` builds.
pub(crate) fn testbed(program: &str) -> Result<PathBuf> {
    let folder = std::env::var_os("ORAS_CSI_TESTBED_BIN").map(PathBuf::from);
    let path = folder.context("ORAS_CSI_TESTBED_BIN names no folder: run `make bench`")?.join(program);
    ensure!(path.exists(), "{} is not built: run `tests/testbed/build bench`", path.display());
    Ok(path)
}

/// Options that raise the limits on what is unpacked above the largest case.
pub(crate) fn unlimited() -> [String; 1] {
    ["--max-entries=2000000".to_owned()]
}

/// A command line.
#[macro_export]
macro_rules! words {
    ($($word:expr),* $(,)?) => { vec![$(std::ffi::OsString::from($word)),*] };
}

/// A command line of the shell; `$0`, `$1` and so on are the arguments.
pub(crate) fn shell(script: &str, arguments: Vec<OsString>) -> Vec<OsString> {
    let mut words = words!["bash", "-euo", "pipefail", "-c", script];
    words.extend(arguments);
    words
}
