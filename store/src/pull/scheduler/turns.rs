//! Decides which downloads have a slot, and when the turn of a download ends. A state machine without I/O: the caller
//! passes the time, and asks for the downloads that got a slot.
//!
//! - A free slot goes to the namespace that has the fewest slots; among equals, to the one that was served longest ago.
//!   Within the namespace it goes to the registry with the fewest slots, by the same rule.
//! - A download has its slot until it is complete, unless another one has a better claim: its namespace has at least
//!   two slots fewer, or none at all. Then the turn of the first one ends, after a time in which it can make progress.
//!   The slot passes directly to the download that has the claim.
//! - The slots of the reserve are for small blobs, and one registry has at most half of each kind of slot.
//! - Preloads belong to no namespace. They get slots that no pod needs, and lose them when a pod needs one.

mod queue;
mod ranking;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use self::queue::Queue;
use self::ranking::Share;
use super::super::tenant::Tenant;

/// A turn is at least this long while its namespace has more slots than its share. It is short, because a small
/// artifact of another namespace must be mounted within seconds.
pub(super) const MIN_TURN: Duration = Duration::from_secs(2);
/// A turn is this long when more namespaces wait than there are slots, so that they take turns. Each turn costs a
/// request.
pub(super) const TURN: Duration = Duration::from_secs(10);
/// How often the length of a turn doubles for a download that received nothing in its last turn: up to 40 s, because
/// a registry may take 30 s to answer.
const MAX_DOUBLINGS: u32 = 2;
/// How many downloads of one namespace keep their connection while they wait for their next turn. Others request the
/// rest of the blob again.
const MAX_PARKED: usize = 2;
/// How many downloads may be unfinished for each slot: each has blocking threads, also while it waits for its turn or
/// unpacks. The namespaces share this number, and each can have at least the second one.
const BEGUN_PER_SLOT: usize = 6;
const MIN_BEGUN: usize = 2;
/// While pods download, all preloads pause for the first time and run for the second one. So a pod with a very slow
/// registry does not block preloads permanently, and registries do not close the connections that pause.
const PRELOAD_PAUSE: Duration = Duration::from_secs(30);
const PRELOAD_RUN: Duration = Duration::from_secs(5);
/// Above this number, the shares that were served longest ago are forgotten.
const MAX_SERVED: usize = 4_096;

/// A download.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id(u64);

/// What a download needs a slot for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) host: Arc<str>,
    /// Whether the blob is small enough for the reserve.
    pub(super) is_small: bool,
    /// The namespaces whose pods wait for the blob. There are none for a preload.
    pub(super) tenants: Vec<Tenant>,
}

/// A kind of slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Pool {
    /// The slots for all blobs.
    General,
    /// The slots for small blobs.
    Reserve,
    /// The places for slow downloads, which do not count as slots.
    Slow,
}

/// When a share was served: the time, and the order of the grants for shares that were served at the same time.
type Served = (Duration, u64);

#[derive(Clone, Debug)]
enum Place {
    Queued,
    /// The slot counts for this namespace; for none if it is a preload. `order` is that of the grants.
    Held {
        pool: Pool,
        since: Duration,
        order: u64,
        tenant: Option<Tenant>,
    },
    /// All bytes have arrived, and the disk still works.
    Received,
}

#[derive(Clone, Debug)]
struct Download {
    request: Request,
    place: Place,
    /// The position in the queue.
    order: u64,
    has_begun: bool,
    /// Whether it downloads a range for another download. It has no threads of its own.
    is_helper: bool,
    is_parked: bool,
    /// The number of turns without a byte, one after the other.
    empty_turns: u32,
}

/// The slots of a node, and the downloads that have or need one.
#[derive(Debug)]
pub(super) struct Turns {
    slots: usize,
    downloads: BTreeMap<Id, Download>,
    held: BTreeSet<Id>,
    queued: Queue,
    /// The downloads that have begun.
    begun: BTreeSet<Id>,
    granted: Vec<Id>,
    /// When each namespace, and each of its registries, was last served.
    served: HashMap<Share, Served>,
    clock: u64,
    /// Since when pods have slots.
    pods_since: Option<Duration>,
}

