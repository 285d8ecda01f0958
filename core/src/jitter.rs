//! Random whiles, so that those who wait for the same do not all come at once. Nothing secret hangs on them.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

/// A while between nothing and `longest`; it differs between processes and calls.
pub fn up_to(longest: Duration) -> Duration {
    // The keys of a state are random, and each has others.
    let random = RandomState::new().hash_one(0_u8) >> 32;
    longest.mul_f64(f64::from(u32::try_from(random).unwrap_or_default()) / f64::from(1_u32 << 31) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_while_is_no_longer_than_it_may_be_and_no_two_are_alike() {
        assert_eq!(up_to(Duration::ZERO), Duration::ZERO);
        let longest = Duration::from_secs(1);
        let whiles: Vec<_> = (0..50).map(|_| up_to(longest)).collect();
        assert!(whiles.iter().all(|one| *one < longest));
        assert!(whiles.iter().any(|one| *one != whiles[0]));
    }
}
