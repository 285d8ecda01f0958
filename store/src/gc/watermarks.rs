//! When collecting begins, and when it ends.

use std::time::Duration;

use crate::disk::DiskSpace;
use crate::limits::Percent;

/// When what nobody uses is taken away, and how much of it. As kubelet does with images, unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    high: Percent,
    low: Percent,
    most_bytes: Option<u64>,
    age: Duration,
    every: Duration,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self {
            high: Percent::DEFAULT_HIGH_WATERMARK,
            low: Percent::DEFAULT_LOW_WATERMARK,
            most_bytes: None,
            age: Duration::from_mins(2),
            every: Duration::from_mins(1),
        }
    }
}

impl Watermarks {
    /// Begins above `high` percent of the store's file system (its bytes or its inodes), and ends at `low`. A low
    /// mark above the high one is the high one.
    #[must_use]
    pub fn with_marks(self, high: Percent, low: Percent) -> Self {
        Self { high, low: low.min(high), ..self }
    }

    /// Begins above this many bytes in the store as well.
    #[must_use]
    pub fn with_most_bytes(self, most_bytes: Option<u64>) -> Self {
        Self { most_bytes, ..self }
    }

    /// What was used within this time stays: two minutes.
    #[must_use]
    pub fn with_age(self, age: Duration) -> Self {
        Self { age, ..self }
    }

    /// Looks this often: every minute.
    #[must_use]
    pub fn with_every(self, every: Duration) -> Self {
        Self { every: every.max(Duration::from_millis(1)), ..self }
    }

    /// What was used within this time stays.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// How often is looked.
    pub fn every(&self) -> Duration {
        self.every
    }

    /// How many bytes the store may have, if that is limited.
    pub fn most_bytes(&self) -> Option<u64> {
        self.most_bytes
    }

    /// Whether there is too much, on this file system and in this store.
    pub(super) fn is_above(&self, space: DiskSpace, bytes: Option<u64>, before: bool) -> bool {
        let mark = if before { self.high } else { self.low };
        let most = self.most_bytes.map(|most| {
            // Down to the same part of the limit that the low mark is of the high one.
            let (low, high) = (u128::from(self.low.number()), u128::from(self.high.number().max(1)));
            if before { most } else { u64::try_from(u128::from(most) * low / high).unwrap_or(most) }
        });
        let too_many = bytes.zip(most).is_some_and(|(bytes, most)| bytes > most);
        space.is_above(mark) || too_many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_of_bytes_inodes_and_the_store() {
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
        // A file system that makes inodes as it needs them.
        assert!(!marks.is_above(DiskSpace::new((1, 99), (0, 0)), None, true));
        let limited = marks.with_most_bytes(Some(850));
        let empty = full(0, 0);
        assert!(limited.is_above(empty, Some(851), true) && !limited.is_above(empty, Some(850), true));
        assert!(limited.is_above(empty, Some(801), false) && !limited.is_above(empty, Some(800), false));
    }
}
