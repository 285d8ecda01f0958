//! Durations in the format of Go's `time.ParseDuration`.
//!
//! Kubernetes (`metav1.Duration`, the `timeout` parameter of an admission request), kubelet's credential providers
//! and containerd's `hosts.toml` write durations this way: `1h30m`, `1.5s`, `300ms`.

use std::time::Duration;

/// The longest duration that is returned: 365 days. Longer ones are cut to it.
pub const MAX: Duration = Duration::from_hours(24 * 365);
/// The longest text that is parsed, in bytes.
const MAX_LEN: usize = 64;

/// Unit suffixes and their length in seconds. `ms` stands before `m`, because the first match counts.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("μs", 1e-6),
    ("ms", 1e-3),
    ("h", 3600.0),
    ("m", 60.0),
    ("s", 1.0),
];

/// Parses a duration. Returns `None` if the text is not one.
///
/// A negative duration becomes zero, and one above [`MAX`] becomes [`MAX`].
///
/// ```
/// use std::time::Duration;
///
/// use oras_csi_core::go_duration;
///
/// assert_eq!(go_duration::parse("1m30s"), Some(Duration::from_secs(90)));
/// assert_eq!(go_duration::parse("-5m"), Some(Duration::ZERO));
/// assert_eq!(go_duration::parse("5 minutes"), None);
/// ```
pub fn parse(text: &str) -> Option<Duration> {
    let (is_negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if unsigned == "0" {
        return Some(Duration::ZERO);
    }
    if unsigned.is_empty() || unsigned.len() > MAX_LEN {
        return None;
    }
    let mut rest = unsigned;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, suffix) = rest.split_at(end);
        let number = number.parse::<f64>().ok()?;
        let (unit, factor) = UNITS.iter().find(|(unit, _)| suffix.starts_with(unit))?;
        seconds += number * factor;
        rest = &suffix[unit.len()..];
    }
    if is_negative {
        return Some(Duration::ZERO);
    }
    Some(Duration::try_from_secs_f64(seconds).map_or(MAX, |duration| duration.min(MAX)))
}

/// Parses a duration that must be longer than zero. Returns `None` for anything else.
pub fn parse_positive(text: &str) -> Option<Duration> {
    parse(text).filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", Some(0.0))]
    #[case("0s", Some(0.0))]
    #[case("300ms", Some(0.3))]
    #[case("1.5h", Some(5400.0))]
    #[case("1h30m0.5s", Some(5400.5))]
    #[case("12h0m0s", Some(43200.0))]
    #[case("250µs", Some(0.00025))]
    #[case("+5m", Some(300.0))]
    #[case("-5m", Some(0.0))]
    #[case("9999999h", Some(31_536_000.0))]
    #[case("", None)]
    #[case("-", None)]
    #[case("5", None)]
    #[case("5d", None)]
    #[case("s", None)]
    #[case("1.2.3s", None)]
    #[case(".s", None)]
    #[case("1e3s", None)]
    #[case("5 m", None)]
    #[case("5m ", None)]
    fn parses_what_go_parses(#[case] text: &str, #[case] seconds: Option<f64>) {
        assert_eq!(parse(text), seconds.map(Duration::from_secs_f64), "{text}");
    }
}
