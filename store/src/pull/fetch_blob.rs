//! Downloads one blob and writes it to a file of the store, or unpacks it into a layer while it arrives.
//!
//! | blob | while it is downloaded | resumed |
//! |---|---|---|
//! | below 16 MiB, or an archive of an ephemeral store | streamed to the thread that hashes and writes | within the pull |
//! | a file | kept in `partial/` ([`crate::store::partial_blobs`]) | by any later pull, also after a crash |
//! | an archive | unpacked; only bytes ahead of missing ones are kept ([`crate::content::spool`]) | by a later pull of this process ([`super::parked`]) |

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use oras_csi_core::digest::Hasher;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::reference::PinnedReference;
use oras_csi_core::registry::{Registry, RegistryError};
use tokio::sync::mpsc;

use super::download::{Download, Interruption, PARTIAL_FROM, RetryBudget, skip_bytes, too_slow};
use super::parked::{ParkOnDrop, ParkedKey, ParkedLayers, UnpackingLayer};
use super::priority::Priority;
use super::progress::Progress;
use super::scheduler::{DownloadSlot, Ended, RateMonitor, Scheduler, WaitFor};
use crate::content::blob_reader::{BlobReader, PIECES, Piece, StreamFault};
use crate::content::blob_sink::{BlobSink, Next};
use crate::content::spool::Spool;
use crate::disk::reservations::Reservation;
use crate::layout::LayerKey;
use crate::store::Store;
use crate::store::partial_blobs::Partial;
use crate::unpack::budget::Budget;
use crate::unpack::error::UnpackError;
use crate::unpack::image::ImageTarget;
use crate::unpack::layer::{UnpackOptions, UnpackSummary, unpack_layer_or_image};
use crate::unpack::zstd_windows::WindowMemory;

/// What a blob becomes in the store.
#[derive(Clone)]
pub(super) enum Destination {
    Blob,
    Layer(LayerKey, UnpackOptions),
}

impl Destination {
    /// Returns the key of the layer if it becomes an image.
    pub(super) fn image_key(&self) -> Option<LayerKey> {
        match self {
            Self::Blob => None,
            Self::Layer(key, options) => options.image().map(|plan| key.of_image(&plan.tree)),
        }
    }

    /// Returns the limits of the volume that a layer is counted for.
    pub(super) fn budget(&self) -> Option<&Budget> {
        match self {
            Self::Blob => None,
            Self::Layer(_, options) => Some(options.budget()),
        }
    }

    /// Returns the destination of a layer that becomes files.
    pub(super) fn without_image(&self) -> Self {
        match self {
            Self::Blob => Self::Blob,
            Self::Layer(key, options) => Self::Layer(key.clone(), options.without_image()),
        }
    }

    /// Limits the memory of the decoder of a layer.
    pub(super) fn with_memory(self, memory: impl WindowMemory + 'static) -> Self {
        match self {
            Self::Blob => Self::Blob,
            Self::Layer(key, options) => Self::Layer(key, options.with_memory(Arc::new(memory))),
        }
    }
}

/// A blob to download, and its source.
#[derive(Clone, Copy)]
pub(super) struct FetchBlob<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) registry: &'a dyn Registry,
    pub(super) scheduler: &'a Arc<Scheduler>,
    pub(super) parked: &'a Arc<ParkedLayers>,
    pub(super) priority: &'a Priority,
    pub(super) destination: &'a Destination,
    /// The content is in the store already. It is downloaded and processed as if it were not, to check that this registry
    /// serves it, and then discarded. So the registry cannot tell whether the node has the content
    /// (docs/security.md, "Presence of content").
    pub(super) only_verify: bool,
    pub(super) blob: &'a Descriptor,
    pub(super) reference: &'a PinnedReference,
    /// The disk space that the blob was promised.
    pub(super) space: &'a Arc<Reservation>,
    pub(super) progress: &'a Arc<dyn Progress>,
}

