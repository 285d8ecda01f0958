//! Answers that are remembered for a while, and asked for once.

use std::future::Future;
use std::hash::Hash;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::future::Cache;

/// More are forgotten: they are asked for again.
const MOST: u64 = 1000;

/// What is remembered under keys, each for a time of its own.
#[derive(Clone)]
pub(super) struct Memory<K, V>(Cache<K, Kept<V>>);

#[derive(Clone)]
struct Kept<V> {
    value: V,
    life: Duration,
}

struct Life;

impl<K, V> Expiry<K, Kept<V>> for Life {
    fn expire_after_create(&self, _: &K, kept: &Kept<V>, _: Instant) -> Option<Duration> {
        Some(kept.life)
    }

    fn expire_after_update(
        &self,
        key: &K,
        kept: &Kept<V>,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, kept, now)
    }
}

impl<K, V> Memory<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new() -> Self {
        Self(Cache::builder().max_capacity(MOST).expire_after(Life).build())
    }

    pub(super) async fn get(&self, key: &K) -> Option<V> {
        self.0.get(key).await.map(|kept| kept.value)
    }

    pub(super) async fn keep(&self, key: K, value: V, life: Duration) {
        if !life.is_zero() {
            self.0.insert(key, Kept { value, life }).await;
        }
    }

    /// What is remembered, or what `ask` says, and for how long that is true. All who ask for one thing at one
    /// time wait for one answer, in a task of its own: who gives up takes nothing from the others. `None` when
    /// that task was ended.
    pub(super) async fn get_or_ask(
        &self,
        key: K,
        ask: impl Future<Output = (V, Duration)> + Send + 'static,
    ) -> Option<V> {
        if let Some(value) = self.get(&key).await {
            return Some(value);
        }
        let cache = self.0.clone();
        let task = tokio::spawn(async move {
            let ask = async {
                let (value, life) = ask.await;
                Kept { value, life }
            };
            cache.get_with(key, ask).await.value
        });
        task.await.ok()
    }
}
