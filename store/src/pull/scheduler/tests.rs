//! Turns, in a time that does not pass by itself.

use super::super::priority::PriorityBoost;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn host(name: &str) -> RegistryHost {
    name.parse().unwrap()
}

async fn is_there(scheduler: &Arc<Scheduler>, name: &str) -> Option<DownloadSlot> {
    timeout(SECOND, scheduler.take(&host(name), &Priority::default())).await.ok().flatten()
}

/// Waits for an hour for `rate` bytes a second.
async fn read(slot: &mut DownloadSlot, rate: u64) -> Result<(), TooSlow> {
    let mut pace = Pace::new(&Limits::default());
    for _ in 0..3_600 {
        pace.wait(slot, tokio::time::sleep(SECOND)).await?;
        pace.came(rate);
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_host_has_half_of_the_turns_and_its_ports_are_one() {
    let scheduler = Arc::new(Scheduler::new(8));
    let mut held = Vec::new();
    for name in ["a:1", "a:2", "a:3", "a:4"] {
        held.push(is_there(&scheduler, name).await.unwrap());
    }
    assert!(is_there(&scheduler, "a:5").await.is_none());
    assert!(is_there(&scheduler, "b").await.is_some());
    held.pop();
    assert!(is_there(&scheduler, "a:5").await.is_some());
    drop(held);
    let one = Arc::new(Scheduler::new(1));
    assert!(is_there(&one, "a").await.is_some());
    assert!(is_there(&one, "b").await.is_some());
}

async fn ahead(scheduler: &Arc<Scheduler>, name: &str, boost: &PriorityBoost) -> Option<DownloadSlot> {
    timeout(SECOND, scheduler.take(&host(name), &Priority::until(boost))).await.ok().flatten()
}

#[tokio::test(start_paused = true)]
async fn who_fetches_ahead_leaves_turns_to_those_who_wait() {
    let (scheduler, boost) = (Arc::new(Scheduler::new(8)), PriorityBoost::default());
    let mut held = Vec::new();
    for name in ["a", "a", "a", "b"] {
        held.push(ahead(&scheduler, name, &boost).await.unwrap());
    }
    assert!(ahead(&scheduler, "c", &boost).await.is_none(), "half of the node's");
    held.pop();
    assert!(ahead(&scheduler, "a", &boost).await.is_none(), "all but one of a host's");
    assert!(is_there(&scheduler, "a").await.is_some());
    let mut pods = Vec::new();
    for name in ["a", "b", "b", "b", "b"] {
        pods.push(is_there(&scheduler, name).await.unwrap());
    }
    assert!(ahead(&scheduler, "c", &boost).await.is_none(), "no turn is left");
    // Somebody waits for what is fetched ahead: it waits as others do.
    boost.raise();
    pods.pop();
    assert!(ahead(&scheduler, "c", &boost).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn who_fetches_ahead_makes_way_in_the_middle_of_a_blob() {
    let (scheduler, boost) = (Arc::new(Scheduler::new(1)), PriorityBoost::default());
    let mut slow = ahead(&scheduler, "a", &boost).await.unwrap();
    let reads = tokio::spawn(async move { read(&mut slow, 2 * SLOW).await });
    tokio::time::sleep(10 * SECOND).await;
    let pod = timeout(3 * SECOND, scheduler.take(&host("a"), &Priority::default())).await.unwrap().unwrap();
    tokio::time::sleep(300 * SECOND).await;
    assert!(!reads.is_finished());
    assert!(is_there(&scheduler, "b").await.is_none(), "the pod has the one turn");
    drop(pod);
    assert_eq!(reads.await.unwrap(), Ok(()), "it goes on, and its pause was no slowness");
}

#[tokio::test(start_paused = true)]
async fn who_fetches_ahead_leaves_the_line_to_those_who_read_but_for_a_little() {
    let (scheduler, boost) = (Arc::new(Scheduler::new(8)), PriorityBoost::default());
    let mut slot = ahead(&scheduler, "a", &boost).await.unwrap();
    let pod = is_there(&scheduler, "a").await.unwrap();
    assert!(
        ahead(&scheduler, "b", &boost).await.is_none()
            && scheduler.spare(&host("b"), &Priority::until(&boost)).is_none()
    );
    let seconds = Arc::new(AtomicUsize::new(0));
    let counted = seconds.clone();
    let reads = tokio::spawn(async move {
        let mut pace = Pace::new(&Limits::default());
        loop {
            pace.wait(&mut slot, tokio::time::sleep(SECOND)).await?;
            pace.came(2 * SLOW);
            counted.fetch_add(1, Ordering::SeqCst);
        }
        #[expect(unreachable_code, reason = "it says what the loop fails with")]
        Ok::<(), TooSlow>(())
    });
    let in_a_minute = async || {
        let before = seconds.load(Ordering::SeqCst);
        tokio::time::sleep(60 * SECOND).await;
        seconds.load(Ordering::SeqCst) - before
    };
    let little = in_a_minute().await;
    assert!((3..=7).contains(&little), "{little} of 60 seconds");
    drop(pod);
    let all = in_a_minute().await;
    assert!(all >= 55, "{all} of 60 seconds");
    // A pod asks for it.
    let pod = is_there(&scheduler, "a").await.unwrap();
    tokio::time::sleep(10 * SECOND).await;
    boost.raise();
    let all = in_a_minute().await;
    assert!(all >= 55, "{all} of 60 seconds");
    drop(pod);
    reads.abort();
}

#[tokio::test(start_paused = true)]
async fn a_spare_turn_is_one_that_nobody_waits_for() {
    let scheduler = Arc::new(Scheduler::new(4));
    let first = is_there(&scheduler, "a").await.unwrap();
    let spare = scheduler.spare(&host("a"), &Priority::default()).unwrap();
    assert!(scheduler.spare(&host("a"), &Priority::default()).is_none(), "a host has its share and no more");
    assert!(!spare.is_wanted());
    let waits = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.take(&host("a"), &Priority::default()).await.is_some() }
    });
    tokio::task::yield_now().await;
    assert!(spare.is_wanted() && scheduler.spare(&host("a"), &Priority::default()).is_none());
    drop(spare);
    assert!(waits.await.unwrap());
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn what_is_slow_goes_on_aside_and_what_is_fast_keeps_its_turn() {
    let scheduler = Arc::new(Scheduler::new(2));
    let (mut slow, mut fast) =
        (is_there(&scheduler, "a").await.unwrap(), is_there(&scheduler, "b").await.unwrap());
    assert!(is_there(&scheduler, "c").await.is_none());
    assert_eq!(read(&mut fast, 2 * SLOW).await, Ok(()));
    assert!(!fast.is_aside);
    assert_eq!(read(&mut slow, LEAST).await, Ok(()));
    assert!(slow.is_aside);
    assert!(is_there(&scheduler, "c").await.is_some());
}

#[tokio::test(start_paused = true)]
async fn without_room_aside_it_fails_only_while_others_wait() {
    let scheduler = Arc::new(Scheduler::new(1));
    let mut first = is_there(&scheduler, "a").await.unwrap();
    assert_eq!(read(&mut first, LEAST).await, Ok(()));
    let mut second = is_there(&scheduler, "b").await.unwrap();
    assert_eq!(read(&mut second, LEAST).await, Ok(()));
    assert!(first.is_aside && !second.is_aside);
    let waits = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.take(&host("c"), &Priority::default()).await.is_some() }
    });
    let error = read(&mut second, LEAST).await.unwrap_err();
    assert_eq!((error.least, error.others_wait), (SLOW, true));
    assert!(error.after <= Duration::from_secs(70), "{error:?}");
    drop(second);
    assert!(waits.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_will_never_be_done_fails() {
    let scheduler = Arc::new(Scheduler::new(8));
    for rate in [0, 850, LEAST - 100] {
        let mut slot = is_there(&scheduler, "a").await.unwrap();
        let error = read(&mut slot, rate).await.unwrap_err();
        assert_eq!((error.least, error.others_wait), (LEAST, false));
        assert!(error.rate <= rate && error.after <= Duration::from_secs(130), "{error:?}");
    }
}
