//! Sizes as Kubernetes writes quantities.

use std::fmt;
use std::str::FromStr;

use crate::display::{Shown, string_serde};

/// A number of bytes, as `500Mi`, `1.5G` or `1048576`: a decimal number with no suffix or one of Kubernetes'
/// (apimachinery, `resource.Quantity`): Ki Mi Gi Ti Pi Ei are powers of 1,024, k M G T P E of 1,000.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize {
    text: String,
    bytes: u64,
}

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a number of bytes: write digits with one of Ki Mi Gi Ti Pi Ei k M G T P E, as 500Mi")]
pub struct ByteSizeError(Shown);

const SUFFIXES: [(&str, u128); 13] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
    ("", 1),
];

impl ByteSize {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whole and broken digits times the factor, rounded down.
    fn parse(text: &str) -> Option<u64> {
        const MOST_DIGITS: usize = 18;
        let (number, factor) =
            SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))?;
        let (whole, broken) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| -> Option<u128> {
            let fits = (1..=MOST_DIGITS + 2).contains(&part.len());
            let are = part.bytes().all(|byte| byte.is_ascii_digit());
            if fits && are { part.parse().ok() } else { None }
        };
        let (whole, broken_digits) = (digits(whole)?, digits(broken)?);
        let scale = 10_u128.checked_pow(u32::try_from(broken.len()).ok()?)?;
        let broken = broken_digits.checked_mul(factor).map(|broken| broken / scale)?;
        // More than anything can have is as good as the most.
        Some(u64::try_from(whole.checked_mul(factor)?.checked_add(broken)?).unwrap_or(u64::MAX))
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        match Self::parse(text) {
            Some(bytes) => Ok(Self { text: text.to_owned(), bytes }),
            None => Err(ByteSizeError(text.into())),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

string_serde!(ByteSize);

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", Some(0))]
    #[case("1048576", Some(1 << 20))]
    #[case("1Ki", Some(1_024))]
    #[case("500Mi", Some(500 << 20))]
    #[case("1.5Gi", Some(3 << 29))]
    #[case("0.5k", Some(500))]
    #[case("1E", Some(1_000_000_000_000_000_000))]
    #[case("15Ei", Some(15 << 60))]
    #[case("18446744073709551615", Some(u64::MAX))]
    #[case("16Ei", Some(u64::MAX))]
    #[case("18446744073709551616", Some(u64::MAX))]
    #[case("99999999999999999999999999", None)]
    #[case("", None)]
    #[case("Gi", None)]
    #[case(".5Gi", None)]
    #[case("1.Gi", None)]
    #[case("1.2.3Gi", None)]
    #[case("-1Gi", None)]
    #[case("+1", None)]
    #[case("1e3", None)]
    #[case("1m", None)]
    #[case("1GiB", None)]
    #[case("1 Gi", None)]
    #[case("1gi", None)]
    #[case("١Gi", None)]
    fn reads_quantities(#[case] text: &str, #[case] bytes: Option<u64>) {
        let parsed = text.parse::<ByteSize>();
        assert_eq!(parsed.as_ref().ok().map(ByteSize::bytes), bytes);
        assert!(parsed.is_err() || parsed.unwrap().to_string() == text);
    }
}