/// Closes the partial blob when it is dropped, so that its readers stop waiting for more bytes.
struct CloseOnDrop(Arc<Partial>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl FetchBlob<'_> {
    pub(super) async fn run(self, mut slot: DownloadSlot) -> Result<(), UnpackError> {
        // Layers of an ephemeral store are not resumed.
        let is_resumable = matches!(self.destination, Destination::Blob) || self.store.is_persistent();
        if self.blob.size() < PARTIAL_FROM || !is_resumable {
            return self.stream_without_partial(slot).await;
        }
        let ranges_refused = AtomicBool::new(false);
        match self.download_resumable(&mut slot, &ranges_refused).await {
            // The bytes of an earlier pull were damaged, for example by a power failure. Or the registry serves
            // no ranges, and sent wrong bytes before it refused one.
            Err((error, resumed))
                if is_content_error(&error) && (resumed > 0 || ranges_refused.load(Ordering::Relaxed)) =>
            {
                tracing::warn!(digest = %self.blob.digest(), "the bytes of an earlier download are damaged; downloading the blob again from the start");
                slot.request_again();
                let again = self.download_resumable(&mut slot, &ranges_refused).await;
                again.map_err(|(error, _)| error)
            }
            ended => ended.map_err(|(error, _)| error),
        }
    }

    /// Downloads a large blob. On failure also returns how many bytes an earlier pull had left.
    async fn download_resumable(
        self,
        slot: &mut DownloadSlot,
        ranges_refused: &AtomicBool,
    ) -> Result<(), (UnpackError, u64)> {
        match self.destination {
            Destination::Blob => self.download_through_partial(slot, ranges_refused).await,
            Destination::Layer(key, options) => {
                self.download_through_spool(key, options, slot, ranges_refused).await
            }
        }
    }

    /// Downloads a file through a partial blob.
    async fn download_through_partial(
        self,
        slot: &mut DownloadSlot,
        ranges_refused: &AtomicBool,
    ) -> Result<(), (UnpackError, u64)> {
        let open = {
            let (store, blob, reference) = (self.store.clone(), self.blob.clone(), self.reference.clone());
            let space = self.space.clone();
            tokio::task::spawn_blocking(move || store.partial(&blob, &reference, space))
        };
        let fault = |fault: StreamFault| (UnpackError::Stream(fault), 0);
        let partial = open.await.map_err(|_| fault(StreamFault::Stopped))?;
        let partial = Arc::new(partial.map_err(|error| fault(error.into()))?);
        let resumed = partial.resumed();
        self.report_resumed(resumed);
        let close_on_drop = CloseOnDrop(partial.clone());
        let mut processing = {
            let (store, partial) = (self.store.clone(), partial.clone());
            let (blob, only_verify) = (self.blob.clone(), self.only_verify);
            tokio::task::spawn_blocking(move || {
                let committed = commit_verified(&store, &partial, &blob, only_verify);
                // The writer waits for the reader, which has ended.
                partial.close();
                committed
            })
        };
        let sink: Arc<dyn BlobSink> = partial.clone();
        let download = self.download(ranges_refused);
        let downloaded = tokio::select! {
            // Ends before the download only if it fails.
            processed = &mut processing => Err(processed),
            downloaded = download.run(&sink, slot) => Ok(downloaded),
        };
        // Verifying may take long, and needs no slot.
        slot.release();
        let processed = match downloaded {
            Err(processed) => processed,
            Ok(Ok(())) => processing.await,
            Ok(Err(fault)) => {
                drop(close_on_drop);
                let _ = processing.await;
                Ok(Err(fault.into()))
            }
        };
        let processed = processed.unwrap_or(Err(StreamFault::Stopped.into()));
        if processed.as_ref().is_err_and(|error| !can_resume(error)) {
            partial.discard_and_reserve();
        }
        processed.map_err(|error| (error, resumed))
    }

    /// Downloads an archive and unpacks it meanwhile. Takes over from an earlier pull if there is one.
    async fn download_through_spool(
        self,
        key: &LayerKey,
        options: &UnpackOptions,
        slot: &mut DownloadSlot,
        ranges_refused: &AtomicBool,
    ) -> Result<(), (UnpackError, u64)> {
        let parked_key = ParkedKey {
            layer: key.clone(),
            image: self.destination.image_key(),
            repository: self.reference.name(),
            only_verify: self.only_verify,
        };
        let found = self.parked.take(&parked_key);
        let resumed = found.as_ref().map_or(0, |layer| layer.spool.received());
        self.report_resumed(resumed);
        let is_taken_over = found.is_some();
        let layer = match found {
            Some(layer) => {
                layer.spool.resume(self.space.clone());
                layer
            }
            None => self.start_unpacking(key, options),
        };
        let spool = layer.spool.clone();
        let sink: Arc<dyn BlobSink> = spool.clone();
        let download = self.download(ranges_refused);
        let tenants = self.priority.watch().tenants();
        let mut layer = ParkOnDrop::new(self.parked, parked_key, tenants, layer);
        let downloaded = tokio::select! {
            // Ends before the download only if it fails.
            unpacked = layer.unpacked() => Err(unpacked),
            downloaded = download.run(&sink, slot) => Ok(downloaded),
        };
        // Unpacking may take long, and needs no slot.
        slot.release();
        let unpacked = match downloaded {
            Err(unpacked) => unpacked,
            Ok(Ok(())) => layer.unpacked().await,
            Ok(Err(fault)) => {
                let error = UnpackError::from(fault);
                if can_resume(&error) {
                    drop(layer);
                    return Err((error, resumed));
                }
                Some(Err(error))
            }
        };
        layer.end();
        let unpacked = unpacked.unwrap_or(Err(StreamFault::Stopped.into()));
        if unpacked.as_ref().is_err_and(|error| !can_resume(error)) {
            spool.reserve_again();
        }
        if unpacked.is_ok() && is_taken_over {
            self.charge(key, options).await;
        }
        unpacked.map_err(|error| (error, resumed))
    }

    /// Starts a thread that unpacks what arrives in its spool.
    fn start_unpacking(&self, key: &LayerKey, options: &UnpackOptions) -> UnpackingLayer {
        let spool = Arc::new(Spool::new(self.blob.size(), self.store.tmp_path(), self.space.clone()));
        let (store, blob, only_verify) = (self.store.clone(), self.blob.clone(), self.only_verify);
        let (key, options, reader) = (key.clone(), options.clone(), spool.clone());
        let unpacking = tokio::task::spawn_blocking(move || {
            let unpacked = {
                let reader = BlobReader::of_spool(blob.clone(), reader.clone());
                unpack(&store, &key, &options, &blob, reader, only_verify)
            };
            // If the content was rejected, the download must stop.
            reader.close();
            unpacked
        });
        UnpackingLayer { spool, unpacking }
    }

    /// Counts a layer for this pull that was unpacked with the limits of an earlier one.
    async fn charge(&self, key: &LayerKey, options: &UnpackOptions) {
        let (store, key, budget) = (self.store.clone(), key.clone(), options.budget().clone());
        let image = options.image().map(|plan| key.of_image(&plan.tree));
        let charge = move || {
            for key in image.iter().chain([&key]) {
                if let Ok(Some(layer)) = store.layer(key) {
                    budget.charge(layer.totals(), layer.usage());
                    return;
                }
            }
        };
        let _ = tokio::task::spawn_blocking(charge).await;
    }

    fn download<'b>(&'b self, ranges_refused: &'b AtomicBool) -> Download<'b> {
        Download {
            registry: self.registry,
            reference: self.reference,
            blob: self.blob,
            scheduler: self.scheduler,
            priority: self.priority,
            limits: self.store.limits(),
            progress: self.progress,
            ranges_refused,
        }
    }

    fn report_resumed(&self, resumed: u64) {
        if resumed > 0 {
            tracing::info!(digest = %self.blob.digest(), bytes = resumed, "resuming the download of an earlier pull");
            self.progress.found(self.blob.digest(), resumed);
        }
    }

    /// Streams the blob from the network to the thread that writes.
    async fn stream_without_partial(self, mut slot: DownloadSlot) -> Result<(), UnpackError> {
        let (sender, receiver) = mpsc::channel(PIECES);
        let reader = BlobReader::new(self.blob.clone(), receiver);
        let (store, destination, blob) = (self.store.clone(), self.destination.clone(), self.blob.clone());
        let (only_verify, space) = (self.only_verify, self.space.clone());
        let written = tokio::task::spawn_blocking(move || match &destination {
            Destination::Blob if only_verify => verify_only(reader),
            Destination::Blob => Ok(store.write_blob(&blob, reader, &space)?),
            Destination::Layer(key, options) => unpack(&store, key, options, &blob, reader, only_verify),
        });
        self.feed(&mut slot, sender).await;
        slot.release();
        written.await.unwrap_or(Err(StreamFault::Stopped.into()))
    }

    /// Checks that the registry serves the blob under this reference: its body must begin. The bytes are not read.
    pub(super) async fn check_readable(&self, mut slot: DownloadSlot) -> Result<(), UnpackError> {
        let mut rate_monitor = RateMonitor::new(self.store.limits());
        loop {
            let answer = self.registry.blob(self.reference, self.blob, 0);
            let opened = match rate_monitor.wait(&mut slot, WaitFor::Answer, answer).await {
                Ok(opened) => opened,
                Err(Ended::Turn) => continue,
                Err(Ended::TooSlow(rate)) => Err(too_slow(self.reference, rate)),
            };
            return opened.map(drop).map_err(|error| StreamFault::Registry(error).into());
        }
    }

    /// Sends the bytes of the blob to the reader, and resumes from where a response broke off.
    async fn feed(&self, slot: &mut DownloadSlot, sender: mpsc::Sender<Piece>) {
        let mut rate_monitor = RateMonitor::new(self.store.limits());
        let mut retries = RetryBudget::default();
        let mut offset = 0;
        // Why the registry refused a range. The whole blob is then requested once.
        let mut refused: Option<Interruption> = None;
        loop {
            let fed = self.feed_from(slot, &mut rate_monitor, &mut offset, refused.is_some(), &sender).await;
            let Err(interruption) = fed else { return };
            if matches!(interruption, Interruption::TurnEnded) {
                continue;
            }
            if offset > 0 && refused.is_none() && is_refusal(&interruption) {
                tracing::info!(digest = %self.blob.digest(), offset, "the registry refused a range; requesting the whole blob");
                refused = Some(interruption);
                continue;
            }
            let next_attempt = match refused.take() {
                None => retries.next_attempt(interruption, offset),
                // It breaks off or is refused as a whole as well: what has to be mended is that it cannot be resumed.
                Some(refusal)
                    if matches!(interruption, Interruption::BodyFailed(_)) || is_refusal(&interruption) =>
                {
                    Err(refusal)
                }
                Some(_) => Err(interruption),
            };
            let error = match next_attempt {
                Ok((error, wait)) => {
                    tracing::info!(digest = %self.blob.digest(), offset, %error, "a download broke off; resuming from this offset");
                    tokio::select! {
                        waited = rate_monitor.wait(slot, WaitFor::Answer, tokio::time::sleep(wait)) => match waited {
                            Ok(()) | Err(Ended::Turn) => continue,
                            Err(Ended::TooSlow(rate)) => too_slow(self.reference, rate),
                        },
                        () = sender.closed() => return,
                    }
                }
                Err(
                    Interruption::NoAnswer(error)
                    | Interruption::BodyFailed(error)
                    | Interruption::RangeRefused(error),
                ) => error,
                Err(Interruption::TooSlow(error)) => too_slow(self.reference, error),
                Err(Interruption::NoRanges | Interruption::ReceiverStopped | Interruption::TurnEnded) => {
                    return;
                }
            };
            let _ = sender.send(Err(error)).await;
            return;
        }
    }

    /// Sends the bytes of one response, from `offset`. If `is_whole`, the whole blob is requested and the bytes before
    /// are skipped.
    async fn feed_from(
        &self,
        slot: &mut DownloadSlot,
        rate_monitor: &mut RateMonitor,
        offset: &mut u64,
        is_whole: bool,
        sender: &mpsc::Sender<Piece>,
    ) -> Result<(), Interruption> {
        let mut skip = if is_whole { *offset } else { 0 };
        let answer = self.registry.blob(self.reference, self.blob, *offset - skip);
        let answer = rate_monitor.wait(slot, WaitFor::Answer, answer).await?;
        let mut stream = answer.map_err(Interruption::NoAnswer)?;
        while let Some(piece) = rate_monitor.wait(slot, WaitFor::Body, stream.next()).await? {
            let mut piece = piece.map_err(Interruption::BodyFailed)?;
            rate_monitor.received(slot, piece.len() as u64);
            skip_bytes(&mut piece, &mut skip);
            let length = piece.len() as u64;
            // If the reader has stopped, it reports the reason itself.
            let sent = slot.wait_for_disk(sender.send(Ok(piece))).await;
            sent.map_err(|_| Interruption::ReceiverStopped)?;
            *offset += length;
            self.progress.received(self.blob.digest(), length);
        }
        Ok(())
    }
}

