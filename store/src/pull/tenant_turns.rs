//! Limits what the pulls of one namespace do at a time: how many work on the disk, send requests for manifests, or keep
//! the plan of an artifact in memory.
//!
//! Verifying stored content and assembling a tree can take minutes of disk and processor time, and each needs a blocking
//! thread. A registry can take a minute to answer a request. An artifact can have thousands of layers. Without limits,
//! the pulls of one namespace could use all threads, requests or memory of the process, and every other namespace would
//! wait for them.

use std::fmt;
use std::sync::Arc;

use futures_util::future::{FutureExt as _, select_all};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::priority::Priority;
use super::shared_map::SharedMap;
use super::tenant::Tenant;
use crate::unpack::zstd_windows::WindowMemory;

/// The fewest layers that a pull counts as.
pub(super) const LEAST_PLANNED_LAYERS: u32 = 16;
/// The most layers that a pull counts as. A pull with more runs when its namespace has as many left.
pub(super) const MAX_PLANNED_LAYERS: u32 = 16_384;

/// MiB for the large windows of zstd decoders: two of the largest.
const MAX_DECODER_MEMORY: u32 = 256;

/// How many images are written at a time: by the node, and by one namespace. Each keeps up to 128 MiB of names in memory.
const MAX_IMAGES: usize = 4;
const MAX_IMAGES_OF_TENANT: u32 = 2;

/// What the pulls of one namespace, and all preloads together, do or keep at a time.
#[derive(Debug)]
pub(super) struct TenantLimits {
    /// Pulls that work on the disk.
    pub(super) disk: TenantTurns,
    /// Requests for manifests to one host, fewer than the client sends to it.
    pub(super) requests: TenantTurns,
    /// Manifests that arrive from all hosts, until they are planned. Each has up to 4 MiB, and several times that when it
    /// is parsed.
    pub(super) manifests: TenantTurns,
    /// Stored manifests that are parsed.
    pub(super) parsing: TenantTurns,
    /// MiB of memory for the large windows of zstd decoders.
    pub(super) decoder_memory: TenantTurns,
    /// Archives that are written into images.
    images: TenantTurns,
    /// The same for the node.
    all_images: Arc<Semaphore>,
    /// The layers of all pulls in progress. Each needs some 2 KiB of memory.
    pub(super) plans: TenantTurns,
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self {
            disk: TenantTurns::new(4),
            requests: TenantTurns::new(8),
            manifests: TenantTurns::new(12),
            parsing: TenantTurns::new(2),
            decoder_memory: TenantTurns::new(MAX_DECODER_MEMORY),
            images: TenantTurns::new(MAX_IMAGES_OF_TENANT),
            all_images: Arc::new(Semaphore::new(MAX_IMAGES)),
            plans: TenantTurns::new(MAX_PLANNED_LAYERS),
        }
    }
}

/// The memory for the zstd windows of one pull.
pub(super) struct DecoderMemory {
    limits: Arc<TenantLimits>,
    priority: Priority,
    runtime: Handle,
}

impl DecoderMemory {
    /// Returns the memory of a pull. Must be called in a runtime.
    pub(super) fn new(limits: &Arc<TenantLimits>, priority: &Priority) -> Self {
        Self { limits: limits.clone(), priority: priority.clone(), runtime: Handle::current() }
    }
}

impl fmt::Debug for DecoderMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecoderMemory").finish_non_exhaustive()
    }
}

impl WindowMemory for DecoderMemory {
    fn reserve(&self, bytes: u64) -> Box<dyn Send> {
        // A window above the limit is rejected by the decoder.
        let mebibytes = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        let acquire = self.limits.decoder_memory.acquire_many("", mebibytes, &self.priority);
        Box::new(self.runtime.block_on(acquire))
    }

    fn try_image(&self) -> Option<Box<dyn Send>> {
        let of_tenant = self.limits.images.try_acquire(&self.priority)?;
        let of_node = self.limits.all_images.clone().try_acquire_owned().ok()?;
        Some(Box::new((of_tenant, of_node)))
    }
}

/// A namespace, or the preloads, and a part of the resource that has permits of its own.
type Key = (Option<Tenant>, Arc<str>);

/// Permits for one resource. Each namespace has the same number, and the preloads have it together.
#[derive(Debug)]
pub(super) struct TenantTurns {
    permits: u32,
    semaphores: SharedMap<Key, Semaphore>,
}

