//! Helpers for several tests.

mod api;
mod log;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::Clock;
use crate::settings::Names;

pub(crate) use api::FakeApi;
pub(crate) use log::CapturedWarnings;

/// Returns a fixed time in whole seconds, as in certificates.
pub(crate) fn now() -> SystemTime {
    static NOW: LazyLock<SystemTime> = LazyLock::new(|| {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        UNIX_EPOCH + Duration::from_secs(seconds)
    });
    *NOW
}

/// Returns the names of the server in tests.
pub(crate) fn names() -> Names {
    Names::new(["hook.oras.svc", "localhost"], [IpAddr::V4(Ipv4Addr::LOCALHOST)]).unwrap()
}

/// Returns names that do not cover [`names`].
pub(crate) fn other_names() -> Names {
    Names::new(["elsewhere.example"], []).unwrap()
}

/// A clock that a test moves.
#[derive(Clone, Default)]
pub(crate) struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// Returns the clock, which starts at [`now`].
    pub(crate) fn clock(&self) -> Clock {
        let offset = self.clone();
        Clock::from_fn(move || offset.time())
    }

    /// Returns the time of the clock.
    pub(crate) fn time(&self) -> SystemTime {
        let seconds = self.0.load(Ordering::SeqCst);
        let offset = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 { now() - offset } else { now() + offset }
    }

    /// Advances the time.
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs().try_into().unwrap(), Ordering::SeqCst);
    }

    /// Sets the time back.
    pub(crate) fn set_back(&self, by: Duration) {
        self.0.fetch_sub(by.as_secs().try_into().unwrap(), Ordering::SeqCst);
    }
}
