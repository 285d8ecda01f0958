//! Paths: inside the tree of a volume, in a container, and globs over the files of a tree.

use std::fmt;
use std::str::FromStr;

use crate::display::{Shown, string_serde};

/// `PATH_MAX` of Linux, in bytes.
const MAX_PATH_LEN: usize = 4096;
/// `NAME_MAX` of Linux, in bytes.
const MAX_SEGMENT_LEN: usize = 255;

/// A directory inside the tree of a volume: a relative, normalized path with segments of `[A-Za-z0-9._-]`. The empty
/// path is the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(String);

/// The error for a text that is not a [`TreePath`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a path inside the volume: write segments of A-Z a-z 0-9 . _ - separated by single slashes, without \
     a slash at the beginning or the end, and without \".\" or \"..\""
)]
pub struct TreePathError(Shown);

impl TreePath {
    /// Returns the root of the tree.
    pub fn root() -> Self {
        Self::default()
    }

    /// Reports whether this is the root of the tree.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the path; it is empty for the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TreePath {
    type Err = TreePathError;

    fn from_str(text: &str) -> Result<Self, TreePathError> {
        let character = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let segment = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment.len() <= MAX_SEGMENT_LEN
                && segment.bytes().all(character)
        };
        if text.is_empty() || (text.len() <= MAX_PATH_LEN && text.split('/').all(segment)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(TreePathError(text.into()))
        }
    }
}

impl From<&crate::artifact_name::ArtifactName> for TreePath {
    fn from(name: &crate::artifact_name::ArtifactName) -> Self {
        Self(name.as_str().to_owned())
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_serde!(TreePath);

/// The mount path of a volume in a container: an absolute, normalized path other than `/`, without `:` (which
/// Kubernetes rejects). A trailing slash is removed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountPath(String);

/// The error for a text that is not a [`MountPath`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a mount path: write an absolute path such as /mnt/oras, without \"//\", \".\", \"..\" or \":\"; the path \
     cannot be /"
)]
pub struct MountPathError(Shown);

impl MountPath {
    /// Returns the path, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reports whether `other` is this path or a path below it.
    pub fn covers(&self, other: &str) -> bool {
        other.strip_prefix(self.0.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for MountPath {
    type Err = MountPathError;

    fn from_str(text: &str) -> Result<Self, MountPathError> {
        let path = text.strip_suffix('/').unwrap_or(text);
        let segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.len() <= MAX_SEGMENT_LEN;
        let normal = path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(segment));
        if normal && path.len() < MAX_PATH_LEN && !path.chars().any(|c| c == ':' || c.is_control()) {
            Ok(Self(path.to_owned()))
        } else {
            Err(MountPathError(text.into()))
        }
    }
}

impl fmt::Display for MountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_serde!(MountPath);

/// A pattern over the files of a tree. `*` and `?` match inside one segment, `**` matches across segments.
#[derive(Clone)]
pub struct Glob {
    text: String,
    matcher: globset::GlobMatcher,
}

/// The error for a text that is not a [`Glob`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// The pattern is not a relative, normalized path.
    #[error(
        "\"{0}\" is not a glob over the files of the volume: write a relative path of at most 512 bytes, without \"//\" and \
         without \".\" or \"..\" as a segment"
    )]
    Path(Shown),
    /// The pattern has a syntax error, for example a bracket that is not closed.
    #[error("\"{glob}\" is not a glob: {reason}")]
    Syntax {
        /// The invalid text.
        glob: Shown,
        /// The message of the glob parser.
        reason: Shown,
    },
}

impl Glob {
    const MAX_LEN: usize = 512;

    /// Returns the pattern as it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Reports whether a path matches. The path is relative to the root of the tree, with `/` between segments.
    pub fn matches(&self, path: &str) -> bool {
        self.matcher.is_match(path)
    }
}

impl FromStr for Glob {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        let normal = text.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
        if text.len() > Self::MAX_LEN || !normal || text.chars().any(char::is_control) {
            return Err(GlobError::Path(text.into()));
        }
        let glob = globset::GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
        match glob {
            Ok(glob) => Ok(Self { text: text.to_owned(), matcher: glob.compile_matcher() }),
            Err(error) => {
                Err(GlobError::Syntax { glob: text.into(), reason: Shown::new(&error.kind().to_string()) })
            }
        }
    }
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Glob {}

impl PartialOrd for Glob {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Glob {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl std::hash::Hash for Glob {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Glob({:?})", self.text)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

string_serde!(Glob);

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn tree_paths_are_relative_and_normalized() {
        let longest = "a".repeat(255);
        for path in ["", "a", "model", "a/b.c/_d-e", "..a", "a..", "...", longest.as_str()] {
            assert!(path.parse::<TreePath>().is_ok(), "{path}");
        }
        let too_long = "a".repeat(256);
        for path in [
            "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "./a", "a b", "a:b", "a\\b", "é", "a\0",
            &too_long,
        ] {
            assert!(path.parse::<TreePath>().is_err(), "{path}");
        }
    }

    #[rstest]
    #[case("/mnt/oras", "/mnt/oras")]
    #[case("/mnt/oras/", "/mnt/oras")]
    #[case("/a b/é", "/a b/é")]
    fn mount_paths_are_absolute_and_normalized(#[case] text: &str, #[case] normal: &str) {
        assert_eq!(text.parse::<MountPath>().map(|path| path.to_string()).as_deref(), Ok(normal));
    }

    #[rstest]
    fn rejects_invalid_mount_paths(
        #[values(
            "",
            "/",
            "//",
            "mnt",
            "./mnt",
            "/mnt//oras",
            "/mnt/../etc",
            "/mnt/.",
            "/a:b",
            "/a\n",
            "/mnt//"
        )]
        text: &str,
    ) {
        assert!(text.parse::<MountPath>().is_err());
    }

    #[test]
    fn a_mount_path_covers_itself_and_paths_below_it() {
        let path = "/mnt/oras".parse::<MountPath>().expect("a path");
        assert!(path.covers("/mnt/oras"));
        assert!(path.covers("/mnt/oras/x"));
        assert!(!path.covers("/mnt/oras2"));
        assert!(!path.covers("/mnt"));
    }

    #[rstest]
    #[case("*.safetensors", "a.safetensors", true)]
    #[case("*.safetensors", "x/a.safetensors", false)]
    #[case("config/**", "config/a/b", true)]
    #[case("config/**", "config", false)]
    #[case("**/x", "x", true)]
    #[case("**/x", "a/b/x", true)]
    #[case("a?c", "a/c", false)]
    #[case("[!a]*", "b", true)]
    fn single_wildcards_do_not_cross_a_slash(#[case] glob: &str, #[case] path: &str, #[case] matches: bool) {
        assert_eq!(glob.parse::<Glob>().map(|glob| glob.matches(path)), Ok(matches));
    }

    #[rstest]
    fn rejects_invalid_globs(
        #[values("", "/a", "a/", "../a", "a/../b", "a//b", "[", "{a", "a\n")] glob: &str,
    ) {
        assert!(glob.parse::<Glob>().is_err());
    }
}