impl TenantTurns {
    /// Creates a resource of which each namespace has this number of permits.
    pub(super) fn new(permits: u32) -> Self {
        Self { permits, semaphores: SharedMap::default() }
    }

    /// Waits for one permit of one of the namespaces that wait for a pull. Returns `None` only if a semaphore is closed,
    /// which never happens.
    pub(super) async fn acquire(&self, priority: &Priority) -> Option<OwnedSemaphorePermit> {
        self.acquire_many("", 1, priority).await
    }

    /// Returns a permit of one of the namespaces that wait for a pull, if one is free.
    fn try_acquire(&self, priority: &Priority) -> Option<OwnedSemaphorePermit> {
        let tenants = priority.watch().tenants();
        let keys = if tenants.is_empty() { vec![None] } else { tenants.into_iter().map(Some).collect() };
        keys.into_iter().find_map(|key| {
            let create = || Semaphore::new(self.permits as usize);
            self.semaphores.get_or_create((key, "".into()), create).try_acquire_owned().ok()
        })
    }

    /// Waits for `count` permits, at most all that a namespace has. Each `part` of the resource has its own.
    pub(super) async fn acquire_many(
        &self,
        part: &str,
        count: u32,
        priority: &Priority,
    ) -> Option<OwnedSemaphorePermit> {
        let part: Arc<str> = part.into();
        let mut watch = priority.watch();
        loop {
            let tenants = watch.tenants();
            let keys = if tenants.is_empty() { vec![None] } else { tenants.into_iter().map(Some).collect() };
            let count = count.min(self.permits);
            let turns = keys.into_iter().map(|key| {
                let create = || Semaphore::new(self.permits as usize);
                let semaphore = self.semaphores.get_or_create((key, part.clone()), create);
                semaphore.acquire_many_owned(count).boxed()
            });
            tokio::select! {
                biased;
                (turn, ..) = select_all(turns) => return turn.ok(),
                () = watch.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::priority::Waiters;
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn two_of_the_largest_windows_of_a_namespace_are_allocated_at_a_time() {
        const WINDOW: u64 = 128 << 20;
        let limits = Arc::new(TenantLimits::default());
        let memory = |name| DecoderMemory::new(&limits, &Priority::of_tenant(&Tenant::of_namespace(name)));
        let (one, two, three) = (memory("flood"), memory("flood"), memory("flood"));
        let mut held = Vec::new();
        for one in [one, two] {
            held.push(tokio::task::spawn_blocking(move || one.reserve(WINDOW)).await.unwrap());
        }
        let waits = tokio::task::spawn_blocking(move || three.reserve(9 << 20));
        let team = memory("team");
        tokio::task::spawn_blocking(move || team.reserve(WINDOW)).await.unwrap();
        assert!(!waits.is_finished());
        held.pop();
        waits.await.unwrap();
    }

    #[tokio::test]
    async fn a_namespace_writes_two_images_at_a_time_and_the_node_four() {
        let limits = Arc::new(TenantLimits::default());
        let memory = |name| DecoderMemory::new(&limits, &Priority::of_tenant(&Tenant::of_namespace(name)));
        let mut held: Vec<_> = (0..3).map(|_| memory("flood").try_image()).collect();
        assert_eq!(held.iter().filter(|permit| permit.is_some()).count(), 2);
        held.extend([memory("team").try_image(), memory("other").try_image()]);
        assert_eq!(held.iter().filter(|permit| permit.is_some()).count(), 4);
        assert!(memory("last").try_image().is_none());
        held.clear();
        assert!(memory("last").try_image().is_some());
    }

    #[tokio::test]
    async fn a_namespace_waits_only_for_its_own_pulls() {
        let (turns, waiters) = (TenantTurns::new(4), Waiters::default());
        let tenant = |name| vec![Tenant::of_namespace(name)];
        let flood = Waiters::default();
        let _flood = flood.add(tenant("flood"));
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(turns.acquire(&Priority::of(&flood)).await);
        }
        assert!(turns.acquire(&Priority::of(&flood)).now_or_never().is_none());
        let _team = waiters.add(tenant("team"));
        assert!(turns.acquire(&Priority::of(&waiters)).now_or_never().is_some());
        // A pull that both namespaces wait for has a turn as soon as one of them has.
        assert!(turns.acquire(&Priority::of(&flood).and(&waiters)).now_or_never().is_some());
        held.pop();
        assert!(turns.acquire(&Priority::of(&flood)).now_or_never().is_some());
    }
}
