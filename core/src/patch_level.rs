//! Levels of a patch (docs/design.md, "Patches").

use std::fmt;
use std::str::FromStr;

use crate::display::Shown;

/// A level of a patch, ordered by how much it changes: a volume gets the levels in this order over the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// `minor`
    Minor,
    /// `major`
    Major,
    /// `critical`, also written `crit`
    Critical,
}

/// The error for a text that is not a [`Level`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a level of a patch: write minor, major or critical")]
pub struct LevelError(Shown);

impl Level {
    /// All levels, in the order in which they are applied.
    pub const ALL: [Self; 3] = [Self::Minor, Self::Major, Self::Critical];

    /// Returns the name that a patch manifest uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minor => "minor",
            Self::Major => "major",
            Self::Critical => "critical",
        }
    }

    /// Returns every accepted spelling.
    pub(crate) fn spellings(self) -> &'static [&'static str] {
        match self {
            Self::Minor => &["minor"],
            Self::Major => &["major"],
            Self::Critical => &["critical", "crit"],
        }
    }
}

impl FromStr for Level {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        let found = Self::ALL.into_iter().find(|level| level.spellings().contains(&text));
        found.ok_or_else(|| LevelError(text.into()))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_every_spelling_and_is_ordered() {
        for (text, level) in [
            ("minor", Level::Minor),
            ("major", Level::Major),
            ("critical", Level::Critical),
            ("crit", Level::Critical),
        ] {
            assert_eq!(text.parse(), Ok(level));
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        for text in ["", "Minor", "critic", "all", "minor ", "\u{202e}"] {
            let error = text.parse::<Level>().unwrap_err().to_string();
            assert!(
                error.ends_with("write minor, major or critical") && !error.contains('\u{202e}'),
                "{error}"
            );
        }
        assert!(Level::Minor < Level::Major && Level::Major < Level::Critical);
    }
}
