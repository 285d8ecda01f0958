//! Archives whose download failed or was cancelled while they were being unpacked.
//!
//! The thread that unpacks waits for more bytes. The next pull of the same layer from the same repository takes it over
//! and requests only what is missing, so an outage of a registry costs no download. After [`KEPT_FOR`] the thread ends,
//! and what it has written is deleted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::tenant::Tenant;
use crate::content::spool::Spool;
use crate::layout::LayerKey;
use crate::unpack::error::UnpackError;

/// How long a layer is kept. Kubelet's longest pause between two calls for a volume is 2 min 2 s.
const KEPT_FOR: Duration = Duration::from_mins(4);
/// How many layers are kept: each has a thread, its decoder, and up to 1 MiB that was not unpacked yet.
const MAX_PARKED: usize = 8;
/// How many of them belong to the same namespaces.
const MAX_PARKED_OF_TENANTS: usize = 2;

/// A layer that is being unpacked while it is downloaded. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct UnpackingLayer {
    pub(super) spool: Arc<Spool>,
    pub(super) unpacking: JoinHandle<Result<(), UnpackError>>,
}

impl Drop for UnpackingLayer {
    fn drop(&mut self) {
        self.spool.close();
    }
}

/// Which pulls can take over a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParkedKey {
    pub(super) layer: LayerKey,
    /// The key if it becomes an image.
    pub(super) image: Option<LayerKey>,
    /// Host and repository: bytes of one repository are not used for another one.
    pub(super) repository: String,
    /// Whether the files are discarded when they are complete.
    pub(super) only_verify: bool,
}

#[derive(Debug)]
struct Parked {
    key: ParkedKey,
    tenants: Vec<Tenant>,
    since: Instant,
    layer: UnpackingLayer,
}

/// The layers that wait for another pull. Dropping it ends their threads.
#[derive(Debug, Default)]
pub(super) struct ParkedLayers(Mutex<Vec<Parked>>);

impl ParkedLayers {
    /// Takes a layer, if it is there and still unpacking.
    pub(super) fn take(&self, key: &ParkedKey) -> Option<UnpackingLayer> {
        let mut all = self.all();
        let place = all.iter().position(|parked| parked.key == *key)?;
        let layer = all.swap_remove(place).layer;
        (!layer.unpacking.is_finished()).then_some(layer)
    }

    /// Keeps a layer for the next pull, in place of the oldest one if there are too many.
    pub(super) fn park(self: &Arc<Self>, key: ParkedKey, tenants: Vec<Tenant>, layer: UnpackingLayer) {
        // Without a runtime the process ends.
        let Ok(runtime) = Handle::try_current() else { return };
        layer.spool.release_space();
        let parked = Parked { key, tenants, since: Instant::now(), layer };
        let mut all = self.all();
        let of_tenants = |all: &[Parked]| all.iter().filter(|other| other.tenants == parked.tenants).count();
        if of_tenants(&all) >= MAX_PARKED_OF_TENANTS
            && let Some(oldest) = all.iter().position(|other| other.tenants == parked.tenants)
        {
            all.remove(oldest);
        }
        if all.len() >= MAX_PARKED {
            all.remove(0);
        }
        all.push(parked);
        drop(all);
        let weak = Arc::downgrade(self);
        runtime.spawn(async move {
            tokio::time::sleep(KEPT_FOR).await;
            if let Some(all) = weak.upgrade() {
                all.all().retain(|parked| parked.since.elapsed() < KEPT_FOR);
            }
        });
    }

    /// Ends all of them, because their disk space is needed.
    pub(super) fn clear(&self) {
        self.all().clear();
    }

    fn all(&self) -> MutexGuard<'_, Vec<Parked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parks a layer when it is dropped, also with the future of a pull that is cancelled.
pub(super) struct ParkOnDrop<'a> {
    parked: &'a Arc<ParkedLayers>,
    key: ParkedKey,
    tenants: Vec<Tenant>,
    layer: Option<UnpackingLayer>,
}

