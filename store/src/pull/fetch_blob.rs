//! One blob from a registry: into a file of the store, or unpacked into a layer as it comes.
//!
//! What is small goes straight through, from the network to the thread that hashes and writes. What is big is kept on
//! its way ([`super::download`]): so is an archive, although that costs writing its compressed bytes once, since
//! unpacking ten gigabytes again is minutes and fetching them again may be an hour. It goes when its layer is there.

use std::sync::Arc;

use futures_util::StreamExt;
use oras_csi_core::digest::Hasher;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::reference::PinnedReference;
use oras_csi_core::registry::{Registry, RegistryError};
use tokio::sync::mpsc;

use super::download::{Broken, Download, KEPT_FROM, Patience, too_slow};
use super::priority::Priority;
use super::progress::Progress;
use super::scheduler::{DownloadSlot, Pace, Scheduler};
use crate::content::blob_reader::{BlobReader, PIECES, Piece, StreamFault};
use crate::disk::DiskError;
use crate::layout::LayerKey;
use crate::store::Store;
use crate::store::partial_blobs::{Next, Partial};
use crate::unpack::error::UnpackError;
use crate::unpack::layer::{Unpacking, unpack_layer};

/// What becomes of a blob.
#[derive(Clone)]
pub(super) enum Job {
    Blob,
    Layer(LayerKey, Unpacking),
}

/// A blob to be brought, and whence.
#[derive(Clone, Copy)]
pub(super) struct FetchBlob<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) registry: &'a dyn Registry,
    pub(super) scheduler: &'a Arc<Scheduler>,
    pub(super) priority: &'a Priority,
    pub(super) job: &'a Job,
    /// It is there already: whoever names it only shows that it has it.
    pub(super) is_proof: bool,
    pub(super) blob: &'a Descriptor,
    pub(super) reference: &'a PinnedReference,
    pub(super) progress: &'a Arc<dyn Progress>,
}

/// Whatever way this ends, nobody waits for more bytes.
struct Closing(Arc<Partial>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl FetchBlob<'_> {
    pub(super) async fn run(self, slot: DownloadSlot) -> Result<(), UnpackError> {
        // A layer of a store that is not kept is not gone on with, and neither is what is only read.
        let is_kept = !self.is_proof && (matches!(self.job, Job::Blob) || self.store.is_persistent());
        if self.blob.size() < KEPT_FROM || !is_kept {
            return self.straight(slot).await;
        }
        match self.on_its_way(slot).await {
            // What an earlier run left was wrong: a power cut may have changed it.
            Err((error, 1..)) if is_about_the_bytes(&error) => {
                tracing::warn!(digest = %self.blob.digest(), "what an earlier run left of a blob is damaged; it is fetched anew");
                let slot = self.scheduler.take(self.reference.registry(), self.priority).await;
                let slot = slot.ok_or(StreamFault::Stopped)?;
                self.on_its_way(slot).await.map_err(|(error, _)| error)
            }
            ended => ended.map_err(|(error, _)| error),
        }
    }

    /// Keeps what comes; on failure says how much an earlier run had left.
    async fn on_its_way(self, slot: DownloadSlot) -> Result<(), (UnpackError, u64)> {
        let open = {
            let (store, blob, host) =
                (self.store.clone(), self.blob.clone(), self.reference.registry().clone());
            tokio::task::spawn_blocking(move || store.partial(&blob, &host))
        };
        let fault = |fault: StreamFault| (UnpackError::Stream(fault), 0);
        let partial = open.await.map_err(|_| fault(StreamFault::Stopped))?;
        let partial = Arc::new(partial.map_err(|error| fault(error.into()))?);
        let resumed = partial.resumed();
        if resumed > 0 {
            tracing::info!(digest = %self.blob.digest(), bytes = resumed, "going on with what an earlier run left");
            self.progress.found(self.blob.digest(), resumed);
        }
        let closing = Closing(partial.clone());
        let mut making = {
            let (store, partial) = (self.store.clone(), partial.clone());
            let (job, blob) = (self.job.clone(), self.blob.clone());
            tokio::task::spawn_blocking(move || make(&store, &partial, &job, &blob))
        };
        let download = Download {
            registry: self.registry,
            reference: self.reference,
            blob: self.blob,
            scheduler: self.scheduler,
            priority: self.priority,
            limits: self.store.limits(),
            progress: self.progress,
        };
        let fed = tokio::select! {
            // It ends before the last byte only where it fails.
            made = &mut making => Err(made),
            fed = download.run(&partial, slot) => Ok(fed),
        };
        let made = match fed {
            Err(made) => made,
            Ok(Ok(())) => making.await,
            Ok(Err(fault)) => {
                drop(closing);
                let _ = making.await;
                Ok(Err(fault.into()))
            }
        };
        let made = made.unwrap_or(Err(StreamFault::Stopped.into()));
        if made.as_ref().is_err_and(|error| !may_go_on(error)) {
            partial.discard();
        }
        made.map_err(|error| (error, resumed))
    }

    /// From the network to the thread that writes.
    async fn straight(self, mut slot: DownloadSlot) -> Result<(), UnpackError> {
        let (sender, receiver) = mpsc::channel(PIECES);
        let reader = BlobReader::new(self.blob.clone(), receiver);
        let (store, job, blob) = (self.store.clone(), self.job.clone(), self.blob.clone());
        let is_proof = self.is_proof;
        let written = tokio::task::spawn_blocking(move || match &job {
            _ if is_proof => read_through(reader),
            Job::Blob => Ok(store.write_blob(&blob, reader)?),
            Job::Layer(key, unpacking) => unpack(&store, key, unpacking, &blob, reader),
        });
        self.feed(&mut slot, sender).await;
        written.await.unwrap_or(Err(StreamFault::Stopped.into()))
    }

    /// Whether a registry that has the blob gives it under this name: its bytes begin to come, and are not wanted.
    pub(super) async fn is_opened(&self, mut slot: DownloadSlot) -> Result<(), UnpackError> {
        let mut pace = Pace::new(self.store.limits());
        let opened = pace.wait(&mut slot, self.registry.blob(self.reference, self.blob, 0)).await;
        let opened = opened.map_err(|late| StreamFault::Registry(too_slow(self.reference, late)))?;
        opened.map(drop).map_err(|error| StreamFault::Registry(error).into())
    }

    /// Sends a blob's bytes; asks again from where it broke off.
    async fn feed(&self, slot: &mut DownloadSlot, sender: mpsc::Sender<Piece>) {
        let mut pace = Pace::new(self.store.limits());
        let mut patience = Patience::default();
        let mut offset = 0;
        loop {
            let Err(broken) = self.feed_from(slot, &mut pace, &mut offset, &sender).await else { return };
            let given_up = match patience.after(broken, offset) {
                Ok((error, wait)) => {
                    tracing::info!(digest = %self.blob.digest(), offset, %error, "a download broke off; going on from there");
                    tokio::select! {
                        waited = pace.wait(slot, tokio::time::sleep(wait)) => match waited {
                            Ok(()) => continue,
                            Err(late) => too_slow(self.reference, late),
                        },
                        () = sender.closed() => return,
                    }
                }
                Err(Broken::Silent(error) | Broken::Registry(error)) => error,
                Err(Broken::Slow(late)) => too_slow(self.reference, late),
                Err(Broken::NoParts | Broken::Unwanted) => return,
            };
            let _ = sender.send(Err(given_up)).await;
            return;
        }
    }

    /// Sends what one answer gives.
    async fn feed_from(
        &self,
        slot: &mut DownloadSlot,
        pace: &mut Pace,
        offset: &mut u64,
        sender: &mpsc::Sender<Piece>,
    ) -> Result<(), Broken> {
        let answer = self.registry.blob(self.reference, self.blob, *offset);
        let answer = pace.wait(slot, answer).await.map_err(Broken::Slow)?;
        let mut stream = answer.map_err(Broken::Silent)?;
        while let Some(piece) = pace.wait(slot, stream.next()).await.map_err(Broken::Slow)? {
            let piece = piece.map_err(Broken::Registry)?;
            let length = piece.len() as u64;
            pace.came(length);
            // The writer has given up, and says why itself.
            sender.send(Ok(piece)).await.map_err(|_| Broken::Unwanted)?;
            *offset += length;
            self.progress.received(self.blob.digest(), length);
        }
        Ok(())
    }
}

