//! Measures the rate of a download while it waits for the registry, and fails it if it is too slow.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{CHECK_INTERVAL, DownloadSlot};
use crate::limits::Limits;

/// A download below this rate (bytes a second) must not keep others waiting.
pub(super) const SLOW_RATE: u64 = 64 << 10;
/// A download below this rate (bytes a second) fails: 1 GiB would take three days.
pub(super) const MIN_RATE: u64 = 4 << 10;

/// What a download waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum WaitFor {
    /// The answer to a request, or the time to repeat it. When the turn ends, the request is made again in the next
    /// one.
    Answer,
    /// More bytes of a body. When the turn ends, the connection can stay open until the next one.
    Body,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Ended {
    /// The download is too slow.
    TooSlow(TooSlow),
    /// The turn of the download has ended, and its connection must be closed.
    Turn,
}

/// A download that was too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct TooSlow {
    /// The minimum rate that was not reached, in bytes a second.
    pub(in super::super) minimum: u64,
    /// The measured rate, in bytes a second.
    pub(in super::super) rate: u64,
    /// How long it was measured.
    pub(in super::super) after: Duration,
}

/// Measures the rate of a download while it waits for the registry. Time that the disk takes does not count, and
/// neither does the time between two turns.
pub(in super::super) struct RateMonitor {
    slow_after: Duration,
    minimum_after: Duration,
    /// What was measured since the last check against each of the two rates.
    slow: Span,
    minimum: Span,
}

#[derive(Clone, Copy, Default)]
struct Span {
    waited: Duration,
    bytes: u64,
}

impl Span {
    /// Returns the rate in bytes a second.
    fn rate(self) -> u64 {
        let milliseconds = u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX).max(1);
        self.bytes.saturating_mul(1_000) / milliseconds
    }
}

impl RateMonitor {
    pub(in super::super) fn new(limits: &Limits) -> Self {
        let (slow_after, minimum_after) = (limits.slow_after(), limits.stalled_after());
        Self { slow_after, minimum_after, slow: Span::default(), minimum: Span::default() }
    }

    /// Counts received bytes.
    pub(in super::super) fn received(&mut self, slot: &mut DownloadSlot, bytes: u64) {
        self.slow.bytes += bytes;
        self.minimum.bytes += bytes;
        slot.has_received |= bytes > 0;
    }

    /// Waits for the registry, while it is the turn of the download. Meanwhile gives the slot back or fails when the
    /// download is too slow.
    pub(in super::super) async fn wait<T>(
        &mut self,
        slot: &mut DownloadSlot,
        wait_for: WaitFor,
        future: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        let mut future = pin!(future);
        slot.notice_grant();
        if wait_for == WaitFor::Body && !slot.is_held() && !slot.is_parked {
            return Err(Ended::Turn);
        }
        loop {
            slot.hold().await;
            if slot.check() {
                let is_parked = wait_for == WaitFor::Body && slot.can_park();
                slot.end_turn(is_parked);
                if !is_parked {
                    // The time for an answer that nothing waits for any more says nothing about the registry.
                    (self.slow, self.minimum) = Default::default();
                    return Err(Ended::Turn);
                }
                continue;
            }
            self.check_rate(slot)?;
            let left = self.slow_after.saturating_sub(self.slow.waited);
            let left = left.min(self.minimum_after.saturating_sub(self.minimum.waited)).min(CHECK_INTERVAL);
            let started = Instant::now();
            let output = timeout(left.max(Duration::from_millis(1)), future.as_mut()).await;
            let waited = started.elapsed();
            self.slow.waited += waited;
            self.minimum.waited += waited;
            if let Ok(output) = output {
                return Ok(output);
            }
        }
    }

    fn check_rate(&mut self, slot: &mut DownloadSlot) -> Result<(), Ended> {
        if self.minimum.waited >= self.minimum_after {
            let (rate, after) = (self.minimum.rate(), self.minimum.waited);
            self.minimum = Span::default();
            if rate < MIN_RATE {
                return Err(Ended::TooSlow(TooSlow { minimum: MIN_RATE, rate, after }));
            }
        }
        if self.slow.waited >= self.slow_after {
            let rate = self.slow.rate();
            self.slow = Span::default();
            if rate < SLOW_RATE {
                slot.continue_outside_slots();
            }
        }
        Ok(())
    }
}
