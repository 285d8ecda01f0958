//! Media types (RFC 6838, section 4.2).

use std::fmt;
use std::str::FromStr;

use crate::display::{Shown, string_serde};

/// A media type, `type/subtype`, without parameters. It is compared as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MediaType(String);

/// The error for a text that is not a [`MediaType`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a media type: write type/subtype with no parameters, for example application/vnd.acme.model"
)]
pub struct MediaTypeError(Shown);

impl MediaType {
    /// The maximum length of a type and of a subtype (RFC 6838, section 4.2).
    const MAX_LEN: usize = 127;

    /// Returns the media type as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn is_name(text: &str) -> bool {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
        text.len() <= Self::MAX_LEN
            && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && text.bytes().all(is_allowed)
    }
}

/// Returns a media type without its parameters and in lower case, which is how media types are compared (RFC 6838,
/// section 4.2).
pub fn essence(media_type: &str) -> String {
    media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

impl FromStr for MediaType {
    type Err = MediaTypeError;

    fn from_str(text: &str) -> Result<Self, MediaTypeError> {
        match text.split_once('/') {
            Some((kind, subtype)) if Self::is_name(kind) && Self::is_name(subtype) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(MediaTypeError(text.into())),
        }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_serde!(MediaType);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_a_type_and_a_subtype_only() {
        for text in ["text/plain", "application/vnd.oci.image.layer.v1.tar+gzip", "a/b"] {
            assert!(text.parse::<MediaType>().is_ok(), "{text}");
        }
        for text in
            ["", "text", "/plain", "text/", "a/b/c", "text/plain; q=1", "te xt/plain", "*/*", "text/é"]
        {
            assert!(text.parse::<MediaType>().is_err(), "{text}");
        }
    }
}
