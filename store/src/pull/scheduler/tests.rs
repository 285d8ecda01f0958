//! Tests of the scheduler, with paused time.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::priority::{Waiters, Waiting};
use super::rate::{MIN_RATE, SLOW_RATE};
use super::*;
use crate::limits::Limits;

const SECOND: Duration = Duration::from_secs(1);
const LARGE: u64 = 1 << 30;

fn host(name: &str) -> RegistryHost {
    name.parse().unwrap()
}

async fn pod_slot(scheduler: &Arc<Scheduler>, name: &str) -> Option<DownloadSlot> {
    timeout(SECOND, scheduler.acquire(&host(name), LARGE, &Priority::default())).await.ok()
}

/// Returns the priority of the pods of a namespace, while the second value exists.
fn pods_of(namespace: &str) -> (Priority, Waiting) {
    let waiters = Waiters::default();
    (Priority::of(&waiters), waiters.add(vec![Tenant::of_namespace(namespace)]))
}

/// Downloads for an hour at `rate` bytes a second.
async fn download_at(slot: &mut DownloadSlot, rate: u64) -> Result<(), Ended> {
    let mut rate_monitor = RateMonitor::new(&Limits::default());
    for _ in 0..3_600 {
        rate_monitor.wait(slot, WaitFor::Body, tokio::time::sleep(SECOND)).await?;
        rate_monitor.received(slot, rate);
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_host_has_half_of_the_slots_whatever_its_port() {
    let scheduler = Arc::new(Scheduler::new(8));
    let mut slots = Vec::new();
    for name in ["a:1", "a:2", "a:3", "a:4"] {
        slots.push(pod_slot(&scheduler, name).await.unwrap());
    }
    assert!(pod_slot(&scheduler, "a:5").await.is_none());
    assert!(pod_slot(&scheduler, "b").await.is_some());
    slots.pop();
    assert!(pod_slot(&scheduler, "a:5").await.is_some());
    drop(slots);
    let one = Arc::new(Scheduler::new(1));
    assert!(pod_slot(&one, "a").await.is_some());
    assert!(pod_slot(&one, "b").await.is_some());
}

async fn preload_slot(scheduler: &Arc<Scheduler>, name: &str, pods: &Waiters) -> Option<DownloadSlot> {
    timeout(SECOND, scheduler.acquire(&host(name), LARGE, &Priority::of(pods))).await.ok()
}

#[tokio::test(start_paused = true)]
async fn preloads_leave_slots_to_pods() {
    let (scheduler, pods_of_preload) = (Arc::new(Scheduler::new(8)), Waiters::default());
    let mut slots = Vec::new();
    for name in ["a", "a", "a", "b"] {
        slots.push(preload_slot(&scheduler, name, &pods_of_preload).await.unwrap());
    }
    assert!(preload_slot(&scheduler, "c", &pods_of_preload).await.is_none(), "half of the node's");
    slots.pop();
    assert!(preload_slot(&scheduler, "a", &pods_of_preload).await.is_none(), "all but one of a host's");
    assert!(pod_slot(&scheduler, "a").await.is_some());
    let mut pods = Vec::new();
    for name in ["a", "b", "b", "b", "b"] {
        pods.push(pod_slot(&scheduler, name).await.unwrap());
    }
    assert!(preload_slot(&scheduler, "c", &pods_of_preload).await.is_none(), "no slot is free");
    // When a pod waits for the preload, it waits for a slot as other pulls do.
    let _pod = pods_of_preload.add(vec![Tenant::node()]);
    pods.pop();
    assert!(preload_slot(&scheduler, "c", &pods_of_preload).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_preload_gives_its_slot_back_in_the_middle_of_a_blob() {
    let (scheduler, pods_of_preload) = (Arc::new(Scheduler::new(1)), Waiters::default());
    let mut slow = preload_slot(&scheduler, "a", &pods_of_preload).await.unwrap();
    let download = tokio::spawn(async move { download_at(&mut slow, 2 * SLOW_RATE).await });
    tokio::time::sleep(10 * SECOND).await;
    let pod = pod_slot(&scheduler, "a").await.unwrap();
    tokio::time::sleep(300 * SECOND).await;
    assert!(!download.is_finished());
    assert!(pod_slot(&scheduler, "b").await.is_none(), "the pod has the only slot");
    drop(pod);
    assert_eq!(
        download.await.unwrap(),
        Ok(()),
        "the preload continues, and its pause does not count as slow"
    );
}

#[tokio::test(start_paused = true)]
async fn preloads_leave_the_bandwidth_to_pods_except_for_short_intervals() {
    let (scheduler, pods_of_preload) = (Arc::new(Scheduler::new(8)), Waiters::default());
    let mut slot = preload_slot(&scheduler, "a", &pods_of_preload).await.unwrap();
    let pod = pod_slot(&scheduler, "a").await.unwrap();
    assert!(
        preload_slot(&scheduler, "b", &pods_of_preload).await.is_none()
            && scheduler.try_acquire_spare(&host("b"), &Priority::of(&pods_of_preload)).is_none()
    );
    let seconds = Arc::new(AtomicUsize::new(0));
    let counted = seconds.clone();
    let download = tokio::spawn(async move {
        let mut rate_monitor = RateMonitor::new(&Limits::default());
        loop {
            rate_monitor.wait(&mut slot, WaitFor::Body, tokio::time::sleep(SECOND)).await?;
            rate_monitor.received(&mut slot, 2 * SLOW_RATE);
            counted.fetch_add(1, Ordering::SeqCst);
        }
        #[expect(unreachable_code, reason = "the type of the error of the loop")]
        Ok::<(), Ended>(())
    });
    let after_a_minute = async || {
        let before = seconds.load(Ordering::SeqCst);
        tokio::time::sleep(60 * SECOND).await;
        seconds.load(Ordering::SeqCst) - before
    };
    let paused = after_a_minute().await;
    assert!((3..=7).contains(&paused), "{paused} of 60 seconds");
    drop(pod);
    let full = after_a_minute().await;
    assert!(full >= 55, "{full} of 60 seconds");
    // A pod requests the preloaded recipe.
    let pod = pod_slot(&scheduler, "a").await.unwrap();
    tokio::time::sleep(10 * SECOND).await;
    let _pod = pods_of_preload.add(vec![Tenant::node()]);
    let full = after_a_minute().await;
    assert!(full >= 55, "{full} of 60 seconds");
    drop(pod);
    download.abort();
}

#[tokio::test(start_paused = true)]
async fn a_spare_slot_is_one_that_no_task_waits_for() {
    let scheduler = Arc::new(Scheduler::new(4));
    let first = pod_slot(&scheduler, "a").await.unwrap();
    let mut spare = scheduler.try_acquire_spare(&host("a"), &Priority::default()).unwrap();
    assert!(
        scheduler.try_acquire_spare(&host("a"), &Priority::default()).is_none(),
        "a host has no more than its share"
    );
    assert!(!spare.has_waiters());
    let waiter = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { drop(scheduler.acquire(&host("a"), LARGE, &Priority::default()).await) }
    });
    tokio::time::sleep(SECOND).await;
    assert!(spare.has_waiters() && scheduler.try_acquire_spare(&host("a"), &Priority::default()).is_none());
    drop(spare);
    waiter.await.unwrap();
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_slow_download_continues_outside_of_the_slots_and_a_fast_one_keeps_its_slot() {
    let scheduler = Arc::new(Scheduler::new(2));
    let (mut slow, mut fast) =
        (pod_slot(&scheduler, "a").await.unwrap(), pod_slot(&scheduler, "b").await.unwrap());
    assert!(pod_slot(&scheduler, "c").await.is_none());
    assert_eq!(download_at(&mut fast, 2 * SLOW_RATE).await, Ok(()));
    assert!(pod_slot(&scheduler, "c").await.is_none());
    assert_eq!(download_at(&mut slow, MIN_RATE).await, Ok(()));
    assert!(pod_slot(&scheduler, "c").await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_download_below_the_minimum_rate_fails() {
    let scheduler = Arc::new(Scheduler::new(8));
    for rate in [0, 850, MIN_RATE - 100] {
        let mut slot = pod_slot(&scheduler, "a").await.unwrap();
        let Ended::TooSlow(error) = download_at(&mut slot, rate).await.unwrap_err() else {
            panic!("the turn ended")
        };
        assert_eq!(error.minimum, MIN_RATE);
        assert!(error.rate <= rate && error.after <= Duration::from_secs(130), "{error:?}");
    }
}

/// Two downloads of a namespace at 80 KB/s, which is fast enough to keep a slot.
async fn flooded(scheduler: &Arc<Scheduler>) -> (tokio::task::JoinSet<Result<(), Ended>>, Waiting) {
    let (flood, waiting) = pods_of("flood");
    let mut downloads = tokio::task::JoinSet::new();
    for name in ["a", "b"] {
        let mut slot = scheduler.acquire(&host(name), LARGE, &flood).await;
        downloads.spawn(async move { download_at(&mut slot, 80_000).await });
    }
    (downloads, waiting)
}

#[tokio::test(start_paused = true)]
async fn a_download_keeps_its_connection_between_two_turns() {
    let scheduler = Arc::new(Scheduler::new(2));
    let (mut downloads, _flood) = flooded(&scheduler).await;
    tokio::time::sleep(60 * SECOND).await;
    let (team, _waiting) = pods_of("team");
    let slot = timeout(3 * SECOND, scheduler.acquire(&host("c"), LARGE, &team)).await.unwrap();
    tokio::time::sleep(300 * SECOND).await;
    drop(slot);
    while let Some(ended) = downloads.join_next().await {
        assert_eq!(ended.unwrap(), Ok(()), "the same body continues, and its pause does not count as slow");
    }
}

#[tokio::test(start_paused = true)]
async fn a_download_that_waits_for_an_answer_makes_its_request_again() {
    let scheduler = Arc::new(Scheduler::new(1));
    let (flood, _flood) = pods_of("flood");
    let mut slot = scheduler.acquire(&host("a"), LARGE, &flood).await;
    let (team, _waiting) = pods_of("team");
    let waiter = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.acquire(&host("c"), LARGE, &team).await }
    });
    let mut rate_monitor = RateMonitor::new(&Limits::default());
    let began = Instant::now();
    let ended = rate_monitor.wait(&mut slot, WaitFor::Answer, std::future::pending::<()>()).await;
    assert_eq!((ended, began.elapsed().as_secs()), (Err(Ended::Turn), 10));
    let other = waiter.await.unwrap();
    // The next request waits for the next turn.
    let answered = rate_monitor.wait(&mut slot, WaitFor::Answer, std::future::ready(7));
    let mut answered = std::pin::pin!(answered);
    assert!(timeout(60 * SECOND, answered.as_mut()).await.is_err());
    drop(other);
    assert_eq!(answered.await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn a_download_that_waits_for_the_disk_gives_its_slot_to_others() {
    let scheduler = Arc::new(Scheduler::new(1));
    let (flood, _flood) = pods_of("flood");
    let mut slot = scheduler.acquire(&host("a"), LARGE, &flood).await;
    let writing = tokio::spawn(async move {
        slot.wait_for_disk(tokio::time::sleep(3_600 * SECOND)).await;
    });
    let (team, _waiting) = pods_of("team");
    timeout(11 * SECOND, scheduler.acquire(&host("c"), LARGE, &team)).await.unwrap();
    assert!(!writing.is_finished());
    writing.abort();
}

/// Two archives with large windows of one namespace unpack at a time. The others must not keep the slots that these need
/// to go on.
#[tokio::test(start_paused = true)]
async fn a_download_that_waits_for_memory_gives_its_slot_to_its_own_namespace() {
    let scheduler = Arc::new(Scheduler::new(1));
    let (flood, _flood) = pods_of("flood");
    let mut slot = scheduler.acquire(&host("a"), LARGE, &flood).await;
    let unpacking = tokio::spawn(async move {
        slot.wait_for_disk(tokio::time::sleep(3_600 * SECOND)).await;
    });
    timeout(3 * SECOND, scheduler.acquire(&host("a"), LARGE, &flood)).await.unwrap();
    assert!(!unpacking.is_finished());
    unpacking.abort();
}
