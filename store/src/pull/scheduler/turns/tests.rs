//! Tests of the state machine, with a clock of their own.

use proptest::prelude::*;

use super::*;

const STEP: Duration = Duration::from_millis(250);
const SLOTS: usize = 8;

/// A node whose downloads never end by themselves.
struct Node {
    turns: Turns,
    now: Duration,
    ended_turns: usize,
}

impl Node {
    fn new(slots: usize) -> Self {
        Self { turns: Turns::new(slots), now: Duration::ZERO, ended_turns: 0 }
    }

    fn request(&mut self, tenants: &[&str], host: &str, is_small: bool) -> Id {
        let tenants = tenants.iter().map(|name| Tenant::of_namespace(name)).collect();
        let id = self.turns.request(Request { host: host.into(), is_small, tenants });
        self.turns.assign(self.now);
        id
    }

    fn holds(&self, id: Id) -> bool {
        self.turns.held.contains(&id)
    }

    /// Returns how many slots of a kind a namespace has.
    fn slots_of(&self, tenant: &str, pool: Pool) -> usize {
        let tenant = Tenant::of_namespace(tenant);
        self.turns.held().filter(|hold| hold.pool == pool && hold.tenant == Some(&tenant)).count()
    }

    fn remove(&mut self, id: Id) {
        self.turns.remove(id);
        self.turns.assign(self.now);
    }

    /// Lets every download look at the queue, as downloads do at an interval. `received` says whether they receive bytes.
    fn step(&mut self, received: bool) {
        self.now += STEP;
        for id in self.turns.held.clone() {
            if self.turns.must_end(id, self.now) {
                self.ended_turns += 1;
                let is_parked = self.turns.can_park(id);
                self.turns.end_turn(id, self.now, is_parked, received);
                self.turns.assign(self.now);
            }
        }
        self.turns.assign(self.now);
        self.check();
    }

    fn steps(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.step(true);
        }
    }

    /// Returns after which time a download has a slot.
    fn time_until_held(&mut self, id: Id, at_most: Duration, received: bool) -> Duration {
        let began = self.now;
        while !self.holds(id) {
            assert!(
                self.now.saturating_sub(began) <= at_most,
                "no slot after {:?}",
                self.now.saturating_sub(began)
            );
            self.step(received);
        }
        self.now.saturating_sub(began)
    }

    /// Checks what must always be true.
    fn check(&self) {
        for pool in [Pool::General, Pool::Reserve, Pool::Slow] {
            let held: Vec<_> = self.turns.held().filter(|hold| hold.pool == pool).collect();
            assert!(held.len() <= self.turns.capacity(pool));
            assert!(
                pool == Pool::Slow
                    || held.iter().all(|hold| self.turns.on_host(pool, hold.host) <= self.turns.share(pool))
            );
        }
        assert_eq!(self.turns.next_grant(self.now), None, "no slot is free while a download could use it");
        for (id, download) in &self.turns.downloads {
            let is_held = matches!(download.place, Place::Held { .. });
            assert_eq!((is_held, !is_held), (self.turns.held.contains(id), self.turns.queued.contains(*id)));
        }
    }
}

#[test]
fn a_namespace_without_a_slot_waits_two_seconds_for_those_with_several() {
    for is_small in [true, false] {
        let mut node = Node::new(SLOTS);
        for number in 0..40 {
            let flood = ["red", "blue"][number % 2];
            node.request(&[flood], &format!("{flood}-{}", number % 4), is_small);
        }
        let pools: &[Pool] = if is_small { &[Pool::General, Pool::Reserve] } else { &[Pool::General] };
        for pool in pools {
            assert_eq!(node.slots_of("red", *pool), node.slots_of("blue", *pool));
        }
        // A small blob has a slot of the reserve at once while large ones flood the node.
        if !is_small {
            let small = node.request(&["team"], "team", true);
            assert!(node.holds(small));
            node.remove(small);
        }
        let id = node.request(&["team"], "team", is_small);
        assert!(!node.holds(id));
        let waited = node.time_until_held(id, Duration::from_secs(3), true);
        assert!(waited <= MIN_TURN + STEP, "{waited:?}");
        assert_eq!(node.ended_turns, 1, "one turn is enough");
    }
}

