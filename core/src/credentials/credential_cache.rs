//! A cache whose entries expire individually, with one lookup at a time for each key.

use std::future::Future;
use std::hash::Hash;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::future::Cache;

/// The maximum number of entries. Entries above it are evicted and looked up again.
const MAX_ENTRIES: u64 = 1000;

/// Values by key, each with its own lifetime.
#[derive(Clone)]
pub(super) struct CredentialCache<K, V>(Cache<K, Entry<V>>);

#[derive(Clone)]
struct Entry<V> {
    value: V,
    lifetime: Duration,
}

struct EntryLifetime;

impl<K, V> Expiry<K, Entry<V>> for EntryLifetime {
    fn expire_after_create(&self, _: &K, entry: &Entry<V>, _: Instant) -> Option<Duration> {
        Some(entry.lifetime)
    }

    fn expire_after_update(
        &self,
        key: &K,
        entry: &Entry<V>,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, entry, now)
    }
}

impl<K, V> CredentialCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new() -> Self {
        Self(Cache::builder().max_capacity(MAX_ENTRIES).expire_after(EntryLifetime).build())
    }

    pub(super) async fn get(&self, key: &K) -> Option<V> {
        self.0.get(key).await.map(|entry| entry.value)
    }

    pub(super) async fn insert(&self, key: K, value: V, lifetime: Duration) {
        if !lifetime.is_zero() {
            self.0.insert(key, Entry { value, lifetime }).await;
        }
    }

    /// Returns the cached value, or runs `lookup`, which returns a value and its lifetime.
    ///
    /// Concurrent callers with the same key share one lookup. It runs in a task of its own, so that a caller that is
    /// cancelled does not cancel the lookup for the others. Returns `None` if that task was aborted.
    pub(super) async fn get_or_insert_with(
        &self,
        key: K,
        lookup: impl Future<Output = (V, Duration)> + Send + 'static,
    ) -> Option<V> {
        if let Some(value) = self.get(&key).await {
            return Some(value);
        }
        let cache = self.0.clone();
        let task = tokio::spawn(async move {
            let lookup = async {
                let (value, lifetime) = lookup.await;
                Entry { value, lifetime }
            };
            cache.get_with(key, lookup).await.value
        });
        task.await.ok()
    }
}
