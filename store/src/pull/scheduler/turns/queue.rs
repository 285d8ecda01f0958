//! The downloads that wait for a slot, grouped by what decides their claims: the namespaces that wait for them, the host
//! and the kind of slot.
//!
//! In a group, a download that has begun comes before the others, and then the earlier one before the later one. So only
//! the first of each kind has to be compared with those of other groups, however many downloads wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::super::tenant::Tenant;
use super::{Download, Id};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    tenants: Vec<Tenant>,
    host: Arc<str>,
    is_small: bool,
}

/// The position in a group: whether the download is new, its order, and the download.
type Position = (bool, u64, Id);

/// The downloads that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    groups: BTreeMap<Arc<Group>, BTreeSet<Position>>,
    places: BTreeMap<Id, (Arc<Group>, Position)>,
}

impl Queue {
    /// Adds a download, or moves it to where it belongs now.
    pub(super) fn insert(&mut self, id: Id, download: &Download) {
        self.remove(id);
        let request = &download.request;
        let group = Group {
            tenants: request.tenants.clone(),
            host: request.host.clone(),
            is_small: request.is_small,
        };
        let (group, position) = (Arc::new(group), (!download.has_begun, download.order, id));
        self.groups.entry(group.clone()).or_default().insert(position);
        self.places.insert(id, (group, position));
    }

    /// Removes a download, if it is in the queue.
    pub(super) fn remove(&mut self, id: Id) {
        let Some((group, position)) = self.places.remove(&id) else { return };
        if let Some(positions) = self.groups.get_mut(&group) {
            positions.remove(&position);
            if positions.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    pub(super) fn contains(&self, id: Id) -> bool {
        self.places.contains_key(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Lists the downloads that can be next: of each group the first that has begun, and the first that is new.
    pub(super) fn candidates(&self) -> impl Iterator<Item = Id> {
        self.groups.values().flat_map(|positions| {
            let first = |is_new| {
                let mut of_kind = positions.range((is_new, 0, Id(0))..);
                of_kind.next().filter(|position| position.0 == is_new).map(|position| position.2)
            };
            [first(false), first(true)].into_iter().flatten()
        })
    }
}
