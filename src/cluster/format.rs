//! Ages, sizes and digests as people read them. Untrusted text passes [`shown`].

use k8s_openapi::jiff::Timestamp;
use oras_csi_core::display::Printable;

/// Returns untrusted text on one line: without terminal sequences and invisible characters, and cut after 300 characters.
pub(crate) fn shown(text: &str) -> String {
    Printable::new(text).to_string()
}

/// Returns a time span as kubectl writes it: `42s`, `7m`, `3h`, `12d`.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Returns how many seconds ago a time is; 0 if it is in the future, because the clocks differ.
pub(crate) fn seconds_since(time: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.as_second() - time.as_second()).unwrap_or_default()
}

/// Returns an age, or `-` if the time is not known.
pub(crate) fn age(time: Option<Timestamp>, now: Timestamp) -> String {
    time.map_or_else(|| "-".to_owned(), |time| span(seconds_since(time, now)))
}

/// Returns a size, such as `1.2 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// Returns the first 12 hexadecimal characters of a digest, as `docker images` does.
pub(crate) fn short_digest(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    shown(&hex.chars().take(12).collect::<String>())
}

/// Cuts text after `max` characters, with an ellipsis.
pub(crate) fn cut(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let kept: String = text.chars().take(max.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// Parses a number of bytes of an object.
pub(crate) fn bytes(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// Parses a time (RFC 3339).
pub(crate) fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes_are_short() {
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).ok();
        let now = at(0).unwrap_or_default();
        for (seconds, text) in
            [(0, "0s"), (-119, "119s"), (-120, "2m"), (-7_200, "2h"), (-172_800, "2d"), (60, "0s")]
        {
            assert_eq!(age(at(seconds), now), text);
        }
        assert_eq!(age(None, now), "-");
        for (bytes, text) in [(0, "0 B"), (1_023, "1023 B"), (1_536, "1.5 KiB"), (u64::MAX, "16777215.9 TiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn digests_and_texts_are_cut_between_characters() {
        assert_eq!(short_digest(&format!("sha256:{}", "ab".repeat(32))), "abababababab");
        assert_eq!(short_digest("sha256:üüüüüüüüüü"), "üüüüüüüüüü");
        assert_eq!(short_digest("\u{1b}[2J"), "");
        assert_eq!((cut("üüü", 3).as_str(), cut("üüüü", 3).as_str()), ("üüü", "üü…"));
    }
}
