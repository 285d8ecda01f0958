//! The NAME of `oras.land/artifact.NAME`, which is also the directory of that artifact's files in the volume
//! (docs/design.md, "Annotations").

use std::fmt;
use std::str::FromStr;

use crate::display::{Shown, string_serde};

/// The name of an artifact: `[a-z0-9]` with `-` and `.` inside, at most 40 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactName(String);

/// The error for a text that is not an [`ArtifactName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{name}\" is not an artifact name: {}", what_to_write(.lower.as_deref()))]
pub struct ArtifactNameError {
    name: Shown,
    /// The name in lower case, where that is a valid one.
    lower: Option<String>,
}

fn what_to_write(lower: Option<&str>) -> String {
    lower.map_or_else(
        || {
            "write at most 40 characters of a-z, 0-9, \"-\" and \".\", with a-z or 0-9 at both ends"
                .to_owned()
        },
        |lower| format!("upper-case letters are not allowed, so write {lower}"),
    )
}

impl ArtifactName {
    const MAX_LEN: usize = 40;

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ArtifactName {
    type Err = ArtifactNameError;

    fn from_str(text: &str) -> Result<Self, ArtifactNameError> {
        if Self::is_valid(text) {
            return Ok(Self(text.to_owned()));
        }
        let lower = Some(text.to_ascii_lowercase()).filter(|lower| Self::is_valid(lower));
        Err(ArtifactNameError { name: text.into(), lower })
    }
}

impl ArtifactName {
    fn is_valid(text: &str) -> bool {
        let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let has_valid_ends = text.bytes().next().is_some_and(is_alphanumeric)
            && text.bytes().next_back().is_some_and(is_alphanumeric);
        has_valid_ends
            && text.len() <= Self::MAX_LEN
            && text.bytes().all(|byte| is_alphanumeric(byte) || matches!(byte, b'-' | b'.'))
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
    fn accepts_only_names_that_follow_the_rule() {
        let longest = "a".repeat(40);
        for name in ["a", "0", "model", "a-b.c", longest.as_str()] {
            assert!(name.parse::<ArtifactName>().is_ok(), "{name}");
        }
        let too_long = "a".repeat(41);
        for name in ["", "A", "Model", "-a", "a-", ".a", "a.", "a_b", "a/b", "a b", "é", too_long.as_str()] {
            assert!(name.parse::<ArtifactName>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_error_shows_the_name_in_lower_case() {
        for (name, instead) in [
            ("Model", "upper-case letters are not allowed, so write model"),
            ("My_Model", "write at most 40 characters of a-z"),
        ] {
            let error = name.parse::<ArtifactName>().map_err(|error| error.to_string()).unwrap_err();
            assert!(error.contains(&format!("\"{name}\" is not an artifact name: {instead}")), "{error}");
        }
    }
}
