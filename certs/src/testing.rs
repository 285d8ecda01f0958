//! What several tests need.

mod api;
mod log;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::Clock;
use crate::settings::Names;

pub(crate) use api::FakeApi;
pub(crate) use log::Warnings;

/// A fixed moment, whole seconds as certificates have them.
pub(crate) fn now() -> SystemTime {
    static NOW: LazyLock<SystemTime> = LazyLock::new(|| {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        UNIX_EPOCH + Duration::from_secs(seconds)
    });
    *NOW
}

/// The names that tests serve.
pub(crate) fn names() -> Names {
    Names::new(["hook.oras.svc", "localhost"], [IpAddr::V4(Ipv4Addr::LOCALHOST)]).unwrap()
}

/// Names that do not cover [`names`].
pub(crate) fn other_names() -> Names {
    Names::new(["elsewhere.example"], []).unwrap()
}

/// A clock that a test moves.
#[derive(Clone, Default)]
pub(crate) struct Hands(Arc<AtomicU64>);

impl Hands {
    /// The clock, which begins at [`now`].
    pub(crate) fn clock(&self) -> Clock {
        let hands = self.clone();
        Clock::from_fn(move || now() + Duration::from_secs(hands.0.load(Ordering::SeqCst)))
    }

    /// Moves it on.
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }
}
