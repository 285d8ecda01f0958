//! Durations as Go writes them (time, `ParseDuration`), which is what Kubernetes' `metav1.Duration` holds.

use std::time::Duration;

/// Nothing is remembered longer.
const LONGEST: Duration = Duration::from_hours(24 * 365);

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

/// `1h30m`, `1.5s`, `0`; what is below zero is zero, what is above a year a year. `None` where it is no duration.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let (is_negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if unsigned == "0" {
        return Some(Duration::ZERO);
    }
    if unsigned.is_empty() || unsigned.len() > 64 {
        return None;
    }
    let mut rest = unsigned;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, behind) = rest.split_at(end);
        let number = number.parse::<f64>().ok()?;
        let (unit, factor) = UNITS.iter().find(|(unit, _)| behind.starts_with(unit))?;
        seconds += number * factor;
        rest = &behind[unit.len()..];
    }
    if is_negative {
        return Some(Duration::ZERO);
    }
    Some(Duration::try_from_secs_f64(seconds).map_or(LONGEST, |duration| duration.min(LONGEST)))
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
    fn reads_what_go_reads(#[case] text: &str, #[case] seconds: Option<f64>) {
        assert_eq!(parse(text), seconds.map(Duration::from_secs_f64), "{text}");
    }
}
