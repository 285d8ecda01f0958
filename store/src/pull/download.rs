//! Downloads a large blob into the store: in parallel ranges if the registry serves ranges, resumed from where an
//! earlier run stopped. The blob is hashed or unpacked while it arrives.
//!
//! ```text
//!                                              partial (a file of the store)
//! registry ═╤═ worker ─┐                      ┌──────────────► hasher
//!           ╞═ worker ─┼─ channel ─ writer ─► ┤  └─ fdatasync, a step behind
//!           ╘═ worker ─┘                      └──────────────► unpacking
//!                                              spool (memory, for an archive)
//! ```
//!
//! Memory is bounded by the channel, whatever the size of the blob. The lead worker has its download slot in turns and
//! decides when the download fails. Helpers use spare slots, stop as soon as another download waits for the slot, and
//! put back the range that they did not finish. A download that is dropped keeps the bytes that were written.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::reference::PinnedReference;
use oras_csi_core::registry::{BlobStream, Registry, RegistryError, RegistryErrorKind};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::priority::Priority;
use super::progress::Progress;
use super::scheduler::{DownloadSlot, Ended, RateMonitor, Scheduler, TooSlow, WaitFor};
use crate::content::blob_reader::{PIECES, StreamFault};
use crate::content::blob_sink::BlobSink;
use crate::disk::DiskError;
use crate::limits::Limits;

/// Blobs of at least this size can be resumed: a file from `partial/`, an archive by another pull of the process.
pub(super) const PARTIAL_FROM: u64 = 16 << 20;
/// Blobs of at least this size are requested in ranges.
const RANGES_FROM: u64 = 64 << 20;
/// The length of the first range, which shows whether the registry serves ranges.
const FIRST_RANGE: u64 = 4 << 20;
/// The length of the other ranges. Each costs one request.
const RANGE: u64 = 32 << 20;
/// How often a blob is requested again from where it broke off, without [`MIN_PROGRESS`] in between.
pub(super) const MAX_RETRIES: u32 = 5;
/// What a stall costs of these retries. A stall takes half a minute, so the second one at the same offset is the
/// last.
const STALL_COST: u32 = MAX_RETRIES;
/// Bytes after which the retries are counted from zero. Without it, a registry that sends one byte per connection
/// would keep the download alive for years.
const MIN_PROGRESS: u64 = 16 << 10;
/// How many helpers may fail before no more are started.
const MAX_FAILED_HELPERS: u32 = 4;
/// How often spare slots are looked for, and when for the first time. Helpers are started only while the network is
/// slower than the disk: otherwise they would only take slots of the registry.
const HELPER_CHECK_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_HELPER_CHECK: Duration = Duration::from_millis(100);

/// An offset in the blob and the bytes from there.
type Chunk = (u64, Bytes);

/// The download of one blob from one registry.
pub(super) struct Download<'a> {
    pub(super) registry: &'a dyn Registry,
    pub(super) reference: &'a PinnedReference,
    pub(super) blob: &'a Descriptor,
    pub(super) scheduler: &'a Arc<Scheduler>,
    pub(super) priority: &'a Priority,
    pub(super) limits: &'a Limits,
    pub(super) progress: &'a Arc<dyn Progress>,
    /// Whether the registry refused a range. The blob is then requested as a whole.
    pub(super) ranges_refused: &'a AtomicBool,
}

/// How a range of a blob is requested.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RequestMode {
    /// From an offset to the end of the blob.
    ToEnd,
    /// As an HTTP range.
    Range,
    /// As an HTTP range that ends early if another download waits for the slot.
    YieldingRange,
    /// As the whole blob, without an HTTP range. The bytes before the range are skipped.
    Whole,
}

impl RequestMode {
    /// Reports whether a request from this offset has a `Range` header.
    fn has_range_header(self, start: u64) -> bool {
        match self {
            Self::ToEnd => start > 0,
            Self::Range | Self::YieldingRange => true,
            Self::Whole => false,
        }
    }
}

