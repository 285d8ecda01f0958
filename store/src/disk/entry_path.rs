//! Paths in a tree, and the links in it.
//!
//! Parsing a path ([`EntryPath`]) is the first of two checks that it stays inside the tree. The second is in the kernel
//! (`openat2` with `RESOLVE_BENEATH`), see [`super::beneath`].

use oras_csi_core::display::Shown;
pub use oras_csi_core::entry_path::{EntryPath, NameError};

pub(crate) fn shown(bytes: &[u8]) -> Shown {
    Shown::new(&String::from_utf8_lossy(bytes))
}

/// Returns the error for a path that is within the configured limit but exceeds the kernel's.
pub(crate) fn too_long(path: &EntryPath) -> NameError {
    let length = path.as_bytes().len();
    NameError::Long { shown: shown(path.as_bytes()), length, limit: 4_095 }
}

/// Reports whether a symbolic link in a directory `depth` levels below the root stays below the root, even if
/// its target leads through other such links.
///
/// Only leading `..` segments are accepted: after a name, `..` could leave the target of another link.
pub(crate) fn stays_inside(depth: usize, target: &[u8]) -> bool {
    if target.first() == Some(&b'/') {
        return false;
    }
    let mut ups = 0;
    let mut descended = false;
    for segment in target.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." if descended => return false,
            b".." => ups += 1,
            _ => descended = true,
        }
    }
    ups <= depth
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, "a", true)]
    #[case(0, "a/b", true)]
    #[case(0, "..", false)]
    #[case(1, "..", true)]
    #[case(1, "../a", true)]
    #[case(1, "../../a", false)]
    #[case(2, "./.././../a", true)]
    #[case(5, "a/../b", false)]
    #[case(5, "/a", false)]
    fn detects_links_that_leave_the_root(#[case] depth: usize, #[case] target: &str, #[case] stays: bool) {
        assert_eq!(stays_inside(depth, target.as_bytes()), stays);
    }
}