#[test]
fn more_namespaces_than_slots_take_turns() {
    let mut node = Node::new(2);
    let ids: Vec<_> =
        (0..5).map(|number| node.request(&[&format!("t{number}")], &format!("h{number}"), false)).collect();
    let mut held = [0; 5];
    for _ in 0..250 * 4 {
        node.step(true);
        for (at, id) in ids.iter().enumerate() {
            held[at] += usize::from(node.holds(*id));
        }
    }
    // Two slots for 250 s: 100 s for each of five.
    assert!(held.iter().all(|steps| (80 * 4..=120 * 4).contains(steps)), "{held:?}");
    assert!(node.ended_turns <= 2 * 25 + 2, "{} turns of 10 s in 250 s", node.ended_turns);
}

#[test]
fn a_download_that_receives_nothing_gets_longer_turns() {
    let mut node = Node::new(1);
    let (first, second) = (node.request(&["a"], "a", false), node.request(&["b"], "b", false));
    let mut turns = Vec::new();
    for _ in 0..4 {
        for id in [first, second] {
            assert!(node.holds(id));
            let began = node.now;
            while node.holds(id) {
                node.step(false);
            }
            turns.push(node.now.saturating_sub(began).as_secs());
        }
    }
    assert_eq!(turns, [10, 10, 20, 20, 40, 40, 40, 40]);
}

#[test]
fn the_registries_of_a_namespace_take_turns_and_one_registry_gains_nothing() {
    let mut node = Node::new(2);
    let other = node.request(&["other"], "other", false);
    let (slow, same, good) = (
        node.request(&["team"], "slow", false),
        node.request(&["team"], "slow", false),
        node.request(&["team"], "good", false),
    );
    assert!(node.holds(other) && node.holds(slow));
    node.steps(9);
    assert!(node.holds(slow));
    node.steps(2);
    assert!(node.holds(good) && node.holds(other));
    node.remove(good);
    assert!(node.holds(slow), "a download that has begun comes first");
    node.steps(60);
    assert!(node.holds(slow) && !node.holds(same), "one registry is as fast for one blob as for the other");
}

#[test]
fn a_blob_that_several_namespaces_wait_for_has_the_best_position_of_them() {
    let mut node = Node::new(2);
    let (first, second) = (node.request(&["flood"], "a", false), node.request(&["flood"], "b", false));
    let queue: Vec<_> =
        (0..10).map(|number| node.request(&["flood"], &format!("h{number}"), false)).collect();
    let shared = node.request(&["flood"], "shared", false);
    node.steps(3);
    assert!(node.holds(first) && node.holds(second));
    node.turns.set_tenants(shared, ["flood", "team"].map(Tenant::of_namespace).to_vec());
    node.step(true);
    assert!(node.holds(shared) && node.slots_of("team", Pool::General) == 1);
    assert!(!queue.iter().any(|id| node.holds(*id)));
    // It counts for the other namespace, so it stays.
    node.steps(60);
    assert!(node.holds(shared));
    // The pods of that namespace do not wait any more.
    node.turns.set_tenants(shared, vec![Tenant::of_namespace("flood")]);
    assert_eq!((node.slots_of("team", Pool::General), node.slots_of("flood", Pool::General)), (0, 2));
}

#[test]
fn unfinished_downloads_of_a_namespace_are_limited() {
    let mut node = Node::new(1);
    // Each is complete at once, but the disk takes long.
    for number in 0..20 {
        let id = node.request(&["flood"], &format!("h{number}"), false);
        if node.holds(id) {
            node.turns.set_received(id);
            node.turns.assign(node.now);
        }
    }
    let unfinished = node.turns.downloads.values().filter(|download| download.has_begun).count();
    assert_eq!(unfinished, BEGUN_PER_SLOT);
    let other = node.request(&["team"], "team", false);
    assert!(node.holds(other));
    node.turns.set_received(other);
    let small = node.request(&["flood"], "small", true);
    assert!(node.holds(small), "small blobs have a limit of their own");
}

#[test]
fn few_downloads_of_a_namespace_keep_their_connections() {
    let mut node = Node::new(4);
    let flood: Vec<_> = (0..4).map(|number| node.request(&["flood"], &format!("h{number}"), false)).collect();
    let mut parked = Vec::new();
    for id in &flood {
        let can_park = node.turns.can_park(*id);
        parked.push(can_park);
        node.turns.downloads.get_mut(id).unwrap().is_parked = can_park;
    }
    assert_eq!(parked, [true, true, false, false]);
}

