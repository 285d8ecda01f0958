//! Paths in a tree, parsed from a registry's titles or an archive's entries.
//!
//! Parsing is the first of two checks that a path stays inside the tree. The second is in the kernel: the store opens
//! each directory with `openat2` and `RESOLVE_BENEATH`.

use std::fmt;

use crate::display::Shown;
use crate::path::TreePath;

/// The limits on a path in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathLimits {
    /// The most bytes.
    pub bytes: usize,
    /// The most names.
    pub depth: usize,
}

impl Default for PathLimits {
    fn default() -> Self {
        Self { bytes: 4_096, depth: 256 }
    }
}

/// A relative, normalized path; the empty path is the root. It is bytes, because names in an archive need not
/// be UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryPath(Vec<u8>);

/// The maximum length of a file name on Linux file systems.
const MAX_SEGMENT_BYTES: usize = 255;

/// The reason why a path is not valid in a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The path begins with a slash.
    #[error("the path \"{0}\" is absolute: paths in an artifact must be relative")]
    Absolute(Shown),
    /// The path contains `..`.
    #[error("the path \"{0}\" contains \"..\": a path must not leave the volume")]
    Upwards(Shown),
    /// The path contains a character that is not allowed.
    #[error("the path \"{0}\" contains a control character")]
    Control(Shown),
    /// The path is empty, or only dots and slashes.
    #[error("the path \"{0}\" does not name a file")]
    Empty(Shown),
    /// A name in the path is too long.
    #[error("the path \"{0}\" contains a name of {1} bytes: the limit is 255")]
    LongSegment(Shown, usize),
    /// The path is too long.
    #[error("the path \"{shown}\" has {length} bytes: the limit is {limit}")]
    Long {
        /// The path.
        shown: Shown,
        /// The length of the path.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The path has too many nested directories.
    #[error("the path \"{shown}\" is {depth} directories deep: the limit is {limit}")]
    Deep {
        /// The path.
        shown: Shown,
        /// The depth of the path.
        depth: usize,
        /// The limit.
        limit: usize,
    },
}

fn shown(bytes: &[u8]) -> Shown {
    Shown::new(&String::from_utf8_lossy(bytes))
}

impl EntryPath {
    /// Returns the root of the tree.
    pub fn root() -> Self {
        Self::default()
    }

    /// Parses the name of an archive's entry. Drops `./`, doubled and trailing slashes; `.` is the root.
    /// Refuses absolute paths and `..`.
    pub fn parse(bytes: &[u8], limits: impl Into<PathLimits>) -> Result<Self, NameError> {
        let limits = limits.into();
        if bytes.first() == Some(&b'/') {
            return Err(NameError::Absolute(shown(bytes)));
        }
        if bytes.contains(&0) {
            return Err(NameError::Control(shown(bytes)));
        }
        check_length(bytes, limits)?;
        let mut path = Vec::with_capacity(bytes.len());
        let mut depth = 0;
        for segment in bytes.split(|byte| *byte == b'/') {
            match segment {
                b"" | b"." => continue,
                b".." => return Err(NameError::Upwards(shown(bytes))),
                _ if segment.len() > MAX_SEGMENT_BYTES => {
                    return Err(NameError::LongSegment(shown(bytes), segment.len()));
                }
                _ => {}
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(segment);
            depth += 1;
        }
        check_depth(bytes, depth, limits)?;
        Ok(Self(path))
    }

    /// Checks the limits again after the path was placed beneath the path of a step.
    pub fn check(&self, limits: impl Into<PathLimits>) -> Result<(), NameError> {
        let limits = limits.into();
        check_length(&self.0, limits)?;
        check_depth(&self.0, self.depth(), limits)
    }

    /// Parses an ORAS title: as [`EntryPath::parse`], and refuses control characters.
    pub fn from_title(title: &str, limits: impl Into<PathLimits>) -> Result<Self, NameError> {
        if title.chars().any(char::is_control) {
            return Err(NameError::Control(title.into()));
        }
        if title.is_empty() {
            return Err(NameError::Empty(title.into()));
        }
        Self::parse(title.as_bytes(), limits)
    }

    /// Reports whether the path is the root of the tree.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the path as bytes, without a leading or trailing slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the names in the path.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|segment| !segment.is_empty())
    }

    /// Returns the number of names in the path.
    pub fn depth(&self) -> usize {
        self.segments().count()
    }