/// Whether the next attempt can use what has come.
fn may_go_on(error: &UnpackError) -> bool {
    match error {
        UnpackError::Stream(StreamFault::Stopped) => true,
        UnpackError::Stream(StreamFault::Registry(error)) => match error {
            // Somebody else, or the same one later, may be let in.
            RegistryError::Refused { .. } => true,
            error => error.is_transient(),
        },
        _ => false,
    }
}

fn is_about_the_bytes(error: &UnpackError) -> bool {
    let is_not = |fault: &StreamFault| {
        matches!(fault, StreamFault::Registry(_) | StreamFault::Stopped | StreamFault::Disk(_))
    };
    match error {
        UnpackError::Stream(fault) => !is_not(fault),
        UnpackError::Disk(_) => false,
        _ => true,
    }
}

/// Reads a blob to its end, which has to have its digest.
fn read_through(mut reader: BlobReader) -> Result<(), UnpackError> {
    while !reader.piece()?.is_empty() {}
    Ok(reader.finish()?)
}

/// Makes of a blob what it becomes, right behind the bytes as they come; in a thread that may block.
fn make(store: &Store, partial: &Arc<Partial>, job: &Job, blob: &Descriptor) -> Result<(), UnpackError> {
    match job {
        Job::Blob => {
            hash(partial, blob)?;
            Ok(store.commit_partial(partial, blob.digest())?)
        }
        Job::Layer(key, unpacking) => {
            let (sender, receiver) = mpsc::channel(PIECES);
            let reader = BlobReader::new(blob.clone(), receiver);
            let made = std::thread::scope(|scope| {
                let reading = scope.spawn(move || read(partial, &sender));
                let unpacked = unpack(store, key, unpacking, blob, reader);
                // Whoever refuses what is in it waits for no more of it.
                partial.close();
                (unpacked, reading.join())
            });
            match made {
                (Ok(()), _) => {
                    partial.discard();
                    Ok(())
                }
                // The unpacking saw only that nothing more came.
                (Err(_), Ok(Err(error))) => Err(error.into()),
                (Err(error), _) => Err(error),
            }
        }
    }
}

fn hash(partial: &Partial, blob: &Descriptor) -> Result<(), StreamFault> {
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

/// Hands on what has come, in order; ends where nobody wants more.
fn read(partial: &Partial, sender: &mpsc::Sender<Piece>) -> Result<(), DiskError> {
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

fn unpack(
    store: &Store,
    key: &LayerKey,
    unpacking: &Unpacking,
    blob: &Descriptor,
    reader: BlobReader,
) -> Result<(), UnpackError> {
    let staging = store.stage()?;
    let unpacked = unpack_layer(reader, unpacking, staging.files(), store.limits())?;
    if unpacked.left_out > 0 {
        tracing::warn!(
            digest = %blob.digest(),
            count = unpacked.left_out,
            "device nodes, FIFOs and the like in a layer were left out"
        );
    }
    Ok(staging.commit_layer(key, unpacked.totals)?)
}
