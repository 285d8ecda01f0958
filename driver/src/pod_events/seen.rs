//! Which events were sent lately.

use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash as _, Hasher as _};
use std::path::Path;
use std::time::Instant;

use super::Reason;

/// How many events are remembered. Kubelet runs at most some hundred pods on a node, each with up to four events a volume.
const MAX_SEEN: usize = 4_096;

/// The events that were sent lately, by the target of their volume. Kubelet publishes the same volume again and again.
#[derive(Default)]
pub(super) struct Seen {
    times: HashMap<u64, Instant>,
    /// In the order in which they were sent.
    order: VecDeque<u64>,
}

impl Seen {
    /// Adds an event. Reports whether it is new.
    pub(super) fn add(&mut self, target: &Path, reason: Reason, now: Instant) -> bool {
        let key = key(target, reason);
        let Entry::Vacant(vacant) = self.times.entry(key) else { return false };
        vacant.insert(now);
        self.order.push_back(key);
        if self.order.len() > MAX_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.times.remove(&oldest);
        }
        true
    }

    /// Returns when the event was sent.
    pub(super) fn since(&self, target: &Path, reason: Reason) -> Option<Instant> {
        self.times.get(&key(target, reason)).copied()
    }
}

/// The hash of an event. Two events with the same hash would cost one of them.
fn key(target: &Path, reason: Reason) -> u64 {
    let mut hasher = DefaultHasher::new();
    (target, reason).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_new_once_and_the_oldest_are_forgotten() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        let target = |number: usize| std::path::PathBuf::from(format!("/pods/{number}/mount"));
        assert!(seen.add(&target(0), Reason::Pulling, now));
        assert!(!seen.add(&target(0), Reason::Pulling, now));
        assert!(seen.add(&target(0), Reason::Mounted, now));
        assert_eq!(seen.since(&target(0), Reason::Pulling), Some(now));
        assert_eq!(seen.since(&target(1), Reason::Pulling), None);
        for number in 1..=MAX_SEEN {
            assert!(seen.add(&target(number), Reason::Pulled, now));
        }
        assert_eq!((seen.times.len(), seen.order.len()), (MAX_SEEN, MAX_SEEN));
        assert!(seen.add(&target(0), Reason::Pulling, now), "the first ones were forgotten");
    }
}
