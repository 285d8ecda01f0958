//! A label whose values come from users, with a bounded number of them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{PoisonError, RwLock};

/// How many values of users a label has. Each series costs memory in the program and in Prometheus.
pub const MAX_VALUES: usize = 50;
/// The value of a label for all that are too many.
pub const OTHER: &str = "other";

/// The series of each value of a label. The first [`MAX_VALUES`] values have their own, and all others share one.
///
/// A user can use up the values with references to many hosts; policies are evaluated before any request, so
/// `registries.allow` limits the hosts. The series of [`OTHER`] exists from the start, so that queries always find the
/// metric.
pub struct Bounded<V> {
    known: RwLock<HashMap<Box<str>, V>>,
    other: V,
    create: Box<dyn Fn(&str) -> V + Send + Sync>,
}

impl<V> Bounded<V> {
    /// Makes a label without values. `create` returns the series of a value.
    pub fn new(create: impl Fn(&str) -> V + Send + Sync + 'static) -> Self {
        Self { known: RwLock::default(), other: create(OTHER), create: Box::new(create) }
    }

    /// Calls `work` with the series of a value. It allocates only for a value that was never seen before.
    pub fn with<T>(&self, value: &str, work: impl FnOnce(&V) -> T) -> T {
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(series) = known.get(value) {
                return work(series);
            }
            if known.len() >= MAX_VALUES {
                return work(&self.other);
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have added it, or the last one that fits.
        if !known.contains_key(value) && known.len() >= MAX_VALUES {
            return work(&self.other);
        }
        work(known.entry(value.into()).or_insert_with(|| (self.create)(value)))
    }

    /// Calls `work` with the series of a value, if it has its own. It never creates one.
    pub fn get<T>(&self, value: &str, work: impl FnOnce(&V) -> T) -> Option<T> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(value).map(work)
    }
}

impl<V> fmt::Debug for Bounded<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Bounded").field("values", &known.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn values_beyond_the_limit_share_one_series() {
        let series = Bounded::new(|value| (value.to_owned(), AtomicUsize::new(0)));
        let add = |value: &str| {
            series.with(value, |(name, count)| (name.clone(), count.fetch_add(1, Ordering::Relaxed) + 1))
        };
        for number in 0..MAX_VALUES {
            let value = format!("registry-{number}.example");
            assert_eq!(add(&value), (value, 1));
        }
        assert_eq!(add("one-too-many.example"), (OTHER.to_owned(), 1));
        assert_eq!(add("another.example"), (OTHER.to_owned(), 2));
        assert_eq!(
            add("registry-0.example"),
            ("registry-0.example".to_owned(), 2),
            "the first ones keep theirs"
        );
    }
}