impl<'a> ParkOnDrop<'a> {
    pub(super) fn new(
        parked: &'a Arc<ParkedLayers>,
        key: ParkedKey,
        tenants: Vec<Tenant>,
        layer: UnpackingLayer,
    ) -> Self {
        Self { parked, key, tenants, layer: Some(layer) }
    }

    /// Waits for the end of the unpacking. Returns `None` if the thread is gone.
    pub(super) async fn unpacked(&mut self) -> Option<Result<(), UnpackError>> {
        (&mut self.layer.as_mut()?.unpacking).await.ok()
    }

    /// Ends the layer, which cannot be used any more or is complete.
    pub(super) fn end(mut self) {
        self.layer = None;
    }
}

impl Drop for ParkOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(layer) = self.layer.take() {
            let tenants = std::mem::take(&mut self.tenants);
            self.parked.park(self.key.clone(), tenants, layer);
        }
    }
}

#[cfg(test)]
mod tests {
    use oras_csi_core::digest::Digest;

    use super::*;
    use crate::content::blob_sink::Next;
    use crate::disk::reservations::Reservation;
    use crate::layout::LayerShape;

    fn key(name: &str) -> ParkedKey {
        let layer = LayerKey::of(&Digest::sha256_of(name.as_bytes()), &LayerShape::Image);
        ParkedKey {
            layer,
            image: None,
            repository: "registry.example/repository".to_owned(),
            only_verify: false,
        }
    }

    /// A layer that waits for bytes.
    fn layer(folder: &tempfile::TempDir) -> UnpackingLayer {
        let space = Arc::new(Reservation::none());
        let spool = Arc::new(Spool::new(1_000, folder.path().join("spool"), space));
        let unpacking = tokio::spawn(std::future::pending());
        UnpackingLayer { spool, unpacking }
    }

    fn tenants(name: &str) -> Vec<Tenant> {
        vec![Tenant::of_namespace(name)]
    }

    #[tokio::test]
    async fn the_next_pull_of_the_same_repository_takes_it_once() {
        let (folder, parked) = (tempfile::tempdir().unwrap(), Arc::new(ParkedLayers::default()));
        parked.park(key("a"), tenants("team"), layer(&folder));
        let other = ParkedKey { repository: "registry.example/other".to_owned(), ..key("a") };
        assert!(parked.take(&other).is_none() && parked.take(&key("b")).is_none());
        assert!(parked.take(&key("a")).is_some());
        assert!(parked.take(&key("a")).is_none());
    }

    #[tokio::test]
    async fn one_namespace_cannot_replace_what_others_parked() {
        let (folder, parked) = (tempfile::tempdir().unwrap(), Arc::new(ParkedLayers::default()));
        parked.park(key("team"), tenants("team"), layer(&folder));
        for number in 0..20 {
            parked.park(key(&number.to_string()), tenants("flood"), layer(&folder));
        }
        assert_eq!(parked.all().len(), 1 + MAX_PARKED_OF_TENANTS);
        assert!(parked.take(&key("team")).is_some());
        for number in 0..20 {
            parked.park(key("x"), tenants(&number.to_string()), layer(&folder));
        }
        assert_eq!(parked.all().len(), MAX_PARKED);
    }

    #[tokio::test(start_paused = true)]
    async fn the_thread_ends_after_some_minutes_or_when_space_is_needed() {
        let (folder, parked) = (tempfile::tempdir().unwrap(), Arc::new(ParkedLayers::default()));
        let first = layer(&folder);
        let spool = first.spool.clone();
        parked.park(key("a"), tenants("team"), first);
        parked.all()[0].since -= KEPT_FOR;
        tokio::time::sleep(KEPT_FOR + Duration::from_secs(1)).await;
        assert!(parked.take(&key("a")).is_none());
        assert_eq!(spool.next().unwrap(), Next::Closed);
        parked.park(key("a"), tenants("team"), layer(&folder));
        parked.clear();
        assert!(parked.take(&key("a")).is_none());
    }
}
