//! Percentages of a file system.

use std::fmt;
use std::str::FromStr;

/// A whole percentage from 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

impl Percent {
    /// 100.
    pub(crate) const ALL: Self = Self(100);
    /// 10.
    pub(crate) const TENTH: Self = Self(10);
    /// 5.
    pub(crate) const TWENTIETH: Self = Self(5);
    /// The default high watermark of garbage collection, the same as kubelet's for images.
    pub(crate) const DEFAULT_HIGH_WATERMARK: Self = Self(85);
    /// The default low watermark of garbage collection, the same as kubelet's for images.
    pub(crate) const DEFAULT_LOW_WATERMARK: Self = Self(80);

    /// Returns the number before the percent sign.
    pub(crate) fn number(self) -> u8 {
        self.0
    }

    /// Returns this percentage of `all`.
    pub(crate) fn of(self, all: u64) -> u64 {
        u64::try_from(u128::from(all) * u128::from(self.0) / 100).unwrap_or(all)
    }

    /// Reports whether `part` is more than this percentage of `all`.
    pub(crate) fn is_exceeded_by(self, part: u64, all: u128) -> bool {
        all > 0 && u128::from(part) * 100 > all * u128::from(self.0)
    }
}

/// The error for a text that is not a percentage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a percentage: write a whole number from 0 to 100")]
pub struct PercentError;

impl FromStr for Percent {
    type Err = PercentError;

    fn from_str(text: &str) -> Result<Self, PercentError> {
        let number = text.strip_suffix('%').unwrap_or(text).parse().map_err(|_| PercentError)?;
        if number > 100 { Err(PercentError) } else { Ok(Self(number)) }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", Some(0))]
    #[case("100", Some(100))]
    #[case("85%", Some(85))]
    #[case("101", None)]
    #[case("-1", None)]
    #[case("", None)]
    #[case("8.5", None)]
    fn parses_percentages(#[case] text: &str, #[case] wanted: Option<u8>) {
        assert_eq!(text.parse().ok(), wanted.map(Percent));
    }
}
