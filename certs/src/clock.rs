//! Wall-clock time: its source, the validity of certificates, and how times are printed.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::UnixTime;

/// The source of the time. It is the wall clock, because a machine that was suspended wakes up with an old certificate, and
/// a monotonic clock does not count the time of the suspension.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The clock of the system.
    pub(crate) fn system() -> Self {
        Self(Arc::new(SystemTime::now))
    }

    /// A clock that a test sets.
    #[cfg(test)]
    pub(crate) fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Returns the time.
    pub(crate) fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The validity of a certificate, including both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Validity {
    /// Returns the validity that a certificate states.
    pub(crate) fn of(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Self {
        let stated = certificate.validity();
        Self {
            not_before: from_unix(stated.not_before.timestamp()),
            not_after: from_unix(stated.not_after.timestamp()),
        }
    }

    /// Returns the first moment of the validity.
    pub(crate) fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Returns the last moment of the validity.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Reports whether the certificate is valid at `now`.
    pub(crate) fn contains(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// Returns the whole duration of the validity.
    pub(crate) fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// Returns the moment in the middle.
    pub(crate) fn middle(&self) -> SystemTime {
        self.not_before + self.life() / 2
    }
}

/// Returns the seconds since 1970, negative for earlier times.
pub(crate) fn unix_seconds(time: SystemTime) -> i64 {
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => seconds(since),
        Err(before) => -seconds(before.duration()),
    }
}

/// Converts a time for rustls. Times before 1970 become 1970.
pub(crate) fn to_unix_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Formats a time as RFC 3339, in UTC and in whole seconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = unix_seconds(time);
    Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s after 1970"), |t| t.to_string())
}

fn from_unix(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_in_whole_seconds() {
        let t = from_unix(1_800_000_000);
        assert_eq!((unix_seconds(t), rfc3339(t).as_str()), (1_800_000_000, "2027-01-15T08:00:00Z"));
        assert_eq!(unix_seconds(from_unix(-5)), -5);
    }
}