/// Reports whether the registry answered, and would give the same answer again.
fn is_refusal(interruption: &Interruption) -> bool {
    match interruption {
        Interruption::NoAnswer(error) | Interruption::BodyFailed(error) => !error.is_transient(),
        _ => false,
    }
}

/// Reports whether the next attempt can use the bytes that were downloaded.
fn can_resume(error: &UnpackError) -> bool {
    match error {
        UnpackError::Stream(StreamFault::Stopped) => true,
        // Garbage collection deletes it if others need the space.
        UnpackError::Stream(StreamFault::Disk(error)) | UnpackError::Disk(error) => error.is_full(),
        UnpackError::Stream(StreamFault::Registry(error)) => match error {
            // Another credential or certificate, or the same one later, may be accepted.
            RegistryError::Refused { .. }
            | RegistryError::Redirected { .. }
            | RegistryError::Certificate { .. } => true,
            error => error.is_transient(),
        },
        _ => false,
    }
}

/// Reports whether the content was wrong, and not the network or the disk.
fn is_content_error(error: &UnpackError) -> bool {
    let is_other = |fault: &StreamFault| {
        matches!(fault, StreamFault::Registry(_) | StreamFault::Stopped | StreamFault::Disk(_))
    };
    match error {
        UnpackError::Stream(fault) => !is_other(fault),
        UnpackError::Disk(_) | UnpackError::NotForImage => false,
        _ => true,
    }
}

