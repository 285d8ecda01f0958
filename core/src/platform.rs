//! Platforms of the manifests in an image index (OCI image-spec, image-index.md, "platform").

use std::fmt;
use std::str::FromStr;

use crate::display::{Shown, string_serde};

/// A platform, `os/arch[/variant]`, with the names of the image-spec (Go's GOOS and GOARCH).
///
/// It is normalized as in containerd: lower case, `x86_64` as `amd64`, `aarch64` as `arm64`, and without the default
/// variant of an architecture (`arm64/v8`, `amd64/v1`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// The error for a text that is not a [`Platform`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a platform: write os/arch or os/arch/variant, for example linux/amd64 or linux/arm/v7"
)]
pub struct PlatformError(Shown);

impl Platform {
    /// Returns the platform that this program was built for.
    pub fn node() -> Self {
        Self::normalized(std::env::consts::OS, std::env::consts::ARCH, None)
    }

    /// Normalizes the platform of an index entry. The strings are not checked: they are only compared.
    pub fn normalized(os: &str, architecture: &str, variant: Option<&str>) -> Self {
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

    /// Returns the operating system, for example `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Returns the CPU architecture, for example `amd64` or `arm64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Returns the variant of the architecture, for example `v7`.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// Reports whether an index entry with these values is for this platform.
    pub fn matches(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        *self == Self::normalized(os, architecture, variant)
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let is_valid = |part: &&str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        };
        match parts.as_slice() {
            [os, architecture, rest @ ..] if rest.len() <= 1 && parts.iter().all(is_valid) => {
                Ok(Self::normalized(os, architecture, rest.first().copied()))
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
    fn is_normalized(#[case] text: &str, #[case] normalized: &str) {
        assert_eq!(text.parse::<Platform>().map(|platform| platform.to_string()).as_deref(), Ok(normalized));
    }

    #[rstest]
    fn rejects_texts_that_are_not_platforms(
        #[values("", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a md", "linux/amd64/", "*/*")]
        text: &str,
    ) {
        assert!(text.parse::<Platform>().is_err());
    }

    #[test]
    fn compares_normalized_platforms() {
        let arm = Platform::normalized("linux", "arm64", None);
        assert!(arm.matches("linux", "arm64", Some("v8")));
        assert!(!arm.matches("linux", "arm64", Some("v9")));
        assert!(!arm.matches("linux", "amd64", None));
        assert_eq!(Platform::node().os(), "linux");
    }
}
