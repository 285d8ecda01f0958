//! Patterns over tags and over types: `*` matches any text, including the empty text.

use std::fmt;
use std::str::FromStr;

use globset::{GlobBuilder, GlobMatcher};

use crate::display::{Shown, string_serde};
use crate::media_type::essence;

/// A pattern over tags, for example `latest` or `*-SNAPSHOT`. Tags are case-sensitive.
#[derive(Clone, Debug)]
pub struct TagPattern(Wildcard);

/// A pattern over artifact types and media types, for example `application/vnd.acme.*`. Types are not case-sensitive,
/// and parameters are ignored (RFC 6838, section 4.2).
#[derive(Clone, Debug)]
pub struct TypePattern(Wildcard);

/// The error for a text that is not a [`TagPattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a pattern over tags: write a tag (at most 128 characters of A-Z a-z 0-9 . _ -) in which * matches any \
     text"
)]
pub struct TagPatternError(Shown);

/// The error for a text that is not a [`TypePattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a pattern over types: write type/subtype without parameters, in which * matches any text"
)]
pub struct TypePatternError(Shown);

#[derive(Clone, Debug)]
struct Wildcard {
    text: String,
    matcher: GlobMatcher,
}

impl Wildcard {
    /// Compiles a pattern. Returns `None` when it has a character that is not allowed, or has another meaning for the
    /// matcher.
    fn parse(text: &str, max_len: usize, is_plain: impl Fn(u8) -> bool) -> Option<Self> {
        let has_valid_length = (1..=max_len).contains(&text.len());
        // Two stars would match the same as one, and many stars make the matcher slow.
        let is_valid = has_valid_length
            && text.bytes().all(|byte| byte == b'*' || is_plain(byte))
            && !text.contains("**")
            && text.matches('*').count() <= 8;
        let glob = GlobBuilder::new(text).literal_separator(false).build().ok().filter(|_| is_valid)?;
        Some(Self { text: text.to_owned(), matcher: glob.compile_matcher() })
    }
}

impl TagPattern {
    /// Reports whether the pattern matches a tag.
    pub fn matches(&self, tag: &str) -> bool {
        self.0.matcher.is_match(tag)
    }
}

impl FromStr for TagPattern {
    type Err = TagPatternError;

    fn from_str(text: &str) -> Result<Self, TagPatternError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        Wildcard::parse(text, 128, is_plain).map(Self).ok_or_else(|| TagPatternError(text.into()))
    }
}

impl TypePattern {
    /// Reports whether the pattern matches a type, as a manifest states it.
    pub fn matches(&self, media_type: &str) -> bool {
        self.0.matcher.is_match(essence(media_type))
    }
}

impl FromStr for TypePattern {
    type Err = TypePatternError;

    fn from_str(text: &str) -> Result<Self, TypePatternError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+/".contains(&byte);
        let lower = text.to_ascii_lowercase();
        let has_subtype = lower.split('/').count() == 2 && lower.split('/').all(|name| !name.is_empty());
        Wildcard::parse(&lower, 255, is_plain)
            .filter(|_| has_subtype)
            .map(Self)
            .ok_or_else(|| TypePatternError(text.into()))
    }
}

impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Display for TypePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

string_serde!(TagPattern);
string_serde!(TypePattern);

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("latest", "latest", true)]
    #[case("latest", "Latest", false)]
    #[case("latest", "latest1", false)]
    #[case("*-SNAPSHOT", "1.0-SNAPSHOT", true)]
    #[case("dev*", "dev", true)]
    #[case("v*.*", "v1.2", true)]
    #[case("v.1", "vx1", false)]
    #[case("*", "anything", true)]
    fn tag_patterns_are_case_sensitive(#[case] pattern: &str, #[case] tag: &str, #[case] matches: bool) {
        assert_eq!(pattern.parse::<TagPattern>().unwrap().matches(tag), matches);
    }

    #[rstest]
    #[case("application/vnd.acme.*", "application/vnd.acme.model", true)]
    #[case("application/vnd.acme.*", "Application/Vnd.Acme.Model; q=1", true)]
    #[case("Application/Vnd.Acme.Model", "application/vnd.acme.model", true)]
    #[case("application/*", "application/x+json", true)]
    #[case("application/*", "text/plain", false)]
    #[case("application/x", "application/x.evil", false)]
    #[case("*/*", "a/b", true)]
    #[case("a/b+c", "a/bbc", false)]
    fn type_patterns_ignore_case_and_parameters(
        #[case] pattern: &str,
        #[case] media_type: &str,
        #[case] matches: bool,
    ) {
        assert_eq!(pattern.parse::<TypePattern>().unwrap().matches(media_type), matches);
    }

    #[rstest]
    fn rejects_invalid_tag_patterns(
        #[values("", "a/b", "a?", "[a]", "{a,b}", "a\\b", "a b", "a**b", "é", "*********")] text: &str,
    ) {
        assert!(text.parse::<TagPattern>().is_err());
        assert!("x".repeat(129).parse::<TagPattern>().is_err());
    }

    #[rstest]
    fn rejects_invalid_type_patterns(
        #[values("", "text", "a/b/c", "/b", "a/", "a/b;q=1", "a/{b,c}", "a/[b]", "a/?", "a/**", "a /b")] text: &str,
    ) {
        assert!(text.parse::<TypePattern>().is_err());
    }
}