/// Reads a blob to its end and verifies its digest.
fn verify_only(mut reader: BlobReader) -> Result<(), UnpackError> {
    while !reader.piece()?.is_empty() {}
    Ok(reader.finish()?)
}

/// Hashes a file while it arrives, and commits it. Blocks.
fn commit_verified(
    store: &Store,
    partial: &Partial,
    blob: &Descriptor,
    only_verify: bool,
) -> Result<(), UnpackError> {
    verify_digest(partial, blob)?;
    if only_verify {
        partial.discard();
        return Ok(());
    }
    Ok(store.commit_partial(partial, blob.digest())?)
}

fn verify_digest(partial: &Partial, blob: &Descriptor) -> Result<(), StreamFault> {
    let mut hasher = Hasher::new(blob.digest().algorithm());
    let mut at = 0;
    loop {
        match partial.next(at)? {
            Next::Closed => return Err(StreamFault::Stopped),
            Next::Bytes(piece) if piece.is_empty() => break,
            Next::Bytes(piece) => {
                hasher.update(&piece);
                at += piece.len() as u64;
            }
        }
    }
    let found = hasher.finish();
    if found == *blob.digest() {
        Ok(())
    } else {
        Err(StreamFault::Digest { wanted: blob.digest().clone(), found })
    }
}

/// Unpacks a layer into the store. If it is only verified, its files are deleted again.
fn unpack(
    store: &Store,
    key: &LayerKey,
    options: &UnpackOptions,
    blob: &Descriptor,
    reader: BlobReader,
    only_verify: bool,
) -> Result<(), UnpackError> {
    let staging = store.stage()?;
    let target = options.image().map(|plan| ImageTarget { plan, path: staging.image_path() });
    let unpacked = unpack_layer_or_image(reader, options, staging.files(), target.as_ref(), store.limits())?;
    if unpacked.skipped > 0 {
        tracing::warn!(
            digest = %blob.digest(),
            count = unpacked.skipped,
            "skipped device nodes, FIFOs and other special entries of a layer"
        );
    }
    if only_verify {
        return Ok(());
    }
    let UnpackSummary { totals, usage, .. } = unpacked;
    match target {
        Some(target) if unpacked.is_image => {
            Ok(staging.commit_image(&key.of_image(&target.plan.tree), totals, usage)?)
        }
        _ => Ok(staging.commit_layer(key, totals, usage)?),
    }
}
