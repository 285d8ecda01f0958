//! The driver with a warm store: each publish and unpublish, alone, at the same time, and beside many mounted volumes.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::content;
use crate::disk::{Disk, Kind, run as run_command};
use crate::driver::{Driver, Volume, push_archive};
use crate::measure::{resident, usage_of};
use crate::registry::Registry;
use crate::results::{OURS, Results, Section, percentile};
use crate::scale::{Scale, number};

const SECTION: &str = "the driver, warm";
const FILES: &str = "files in the tree";
const VOLUMES: &str = "volumes on the node";

/// Adds the median and the 99th percentile of times.
fn add_times(
    record: &mut Section<'_>,
    case: &str,
    times: &[Duration],
    at: Option<(&str, u64)>,
) -> Result<()> {
    let values = milliseconds(times);
    record.add_at(&format!("{case}, median"), OURS, "ms", vec![percentile(&values, 50)], at)?;
    record.add_at(&format!("{case}, p99"), OURS, "ms", vec![percentile(&values, 99)], at)
}

fn milliseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| 1_000.0 * time.as_secs_f64()).collect()
}

/// Publishes and unpublishes in turn.
async fn publish_and_unpublish(
    driver: &Driver,
    volume: &Volume,
    count: usize,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut published, mut unpublished) = (Vec::new(), Vec::new());
    for number in 0..count {
        let pod = format!("warm-{number}");
        published.push(driver.publish(&pod, volume).await?);
        unpublished.push(driver.unpublish(&pod).await?);
    }
    Ok((published, unpublished))
}

/// Measures all of it.
pub(crate) async fn run(results: &mut Results, scale: Scale) -> Result<()> {
    let registry = Registry::start()?;
    let mut record = Section::new(results, SECTION);
    // A tree of 1,000,000 files needs 2,000,000 inodes: the blob's layer and the tree have hard links to one of them.
    let disk = Disk::new(Kind::Ext4, 40 << 30)?;
    let driver = Driver::start(&disk.path(), "driver", &registry.certs()).await?;
    let calls = scale.pick(300, 100);
    let mut warm = None;
    for files in scale.up_to(10_000, &[1, 1_000, 10_000, 100_000, 1_000_000]) {
        let volume =
            push_archive(&registry, &format!("tree-{files}"), |to| content::append_small_files(to, files))?;
        let cold = driver.publish(&format!("cold-{files}"), &volume).await?;
        let at = Some((FILES, files));
        record.add_at("from nothing to mounted", OURS, "s", vec![cold.as_secs_f64()], at)?;
        let (published, unpublished) = publish_and_unpublish(&driver, &volume, calls).await?;
        add_times(&mut record, "publish", &published, at)?;
        add_times(&mut record, "unpublish", &unpublished, at)?;
        record.add_at("memory of the driver", OURS, "MiB", vec![resident(driver.id())?], at)?;
        warm.get_or_insert(volume);
    }
    let volume = warm.context("a tree was pushed")?;
    let (published, unpublished) = publish_and_unpublish(&driver, &volume, calls).await?;
    record.add("publish", OURS, "ms", milliseconds(&published))?;
    empty_calls(&mut record, &driver, &disk, calls).await?;
    record.add("unpublish", OURS, "ms", milliseconds(&unpublished))?;
    at_once(&mut record, &driver, &volume).await?;
    many_volumes(&mut record, &driver, &volume, scale).await?;
    let peak = usage_of(driver.id())?.peak;
    record.add("largest memory of all of this", OURS, "MiB", vec![peak])
}

/// What a call costs that does nothing, and what the programs cost that another driver would start.
async fn empty_calls(record: &mut Section<'_>, driver: &Driver, disk: &Disk, calls: usize) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..calls {
        times.push(driver.probe().await?);
    }
    record.add("publish", "limit: a call that does nothing", "ms", milliseconds(&times))?;
    let (from, to) = (disk.path().join("from"), disk.path().join("to"));
    for folder in [&from, &to] {
        std::fs::create_dir_all(folder)?;
    }
    let mut times = Vec::new();
    for _ in 0..calls.min(100) {
        let begun = Instant::now();
        run_command(Command::new("mount").arg("--bind").arg(&from).arg(&to))?;
        times.push(begun.elapsed());
        run_command(Command::new("umount").arg(&to))?;
    }
    record.add("publish", "limit: the program mount --bind", "ms", milliseconds(&times))
}

/// A hundred calls at the same time.
async fn at_once(record: &mut Section<'_>, driver: &Driver, volume: &Volume) -> Result<()> {
    const CALLS: usize = 100;
    let pods: Vec<String> = (0..CALLS).map(|number| format!("at-once-{number}")).collect();
    let (mut published, mut totals) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let begun = Instant::now();
        let calls = pods.iter().map(|pod| driver.publish(pod, volume));
        for time in futures_util::future::join_all(calls).await {
            published.push(time?);
        }
        totals.push(begun.elapsed());
        for pod in &pods {
            driver.unpublish(pod).await?;
        }
    }
    let each: Vec<f64> = milliseconds(&totals).iter().map(|total| total / CALLS as f64).collect();
    record.add("100 publishes at the same time, all of them / 100", OURS, "ms", each)?;
    add_times(record, "100 publishes at the same time, each", &published, None)
}

/// Each call while more and more volumes are mounted.
async fn many_volumes(
    record: &mut Section<'_>,
    driver: &Driver,
    volume: &Volume,
    scale: Scale,
) -> Result<()> {
    let mut mounted = 0;
    for volumes in scale.up_to(1_000, &[1, 10, 100, 1_000, 2_000]) {
        while mounted < volumes {
            driver.publish(&format!("stays-{mounted}"), volume).await?;
            mounted += 1;
        }
        let (published, unpublished) = publish_and_unpublish(driver, volume, 100).await?;
        let at = Some((VOLUMES, volumes));
        add_times(record, "publish", &published, at)?;
        add_times(record, "unpublish", &unpublished, at)?;
        record.add_at("memory of the driver", OURS, "MiB", vec![resident(driver.id())?], at)?;
    }
    let program = format!("memory with {} volumes mounted", number(mounted));
    record.add(&program, OURS, "MiB", vec![resident(driver.id())?])
}
