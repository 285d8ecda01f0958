//! The watermarks of garbage collection: when it starts, and when it ends.

use std::time::Duration;

use crate::disk::DiskSpace;
use crate::limits::Percent;

/// Defines when garbage collection starts and how much it deletes. The defaults are kubelet's for images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    high: Percent,
    low: Percent,
    max_bytes: Option<u64>,
    minimum_age: Duration,
    interval: Duration,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self {
            high: Percent::DEFAULT_HIGH_WATERMARK,
            low: Percent::DEFAULT_LOW_WATERMARK,
            max_bytes: None,
            minimum_age: Duration::from_mins(2),
            interval: Duration::from_mins(1),
        }
    }
}

impl Watermarks {
    /// Sets the watermarks as percentages of the store's file system (bytes or inodes): collection starts
    /// above `high` and ends at `low`. A `low` above `high` counts as `high`.
    #[must_use]
    pub fn with_marks(self, high: Percent, low: Percent) -> Self {
        Self { high, low: low.min(high), ..self }
    }

    /// Sets the maximum number of bytes in the store. Above it, collection starts as well.
    #[must_use]
    pub fn with_max_bytes(self, max_bytes: Option<u64>) -> Self {
        Self { max_bytes, ..self }
    }

    /// Sets the minimum age: items that were used within this time stay. The default is two minutes.
    #[must_use]
    pub fn with_minimum_age(self, minimum_age: Duration) -> Self {
        Self { minimum_age, ..self }
    }

    /// Sets the interval between collections. The default is one minute.
    #[must_use]
    pub fn with_interval(self, interval: Duration) -> Self {
        Self { interval: interval.max(Duration::from_millis(1)), ..self }
    }

    /// Returns the minimum age: items that were used within this time stay.
    pub fn minimum_age(&self) -> Duration {
        self.minimum_age
    }

    /// Returns the interval between collections.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Returns the maximum number of bytes in the store, if it is limited.
    pub fn max_bytes(&self) -> Option<u64> {
        self.max_bytes
    }

    /// Reports whether usage of the file system or of the store is above the limit: the high watermark
    /// `before` the first deletion, the low watermark afterwards.
    pub(super) fn is_above(&self, space: DiskSpace, bytes: Option<u64>, before: bool) -> bool {
        let mark = if before { self.high } else { self.low };
        let limit = self.max_bytes.map(|limit| {
            // The low limit has the same ratio to the limit as the low watermark to the high one.
            let (low, high) = (u128::from(self.low.number()), u128::from(self.high.number().max(1)));
            if before { limit } else { u64::try_from(u128::from(limit) * low / high).unwrap_or(limit) }
        });
        let too_many = bytes.zip(limit).is_some_and(|(bytes, limit)| bytes > limit);
        space.is_above(mark) || too_many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_apply_to_bytes_inodes_and_the_store_size() {
        let marks = Watermarks::default();
        let full = |bytes, inodes| DiskSpace::new((bytes, 100 - bytes), (inodes, 100 - inodes));
        for (bytes, inodes, before, after) in [
            (85, 85, false, true),
            (86, 0, true, true),
            (0, 86, true, true),
            (81, 0, false, true),
            (80, 80, false, false),
        ] {
            assert_eq!(marks.is_above(full(bytes, inodes), None, true), before, "{bytes} {inodes}");
            assert_eq!(marks.is_above(full(bytes, inodes), None, false), after, "{bytes} {inodes}");
        }
        // A file system that allocates inodes on demand.
        assert!(!marks.is_above(DiskSpace::new((1, 99), (0, 0)), None, true));
        let limited = marks.with_max_bytes(Some(850));
        let empty = full(0, 0);
        assert!(limited.is_above(empty, Some(851), true) && !limited.is_above(empty, Some(850), true));
        assert!(limited.is_above(empty, Some(801), false) && !limited.is_above(empty, Some(800), false));
    }
}
