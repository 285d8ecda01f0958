//! A set of byte ranges of a file, such as those that were written.

use std::collections::BTreeMap;
use std::ops::Range;

/// Sorted ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range, and merges it with ranges that it touches.
    pub(crate) fn add(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&from, &to)) = self.0.range(..=end).next_back()
            && to >= start
        {
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
    }

    /// Returns the end of the written bytes that start at `at`; `at` itself if that byte is missing.
    pub(crate) fn end_from(&self, at: u64) -> u64 {
        match self.0.range(..=at).next_back() {
            Some((_, &end)) if end > at => end,
            _ => at,
        }
    }

    /// Returns the parts of a range that are missing.
    pub(crate) fn missing(&self, within: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = self.end_from(within.start);
        for (&start, &end) in self.0.range(at..within.end.max(at)) {
            if start > at {
                missing.push(at..start);
            }
            at = end;
        }
        if at < within.end {
            missing.push(at..within.end);
        }
        missing
    }

    /// Returns the number of written bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// Returns the number of written bytes at or behind `at`.
    pub(crate) fn bytes_from(&self, at: u64) -> u64 {
        self.0.iter().map(|(start, end)| end.max(&at) - start.max(&at)).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_match_a_list_of_bytes(added in prop::collection::vec((0_u64..60, 0_u64..20), 0..12)) {
            let size = 64_u64;
            let mut ranges = Ranges::default();
            let mut bytes = [false; 80];
            for (start, length) in added {
                ranges.add(&(start..start + length));
                for at in start..start + length {
                    bytes[usize::try_from(at).unwrap()] = true;
                }
            }
            let is_there = |at: u64| bytes[usize::try_from(at).unwrap()];
            prop_assert_eq!(ranges.bytes(), (0..80).filter(|at| is_there(*at)).count() as u64);
            for within in [0..size, 10..30, 20..20, 70..75] {
                let missing: Vec<u64> = ranges.missing(within.clone()).into_iter().flatten().collect();
                prop_assert_eq!(missing, within.filter(|at| !is_there(*at)).collect::<Vec<_>>());
            }
            for at in 0..size {
                prop_assert_eq!(ranges.bytes_from(at), (at..80).filter(|at| is_there(*at)).count() as u64);
                let end = (at..80).find(|at| !is_there(*at)).unwrap_or(80);
                prop_assert_eq!(ranges.end_from(at), end);
            }
            let all: Vec<_> = ranges.iter().collect();
            prop_assert!(all.windows(2).all(|two| two[0].end < two[1].start));
        }
    }
}
