//! Compares the claims of downloads: which is next, and which one passes its slot on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::super::tenant::Tenant;
use super::{
    BEGUN_PER_SLOT, Download, Id, MAX_DOUBLINGS, MIN_BEGUN, MIN_TURN, Place, Pool, Request, Served, TURN,
    Turns,
};

/// A namespace, or the registries of one host for a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Share {
    Tenant(Tenant),
    Host(Tenant, Arc<str>),
}

/// The claim of a download on a slot. The smallest claim is the best one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    /// How many slots of this kind the namespace has, and when it was served.
    slots: usize,
    served: Served,
    /// The same for the registry within the namespace.
    host_slots: usize,
    host_served: Served,
    /// A download that has begun comes before others of its registry.
    is_new: bool,
    order: u64,
    pub(super) tenant: Tenant,
}

/// A download that has a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold<'a> {
    pub(super) id: Id,
    pub(super) pool: Pool,
    pub(super) host: &'a Arc<str>,
    /// The namespace that the slot counts for; none for a preload.
    pub(super) tenant: Option<&'a Tenant>,
    since: Duration,
    turn: Duration,
    /// Whether the slot passes to another download already.
    is_passed_on: bool,
}

/// How many registries of a namespace can claim the slots of others at the same time. At most two are at their maximum of
/// slots, so another one can use what these cannot.
const MAX_WAITING_HOSTS: usize = 16;

/// A download that waits.
struct Waiting<'a> {
    id: Id,
    request: &'a Request,
    tenant: Tenant,
}

