//! What the threads of the load count.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A pod that was not created.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When the answer came.
    pub at: Instant,
    /// The answer.
    pub message: String,
}

/// The counts since the start of the load.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Pods that were created, with their volume.
    pub(super) created: u64,
    /// Pods that were not created.
    pub(super) failures: Vec<Failure>,
    /// Pods that have read their volume.
    pub(super) started: u64,
    /// How long each of these took from its creation on.
    pub(super) start_times: Vec<Duration>,
    /// Pods of the Deployment that were replaced.
    pub(super) restarted: u64,
    /// When the last pod was created that has read its volume.
    pub(super) last_begun: Option<Instant>,
    /// Reads of mounts from the node.
    pub(super) reads: u64,
    /// What was wrong with reads, on the node and in pods.
    pub(super) read_errors: Vec<String>,
}

/// The counts, and what tells the threads to stop.
#[derive(Debug, Default)]
pub(super) struct State {
    counts: Mutex<Counts>,
    stops: AtomicBool,
    /// The mounted files that are read from the node.
    files: Mutex<BTreeSet<PathBuf>>,
}

impl State {
    pub(super) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn snapshot(&self) -> Counts {
        self.counts().clone()
    }

    pub(super) fn stop(&self) {
        self.stops.store(true, Ordering::SeqCst);
    }

    pub(super) fn goes_on(&self) -> bool {
        !self.stops.load(Ordering::SeqCst)
    }

    pub(super) fn failed(&self, message: String) {
        self.counts().failures.push(Failure { at: Instant::now(), message });
    }

    pub(super) fn cannot_read(&self, message: String) {
        self.counts().read_errors.push(message);
    }

    pub(super) fn files(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
