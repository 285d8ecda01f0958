//! How long to wait before a request is retried.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use crate::jitter;

/// The first delay. Each next delay is twice as long.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// The longest single delay of the exponential backoff, and by default the longest total of all `Retry-After`.
pub(super) const MAX_DELAY: Duration = Duration::from_mins(1);

/// Parses `Retry-After` in both forms (RFC 9110, 10.2.3): seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Returns the delay before attempt number `attempts + 1`: the delay that the registry requested, or an exponential
/// backoff of which a random half is left out, so that many nodes do not retry together.
pub(super) fn delay(attempts: u32, requested: Option<Duration>) -> Duration {
    if let Some(requested) = requested {
        return requested.max(FIRST_DELAY / 2);
    }
    let factor = 2_u32.saturating_pow(attempts.saturating_sub(1));
    let half = FIRST_DELAY.saturating_mul(factor).min(MAX_DELAY) / 2;
    half + jitter::up_to(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &str) -> Option<Duration> {
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]);
        // 1994-11-06 08:49:00
        retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_mins(13_068_529))
    }

    #[test]
    fn retry_after_is_parsed_as_seconds_and_as_date() {
        for (value, seconds) in [
            ("120", Some(120)),
            ("0", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(37)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
            ("soon", None),
            ("-5", None),
            ("1.5", None),
            ("", None),
        ] {
            assert_eq!(parsed(value), seconds.map(Duration::from_secs), "{value}");
        }
        assert_eq!(parsed("99999999999999999999999"), Some(Duration::MAX));
    }

    #[test]
    fn delays_double_up_to_the_maximum() {
        for (attempts, longest) in [(1, 200), (2, 400), (3, 800)] {
            let delay = delay(attempts, None);
            let longest = Duration::from_millis(longest);
            assert!(delay >= longest / 2 && delay <= longest, "{attempts}: {delay:?}");
        }
        assert_eq!(delay(1, Some(Duration::from_secs(5))), Duration::from_secs(5));
        assert!(delay(u32::MAX, None) <= MAX_DELAY);
        assert!(delay(1, Some(Duration::ZERO)) > Duration::ZERO);
    }
}
