//! Limits how many sets are resolved at the same time, so that the sets of some namespaces, at registries that do not
//! answer, do not stop those of others.
//!
//! A namespace has a share of all places. A set waits first for the share of its namespace and then for a place, each in
//! the order of arrival. So a namespace has no more sets in the second queue than its share, however many it has.
//!
//! A set whose last try failed needs one of the places for retries as well, which are half of all places and half of each
//! share. So sets at registries that do not answer leave the other half to sets that have not failed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many sets of one kind are resolved at the same time.
const PLACES: usize = 32;
/// How many of them can be of one namespace.
const SHARE: usize = 4;

/// Places for sets of one kind.
#[derive(Debug)]
pub(super) struct Places {
    all: Queue,
    retries: Queue,
}

/// A place that a set has. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    _place: Permits,
    _retry: Option<Permits>,
}

impl Places {
    /// Returns the places for sets of namespaces.
    pub(super) fn for_namespaces() -> Self {
        Self { all: Queue::new(PLACES, SHARE), retries: Queue::new(PLACES / 2, SHARE / 2) }
    }

    /// Returns the places for cluster sets, which all belong to the administrator.
    pub(super) fn for_cluster() -> Self {
        Self { all: Queue::new(PLACES, PLACES), retries: Queue::new(PLACES / 2, PLACES / 2) }
    }

    /// Waits for a place. `namespace` is `None` for a cluster set.
    pub(super) async fn acquire(&self, namespace: Option<&str>, is_retry: bool) -> Place {
        let retry = if is_retry { Some(self.retries.acquire(namespace).await) } else { None };
        Place { _place: self.all.acquire(namespace).await, _retry: retry }
    }
}

/// Places with a share for each namespace. Namespaces without sets in the queue are removed.
#[derive(Debug)]
struct Queue {
    places: Arc<Semaphore>,
    share: usize,
    shares: Mutex<HashMap<Option<String>, Weak<Semaphore>>>,
}

/// A part of the share of a namespace, and a place. They are `None` only if a semaphore is closed, which none ever is.
type Permits = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

impl Queue {
    fn new(places: usize, share: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), share, shares: Mutex::default() }
    }

    async fn acquire(&self, namespace: Option<&str>) -> Permits {
        let share = self.share_of(namespace).acquire_owned().await.ok();
        (share, Arc::clone(&self.places).acquire_owned().await.ok())
    }

    fn share_of(&self, namespace: Option<&str>) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.retain(|_, share| share.strong_count() > 0);
        let namespace = namespace.map(str::to_owned);
        if let Some(share) = shares.get(&namespace).and_then(Weak::upgrade) {
            return share;
        }
        let share = Arc::new(Semaphore::new(self.share));
        shares.insert(namespace, Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// Takes places until none is left, and returns them.
    fn take_all(places: &Places, namespace: Option<&str>, is_retry: bool) -> Vec<Place> {
        std::iter::from_fn(|| places.acquire(namespace, is_retry).now_or_never()).collect()
    }

    #[test]
    fn a_namespace_has_a_share_and_retries_have_half_of_it() {
        let places = Places::for_namespaces();
        let retries = take_all(&places, Some("a"), true);
        let others = take_all(&places, Some("a"), false);
        assert_eq!((retries.len(), others.len()), (SHARE / 2, SHARE / 2));
        drop(retries);
        assert_eq!(take_all(&places, Some("a"), false).len(), SHARE / 2);
        drop(others);
        assert_eq!(take_all(&places, Some("b"), false).len(), SHARE);
        assert_eq!(places.all.shares.lock().unwrap().len(), 1, "only the last namespace");
    }

    #[test]
    fn retries_of_all_namespaces_leave_half_of_the_places() {
        let places = Places::for_namespaces();
        let names: Vec<String> = (0..2 * PLACES).map(|number| number.to_string()).collect();
        let take = |is_retry| -> Vec<Place> {
            names.iter().flat_map(|name| take_all(&places, Some(name), is_retry)).collect()
        };
        let retries = take(true);
        assert_eq!(retries.len(), PLACES / 2);
        assert_eq!(take(false).len(), PLACES / 2);
    }

    #[test]
    fn cluster_sets_have_one_share() {
        let places = Places::for_cluster();
        let retries = take_all(&places, None, true);
        assert_eq!((retries.len(), take_all(&places, None, false).len()), (PLACES / 2, PLACES / 2));
    }

    #[tokio::test]
    async fn a_place_goes_to_the_set_that_has_waited_longest() {
        let places = Arc::new(Places::for_namespaces());
        let held = take_all(&places, Some("a"), false);
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiting: Vec<_> = (0..10)
            .map(|number| {
                let (places, order) = (Arc::clone(&places), Arc::clone(&order));
                tokio::spawn(async move {
                    let place = places.acquire(Some("a"), false).await;
                    order.lock().unwrap().push(number);
                    drop(place);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(held);
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..10).collect::<Vec<_>>());
    }
}
