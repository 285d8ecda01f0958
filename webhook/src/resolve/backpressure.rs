//! Limits how many lookups wait for a registry that does not answer.
//!
//! A lookup at a stalled registry waits until the deadline of its request. Controllers create their pods again and again,
//! so there may be thousands of such lookups, each with memory and a task. When a registry has not answered for
//! `ResolverSettings::unresponsive_after`, only [`MAX_PER_REGISTRY`] lookups wait for it, and others fail at once. A
//! registry that answers, however slowly, has no such limit.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use oras_csi_core::reference::RegistryHost;

use super::failure::Failure;

/// How many lookups may wait for a registry that does not answer.
const MAX_PER_REGISTRY: usize = 256;
/// How many lookups may wait for all registries together.
const MAX_TOTAL: usize = 16_384;

/// Counts the lookups that wait for each registry.
pub(super) struct Backpressure {
    /// How long a registry may not answer before the limit applies.
    unresponsive_after: Duration,
    hosts: Mutex<Hosts>,
}

#[derive(Default)]
struct Hosts {
    hosts: HashMap<RegistryHost, Host>,
    all: usize,
}

struct Host {
    waiting: usize,
    /// When it last answered a lookup, or when the first waiting lookup started.
    answered: Instant,
}

/// A lookup that waits; dropping it ends the wait.
pub(super) struct Waiter<'a> {
    backpressure: &'a Backpressure,
    host: RegistryHost,
}

impl Backpressure {
    pub(super) fn new(unresponsive_after: Duration) -> Self {
        Self { unresponsive_after, hosts: Mutex::default() }
    }

    /// Counts one more waiting lookup, unless the limit is reached.
    pub(super) fn enter(&self, host: &RegistryHost) -> Result<Waiter<'_>, Failure> {
        let mut all = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = all.hosts.get(host).map_or(0, |host| host.waiting);
        let silent = all.hosts.get(host).map_or(Duration::ZERO, |host| host.answered.elapsed());
        if (waiting >= MAX_PER_REGISTRY && silent > self.unresponsive_after) || all.all >= MAX_TOTAL {
            return Err(Failure::Busy { waiting, silent });
        }
        all.all += 1;
        let counted = all.hosts.entry(host.clone());
        counted.or_insert_with(|| Host { waiting: 0, answered: Instant::now() }).waiting += 1;
        Ok(Waiter { backpressure: self, host: host.clone() })
    }

    /// Records that a registry answered.
    pub(super) fn record_answer(&self, host: &RegistryHost) {
        let mut all = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = all.hosts.get_mut(host) {
            host.answered = Instant::now();
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut all = self.backpressure.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        all.all -= 1;
        if let Some(host) = all.hosts.get_mut(&self.host) {
            host.waiting -= 1;
            if host.waiting == 0 {
                all.hosts.remove(&self.host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> RegistryHost {
        text.parse().unwrap()
    }

    #[test]
    fn a_registry_that_does_not_answer_gets_no_more_lookups() {
        let limit = Duration::from_secs(2);
        let backpressure = Backpressure::new(limit);
        let slow = host("slow.io");
        let waiters: Vec<_> = (0..2 * MAX_PER_REGISTRY).map(|_| backpressure.enter(&slow).unwrap()).collect();
        backpressure.hosts.lock().unwrap().hosts.get_mut(&slow).unwrap().answered -= 2 * limit;
        assert!(matches!(backpressure.enter(&slow), Err(Failure::Busy { waiting: 512, .. })));
        assert!(backpressure.enter(&host("fast.io")).is_ok());
        backpressure.record_answer(&slow);
        assert!(backpressure.enter(&slow).is_ok());
        drop(waiters);
        assert!(backpressure.hosts.lock().unwrap().hosts.is_empty());
        assert_eq!(backpressure.hosts.lock().unwrap().all, 0);
    }
}
