//! Who waits for which registry.
//!
//! Whoever asks a registry that stalls waits until its own deadline. There may be thousands of them, as
//! controllers create their pods again and again; what they hold (memory, a task) is everybody's. So a registry
//! that has been silent for a while is given no more of them than a few hundred: the next is told at once. One that
//! answers, however slowly, has no such limit.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use oras_csi_core::reference::RegistryHost;

use super::failure::Failure;

/// How many may wait for a registry that is silent.
const MAX_PER_REGISTRY: usize = 256;
/// How many may wait for all registries together.
const MAX_TOTAL: usize = 16_384;
/// How long a registry may say nothing before it counts as silent. Whoever gives us a client has it wait less where a
/// registry wants us to come back later: that is an answer.
const SILENCE: Duration = Duration::from_secs(2);

/// Counts those who wait.
#[derive(Default)]
pub(super) struct Backpressure(Mutex<Hosts>);

#[derive(Default)]
struct Hosts {
    hosts: HashMap<RegistryHost, Host>,
    all: usize,
}

struct Host {
    waiting: usize,
    /// When it last answered anybody, or the first of those who wait came.
    answered: Instant,
}

/// One who waits, until it is dropped.
pub(super) struct Ticket<'a> {
    waiting: &'a Backpressure,
    host: RegistryHost,
}

impl Backpressure {
    /// Counts one more, unless there are enough.
    pub(super) fn enter(&self, host: &RegistryHost) -> Result<Ticket<'_>, Failure> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = all.hosts.get(host).map_or(0, |host| host.waiting);
        let silent = all.hosts.get(host).map_or(Duration::ZERO, |host| host.answered.elapsed());
        if (waiting >= MAX_PER_REGISTRY && silent > SILENCE) || all.all >= MAX_TOTAL {
            return Err(Failure::Busy { waiting, silent });
        }
        all.all += 1;
        let counted = all.hosts.entry(host.clone());
        counted.or_insert_with(|| Host { waiting: 0, answered: Instant::now() }).waiting += 1;
        Ok(Ticket { waiting: self, host: host.clone() })
    }

    /// Notes that a registry speaks.
    pub(super) fn record_answer(&self, host: &RegistryHost) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = all.hosts.get_mut(host) {
            host.answered = Instant::now();
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut all = self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
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
    fn a_silent_registry_gets_no_more_and_others_do() {
        let waiting = Backpressure::default();
        let slow = host("slow.io");
        let tickets: Vec<_> = (0..2 * MAX_PER_REGISTRY).map(|_| waiting.enter(&slow).unwrap()).collect();
        waiting.0.lock().unwrap().hosts.get_mut(&slow).unwrap().answered -= 2 * SILENCE;
        assert!(matches!(waiting.enter(&slow), Err(Failure::Busy { waiting: 512, .. })));
        assert!(waiting.enter(&host("fast.io")).is_ok());
        waiting.record_answer(&slow);
        assert!(waiting.enter(&slow).is_ok());
        drop(tickets);
        assert!(waiting.0.lock().unwrap().hosts.is_empty());
        assert_eq!(waiting.0.lock().unwrap().all, 0);
    }
}
