//! Paths: inside a volume's tree, in a container, and as globs over a tree.

use std::fmt;
use std::str::FromStr;

use crate::display::{Shown, string_serde};

const LONGEST_PATH: usize = 4096;
const LONGEST_SEGMENT: usize = 255;

/// A directory inside a volume's tree: relative and normal, segments of `[A-Za-z0-9._-]`. Empty is the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(String);

/// A text that is no [`TreePath`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a path inside the volume: segments of A-Z a-z 0-9 . _ - separated by single slashes, with no \
     slash in front or at the end, and neither \".\" nor \"..\""
)]
pub struct TreePathError(Shown);

impl TreePath {
    /// The root of the tree.
    pub fn root() -> Self {
        Self::default()
    }

    /// Whether this is the root of the tree.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The text: empty for the root.
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
                && segment.len() <= LONGEST_SEGMENT
                && segment.bytes().all(character)
        };
        if text.is_empty() || (text.len() <= LONGEST_PATH && text.split('/').all(segment)) {
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

/// Where a volume appears in a container: absolute and normal, not `/`, without `:` (which Kubernetes refuses).
/// A trailing slash is dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountPath(String);

/// A text that is no [`MountPath`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a mount path: write an absolute path such as /mnt/oras, with no \"//\", \".\", \"..\" or \":\" in it, and not / itself"
)]
pub struct MountPathError(Shown);

impl MountPath {
    /// The text, with no slash at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `other` is this path or lies below it.
    pub fn covers(&self, other: &str) -> bool {
        other.strip_prefix(self.0.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for MountPath {
    type Err = MountPathError;

    fn from_str(text: &str) -> Result<Self, MountPathError> {
        let path = text.strip_suffix('/').unwrap_or(text);
        let segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.len() <= LONGEST_SEGMENT;
        let normal = path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(segment));
        if normal && path.len() < LONGEST_PATH && !path.chars().any(|c| c == ':' || c.is_control()) {
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

/// A pattern over the files of a tree: `*` and `?` stay inside a segment, `**` crosses them.
#[derive(Clone)]
pub struct Glob {
    text: String,
    matcher: globset::GlobMatcher,
}

/// A text that is no [`Glob`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// Not relative and normal.
    #[error(
        "\"{0}\" is not a glob over the volume's files: it is relative, with no \"//\", \".\" or \"..\" segment, at most 512 bytes"
    )]
    Path(Shown),
    /// Brackets or braces that do not close, and the like.
    #[error("\"{glob}\" is not a glob: {reason}")]
    Syntax {
        /// What was given.
        glob: Shown,
        /// What the parser says.
        reason: Shown,
    },
}

impl Glob {
    const LONGEST: usize = 512;

    /// The pattern as it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a path relative to the tree's root, with `/` between segments, matches.
    pub fn matches(&self, path: &str) -> bool {
        self.matcher.is_match(path)
    }
}

impl FromStr for Glob {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        let normal = text.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
        if text.len() > Self::LONGEST || !normal || text.chars().any(char::is_control) {
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
    fn tree_paths_are_relative_and_normal() {
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
    fn mount_paths_are_absolute_and_normal(#[case] text: &str, #[case] normal: &str) {
        assert_eq!(text.parse::<MountPath>().map(|path| path.to_string()).as_deref(), Ok(normal));
    }

    #[rstest]
    fn refuses_mount_paths(
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
    fn a_mount_path_covers_what_lies_below_it() {
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
    fn globs_stay_inside_a_segment(#[case] glob: &str, #[case] path: &str, #[case] matches: bool) {
        assert_eq!(glob.parse::<Glob>().map(|glob| glob.matches(path)), Ok(matches));
    }

    #[rstest]
    fn refuses_globs(#[values("", "/a", "a/", "../a", "a/../b", "a//b", "[", "{a", "a\n")] glob: &str
    ) {
        assert!(glob.parse::<Glob>().is_err());
    }
}