/// Why a request did not deliver all that was requested.
pub(super) enum Interruption {
    /// The registry did not answer, although the client retried.
    NoAnswer(RegistryError),
    /// The body failed or ended early.
    BodyFailed(RegistryError),
    /// The registry is too slow; another request would be as slow.
    TooSlow(TooSlow),
    /// The turn of the download has ended. The next turn starts with a request for the rest.
    TurnEnded,
    /// The registry sent the whole blob instead of a range.
    NoRanges,
    /// The registry refused a range, and will refuse it again. It may serve the whole blob.
    RangeRefused(RegistryError),
    /// The receiver has stopped. It reports the reason itself.
    ReceiverStopped,
}

impl From<Ended> for Interruption {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::TooSlow(slow) => Self::TooSlow(slow),
            Ended::Turn => Self::TurnEnded,
        }
    }
}

/// Counts consecutive attempts that made little progress.
#[derive(Default)]
pub(super) struct RetryBudget {
    /// Whether the registry has answered at all.
    was_answered: bool,
    failures: u32,
    offset: u64,
}

impl RetryBudget {
    /// Returns the error and the delay before the next attempt, or the interruption if there is no next attempt.
    /// `received` is the number of bytes received so far.
    pub(super) fn next_attempt(
        &mut self,
        interruption: Interruption,
        received: u64,
    ) -> Result<(RegistryError, Duration), Interruption> {
        match interruption {
            Interruption::BodyFailed(error) => {
                self.was_answered = true;
                self.retry_delay(&error, received)
                    .map(|wait| (error.clone(), wait))
                    .ok_or(Interruption::BodyFailed(error))
            }
            Interruption::NoAnswer(error) if self.was_answered => self
                .retry_delay(&error, received)
                .map(|wait| (error.clone(), wait))
                .ok_or(Interruption::NoAnswer(error)),
            other => Err(other),
        }
    }

    /// Records that the registry has answered.
    fn record_answer(&mut self) {
        self.was_answered = true;
    }

    fn retry_delay(&mut self, error: &RegistryError, received: u64) -> Option<Duration> {
        if received.abs_diff(self.offset) >= MIN_PROGRESS {
            (self.failures, self.offset) = (0, received);
        }
        if !error.is_transient() || self.failures >= MAX_RETRIES {
            return None;
        }
        let wait = error.retry_after().unwrap_or(Duration::from_millis(200) * (1 << self.failures));
        self.failures += if error.kind() == RegistryErrorKind::Stalled { STALL_COST } else { 1 };
        Some(wait.min(Duration::from_secs(30)))
    }
}

/// The ranges that no worker has started.
#[derive(Default)]
struct Queue(Mutex<VecDeque<Range<u64>>>);

impl Queue {
    fn get(&self) -> MutexGuard<'_, VecDeque<Range<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Range<u64>> {
        self.get().pop_front()
    }

    fn put_back(&self, rest: Range<u64>) {
        if !rest.is_empty() {
            self.get().push_front(rest);
        }
    }

    fn is_empty(&self) -> bool {
        self.get().is_empty()
    }
}

