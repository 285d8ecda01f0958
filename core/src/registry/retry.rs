//! When to ask again: how long a registry wants us to wait, and how long we would wait on our own.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use crate::jitter;

/// The first wait; each next one is twice as long.
const FIRST: Duration = Duration::from_millis(200);
/// We never wait longer than this in one go on our own, and a registry cannot have more than it of us by default.
pub(super) const LONGEST: Duration = Duration::from_mins(1);

/// `Retry-After` in both forms (RFC 9110, 10.2.3): seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// How long to wait before try number `tries` + 1: what the registry asks, else twice as long each time
/// and between half and the whole of it, so that many nodes do not come back together.
pub(super) fn pause(tries: u32, asked: Option<Duration>) -> Duration {
    if let Some(asked) = asked {
        return asked.max(FIRST / 2);
    }
    let whole = FIRST.saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1))).min(LONGEST);
    let half = whole / 2;
    half + jitter::up_to(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(value: &str) -> Option<Duration> {
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]);
        // 1994-11-06 08:49:00
        retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_mins(13_068_529))
    }

    #[test]
    fn both_forms_are_read() {
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
            assert_eq!(asked(value), seconds.map(Duration::from_secs), "{value}");
        }
        assert_eq!(asked("99999999999999999999999"), Some(Duration::MAX));
    }

    #[test]
    fn waits_grow_and_end() {
        for (tries, longest) in [(1, 200), (2, 400), (3, 800)] {
            let pause = pause(tries, None);
            let longest = Duration::from_millis(longest);
            assert!(pause >= longest / 2 && pause <= longest, "{tries}: {pause:?}");
        }
        assert_eq!(pause(1, Some(Duration::from_secs(5))), Duration::from_secs(5));
        assert!(pause(u32::MAX, None) <= LONGEST);
        assert!(pause(1, Some(Duration::ZERO)) > Duration::ZERO);
    }
}
