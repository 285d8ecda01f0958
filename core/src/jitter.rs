//! Random delays, so that programs that wait for the same event do not all act at the same moment.
//!
//! The random numbers protect no secret; `fastrand` is not a cryptographic generator.

use std::time::Duration;

/// Returns a random duration from zero up to, but not including, `max`.
///
/// ```
/// use std::time::Duration;
///
/// use oras_csi_core::jitter;
///
/// let max = Duration::from_secs(10);
/// assert!(jitter::up_to(max) < max);
/// assert_eq!(jitter::up_to(Duration::ZERO), Duration::ZERO);
/// ```
pub fn up_to(max: Duration) -> Duration {
    max.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_below_the_maximum_and_differ() {
        assert_eq!(up_to(Duration::ZERO), Duration::ZERO);
        let max = Duration::from_secs(1);
        let delays: Vec<_> = (0..50).map(|_| up_to(max)).collect();
        assert!(delays.iter().all(|delay| *delay < max));
        assert!(delays.iter().any(|delay| *delay != delays[0]));
    }
}
