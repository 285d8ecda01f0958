//! Remembers the endpoints that did not answer, so that not every request waits for them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::reference::RegistryHost;

/// How long an endpoint that did not answer is tried after the others.
pub(super) const AVOIDED_FOR: Duration = Duration::from_secs(30);
/// How many endpoints are remembered. The one whose time ends first makes room for another one.
const MAX_ENDPOINTS: usize = 1_024;

/// An endpoint of a registry that did not answer.
///
/// The registry is part of the key, because a mirror of several registries can be slow for one of them only. So can a mirror
/// that fills itself be slow for one repository: only a connection that fails speaks for all repositories.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct EndpointKey {
    pub(super) registry: RegistryHost,
    /// The address of the endpoint, with its path.
    pub(super) base: String,
    /// The repository that did not get an answer. `None` if there was no connection.
    pub(super) repository: Option<String>,
}

/// The endpoints that did not answer in time, and until when they are tried after the others.
#[derive(Debug, Default)]
pub(super) struct FailedEndpoints(Mutex<HashMap<EndpointKey, Instant>>);

impl FailedEndpoints {
    /// Reports whether an endpoint is tried after the others. When its time is over, only the first caller gets `false`
    /// and tries it; the others avoid it until it answers or its time is over again.
    pub(super) fn is_avoided(&self, endpoint: &EndpointKey, now: Instant) -> bool {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(until) = failed.get_mut(endpoint) else { return false };
        let is_avoided = now < *until;
        if !is_avoided {
            *until = now + AVOIDED_FOR;
        }
        is_avoided
    }

    /// Records that an endpoint did not answer. Returns whether it was not recorded before.
    pub(super) fn record(&self, endpoint: EndpointKey, now: Instant) -> bool {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() >= MAX_ENDPOINTS {
            failed.retain(|_, until| now < *until);
        }
        if failed.len() >= MAX_ENDPOINTS && !failed.contains_key(&endpoint) {
            let first = failed.iter().min_by_key(|(_, until)| **until).map(|(key, _)| key.clone());
            first.map(|first| failed.remove(&first));
        }
        failed.insert(endpoint, now + AVOIDED_FOR).is_none()
    }

    /// Records that an endpoint answered.
    pub(super) fn forget(&self, endpoint: &EndpointKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(origin: &str) -> EndpointKey {
        EndpointKey {
            registry: "registry.example".parse().unwrap(),
            base: origin.to_owned(),
            repository: None,
        }
    }

    #[test]
    fn an_endpoint_is_avoided_for_30_s_and_then_tried_by_one_caller() {
        let (failed, now) = (FailedEndpoints::default(), Instant::now());
        let mirror = key("http://mirror.example");
        assert!(!failed.is_avoided(&mirror, now));
        assert!(failed.record(mirror.clone(), now));
        assert!(!failed.record(mirror.clone(), now), "it is known already");
        assert!(failed.is_avoided(&mirror, now + AVOIDED_FOR / 2));
        assert!(!failed.is_avoided(&key("http://other.example"), now));
        assert!(!failed.is_avoided(&mirror, now + AVOIDED_FOR));
        assert!(failed.is_avoided(&mirror, now + AVOIDED_FOR), "the second caller does not wait for it");
        assert!(!failed.is_avoided(&mirror, now + 2 * AVOIDED_FOR));
        failed.forget(&mirror);
        assert!(!failed.is_avoided(&mirror, now));
    }

    #[test]
    fn the_number_of_endpoints_is_limited() {
        let (failed, now) = (FailedEndpoints::default(), Instant::now());
        let name = |number: usize| key(&format!("http://{number}.example"));
        for number in 0..2 * MAX_ENDPOINTS {
            failed.record(name(number), now);
        }
        assert_eq!(failed.0.lock().unwrap().len(), MAX_ENDPOINTS);
        assert!(failed.record(name(0), now + AVOIDED_FOR), "the old ones are removed");
        assert_eq!(failed.0.lock().unwrap().len(), 1);
    }
}
