//! Downloads one blob and writes it to a file of the store, or unpacks it into a layer while it arrives.
//!
//! Small blobs are streamed from the network to the thread that hashes and writes. Large blobs are kept in `partial/`
//! while they are downloaded ([`super::download`]), so that the download can be resumed. Large archives are kept as
//! well: writing the compressed bytes once costs less than downloading them again, which may take an hour for 10 GB.
//! They are deleted when the layer is complete.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use oras_csi_core::digest::Hasher;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::reference::PinnedReference;
use oras_csi_core::registry::{Registry, RegistryError};
use tokio::sync::mpsc;

use super::download::{Download, Interruption, PARTIAL_FROM, RetryBudget, skip_bytes, too_slow};
use super::priority::Priority;
use super::progress::Progress;
use super::scheduler::{DownloadSlot, Ended, RateMonitor, Scheduler, WaitFor};
use crate::content::blob_reader::{BlobReader, PIECES, Piece, StreamFault};
use crate::disk::DiskError;
use crate::disk::reservations::Reservation;
use crate::layout::LayerKey;
use crate::store::Store;
use crate::store::partial_blobs::{Next, Partial};
use crate::unpack::error::UnpackError;
use crate::unpack::layer::{UnpackOptions, unpack_layer};
use crate::unpack::zstd_windows::WindowMemory;

/// What a blob becomes in the store.
#[derive(Clone)]
pub(super) enum Destination {
    Blob,
    Layer(LayerKey, UnpackOptions),
}

impl Destination {
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
        match self.download_through_partial(&mut slot, &ranges_refused).await {
            // The partial blob of an earlier run was damaged, for example by a power failure. Or the registry serves
            // no ranges, and sent wrong bytes before it refused one.
            Err((error, resumed))
                if is_content_error(&error) && (resumed > 0 || ranges_refused.load(Ordering::Relaxed)) =>
            {
                tracing::warn!(digest = %self.blob.digest(), "the partial blob is damaged; downloading the blob again from the start");
                slot.request_again();
                let again = self.download_through_partial(&mut slot, &ranges_refused).await;
                again.map_err(|(error, _)| error)
            }
            ended => ended.map_err(|(error, _)| error),
        }
    }

    /// Downloads through a partial blob. On failure also returns how many bytes an earlier run had left.
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
        if resumed > 0 {
            tracing::info!(digest = %self.blob.digest(), bytes = resumed, "resuming the download of an earlier run");
            self.progress.found(self.blob.digest(), resumed);
        }
        let close_on_drop = CloseOnDrop(partial.clone());
        let mut processing = {
            let (store, partial) = (self.store.clone(), partial.clone());
            let (destination, blob, only_verify) =
                (self.destination.clone(), self.blob.clone(), self.only_verify);
            tokio::task::spawn_blocking(move || process(&store, &partial, &destination, &blob, only_verify))
        };
        let download = Download {
            registry: self.registry,
            reference: self.reference,
            blob: self.blob,
            scheduler: self.scheduler,
            priority: self.priority,
            limits: self.store.limits(),
            progress: self.progress,
            ranges_refused,
        };
        let downloaded = tokio::select! {
            // Ends before the download only if it fails.
            processed = &mut processing => Err(processed),
            downloaded = download.run(&partial, slot) => Ok(downloaded),
        };
        // Unpacking may take long, and needs no slot.
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
        UnpackError::Disk(_) => false,
        _ => true,
    }
}

/// Reads a blob to its end and verifies its digest.
fn verify_only(mut reader: BlobReader) -> Result<(), UnpackError> {
    while !reader.piece()?.is_empty() {}
    Ok(reader.finish()?)
}

/// Hashes or unpacks a blob while it arrives. Blocks.
fn process(
    store: &Store,
    partial: &Arc<Partial>,
    destination: &Destination,
    blob: &Descriptor,
    only_verify: bool,
) -> Result<(), UnpackError> {
    match destination {
        Destination::Blob => {
            verify_digest(partial, blob)?;
            if only_verify {
                partial.discard();
                return Ok(());
            }
            Ok(store.commit_partial(partial, blob.digest())?)
        }
        Destination::Layer(key, options) => {
            let (sender, receiver) = mpsc::channel(PIECES);
            let reader = BlobReader::new(blob.clone(), receiver);
            let processed = std::thread::scope(|scope| {
                let reading = scope.spawn(move || forward(partial, &sender));
                let unpacked = unpack(store, key, options, blob, reader, only_verify);
                // If the content was rejected, the download must stop.
                partial.close();
                (unpacked, reading.join())
            });
            match processed {
                (Ok(()), _) => {
                    partial.discard();
                    Ok(())
                }
                // The unpacking saw only the end of the stream. The error of the reader is the cause.
                (Err(_), Ok(Err(error))) => Err(error.into()),
                (Err(error), _) => Err(error),
            }
        }
    }
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

/// Forwards the bytes of a partial blob in order, until its end or until the receiver stops.
fn forward(partial: &Partial, sender: &mpsc::Sender<Piece>) -> Result<(), DiskError> {
    let mut at = 0;
    loop {
        match partial.next(at)? {
            Next::Closed => return Ok(()),
            Next::Bytes(piece) if piece.is_empty() => return Ok(()),
            Next::Bytes(piece) => {
                at += piece.len() as u64;
                if sender.blocking_send(Ok(piece)).is_err() {
                    return Ok(());
                }
            }
        }
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
    let unpacked = unpack_layer(reader, options, staging.files(), store.limits())?;
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
    Ok(staging.commit_layer(key, unpacked.totals, unpacked.usage)?)
}
