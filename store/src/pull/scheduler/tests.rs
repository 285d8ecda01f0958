//! Tests of the scheduler, with paused time.

use super::super::priority::PriorityBoost;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn host(name: &str) -> RegistryHost {
    name.parse().unwrap()
}

async fn pod_slot(scheduler: &Arc<Scheduler>, name: &str) -> Option<DownloadSlot> {
    timeout(SECOND, scheduler.acquire(&host(name), &Priority::default())).await.ok().flatten()
}

/// Downloads for an hour at `rate` bytes a second.
async fn download_at(slot: &mut DownloadSlot, rate: u64) -> Result<(), TooSlow> {
    let mut rate_monitor = RateMonitor::new(&Limits::default());
    for _ in 0..3_600 {
        rate_monitor.wait(slot, tokio::time::sleep(SECOND)).await?;
        rate_monitor.received(rate);
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

async fn preload_slot(scheduler: &Arc<Scheduler>, name: &str, boost: &PriorityBoost) -> Option<DownloadSlot> {
    timeout(SECOND, scheduler.acquire(&host(name), &Priority::raised_by(boost))).await.ok().flatten()
}

#[tokio::test(start_paused = true)]
async fn preloads_leave_slots_to_pods() {
    let (scheduler, boost) = (Arc::new(Scheduler::new(8)), PriorityBoost::default());
    let mut slots = Vec::new();
    for name in ["a", "a", "a", "b"] {
        slots.push(preload_slot(&scheduler, name, &boost).await.unwrap());
    }
    assert!(preload_slot(&scheduler, "c", &boost).await.is_none(), "half of the node's");
    slots.pop();
    assert!(preload_slot(&scheduler, "a", &boost).await.is_none(), "all but one of a host's");
    assert!(pod_slot(&scheduler, "a").await.is_some());
    let mut pods = Vec::new();
    for name in ["a", "b", "b", "b", "b"] {
        pods.push(pod_slot(&scheduler, name).await.unwrap());
    }
    assert!(preload_slot(&scheduler, "c", &boost).await.is_none(), "no slot is free");
    // When a pod waits for the preload, it waits for a slot as other pulls do.
    boost.raise();
    pods.pop();
    assert!(preload_slot(&scheduler, "c", &boost).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_preload_gives_its_slot_back_in_the_middle_of_a_blob() {
    let (scheduler, boost) = (Arc::new(Scheduler::new(1)), PriorityBoost::default());
    let mut slow = preload_slot(&scheduler, "a", &boost).await.unwrap();
    let download = tokio::spawn(async move { download_at(&mut slow, 2 * SLOW_RATE).await });
    tokio::time::sleep(10 * SECOND).await;
    let pod =
        timeout(3 * SECOND, scheduler.acquire(&host("a"), &Priority::default())).await.unwrap().unwrap();
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
    let (scheduler, boost) = (Arc::new(Scheduler::new(8)), PriorityBoost::default());
    let mut slot = preload_slot(&scheduler, "a", &boost).await.unwrap();
    let pod = pod_slot(&scheduler, "a").await.unwrap();
    assert!(
        preload_slot(&scheduler, "b", &boost).await.is_none()
            && scheduler.try_acquire_spare(&host("b"), &Priority::raised_by(&boost)).is_none()
    );
    let seconds = Arc::new(AtomicUsize::new(0));
    let counted = seconds.clone();
    let download = tokio::spawn(async move {
        let mut rate_monitor = RateMonitor::new(&Limits::default());
        loop {
            rate_monitor.wait(&mut slot, tokio::time::sleep(SECOND)).await?;
            rate_monitor.received(2 * SLOW_RATE);
            counted.fetch_add(1, Ordering::SeqCst);
        }
        #[expect(unreachable_code, reason = "the type of the error of the loop")]
        Ok::<(), TooSlow>(())
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
    boost.raise();
    let full = after_a_minute().await;
    assert!(full >= 55, "{full} of 60 seconds");
    drop(pod);
    download.abort();
}

#[tokio::test(start_paused = true)]
async fn a_spare_slot_is_one_that_no_task_waits_for() {
    let scheduler = Arc::new(Scheduler::new(4));
    let first = pod_slot(&scheduler, "a").await.unwrap();
    let spare = scheduler.try_acquire_spare(&host("a"), &Priority::default()).unwrap();
    assert!(
        scheduler.try_acquire_spare(&host("a"), &Priority::default()).is_none(),
        "a host has no more than its share"
    );
    assert!(!spare.has_waiters());
    let waiter = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.acquire(&host("a"), &Priority::default()).await.is_some() }
    });
    tokio::task::yield_now().await;
    assert!(spare.has_waiters() && scheduler.try_acquire_spare(&host("a"), &Priority::default()).is_none());
    drop(spare);
    assert!(waiter.await.unwrap());
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_slow_download_continues_outside_of_the_slots_and_a_fast_one_keeps_its_slot() {
    let scheduler = Arc::new(Scheduler::new(2));
    let (mut slow, mut fast) =
        (pod_slot(&scheduler, "a").await.unwrap(), pod_slot(&scheduler, "b").await.unwrap());
    assert!(pod_slot(&scheduler, "c").await.is_none());
    assert_eq!(download_at(&mut fast, 2 * SLOW_RATE).await, Ok(()));
    assert!(!fast.is_outside_slots);
    assert_eq!(download_at(&mut slow, MIN_RATE).await, Ok(()));
    assert!(slow.is_outside_slots);
    assert!(pod_slot(&scheduler, "c").await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_slow_download_without_a_free_place_fails_only_while_others_wait() {
    let scheduler = Arc::new(Scheduler::new(1));
    let mut first = pod_slot(&scheduler, "a").await.unwrap();
    assert_eq!(download_at(&mut first, MIN_RATE).await, Ok(()));
    let mut second = pod_slot(&scheduler, "b").await.unwrap();
    assert_eq!(download_at(&mut second, MIN_RATE).await, Ok(()));
    assert!(first.is_outside_slots && !second.is_outside_slots);
    let waiter = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.acquire(&host("c"), &Priority::default()).await.is_some() }
    });
    let error = download_at(&mut second, MIN_RATE).await.unwrap_err();
    assert_eq!((error.minimum, error.others_wait), (SLOW_RATE, true));
    assert!(error.after <= Duration::from_secs(70), "{error:?}");
    drop(second);
    assert!(waiter.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_download_below_the_minimum_rate_fails() {
    let scheduler = Arc::new(Scheduler::new(8));
    for rate in [0, 850, MIN_RATE - 100] {
        let mut slot = pod_slot(&scheduler, "a").await.unwrap();
        let error = download_at(&mut slot, rate).await.unwrap_err();
        assert_eq!((error.minimum, error.others_wait), (MIN_RATE, false));
        assert!(error.rate <= rate && error.after <= Duration::from_secs(130), "{error:?}");
    }
}
