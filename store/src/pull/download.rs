//! A big blob on its way into the store: in parts side by side where the registry gives parts, resumed where an
//! earlier run ended, hashed or unpacked right behind the bytes that are there.
//!
//! ```text
//! registry ═╤═ worker ─┐                      ┌─ hasher            (a file)
//!           ╞═ worker ─┼─ channel ─ writer ─► partial ─ reader ─ unpacking (an archive)
//!           ╘═ worker ─┘                      └─ fdatasync, a step behind
//! ```
//!
//! Memory is what the channel holds, whatever the size. The first worker has a turn for good and decides when to give
//! up; the others work with turns that nobody else wants, leave as soon as somebody does, and put back what they
//! did not finish. What is dropped in the middle keeps what was written.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::reference::PinnedReference;
use oras_csi_core::registry::{Registry, RegistryError, RegistryErrorKind};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::priority::Priority;
use super::progress::Progress;
use super::scheduler::{DownloadSlot, Pace, Scheduler, TooSlow};
use crate::content::blob_reader::{PIECES, StreamFault};
use crate::disk::DiskError;
use crate::limits::Limits;
use crate::store::partial_blobs::Partial;

/// From this size on a blob is kept on its way.
pub(super) const KEPT_FROM: u64 = 16 << 20;
/// From this size on parts are asked for.
const PARTS_FROM: u64 = 64 << 20;
/// The first part, which shows whether there are any.
const FIRST_PART: u64 = 4 << 20;
/// The others. Each costs a request.
const PART: u64 = 32 << 20;
/// How often a blob is asked for again, from where it broke off, without much more having come.
pub(super) const RESUMES: u32 = 5;
/// What of them a stall takes, which has cost half a minute already: the second one at the same place is the last.
const STALL: u32 = RESUMES;
/// How much is much: a registry that gives a byte a connection would keep us for years.
const PROGRESS: u64 = 16 << 10;
/// How many further workers may fail before there are no more.
const MOST_FAILED: u32 = 4;
/// How often it is looked for a spare turn, and when for the first time: where one stream gives more than is written,
/// others would only take the registry's time.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_FIRST: Duration = Duration::from_millis(100);

/// Bytes and their place.
type Piece = (u64, Bytes);

/// A blob that is being brought from a registry.
pub(super) struct Download<'a> {
    pub(super) registry: &'a dyn Registry,
    pub(super) reference: &'a PinnedReference,
    pub(super) blob: &'a Descriptor,
    pub(super) scheduler: &'a Arc<Scheduler>,
    pub(super) priority: &'a Priority,
    pub(super) limits: &'a Limits,
    pub(super) progress: &'a Arc<dyn Progress>,
}

/// Why a request did not give all that was asked for.
pub(super) enum Broken {
    /// No answer, although the client asked several times.
    Silent(RegistryError),
    /// An answer that ended early.
    Registry(RegistryError),
    /// Asking again would be as slow.
    Slow(TooSlow),
    /// Everything came instead of a part.
    NoParts,
    /// Whoever writes has stopped, and says why itself.
    Unwanted,
}

/// Counts the attempts that brought little.
#[derive(Default)]
pub(super) struct Patience {
    /// Whether there was an answer at all.
    has_begun: bool,
    failures: u32,
    reached: u64,
}

impl Patience {
    /// How long to wait before asking again, if at all; `came` bytes have come so far.
    pub(super) fn after(&mut self, broken: Broken, came: u64) -> Result<(RegistryError, Duration), Broken> {
        match broken {
            Broken::Registry(error) => {
                self.has_begun = true;
                self.wait(&error, came).map(|wait| (error.clone(), wait)).ok_or(Broken::Registry(error))
            }
            Broken::Silent(error) if self.has_begun => {
                self.wait(&error, came).map(|wait| (error.clone(), wait)).ok_or(Broken::Silent(error))
            }
            given_up => Err(given_up),
        }
    }

    /// There was an answer.
    fn began(&mut self) {
        self.has_begun = true;
    }

    fn wait(&mut self, error: &RegistryError, came: u64) -> Option<Duration> {
        if came.abs_diff(self.reached) >= PROGRESS {
            (self.failures, self.reached) = (0, came);
        }
        if !error.is_transient() || self.failures >= RESUMES {
            return None;
        }
        let wait = error.retry_after().unwrap_or(Duration::from_millis(200) * (1 << self.failures));
        self.failures += if error.kind() == RegistryErrorKind::Stalled { STALL } else { 1 };
        Some(wait.min(Duration::from_secs(30)))
    }
}

