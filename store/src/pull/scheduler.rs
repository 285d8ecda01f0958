//! Assigns the download slots of a node, and ends the turns of downloads while others wait.
//!
//! A node downloads a few blobs at a time, and the registry decides how long each takes. Therefore:
//!
//! - The namespaces have fair shares of the slots, and so have the registries of a namespace. The turn of a download
//!   ends when another namespace has a better claim ([`turns`]). The download continues in its next turn: on the same
//!   connection if it is one of a few that can keep it, otherwise with a request for the rest of the blob.
//! - Small blobs also have slots of their own, so that they do not wait behind large ones.
//! - One host has at most half of the slots.
//! - A slow download gives its slot back and continues outside of the slots, if one of the places for slow downloads
//!   is free.
//! - A download that is so slow that it would take days always fails ([`rate`]).
//!
//! Preloads use only slots that no pod needs: at most half of the node's slots and all but one of a host's, and only
//! while no pod waits. A preload gives its slot back, also in the middle of a blob, when a pod waits for it. While
//! pods download, preloads also leave them the bandwidth and run only for a few seconds now and then.

mod rate;
mod turns;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oras_csi_core::reference::RegistryHost;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

pub(super) use self::rate::{Ended, RateMonitor, TooSlow, WaitFor};
use self::turns::{Id, MIN_TURN, Request, Turns};
use super::priority::{Priority, PriorityWatch};
use super::tenant::Tenant;

/// Blobs of at most this size can use the slots for small blobs.
pub(super) const SMALL_BLOB: u64 = 1 << 20;
/// How often a download checks whether its turn has ended, and a waiting preload whether it can run.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
const PRELOAD_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The download slots of a node.
pub(super) struct Scheduler {
    epoch: Instant,
    state: Mutex<State>,
}

struct State {
    turns: Turns,
    /// Notified when a download gets its slot.
    grants: HashMap<Id, oneshot::Sender<()>>,
}

/// The right to download one blob or a range of it, in turns. Dropping it gives the slot back.
#[expect(clippy::struct_excessive_bools, reason = "they are facts that change apart from each other")]
pub(super) struct DownloadSlot {
    scheduler: Arc<Scheduler>,
    id: Id,
    tenants: PriorityWatch,
    is_preload: bool,
    /// Present while the download waits for its turn.
    granted: Option<oneshot::Receiver<()>>,
    is_parked: bool,
    next_check: Instant,
    /// Whether bytes arrived in this turn.
    has_received: bool,
    is_wanted: bool,
}

impl Scheduler {
    /// Creates a scheduler with this number of slots.
    pub(super) fn new(slots: usize) -> Self {
        let state = State { turns: Turns::new(slots), grants: HashMap::new() };
        Self { epoch: Instant::now(), state: Mutex::new(state) }
    }

    /// Waits for the first turn of a download of `size` bytes.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        host: &RegistryHost,
        size: u64,
        priority: &Priority,
    ) -> DownloadSlot {
        let (mut tenants, (sender, receiver)) = (priority.watch(), oneshot::channel());
        let request = request(host, size, &mut tenants);
        let is_preload = request.tenants.is_empty();
        let id = self.change(|state, _| {
            let id = state.turns.request(request);
            state.grants.insert(id, sender);
            id
        });
        let mut slot = DownloadSlot::new(self, id, tenants, is_preload);
        slot.granted = Some(receiver);
        slot.hold().await;
        slot
    }

    /// Returns a slot if one is free and no task waits for it.
    pub(super) fn try_acquire_spare(
        self: &Arc<Self>,
        host: &RegistryHost,
        priority: &Priority,
    ) -> Option<DownloadSlot> {
        let mut tenants = priority.watch();
        let request = request(host, u64::MAX, &mut tenants);
        let is_preload = request.tenants.is_empty();
        let id = self.change(|state, now| state.turns.request_spare(request, now))?;
        Some(DownloadSlot::new(self, id, tenants, is_preload))
    }

    /// Changes the state, and notifies the downloads that got a slot by it.
    fn change<T>(&self, change: impl FnOnce(&mut State, Duration) -> T) -> T {
        let now = self.epoch.elapsed();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut state, now);
        state.turns.assign(now);
        for id in state.turns.take_granted() {
            // A spare slot was not waited for. A download that was dropped in the meantime gives the slot back.
            if let Some(sender) = state.grants.remove(&id) {
                let _ = sender.send(());
            }
        }
        changed
    }

    fn look<T>(&self, look: impl FnOnce(&Turns, Duration) -> T) -> T {
        let now = self.epoch.elapsed();
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner).turns, now)
    }
}

fn request(host: &RegistryHost, size: u64, tenants: &mut PriorityWatch) -> Request {
    Request { host: host.host().into(), is_small: size <= SMALL_BLOB, tenants: tenants.tenants() }
}