impl Turns {
    /// Lists the downloads that have a slot.
    pub(super) fn held(&self) -> impl Iterator<Item = Hold<'_>> {
        self.held.iter().filter_map(|id| {
            let download = self.downloads.get(id)?;
            let Place::Held { pool, since, tenant, .. } = &download.place else { return None };
            let turn = TURN * (1 << download.empty_turns.min(MAX_DOUBLINGS));
            let (host, tenant, is_passed_on) = (&download.request.host, tenant.as_ref(), false);
            Some(Hold { id: *id, pool: *pool, host, tenant, since: *since, turn, is_passed_on })
        })
    }

    pub(super) fn on_host(&self, pool: Pool, host: &str) -> usize {
        self.held().filter(|hold| hold.pool == pool && **hold.host == *host).count()
    }

    pub(super) fn has_room(&self, pool: Pool, host: &str) -> bool {
        self.held().filter(|hold| hold.pool == pool).count() < self.capacity(pool)
            && self.on_host(pool, host) < self.share(pool)
    }

    /// Reports whether one more preload from `host` can begin. Preloads have at most half of the node's slots and all
    /// but one of a host's.
    pub(super) fn has_room_for_preload(&self, host: &str, now: Duration) -> bool {
        let begun = self.begun.iter().filter_map(|id| self.downloads.get(id));
        let begun = begun.filter(|other| other.request.tenants.is_empty());
        let (all, on_host) = begun.fold((0, 0), |(all, on_host), other| {
            (all + 1, on_host + usize::from(*other.request.host == *host))
        });
        let share = self.share(Pool::General);
        self.can_preload_now(now) && all < share && on_host < (share - 1).max(1)
    }

    /// Returns the best claim of a download on a slot, over all namespaces that wait for it.
    pub(super) fn claim_of(&self, id: Id, pool: Pool, host: &Arc<str>) -> Option<Claim> {
        let download = self.downloads.get(&id)?;
        let claims = download.request.tenants.iter().map(|tenant| {
            let own = || self.held().filter(|hold| hold.pool == pool && hold.tenant == Some(tenant));
            let served = |share: &Share| self.served.get(share).copied().unwrap_or_default();
            Claim {
                slots: own().count(),
                served: served(&Share::Tenant(tenant.clone())),
                host_slots: own().filter(|hold| hold.host == host).count(),
                host_served: served(&Share::Host(tenant.clone(), host.clone())),
                is_new: !download.has_begun,
                order: download.order,
                tenant: tenant.clone(),
            }
        });
        claims.min()
    }

    /// Counts the unfinished downloads of each namespace, small ones and others.
    pub(super) fn begun(&self) -> BTreeMap<(&Tenant, bool), usize> {
        let mut begun = BTreeMap::new();
        let unfinished = self.begun.iter().filter_map(|id| self.downloads.get(id));
        for download in unfinished.filter(|download| !download.is_helper) {
            for tenant in &download.request.tenants {
                *begun.entry((tenant, download.request.is_small)).or_default() += 1;
            }
        }
        begun
    }

    /// Reports whether a download may begin or continue. The unfinished downloads of a namespace are limited, because
    /// each has blocking threads.
    pub(super) fn can_begin(&self, id: Id, begun: &BTreeMap<(&Tenant, bool), usize>) -> bool {
        let Some(download) = self.downloads.get(&id) else { return false };
        let tenants = begun.len().max(1);
        let limit = (BEGUN_PER_SLOT * self.slots / tenants).max(MIN_BEGUN);
        let unfinished =
            |tenant| begun.get(&(tenant, download.request.is_small)).copied().unwrap_or_default();
        download.has_begun || download.request.tenants.iter().any(|tenant| unfinished(tenant) < limit)
    }

    /// Lists the downloads that wait and can be next.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (Id, &Download)> {
        self.queued.candidates().filter_map(|id| Some((id, self.downloads.get(&id)?)))
    }

    /// Returns the next download that gets a free slot, and the kind of slot.
    pub(super) fn next_grant(&self, now: Duration) -> Option<(Id, Pool)> {
        let pools: Vec<Pool> = [Pool::Reserve, Pool::General]
            .into_iter()
            .filter(|pool| self.held().filter(|hold| hold.pool == *pool).count() < self.capacity(*pool))
            .collect();
        if pools.is_empty() || self.queued.is_empty() {
            return None;
        }
        let begun = self.begun();
        let pods = self.waiting().filter_map(|(id, Download { request, .. })| {
            let has_room = |pool: &Pool| pool.can_serve(request) && self.has_room(*pool, &request.host);
            let pool = pools.iter().copied().find(has_room)?;
            if !self.can_begin(id, &begun) {
                return None;
            }
            Some((self.claim_of(id, pool, &request.host)?, id, pool))
        });
        if let Some((_, id, pool)) = pods.min() {
            return Some((id, pool));
        }
        let preloads = self.waiting().filter(|(_, download)| {
            let host = &download.request.host;
            download.request.tenants.is_empty()
                && self.has_room(Pool::General, host)
                && self.can_preload_now(now)
                && (download.has_begun || self.has_room_for_preload(host, now))
        });
        preloads.min_by_key(|(_, download)| download.order).map(|(id, _)| (id, Pool::General))
    }

    /// Returns which downloads pass their slots on now, and to which downloads.
    pub(super) fn handovers(&self, now: Duration) -> BTreeMap<Id, Id> {
        let mut handovers = BTreeMap::new();
        if self.queued.is_empty() {
            return handovers;
        }
        let waiting = self.first_of_each_share();
        let mut holds: Vec<Hold<'_>> = self.held().collect();
        for next in &waiting {
            let usable = |hold: &Hold<'_>| !hold.is_passed_on && hold.pool.can_serve(next.request);
            let candidates =
                holds.iter().enumerate().filter(|(_, hold)| usable(hold)).filter_map(|(at, hold)| {
                    Some((self.surplus(&holds, hold, next, now)?, now.saturating_sub(hold.since), at))
                });
            let Some((_, _, at)) = candidates.max() else { continue };
            handovers.insert(holds[at].id, next.id);
            holds[at].host = &next.request.host;
            holds[at].tenant = Some(&next.tenant);
            holds[at].is_passed_on = true;
        }
        handovers
    }

    /// Returns the download with the best claim of those that have a better one than this download has.
    pub(super) fn successor_of(&self, id: Id, now: Duration) -> Option<Id> {
        let holds: Vec<Hold<'_>> = self.held().collect();
        let hold = holds.iter().find(|hold| hold.id == id)?;
        let waiting = self.first_of_each_share();
        let mut claims = waiting.iter().filter(|next| hold.pool.can_serve(next.request));
        claims.find(|next| self.surplus(&holds, hold, next, now).is_some()).map(|next| next.id)
    }

    /// Returns the best download of a pod of each namespace, registry and size, best claim first.
    fn first_of_each_share(&self) -> Vec<Waiting<'_>> {
        let begun = self.begun();
        let mut best: BTreeMap<_, (Claim, Waiting<'_>)> = BTreeMap::new();
        for (id, Download { request, .. }) in self.waiting().filter(|(id, _)| self.can_begin(*id, &begun)) {
            let pool = if request.is_small { Pool::Reserve } else { Pool::General };
            let Some(claim) = self.claim_of(id, pool, &request.host) else { continue };
            let tenant = claim.tenant.clone();
            let share = (tenant.clone(), &request.host, request.is_small);
            if best.get(&share).is_none_or(|(other, _)| claim < *other) {
                best.insert(share, (claim, Waiting { id, request, tenant }));
            }
        }
        let mut best: Vec<_> = best.into_values().collect();
        best.sort_by(|one, other| one.0.cmp(&other.0));
        let mut hosts: BTreeMap<_, usize> = BTreeMap::new();
        best.retain(|(_, waiting)| {
            let count = hosts.entry((waiting.tenant.clone(), waiting.request.is_small)).or_default();
            *count += 1;
            *count <= MAX_WAITING_HOSTS
        });
        best.into_iter().map(|(_, waiting)| waiting).collect()
    }

    /// Returns by how much the claim of `next` on the slot `hold` is better than that of its owner; `None` if it is not.
    fn surplus(
        &self,
        holds: &[Hold<'_>],
        hold: &Hold<'_>,
        next: &Waiting<'_>,
        now: Duration,
    ) -> Option<usize> {
        let of_pool = || holds.iter().filter(|other| other.pool == hold.pool);
        let host = &next.request.host;
        let is_host_full = of_pool().filter(|other| other.host == host).count() >= self.share(hold.pool);
        if is_host_full && hold.host != host {
            return None;
        }
        let Some(owner) = hold.tenant else { return Some(usize::MAX) };
        let count = |tenant: &Tenant, host: Option<&Arc<str>>| {
            let own = of_pool().filter(|other| other.tenant == Some(tenant));
            own.filter(|other| host.is_none_or(|host| other.host == host)).count()
        };
        let (mine, theirs) = if *owner == next.tenant {
            // Within a namespace, the registries take turns. One registry gains nothing from it.
            if hold.host == host {
                return None;
            }
            (count(owner, Some(host)), count(owner, Some(hold.host)))
        } else {
            // What both need is a slot of the host if the host has no more, else a slot of the node.
            let host = is_host_full.then_some(host);
            (count(&next.tenant, host), count(owner, host))
        };
        let age = now.saturating_sub(hold.since);
        let has_better_claim =
            (mine + 1 < theirs && age >= MIN_TURN) || (mine == 0 && theirs == 1 && age >= hold.turn);
        has_better_claim.then_some(theirs)
    }
}