/// What no worker has begun with.
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
    /// Brings what is missing of `partial`.
    pub(super) async fn run(&self, partial: &Arc<Partial>, slot: DownloadSlot) -> Result<(), StreamFault> {
        let (sender, mut receiver) = mpsc::channel::<Piece>(PIECES);
        let writer = {
            let partial = partial.clone();
            tokio::task::spawn_blocking(move || -> Result<(), DiskError> {
                while let Some((offset, bytes)) = receiver.blocking_recv() {
                    partial.write(offset, bytes)?;
                }
                Ok(())
            })
        };
        {
            let partial = partial.clone();
            tokio::task::spawn_blocking(move || partial.sync_at_intervals());
        }
        let fed = self.bring(partial, slot, &sender).await;
        drop(sender);
        // A disk that failed is why nothing more was wanted.
        writer.await.map_err(|_| StreamFault::Stopped)??;
        match fed {
            Ok(()) => Ok(()),
            Err(Broken::Silent(error) | Broken::Registry(error)) => Err(error.into()),
            Err(Broken::Slow(late)) => Err(too_slow(self.reference, late).into()),
            Err(Broken::NoParts | Broken::Unwanted) => Err(StreamFault::Stopped),
        }
    }

    async fn bring(
        &self,
        partial: &Arc<Partial>,
        mut slot: DownloadSlot,
        sender: &mpsc::Sender<Piece>,
    ) -> Result<(), Broken> {
        let missing = partial.missing();
        let Some(start) = missing.first().map(|range| range.start) else { return Ok(()) };
        if self.blob.size() >= PARTS_FROM {
            let queue = Queue::default();
            queue.get().extend(missing.into_iter().flat_map(parts));
            match self.side_by_side(&queue, &mut slot, sender).await {
                Err(Broken::NoParts) => {
                    tracing::debug!(digest = %self.blob.digest(), "the registry gives no parts");
                    // The queue's first is the first that is missing: parts are begun in order.
                    let start = queue.get().iter().map(|range| range.start).min().unwrap_or(start);
                    return self.in_one(start, &mut slot, sender).await;
                }
                ended => return ended,
            }
        }
        self.in_one(start, &mut slot, sender).await
    }

    /// In one stream from `start` to the end.
    async fn in_one(
        &self,
        start: u64,
        slot: &mut DownloadSlot,
        sender: &mpsc::Sender<Piece>,
    ) -> Result<(), Broken> {
        let mut rest = start..self.blob.size();
        let mut pace = Pace::new(self.limits);
        self.insisting(&mut rest, false, slot, &mut pace, sender, &mut Patience::default()).await
    }

    /// In parts, of which several come at once.
    async fn side_by_side(
        &self,
        queue: &Queue,
        slot: &mut DownloadSlot,
        sender: &mpsc::Sender<Piece>,
    ) -> Result<(), Broken> {
        // Alone, until it is known that there are parts.
        let mut pace = Pace::new(self.limits);
        let mut patience = Patience::default();
        if let Some(mut first) = queue.next() {
            let brought = self.insisting(&mut first, true, slot, &mut pace, sender, &mut patience).await;
            queue.put_back(first);
            brought?;
        }
        let most = self.limits.download_slots_per_artifact().max(1) - 1;
        let mut failed = 0;
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_FIRST, LOOK_EVERY);
        let mut further = FuturesUnordered::new();
        while !queue.is_empty() || !further.is_empty() {
            let leading = self.leading(queue, slot, &mut pace, sender, &mut patience);
            tokio::pin!(leading);
            let mut is_leading = true;
            while is_leading || !further.is_empty() {
                tokio::select! {
                    led = &mut leading, if is_leading => {
                        led?;
                        is_leading = false;
                    }
                    Some(has_failed) = further.next(), if !further.is_empty() => failed += u32::from(has_failed),
                    _ = look.tick() => {
                        let is_slow = sender.capacity() > PIECES / 2;
                        while is_slow && further.len() < most && failed < MOST_FAILED && !queue.is_empty() {
                            let Some(spare) = self.scheduler.spare(self.reference.registry(), self.priority) else { break };
                            further.push(self.helping(queue, spare, sender));
                        }
                    }
                }
                // What a helper put back is for whoever still works, and else for another round.
                if !is_leading && !queue.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The worker that has a turn for good.
    async fn leading(
        &self,
        queue: &Queue,
        slot: &mut DownloadSlot,
        pace: &mut Pace,
        sender: &mpsc::Sender<Piece>,
        patience: &mut Patience,
    ) -> Result<(), Broken> {
        while let Some(mut part) = queue.next() {
            let brought = self.insisting(&mut part, true, slot, pace, sender, patience).await;
            queue.put_back(part);
            brought?;
        }
        Ok(())
    }

    /// Another one, as long as nobody wants its turn; says whether it failed.
    async fn helping(&self, queue: &Queue, mut slot: DownloadSlot, sender: &mpsc::Sender<Piece>) -> bool {
        let mut pace = Pace::new(self.limits);
        while let Some(part) = queue.next() {
            let mut rest = PutBack { queue, rest: part };
            if slot.is_wanted() {
                return false;
            }
            let brought = self.once(&mut rest.rest, true, true, &mut slot, &mut pace, sender).await;
            match brought {
                Ok(()) if rest.rest.is_empty() => {}
                Ok(()) => return false,
                Err(_) => return true,
            }
        }
        false
    }

    /// Asks for a range until all of it has come, or it is clear that it will not.
    async fn insisting(
        &self,
        rest: &mut Range<u64>,
        in_parts: bool,
        slot: &mut DownloadSlot,
        pace: &mut Pace,
        sender: &mpsc::Sender<Piece>,
        patience: &mut Patience,
    ) -> Result<(), Broken> {
        loop {
            let Err(broken) = self.once(rest, in_parts, false, slot, pace, sender).await else {
                patience.began();
                return Ok(());
            };
            let (error, wait) = patience.after(broken, rest.start)?;
            tracing::info!(digest = %self.blob.digest(), offset = rest.start, %error, "a download broke off; going on from there");
            tokio::select! {
                waited = pace.wait(slot, tokio::time::sleep(wait)) => waited.map_err(Broken::Slow)?,
                () = sender.closed() => return Err(Broken::Unwanted),
            }
        }
    }

    /// One request; `rest` is what is left of the range after it. `yields`: ends early where the turn is wanted.
    async fn once(
        &self,
        rest: &mut Range<u64>,
        in_parts: bool,
        yields: bool,
        slot: &mut DownloadSlot,
        pace: &mut Pace,
        sender: &mpsc::Sender<Piece>,
    ) -> Result<(), Broken> {
        let answer = async {
            if in_parts {
                self.registry.part(self.reference, self.blob, rest.clone()).await
            } else {
                self.registry.blob(self.reference, self.blob, rest.start).await.map(Some)
            }
        };
        let answer = pace.wait(slot, answer).await.map_err(Broken::Slow)?;
        let Some(mut stream) = answer.map_err(Broken::Silent)? else { return Err(Broken::NoParts) };
        while !rest.is_empty() {
            let piece = pace.wait(slot, stream.next()).await.map_err(Broken::Slow)?;
            let ended = || RegistryError::Unreachable {
                at: self.reference.name().into(),
                words: format!("the blob {} ended early", self.blob.digest()).into(),
            };
            let mut piece = piece.unwrap_or_else(|| Err(ended())).map_err(Broken::Registry)?;
            piece.truncate(usize::try_from(rest.end - rest.start).unwrap_or(usize::MAX));
            let length = piece.len() as u64;
            pace.came(length);
            if sender.send((rest.start, piece)).await.is_err() {
                return Err(Broken::Unwanted);
            }
            rest.start += length;
            self.progress.received(self.blob.digest(), length);
            if yields && slot.is_wanted() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Puts back what was not finished, also where its worker is dropped.
struct PutBack<'a> {
    queue: &'a Queue,
    rest: Range<u64>,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        self.queue.put_back(self.rest.clone());
    }
}

/// A range in parts: a short one at its beginning, and then long ones.
fn parts(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    let mut length = FIRST_PART;
    std::iter::from_fn(move || {
        let part = at..range.end.min(at.saturating_add(length));
        (at, length) = (part.end, PART);
        (!part.is_empty()).then_some(part)
    })
}

pub(super) fn too_slow(reference: &PinnedReference, late: TooSlow) -> RegistryError {
    let TooSlow { least, rate, after, others_wait } = late;
    let others = if others_wait { " and others wait" } else { "" };
    let what = format!("{} KiB a second (it gave {rate} bytes a second{others})", least >> 10);
    RegistryError::Stalled { at: reference.name().into(), what: what.into(), after }
}
