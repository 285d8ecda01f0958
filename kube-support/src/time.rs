//! Times in whole seconds (RFC 3339), as the API server stores them: a time with a fraction would differ from the same
//! time when it is read back.

use k8s_openapi::jiff::Timestamp;

/// Returns the current time in whole seconds.
pub fn now() -> Timestamp {
    whole_seconds(Timestamp::now())
}

/// Drops the fraction of a second.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Converts seconds since 1970.
pub fn from_unix_seconds(seconds: u64) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_back_as_it_was_written() {
        let time = whole_seconds(Timestamp::new(1_800_000_000, 123_456_789).unwrap());
        assert_eq!(time.to_string(), "2027-01-15T08:00:00Z");
        assert_eq!(from_unix_seconds(1_800_000_000), Some(time));
        assert_eq!(from_unix_seconds(u64::MAX), None);
    }
}