    /// Splits the path into its parent directory and its name; `None` for the root.
    pub fn split(&self) -> Option<(Self, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            None => Some((Self::root(), &self.0)),
            Some(slash) => Some((Self(self.0[..slash].to_vec()), &self.0[slash + 1..])),
        }
    }

    /// Returns this path beneath `base`.
    #[must_use]
    pub fn under(&self, base: &Self) -> Self {
        match (base.is_root(), self.is_root()) {
            (true, _) => self.clone(),
            (_, true) => base.clone(),
            _ => Self([&base.0[..], b"/", &self.0].concat()),
        }
    }

    /// Returns the entry `name` of this directory. `name` must be one segment from a directory listing.
    #[must_use]
    pub fn child(&self, name: &[u8]) -> Self {
        self.join(&Self(name.to_vec()))
    }

    /// Returns `other` beneath this path.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        other.under(self)
    }

    /// Returns this path relative to `base`; `None` if it is not beneath `base`.
    pub fn beneath(&self, base: &Self) -> Option<Self> {
        if base.is_root() {
            return Some(self.clone());
        }
        match self.0.strip_prefix(&base.0[..])? {
            [] => Some(Self::root()),
            [b'/', rest @ ..] => Some(Self(rest.to_vec())),
            _ => None,
        }
    }

    /// Returns the path as text for globs and messages. Invalid UTF-8 becomes U+FFFD.
    pub fn to_text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

fn check_length(bytes: &[u8], limits: PathLimits) -> Result<(), NameError> {
    if bytes.len() > limits.bytes {
        return Err(NameError::Long { shown: shown(bytes), length: bytes.len(), limit: limits.bytes });
    }
    Ok(())
}

fn check_depth(bytes: &[u8], depth: usize, limits: PathLimits) -> Result<(), NameError> {
    if depth > limits.depth {
        return Err(NameError::Deep { shown: shown(bytes), depth, limit: limits.depth });
    }
    Ok(())
}

impl From<&TreePath> for EntryPath {
    fn from(path: &TreePath) -> Self {
        Self(path.as_str().as_bytes().to_vec())
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str(".") } else { shown(&self.0).fmt(f) }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parse(text: &str) -> Result<EntryPath, NameError> {
        EntryPath::parse(text.as_bytes(), PathLimits::default())
    }

    #[rstest]
    #[case("a", "a")]
    #[case("./a//b/./c/", "a/b/c")]
    #[case(".", "")]
    #[case("", "")]
    #[case("..a/b..", "..a/b..")]
    #[case("a:b/ü \u{1f600}", "a:b/ü \u{1f600}")]
    fn normalizes_paths_beneath_the_root(#[case] text: &str, #[case] normal: &str) {
        assert_eq!(parse(text).unwrap().as_bytes(), normal.as_bytes());
    }

    #[test]
    fn refuses_invalid_paths() {
        let deep = "d/".repeat(300);
        let long = "x".repeat(256);
        let longer = "x/".repeat(2100);
        for (text, word) in [
            ("/etc/passwd", "absolute"),
            ("//", "absolute"),
            ("..", "leave"),
            ("a/../b", "leave"),
            ("a\0b", "control"),
            (&deep, "deep"),
            (&long, "256"),
            (&longer, "4200"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn refuses_control_characters_in_titles() {
        let title = |text: &str| EntryPath::from_title(text, PathLimits::default());
        for text in ["", "a\nb", "a\u{7}", "a\0"] {
            assert!(title(text).is_err(), "{text:?}");
        }
        assert!(title(".").unwrap().is_root());
        assert_eq!(title("sub/file.txt").unwrap().to_string(), "sub/file.txt");
    }

    #[test]
    fn joins_and_splits_paths() {
        let (base, path) = (parse("model").unwrap(), parse("a/b").unwrap());
        assert_eq!(path.under(&base).as_bytes(), b"model/a/b");
        assert_eq!(path.under(&base).beneath(&base), Some(path.clone()));
        assert_eq!(parse("modelx/a").unwrap().beneath(&base), None);
        assert_eq!(base.beneath(&base), Some(EntryPath::root()));
        assert_eq!(path.split(), Some((parse("a").unwrap(), &b"b"[..])));
        assert_eq!(EntryPath::root().split(), None);
        assert_eq!(path.depth(), 2);
    }
}
