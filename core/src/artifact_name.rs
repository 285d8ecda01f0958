//! The NAME of `oras.land/artifact.NAME`: also the directory its files lie in.

use std::fmt;
use std::str::FromStr;

use crate::display::{Shown, string_serde};

/// `[a-z0-9]` with `-` and `.` inside, at most 40 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactName(String);

/// A NAME that breaks the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a name: at most 40 characters of a-z and 0-9, with \"-\" and \".\" inside; upper case is not folded"
)]
pub struct ArtifactNameError(Shown);

impl ArtifactName {
    const LONGEST: usize = 40;

    /// The name as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ArtifactName {
    type Err = ArtifactNameError;

    fn from_str(text: &str) -> Result<Self, ArtifactNameError> {
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let ends = text.bytes().next().is_some_and(word) && text.bytes().next_back().is_some_and(word);
        if ends
            && text.len() <= Self::LONGEST
            && text.bytes().all(|byte| word(byte) || matches!(byte, b'-' | b'.'))
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(ArtifactNameError(text.into()))
        }
    }
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_serde!(ArtifactName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_rule_and_nothing_else() {
        let longest = "a".repeat(40);
        for name in ["a", "0", "model", "a-b.c", longest.as_str()] {
            assert!(name.parse::<ArtifactName>().is_ok(), "{name}");
        }
        let too_long = "a".repeat(41);
        for name in ["", "A", "Model", "-a", "a-", ".a", "a.", "a_b", "a/b", "a b", "é", too_long.as_str()] {
            assert!(name.parse::<ArtifactName>().is_err(), "{name}");
        }
    }
}
