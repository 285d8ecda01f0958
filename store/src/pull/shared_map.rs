//! Values by key that exist as long as a task uses them, such as locks and semaphores.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Values by key. The tasks that use a key at the same time share its value. Keys that are not in use are removed.
#[derive(Debug)]
pub(super) struct SharedMap<K, V>(Mutex<Entries<K, V>>);

#[derive(Debug)]
struct Entries<K, V> {
    by_key: HashMap<K, Weak<V>>,
    /// Above this number, unused keys are looked for: twice the number that was in use the last time.
    clean_above: usize,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Entries { by_key: HashMap::new(), clean_above: 0 }))
    }
}

impl<K: Eq + Hash, V> SharedMap<K, V> {
    /// Returns the value of `key`: the one that another task uses, or else what `create` returns.
    pub(super) fn get_or_create(&self, key: K, create: impl FnOnce() -> V) -> Arc<V> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = entries.by_key.get(&key).and_then(Weak::upgrade) {
            return value;
        }
        if entries.by_key.len() > entries.clean_above {
            entries.by_key.retain(|_, value| value.strong_count() > 0);
            entries.clean_above = 2 * entries.by_key.len();
        }
        let value = Arc::new(create());
        entries.by_key.insert(key, Arc::downgrade(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_use_has_one_value_and_unused_keys_are_removed() {
        let map = SharedMap::default();
        let used = map.get_or_create(0, || "first");
        assert!(Arc::ptr_eq(&used, &map.get_or_create(0, || "second")));
        for key in 1..1000 {
            assert_eq!(*map.get_or_create(key, || "unused"), "unused");
        }
        let kept = map.0.lock().unwrap().by_key.len();
        assert!(kept <= 4, "{kept} keys are kept, of which one is in use");
        assert_eq!(*map.get_or_create(0, || "third"), "first");
        drop(used);
        assert_eq!(*map.get_or_create(0, || "fourth"), "fourth");
    }
}