impl DownloadSlot {
    fn new(scheduler: &Arc<Scheduler>, id: Id, tenants: PriorityWatch, is_preload: bool) -> Self {
        Self {
            scheduler: scheduler.clone(),
            id,
            tenants,
            is_preload,
            granted: None,
            is_parked: false,
            next_check: Instant::now(),
            has_received: false,
            is_wanted: false,
        }
    }

    /// Waits for the next turn, if the turn of this download has ended.
    async fn hold(&mut self) {
        while let Some(granted) = &mut self.granted {
            tokio::select! {
                biased;
                _ = granted => self.start_turn(),
                () = self.tenants.changed() => {
                    let tenants = self.tenants.tenants();
                    self.set_tenants(tenants);
                }
                // Time alone can let a preload run.
                () = tokio::time::sleep(PRELOAD_CHECK_INTERVAL), if self.is_preload => {
                    self.scheduler.change(|_, _| ());
                }
            }
        }
    }

    fn start_turn(&mut self) {
        (self.granted, self.is_parked) = (None, false);
        (self.has_received, self.is_wanted) = (false, false);
    }

    /// Starts the next turn if the slot was granted while this task waited for something else.
    fn notice_grant(&mut self) {
        if self.granted.as_mut().is_some_and(|granted| granted.try_recv().is_ok()) {
            self.start_turn();
        }
    }

    fn set_tenants(&mut self, tenants: Vec<Tenant>) {
        self.is_preload = tenants.is_empty();
        let id = self.id;
        self.scheduler.change(|state, _| state.turns.set_tenants(id, tenants));
    }

    fn is_held(&self) -> bool {
        self.granted.is_none()
    }

    /// Looks at the downloads that wait, if it is time to. Returns whether the turn of this download ends.
    fn check(&mut self) -> bool {
        self.notice_grant();
        let now = Instant::now();
        if !self.is_held() || now < self.next_check {
            return false;
        }
        self.next_check = now + CHECK_INTERVAL;
        if let Some(tenants) = self.tenants.changed_tenants() {
            self.set_tenants(tenants);
        }
        let (is_over, is_wanted) =
            self.scheduler.look(|turns, now| (turns.must_end(self.id, now), turns.is_wanted(self.id)));
        self.is_wanted = is_wanted;
        is_over
    }

    /// Gives the slot back and waits for the next turn. `is_parked` says that the connection stays open.
    fn end_turn(&mut self, is_parked: bool) {
        let (sender, receiver) = oneshot::channel();
        let (id, has_received) = (self.id, self.has_received);
        self.scheduler.change(|state, now| {
            state.grants.insert(id, sender);
            state.turns.end_turn(id, now, is_parked, has_received);
        });
        (self.granted, self.is_parked) = (Some(receiver), is_parked);
    }

    /// Waits for the disk, or for the memory to unpack. If the turn ends meanwhile, another download gets the slot. After
    /// two seconds any download that waits gets it: the one that this one waits for may be among them.
    pub(super) async fn wait_for_disk<T>(&mut self, future: impl Future<Output = T>) -> T {
        let (mut future, began) = (pin!(future), Instant::now());
        loop {
            if let Ok(output) = timeout(CHECK_INTERVAL, future.as_mut()).await {
                return output;
            }
            if self.check() {
                self.end_turn(self.can_park());
            } else if self.is_held() && self.is_wanted && began.elapsed() >= MIN_TURN {
                self.release();
                let output = future.await;
                self.request_again();
                return output;
            }
        }
    }

    /// Starts another download in the same turn order, after [`Self::release`].
    pub(super) fn request_again(&mut self) {
        self.has_received = true;
        self.end_turn(false);
    }

    /// Gives the slot back: all bytes have arrived, and the disk still works.
    pub(super) fn release(&mut self) {
        let id = self.id;
        self.scheduler.change(|state, _| {
            state.grants.remove(&id);
            state.turns.set_received(id);
        });
    }

    fn can_park(&self) -> bool {
        self.scheduler.look(|turns, _| turns.can_park(self.id))
    }

    /// Continues outside of the slots, if one of the places for slow downloads is free.
    fn continue_outside_slots(&mut self) {
        let id = self.id;
        self.scheduler.change(|state, _| state.turns.move_outside(id));
    }

    /// Reports whether a pod waits for the slot.
    pub(super) fn has_waiters(&mut self) -> bool {
        self.check() || self.is_wanted
    }
}

impl Drop for DownloadSlot {
    fn drop(&mut self) {
        let id = self.id;
        self.scheduler.change(|state, _| {
            state.grants.remove(&id);
            state.turns.remove(id);
        });
    }
}

#[cfg(test)]
mod tests;