impl Download<'_> {
    /// Downloads the bytes that `sink` does not have yet.
    pub(super) async fn run(
        &self,
        sink: &Arc<dyn BlobSink>,
        slot: &mut DownloadSlot,
    ) -> Result<(), StreamFault> {
        let (sender, mut receiver) = mpsc::channel::<Chunk>(PIECES);
        let writer = {
            let sink = sink.clone();
            tokio::task::spawn_blocking(move || -> Result<(), DiskError> {
                while let Some((offset, bytes)) = receiver.blocking_recv() {
                    sink.write(offset, bytes)?;
                }
                Ok(())
            })
        };
        {
            let sink = sink.clone();
            tokio::task::spawn_blocking(move || sink.sync_at_intervals());
        }
        let downloaded = self.feed_writer(sink, slot, &sender).await;
        drop(sender);
        // If the disk failed, the workers saw only a closed channel.
        writer.await.map_err(|_| StreamFault::Stopped)??;
        match downloaded {
            Ok(()) => Ok(()),
            Err(
                Interruption::NoAnswer(error)
                | Interruption::BodyFailed(error)
                | Interruption::RangeRefused(error),
            ) => Err(error.into()),
            Err(Interruption::TooSlow(error)) => Err(too_slow(self.reference, error).into()),
            Err(Interruption::NoRanges | Interruption::ReceiverStopped | Interruption::TurnEnded) => {
                Err(StreamFault::Stopped)
            }
        }
    }

    async fn feed_writer(
        &self,
        sink: &Arc<dyn BlobSink>,
        slot: &mut DownloadSlot,
        sender: &mpsc::Sender<Chunk>,
    ) -> Result<(), Interruption> {
        if !self.ranges_refused.load(Ordering::Relaxed) {
            match self.download_missing(sink, slot, sender).await {
                Err(Interruption::RangeRefused(error)) => {
                    tracing::info!(digest = %self.blob.digest(), %error, "the registry refused a range; requesting the whole blob");
                    self.ranges_refused.store(true, Ordering::Relaxed);
                }
                ended => return ended,
            }
        }
        self.download_whole(sink, slot, sender).await
    }

    /// Downloads the whole blob with one request, because the registry refuses ranges. The bytes that were written
    /// already are skipped. A failure is final: each further attempt would download all of it again.
    async fn download_whole(
        &self,
        sink: &Arc<dyn BlobSink>,
        slot: &mut DownloadSlot,
        sender: &mpsc::Sender<Chunk>,
    ) -> Result<(), Interruption> {
        let Some(mut rest) = sink.missing().first().map(|first| first.start..self.blob.size()) else {
            return Ok(());
        };
        let mut worker = Worker::new(self.limits, slot, sender);
        loop {
            match self.request(&mut rest, RequestMode::Whole, &mut worker).await {
                Err(Interruption::TurnEnded) => {}
                ended => return ended,
            }
        }
    }

    /// Downloads the missing bytes, with ranges.
    async fn download_missing(
        &self,
        sink: &Arc<dyn BlobSink>,
        slot: &mut DownloadSlot,
        sender: &mpsc::Sender<Chunk>,
    ) -> Result<(), Interruption> {
        let missing = sink.missing();
        let Some(start) = missing.first().map(|range| range.start) else { return Ok(()) };
        if self.blob.size() >= RANGES_FROM {
            let queue = Queue::default();
            queue.get().extend(missing.into_iter().flat_map(split_into_ranges));
            match self.download_in_ranges(sink, &queue, slot, sender).await {
                Err(Interruption::NoRanges) => {
                    tracing::debug!(digest = %self.blob.digest(), "the registry does not serve ranges; downloading in one stream");
                    // Ranges are started in order, so the first of the queue is the first that is missing.
                    let start = queue.get().iter().map(|range| range.start).min().unwrap_or(start);
                    return self.download_in_one_stream(start, slot, sender).await;
                }
                ended => return ended,
            }
        }
        self.download_in_one_stream(start, slot, sender).await
    }

    /// Downloads from `start` to the end in one stream.
    async fn download_in_one_stream(
        &self,
        start: u64,
        slot: &mut DownloadSlot,
        sender: &mpsc::Sender<Chunk>,
    ) -> Result<(), Interruption> {
        let mut rest = start..self.blob.size();
        self.request_with_retries(&mut rest, RequestMode::ToEnd, &mut Worker::new(self.limits, slot, sender))
            .await
    }

    /// Downloads the ranges of the queue, several at a time.
    async fn download_in_ranges(
        &self,
        sink: &Arc<dyn BlobSink>,
        queue: &Queue,
        slot: &mut DownloadSlot,
        sender: &mpsc::Sender<Chunk>,
    ) -> Result<(), Interruption> {
        // The first range alone, until it is known that the registry serves ranges.
        let mut worker = Worker::new(self.limits, slot, sender);
        if let Some(mut first) = queue.next() {
            let result = self.request_with_retries(&mut first, RequestMode::Range, &mut worker).await;
            queue.put_back(first);
            result?;
        }
        let max_helpers = self.limits.download_slots_per_artifact().max(1) - 1;
        let mut failed = 0;
        let mut helper_check =
            tokio::time::interval_at(Instant::now() + FIRST_HELPER_CHECK, HELPER_CHECK_INTERVAL);
        let mut helpers = FuturesUnordered::new();
        while !queue.is_empty() || !helpers.is_empty() {
            let leading = self.lead(queue, &mut worker);
            tokio::pin!(leading);
            let mut is_leading = true;
            while is_leading || !helpers.is_empty() {
                tokio::select! {
                    result = &mut leading, if is_leading => {
                        result?;
                        is_leading = false;
                    }
                    Some(has_failed) = helpers.next(), if !helpers.is_empty() => failed += u32::from(has_failed),
                    _ = helper_check.tick() => {
                        let is_slow = sender.capacity() > PIECES / 2 && !sink.is_far_ahead();
                        while is_slow && helpers.len() < max_helpers && failed < MAX_FAILED_HELPERS && !queue.is_empty() {
                            let Some(spare) = self.scheduler.try_acquire_spare(self.reference.registry(), self.priority) else { break };
                            helpers.push(self.help(sink, queue, spare, sender));
                        }
                    }
                }
                // A helper may have put back a range after the lead worker ended: start another round.
                if !is_leading && !queue.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The lead worker, which keeps its slot until the queue is empty.
    async fn lead(&self, queue: &Queue, worker: &mut Worker<'_>) -> Result<(), Interruption> {
        while let Some(mut part) = queue.next() {
            let result = self.request_with_retries(&mut part, RequestMode::Range, worker).await;
            queue.put_back(part);
            result?;
        }
        Ok(())
    }

    /// A helper, which works while no other download waits for its slot. Returns whether it failed.
    async fn help(
        &self,
        sink: &Arc<dyn BlobSink>,
        queue: &Queue,
        mut slot: DownloadSlot,
        sender: &mpsc::Sender<Chunk>,
    ) -> bool {
        let mut worker = Worker::new(self.limits, &mut slot, sender);
        while !sink.is_far_ahead()
            && let Some(part) = queue.next()
        {
            let mut rest = PutBack { queue, rest: part };
            if worker.slot.has_waiters() {
                return false;
            }
            let result = self.request(&mut rest.rest, RequestMode::YieldingRange, &mut worker).await;
            match result {
                Ok(()) if rest.rest.is_empty() => {}
                Ok(()) | Err(Interruption::TurnEnded) => return false,
                Err(_) => return true,
            }
        }
        false
    }

    /// Requests a range until all of it has arrived or the retries are used up.
    async fn request_with_retries(
        &self,
        rest: &mut Range<u64>,
        mode: RequestMode,
        worker: &mut Worker<'_>,
    ) -> Result<(), Interruption> {
        loop {
            let Err(interruption) = self.request(rest, mode, worker).await else {
                worker.retries.record_answer();
                return Ok(());
            };
            if matches!(interruption, Interruption::TurnEnded) {
                continue;
            }
            let Worker { slot, rate_monitor, retries, sender } = worker;
            let (error, wait) = retries.next_attempt(interruption, rest.start)?;
            tracing::info!(digest = %self.blob.digest(), offset = rest.start, %error, "a download broke off; resuming from this offset");
            tokio::select! {
                waited = rate_monitor.wait(slot, WaitFor::Answer, tokio::time::sleep(wait)) => match waited {
                    Ok(()) | Err(Ended::Turn) => {}
                    Err(Ended::TooSlow(slow)) => return Err(Interruption::TooSlow(slow)),
                },
                () = sender.closed() => return Err(Interruption::ReceiverStopped),
            }
        }
    }

    /// Makes one request. Afterwards `rest` is the part of the range that has not arrived.
    async fn request(
        &self,
        rest: &mut Range<u64>,
        mode: RequestMode,
        worker: &mut Worker<'_>,
    ) -> Result<(), Interruption> {
        let has_range_header = mode.has_range_header(rest.start);
        let is_refused = |error: &RegistryError| has_range_header && !error.is_transient();
        let answer = worker.rate_monitor.wait(worker.slot, WaitFor::Answer, self.open(rest, mode)).await?;
        let stream = match answer {
            Ok(Some(stream)) => stream,
            Ok(None) => return Err(Interruption::NoRanges),
            Err(error) if is_refused(&error) => return Err(Interruption::RangeRefused(error)),
            Err(error) => return Err(Interruption::NoAnswer(error)),
        };
        match self.receive(stream, rest, mode, worker).await {
            Err(Interruption::BodyFailed(error)) if is_refused(&error) => {
                Err(Interruption::RangeRefused(error))
            }
            ended => ended,
        }
    }

    /// Requests a range. Returns `None` if the registry sends the whole blob instead.
    async fn open(&self, rest: &Range<u64>, mode: RequestMode) -> Result<Option<BlobStream>, RegistryError> {
        match mode {
            RequestMode::Whole => self.registry.blob(self.reference, self.blob, 0).await.map(Some),
            RequestMode::ToEnd => self.registry.blob(self.reference, self.blob, rest.start).await.map(Some),
            RequestMode::Range | RequestMode::YieldingRange => {
                self.registry.part(self.reference, self.blob, rest.clone()).await
            }
        }
    }

    /// Passes the bytes of an answer to the writer.
    async fn receive(
        &self,
        mut stream: BlobStream,
        rest: &mut Range<u64>,
        mode: RequestMode,
        worker: &mut Worker<'_>,
    ) -> Result<(), Interruption> {
        let Worker { slot, rate_monitor, sender, .. } = worker;
        let mut skip = if mode == RequestMode::Whole { rest.start } else { 0 };
        while !rest.is_empty() {
            let piece = rate_monitor.wait(slot, WaitFor::Body, stream.next()).await?;
            let ended = || RegistryError::Unreachable {
                at: self.reference.name().into(),
                words: format!("the response for the blob {} ended early", self.blob.digest()).into(),
            };
            let mut piece = piece.unwrap_or_else(|| Err(ended())).map_err(Interruption::BodyFailed)?;
            rate_monitor.received(slot, piece.len() as u64);
            skip_bytes(&mut piece, &mut skip);
            piece.truncate(usize::try_from(rest.end - rest.start).unwrap_or(usize::MAX));
            if piece.is_empty() {
                continue;
            }
            let length = piece.len() as u64;
            if slot.wait_for_disk(sender.send((rest.start, piece))).await.is_err() {
                return Err(Interruption::ReceiverStopped);
            }
            rest.start += length;
            self.progress.received(self.blob.digest(), length);
            if mode == RequestMode::YieldingRange && slot.has_waiters() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Removes the first `skip` bytes of a stream from its next piece.
pub(super) fn skip_bytes(piece: &mut Bytes, skip: &mut u64) {
    let count = usize::try_from(*skip).unwrap_or(usize::MAX).min(piece.len());
    let _ = piece.split_to(count);
    *skip -= count as u64;
}

/// A sequence of requests: its slot, its rate, its retries, and the receiver of its bytes.
struct Worker<'a> {
    slot: &'a mut DownloadSlot,
    rate_monitor: RateMonitor,
    retries: RetryBudget,
    sender: &'a mpsc::Sender<Chunk>,
}

impl<'a> Worker<'a> {
    fn new(limits: &Limits, slot: &'a mut DownloadSlot, sender: &'a mpsc::Sender<Chunk>) -> Self {
        Self { slot, rate_monitor: RateMonitor::new(limits), retries: RetryBudget::default(), sender }
    }
}

/// Puts the unfinished part of a range back into the queue, also if the worker is dropped.
struct PutBack<'a> {
    queue: &'a Queue,
    rest: Range<u64>,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        self.queue.put_back(self.rest.clone());
    }
}

/// Splits a range into a short first one and longer ones.
fn split_into_ranges(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    let mut length = FIRST_RANGE;
    std::iter::from_fn(move || {
        let next = at..range.end.min(at.saturating_add(length));
        (at, length) = (next.end, RANGE);
        (!next.is_empty()).then_some(next)
    })
}

pub(super) fn too_slow(reference: &PinnedReference, slow: TooSlow) -> RegistryError {
    let TooSlow { minimum, rate, after } = slow;
    let what = format!("{} KiB a second (received {rate} bytes a second)", minimum >> 10);
    RegistryError::Stalled { at: reference.name().into(), what: what.into(), after }
}
