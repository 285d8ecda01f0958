//! Sizes in bytes, written as Kubernetes quantities.

use std::fmt;
use std::str::FromStr;

use crate::display::{Shown, string_serde};

/// A number of bytes, for example `500Mi`, `1.5G` or `1048576`.
///
/// It is a decimal number with an optional suffix of Kubernetes (apimachinery, `resource.Quantity`): Ki Mi Gi Ti Pi Ei
/// are powers of 1,024, and k M G T P E are powers of 1,000.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize {
    text: String,
    bytes: u64,
}

/// The error for a text that is not a [`ByteSize`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a number of bytes: write digits with one of Ki Mi Gi Ti Pi Ei k M G T P E, for example 500Mi"
)]
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
    /// Returns the number of bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Multiplies the number by the factor of its suffix, and rounds down.
    fn parse(text: &str) -> Option<u64> {
        const MAX_DIGITS: usize = 20;
        let (number, factor) =
            SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))?;
        let (integer, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| -> Option<u128> {
            let has_valid_length = (1..=MAX_DIGITS).contains(&part.len());
            let has_digits_only = part.bytes().all(|byte| byte.is_ascii_digit());
            if has_valid_length && has_digits_only { part.parse().ok() } else { None }
        };
        let (integer, fraction_digits) = (digits(integer)?, digits(fraction)?);
        let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let fraction = fraction_digits.checked_mul(factor).map(|digits| digits / scale)?;
        // No artifact can have 2^64 bytes or more, so a larger limit is the same as the maximum.
        Some(u64::try_from(integer.checked_mul(factor)?.checked_add(fraction)?).unwrap_or(u64::MAX))
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
    fn parses_kubernetes_quantities(#[case] text: &str, #[case] bytes: Option<u64>) {
        let parsed = text.parse::<ByteSize>();
        assert_eq!(parsed.as_ref().ok().map(ByteSize::bytes), bytes);
        assert!(parsed.is_err() || parsed.unwrap().to_string() == text);
    }
}
