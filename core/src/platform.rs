//! Platforms of an image index (OCI image-spec, image-index.md, "platform").

use std::fmt;
use std::str::FromStr;

use crate::display::{Shown, string_serde};

/// `os/arch[/variant]` in the names of the image-spec (Go's GOOS and GOARCH), in one normal form:
/// lower case, `x86_64` as `amd64`, `aarch64` as `arm64`, and no variant that the architecture has anyway
/// (`arm64/v8`, `amd64/v1`, as containerd normalises them).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A text that is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a platform: write os/arch or os/arch/variant, as linux/amd64 or linux/arm/v7")]
pub struct PlatformError(Shown);

impl Platform {
    /// The platform this program was built for.
    pub fn node() -> Self {
        Self::normal(std::env::consts::OS, std::env::consts::ARCH, None)
    }

    /// The normal form of what an index says of an entry; any strings, since they only have to compare.
    pub fn normal(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let architecture = match architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant.map(str::to_ascii_lowercase).filter(|variant| {
            !matches!(
                (architecture.as_str(), variant.as_str()),
                (_, "") | ("arm64", "v8" | "8") | ("amd64", "v1")
            )
        });
        Self { os: os.to_ascii_lowercase(), architecture, variant }
    }

    /// `linux` and the like.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// `amd64`, `arm64` and the like.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// `v7` and the like.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// Whether an entry of an index, in the index's own words, is for this platform.
    pub fn matches(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        *self == Self::normal(os, architecture, variant)
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        };
        match parts.as_slice() {
            [os, architecture, rest @ ..] if rest.len() <= 1 && parts.iter().all(word) => {
                Ok(Self::normal(os, architecture, rest.first().copied()))
            }
            _ => Err(PlatformError(text.into())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

string_serde!(Platform);

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("linux/amd64", "linux/amd64")]
    #[case("Linux/x86_64", "linux/amd64")]
    #[case("linux/arm64/v8", "linux/arm64")]
    #[case("linux/aarch64", "linux/arm64")]
    #[case("linux/arm/v7", "linux/arm/v7")]
    fn has_a_normal_form(#[case] text: &str, #[case] normal: &str) {
        assert_eq!(text.parse::<Platform>().map(|platform| platform.to_string()).as_deref(), Ok(normal));
    }

    #[rstest]
    fn refuses(
        #[values("", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a md", "linux/amd64/", "*/*")]
        text: &str,
    ) {
        assert!(text.parse::<Platform>().is_err());
    }

    #[test]
    fn compares_in_normal_form() {
        let arm = Platform::normal("linux", "arm64", None);
        assert!(arm.matches("linux", "arm64", Some("v8")));
        assert!(!arm.matches("linux", "arm64", Some("v9")));
        assert!(!arm.matches("linux", "amd64", None));
        assert_eq!(Platform::node().os(), "linux");
    }
}
