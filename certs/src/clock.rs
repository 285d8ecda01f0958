//! Wall-clock time: where it comes from, how long a certificate is good for, and how it is printed.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::UnixTime;

/// Where the time comes from. Always the wall clock: a machine that was suspended wakes up with an old
/// certificate, and a monotonic clock would not know.
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

    /// The time now.
    pub(crate) fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// From when until when a certificate is good, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Validity {
    /// The validity that a certificate states.
    pub(crate) fn of(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Self {
        let stated = certificate.validity();
        Self {
            not_before: from_unix(stated.not_before.timestamp()),
            not_after: from_unix(stated.not_after.timestamp()),
        }
    }

    /// The first moment it is good.
    pub(crate) fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last moment it is good.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether it is good at `now`.
    pub(crate) fn contains(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// How long it is good for, all in all.
    pub(crate) fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// The moment halfway.
    pub(crate) fn middle(&self) -> SystemTime {
        self.not_before + self.life() / 2
    }
}

/// Seconds since 1970; negative before.
pub(crate) fn unix(time: SystemTime) -> i64 {
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => seconds(since),
        Err(before) => -seconds(before.duration()),
    }
}

/// The time that rustls wants; 1970 for anything earlier.
pub(crate) fn for_rustls(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A time as people read it, RFC 3339 in UTC to the second.
pub(crate) fn human(time: SystemTime) -> String {
    let seconds = unix(time);
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
    fn seconds_and_words() {
        let t = from_unix(1_800_000_000);
        assert_eq!((unix(t), human(t).as_str()), (1_800_000_000, "2027-01-15T08:00:00Z"));
        assert_eq!(unix(from_unix(-5)), -5);
    }
}