impl Turns {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots,
            downloads: BTreeMap::new(),
            held: BTreeSet::new(),
            queued: Queue::default(),
            begun: BTreeSet::new(),
            granted: Vec::new(),
            served: HashMap::new(),
            clock: 0,
            pods_since: None,
        }
    }

    fn capacity(&self, pool: Pool) -> usize {
        match pool {
            Pool::General | Pool::Slow => self.slots,
            Pool::Reserve => self.slots.div_ceil(2),
        }
    }

    /// How many slots of a kind one host can have, and of the slow places one namespace.
    fn share(&self, pool: Pool) -> usize {
        (self.capacity(pool) / 2).max(1)
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Adds a download that needs a slot.
    pub(super) fn request(&mut self, request: Request) -> Id {
        let order = self.tick();
        let id = Id(order);
        let download = Download {
            request,
            place: Place::Queued,
            order,
            has_begun: false,
            is_helper: false,
            is_parked: false,
            empty_turns: 0,
        };
        self.queued.insert(id, &download);
        self.downloads.insert(id, download);
        id
    }

    /// Adds a download that uses a slot only if one is free now.
    pub(super) fn request_spare(&mut self, request: Request, now: Duration) -> Option<Id> {
        let is_preload = request.tenants.is_empty();
        if !self.has_room(Pool::General, &request.host)
            || (is_preload && !self.has_room_for_preload(&request.host, now))
        {
            return None;
        }
        let id = self.request(request);
        if let Some(download) = self.downloads.get_mut(&id) {
            download.is_helper = true;
        }
        self.grant(id, Pool::General, now);
        Some(id)
    }

    /// Removes a download. If it has a slot, the slot is free.
    pub(super) fn remove(&mut self, id: Id) {
        self.downloads.remove(&id);
        self.held.remove(&id);
        self.queued.remove(id);
        self.begun.remove(&id);
    }

    /// Sets the namespaces whose pods wait for a download.
    pub(super) fn set_tenants(&mut self, id: Id, tenants: Vec<Tenant>) {
        let Some(download) = self.downloads.get_mut(&id) else { return };
        download.request.tenants = tenants;
        if let Place::Held { pool, since, order, .. } = download.place {
            let host = download.request.host.clone();
            // The slot does not count while the namespace that it counts for is chosen.
            self.held.remove(&id);
            let tenant = self.claim_of(id, pool, &host).map(|claim| claim.tenant);
            self.held.insert(id);
            self.place(id, Place::Held { pool, since, order, tenant });
        } else if self.queued.contains(id) {
            self.queued.insert(id, download);
        }
    }

    /// Gives free slots to downloads that wait.
    pub(super) fn assign(&mut self, now: Duration) {
        // Preloads depend on whether pods have slots.
        self.note_pods(now);
        while let Some((id, pool)) = self.next_grant(now) {
            self.grant(id, pool, now);
        }
        self.note_pods(now);
    }

    fn note_pods(&mut self, now: Duration) {
        let pods_hold = self.held().any(|hold| hold.pool != Pool::Slow && hold.tenant.is_some());
        self.pods_since = if pods_hold { self.pods_since.or(Some(now)) } else { None };
    }

    /// Returns the downloads that got a slot since the last call.
    pub(super) fn take_granted(&mut self) -> Vec<Id> {
        std::mem::take(&mut self.granted)
    }

    fn place(&mut self, id: Id, place: Place) {
        if let Some(download) = self.downloads.get_mut(&id) {
            download.place = place;
        }
    }

    fn grant(&mut self, id: Id, pool: Pool, now: Duration) {
        let Some(host) = self.downloads.get(&id).map(|download| download.request.host.clone()) else {
            return;
        };
        let tenant = self.claim_of(id, pool, &host).map(|claim| claim.tenant);
        let order = self.tick();
        if let Some(tenant) = &tenant {
            self.serve(tenant, &host, (now, order));
        }
        self.queued.remove(id);
        self.held.insert(id);
        self.begun.insert(id);
        self.granted.push(id);
        if let Some(download) = self.downloads.get_mut(&id) {
            (download.has_begun, download.is_parked) = (true, false);
            download.place = Place::Held { pool, since: now, order, tenant };
        }
    }

    /// Records that a namespace had its turn, so that others come first.
    fn serve(&mut self, tenant: &Tenant, host: &Arc<str>, served: Served) {
        if self.served.len() >= MAX_SERVED {
            let mut times: Vec<Served> = self.served.values().copied().collect();
            let (_, middle, _) = times.select_nth_unstable(MAX_SERVED / 2);
            let middle = *middle;
            self.served.retain(|_, served| *served > middle);
        }
        self.served.insert(Share::Tenant(tenant.clone()), served);
        self.served.insert(Share::Host(tenant.clone(), host.clone()), served);
    }

    /// Ends the turn of a download, which then waits for its next one. The slot passes to the download that has a better
    /// claim, or to the next in the queue. `received` says whether bytes arrived in this turn.
    pub(super) fn end_turn(&mut self, id: Id, now: Duration, is_parked: bool, received: bool) {
        let successor = self.successor_of(id, now);
        let order = self.tick();
        let Some(download) = self.downloads.get_mut(&id) else { return };
        download.order = order;
        download.is_parked = is_parked;
        download.empty_turns = if received { 0 } else { download.empty_turns + 1 };
        let host = download.request.host.clone();
        let ended = std::mem::replace(&mut download.place, Place::Queued);
        self.held.remove(&id);
        self.queued.insert(id, download);
        let Place::Held { pool, order, tenant, .. } = ended else { return };
        if let Some(tenant) = &tenant {
            self.serve(tenant, &host, (now, order));
        }
        if let Some(successor) = successor
            && let Some(next) = self.downloads.get(&successor)
            && self.has_room(pool, &next.request.host)
        {
            self.grant(successor, pool, now);
        }
    }

    /// Releases the slot of a download whose bytes have all arrived. It still counts as unfinished.
    pub(super) fn set_received(&mut self, id: Id) {
        self.held.remove(&id);
        self.queued.remove(id);
        self.place(id, Place::Received);
    }

    /// Moves a slow download out of its slot, if a place for slow downloads is free. Returns whether it has such a
    /// place.
    pub(super) fn move_outside(&mut self, id: Id) -> bool {
        let Some(hold) = self.held().find(|hold| hold.id == id) else { return false };
        if hold.pool == Pool::Slow {
            return true;
        }
        let slow = || self.held().filter(|other| other.pool == Pool::Slow);
        let of_tenant = slow().filter(|other| other.tenant == hold.tenant).count();
        if slow().count() >= self.capacity(Pool::Slow) || of_tenant >= self.share(Pool::Slow) {
            return false;
        }
        if let Some(Download { place: Place::Held { pool, .. }, .. }) = self.downloads.get_mut(&id) {
            *pool = Pool::Slow;
        }
        true
    }

    /// Reports whether the turn of a download ends now.
    pub(super) fn must_end(&self, id: Id, now: Duration) -> bool {
        let Some(hold) = self.held().find(|hold| hold.id == id) else { return false };
        (hold.tenant.is_none() && !self.can_preload_now(now)) || self.handovers(now).contains_key(&id)
    }

    /// Reports whether a pod waits that could use the slot of this download.
    pub(super) fn is_wanted(&self, id: Id) -> bool {
        let Some(hold) = self.held().find(|hold| hold.id == id) else { return false };
        let begun = self.begun();
        self.waiting().any(|(id, download)| {
            !download.request.tenants.is_empty()
                && hold.pool.can_serve(&download.request)
                && self.can_begin(id, &begun)
                && (**hold.host == *download.request.host
                    || self.on_host(hold.pool, &download.request.host) < self.share(hold.pool))
        })
    }

    /// Reports whether a download can keep its connection while it waits for its next turn.
    pub(super) fn can_park(&self, id: Id) -> bool {
        let Some(Download { place: Place::Held { tenant: Some(tenant), .. }, .. }) = self.downloads.get(&id)
        else {
            // Preloads that have begun are few.
            return true;
        };
        let is_parked =
            |download: &&Download| download.is_parked && download.request.tenants.contains(tenant);
        // A download that keeps its connection has begun.
        let begun = self.begun.iter().filter_map(|id| self.downloads.get(id));
        begun.filter(is_parked).count() < MAX_PARKED
    }

    /// Reports whether preloads may download now: while no pod does, or in the short intervals in between.
    fn can_preload_now(&self, now: Duration) -> bool {
        let period = (PRELOAD_PAUSE + PRELOAD_RUN).as_secs();
        self.pods_since
            .is_none_or(|since| now.saturating_sub(since).as_secs() % period >= PRELOAD_PAUSE.as_secs())
    }
}

impl Pool {
    fn can_serve(self, request: &Request) -> bool {
        match self {
            Self::General => true,
            Self::Reserve => request.is_small && !request.tenants.is_empty(),
            Self::Slow => false,
        }
    }
}

#[cfg(test)]
mod tests;