#[test]
fn few_downloads_are_compared_however_many_wait() {
    let mut node = Node::new(SLOTS);
    for number in 0..4_000 {
        for tenant in ["red", "blue"] {
            node.request(&[tenant], &format!("{tenant}-{}", number % 2), number % 4 < 2);
        }
    }
    let waiting = node.turns.downloads.len() - node.turns.held.len();
    assert!(waiting > 7_000, "{waiting}");
    // Two hosts and two sizes of each namespace.
    assert_eq!(node.turns.waiting().count(), 8);
    let team = node.request(&["team"], "team", false);
    assert!(node.time_until_held(team, 3 * Duration::from_secs(1), true) <= Duration::from_secs(3));
}

#[test]
fn slow_places_are_shared_by_namespaces() {
    let mut node = Node::new(4);
    let flood: Vec<_> = (0..4).map(|number| node.request(&["flood"], &format!("h{number}"), false)).collect();
    let outside = flood.iter().filter(|id| node.turns.move_outside(**id)).count();
    assert_eq!(outside, 2);
    node.turns.assign(node.now);
    let slow = node.request(&["team"], "team", false);
    assert!(node.holds(slow) && node.turns.move_outside(slow));
    assert!(node.turns.move_outside(slow), "it stays outside");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Namespaces flood the node from hosts of their own or from shared ones. However they do it, another namespace
    /// waits for one short turn if there are more slots than namespaces, and otherwise for a turn of each.
    #[test]
    fn no_namespace_waits_for_more_than_one_turn_of_each_other(
        flood in prop::collection::vec((0_usize..12, 0_usize..3, any::<bool>()), 0..40),
        tenants in 1_usize..12,
        seconds in 0_u64..12,
        is_small in any::<bool>(),
        received in any::<bool>(),
    ) {
        let mut node = Node::new(SLOTS);
        for (tenant, host, is_small) in flood {
            let tenant = tenant % tenants;
            // The first host is shared by all.
            let host = if host == 0 { "shared".to_owned() } else { format!("{tenant}-{host}") };
            node.request(&[&format!("t{tenant}")], &host, is_small);
        }
        for _ in 0..seconds * 4 {
            node.step(received);
        }
        let id = node.request(&["team"], "team", is_small);
        let bound = if tenants < SLOTS { MIN_TURN + STEP } else { TURN * 4 * 2 };
        let waited = node.time_until_held(id, bound + STEP, received);
        prop_assert!(waited <= bound, "{waited:?}");
        // The flood continues, and the download has its share.
        if tenants < SLOTS / 2 {
            let mut held = 0;
            for _ in 0..80 {
                node.step(received);
                held += usize::from(node.holds(id));
            }
            prop_assert!(held >= 40, "{held} of 80 steps");
        }
    }

    /// Downloads come, end, and change their namespaces in any order.
    #[test]
    fn slots_are_never_lost_nor_given_twice(
        steps in prop::collection::vec((0_u8..7, any::<prop::sample::Index>(), 0_usize..4, 0_usize..4), 0..200),
    ) {
        let mut node = Node::new(4);
        let mut ids: Vec<Id> = Vec::new();
        for (action, at, tenant, host) in steps {
            let (name, host) = (format!("t{tenant}"), format!("h{host}"));
            let tenants = if tenant == 0 { vec![] } else { vec![name.as_str()] };
            match (action, ids.is_empty()) {
                (0 | 1, _) | (_, true) => ids.push(node.request(&tenants, &host, action == 1)),
                (2, _) => {
                    let id = ids.swap_remove(at.index(ids.len()));
                    node.remove(id);
                }
                (3, _) => {
                    let tenants = tenants.into_iter().map(Tenant::of_namespace).collect();
                    node.turns.set_tenants(*at.get(&ids), tenants);
                    node.turns.assign(node.now);
                }
                (4, _) => {
                    node.turns.move_outside(*at.get(&ids));
                    node.turns.assign(node.now);
                }
                (5, _) => {
                    let tenants = tenants.into_iter().map(Tenant::of_namespace).collect();
                    let request = Request { host: host.as_str().into(), is_small: false, tenants };
                    ids.extend(node.turns.request_spare(request, node.now));
                    node.turns.assign(node.now);
                }
                _ => node.steps(3),
            }
            node.check();
        }
        for id in ids {
            node.remove(id);
        }
        prop_assert!(node.turns.downloads.is_empty() && node.turns.held.is_empty() && node.turns.queued.is_empty());
    }
}
