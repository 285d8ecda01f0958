//! Finds the programs under test and the programs of the testbed.

use std::path::{Path, PathBuf};

/// Returns the path of a program of the testbed, such as `registry`, `oras`, `kubectl` or `csi-sanity`.
pub fn testbed(program: &str) -> PathBuf {
    let folder = std::env::var_os("ORAS_CSI_TESTBED_BIN")
        .map_or_else(|| repository().join("target/testbed/bin"), PathBuf::from);
    let path = folder.join(program);
    assert!(path.exists(), "{} is not built: run the `make test-…` of the tier", path.display());
    path
}

/// Returns the path of the static binary under test.
pub fn oras_csi() -> PathBuf {
    let path =
        std::env::var_os("ORAS_CSI_BIN").expect("ORAS_CSI_BIN names the binary: run `make test-integration`");
    let path = PathBuf::from(path);
    assert!(path.exists(), "{} is not built: run `make binary`", path.display());
    path
}

/// Returns the root of the repository.
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().map_or_else(|| tests.to_owned(), Path::to_owned)
}
