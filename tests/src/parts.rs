//! Where the programs under test and the real parts are.

use std::path::{Path, PathBuf};

/// A program of the testbed: `registry`, `oras`, `kubectl`, `csi-sanity` and so on.
pub fn testbed(program: &str) -> PathBuf {
    let folder = std::env::var_os("ORAS_CSI_TESTBED_BIN")
        .map_or_else(|| repository().join("target/testbed/bin"), PathBuf::from);
    let path = folder.join(program);
    assert!(
        path.exists(),
        "{} is not built: run this by `make test-parts` or `make test-node`",
        path.display()
    );
    path
}

/// The static binary under test.
pub fn oras_csi() -> PathBuf {
    let path = std::env::var_os("ORAS_CSI_BIN")
        .expect("ORAS_CSI_BIN names the binary: run this by `make test-parts`");
    let path = PathBuf::from(path);
    assert!(path.exists(), "{} is not built: run `make binary`", path.display());
    path
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().map_or_else(|| tests.to_owned(), Path::to_owned)
}
