//! A download that waits for its first turn, as the observer of the store sees it.

use std::sync::Arc;

use tokio::time::Instant;

use super::priority::Priority;
use crate::state::observer::{StoreObserver, Work};

/// A download in the queue. Dropping it takes the download out, for example because its pull was cancelled.
pub(super) struct Queued {
    observer: Arc<dyn StoreObserver>,
    work: Work,
    since: Instant,
    waited: Option<f64>,
}

impl Queued {
    /// Reports that a download waits. What it is for is decided now, even if pods join a preload later.
    pub(super) fn enter(observer: &Arc<dyn StoreObserver>, priority: &Priority) -> Self {
        let is_preload = priority.watch().tenants().is_empty();
        let work = if is_preload { Work::Preload } else { Work::Pods };
        observer.queued(work);
        Self { observer: observer.clone(), work, since: Instant::now(), waited: None }
    }

    /// Reports that the turn begins.
    pub(super) fn start(mut self) {
        self.waited = Some(self.since.elapsed().as_secs_f64());
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.observer.left_queue(self.work, self.waited);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::pull::priority::Waiters;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(Work, Option<f64>)>>);

    impl StoreObserver for Recorder {
        fn left_queue(&self, work: Work, waited: Option<f64>) {
            self.0.lock().unwrap().push((work, waited));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_leaves_the_queue_once_whether_it_starts_or_is_cancelled() {
        let recorder = Arc::new(Recorder::default());
        let observer: Arc<dyn StoreObserver> = recorder.clone();
        let started = Queued::enter(&observer, &Priority::default());
        let cancelled = Queued::enter(&observer, &Priority::of(&Waiters::default()));
        tokio::time::advance(Duration::from_secs(3)).await;
        started.start();
        drop(cancelled);
        assert_eq!(*recorder.0.lock().unwrap(), [(Work::Pods, Some(3.0)), (Work::Preload, None)]);
    }
}
