//! Trees of many small files as EROFS images and as hard links: what they cost until they are mounted, on the disk, while
//! they are read, and when they are deleted (docs/decisions/erofs-images.md).

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::content;
use crate::disk::{Disk, Kind, run as run_command, sync};
use crate::driver::{Driver, Volume, push_archive};
use crate::measure::usage_of;
use crate::registry::Registry;
use crate::results::{OURS, Results, Section};
use crate::scale::{Scale, bytes, number};

const SECTION: &str = "many small files: images and hard links";
const FILES: &str = "files in the tree";
const HARD_LINKS: &str = "oras-csi --no-images";
/// The most files for which hard links are measured.
const MOST_LINKED: u64 = 100_000;
/// The small files beside the large one, for which the archive would become an image.
const BESIDE: u64 = 20_000;

/// Measures all of it.
pub(crate) async fn run(results: &mut Results, scale: Scale) -> Result<()> {
    let registry = Registry::start()?;
    let mut record = Section::new(results, SECTION);
    for files in scale.up_to(10_000, &[10, 1_000, 10_000, 100_000, 1_000_000]) {
        let volume =
            push_archive(&registry, &format!("tree-{files}"), |to| content::append_small_files(to, files))?;
        // Hard links to a million files take minutes, and more inodes than most disks have free.
        let programs = if files > MOST_LINKED { &[OURS][..] } else { &[OURS, HARD_LINKS] };
        for &program in programs {
            small_files(&mut record, &registry, &volume, files, program).await?;
        }
    }
    let size = scale.pick(1 << 30, 256 << 20);
    let volume = push_archive(&registry, "large", |to| {
        content::append_small_files(to, BESIDE)?;
        content::append_large_file(to, size)
    })?;
    for program in [OURS, HARD_LINKS] {
        large_file(&mut record, &registry, &volume, size, program).await?;
    }
    Ok(())
}

async fn start(disk: &Disk, registry: &Registry, program: &str) -> Result<Driver> {
    let options: &[&str] = if program == HARD_LINKS { &["--no-images"] } else { &[] };
    Driver::start_with(&disk.path(), "driver", &registry.certs(), options).await
}

async fn small_files(
    record: &mut Section<'_>,
    registry: &Registry,
    volume: &Volume,
    files: u64,
    program: &str,
) -> Result<()> {
    let at = Some((FILES, files));
    // ext4 has an inode for each 16 KiB, and the driver leaves a part of them free.
    let disk = Disk::new(Kind::Ext4, (8 << 30) + files * (40 << 10))?;
    let driver = start(&disk, registry, program).await?;
    let (inodes, written) = (used_inodes(&disk)?, disk.written()?.unwrap_or_default());
    let mounted = driver.publish("first", volume).await?;
    record.add_at("until mounted", program, "s", vec![mounted.as_secs_f64()], at)?;
    disk.sync()?;
    let written = disk.written()?.unwrap_or_default() - written;
    record.add_at("written to the device", program, "MiB", vec![written / f64::from(1 << 20)], at)?;
    record.add_at("inodes", program, "inodes", vec![used_inodes(&disk)? - inodes], at)?;
    record.add_at("largest memory of the driver", program, "MiB", vec![usage_of(driver.id())?.peak], at)?;
    drop_caches()?;
    let begun = Instant::now();
    read_all(&driver.target("first")?)?;
    record.add_at("read all files, from the disk", program, "s", vec![begun.elapsed().as_secs_f64()], at)?;
    let begun = Instant::now();
    read_all(&driver.target("first")?)?;
    record.add_at("read all files, from memory", program, "s", vec![begun.elapsed().as_secs_f64()], at)?;
    driver.unpublish("first").await?;
    let store = disk.path().join("driver/store");
    drop(driver);
    let begun = Instant::now();
    for folder in ["trees", "layers"] {
        std::fs::remove_dir_all(store.join(folder))?;
    }
    record.add_at("delete", program, "s", vec![begun.elapsed().as_secs_f64()], at)
}

/// Reads one large file of a volume with many small ones, which becomes no image.
async fn large_file(
    record: &mut Section<'_>,
    registry: &Registry,
    volume: &Volume,
    size: u64,
    program: &str,
) -> Result<()> {
    let disk = Disk::new(Kind::Ext4, 3 * size + (4 << 30))?;
    let driver = start(&disk, registry, program).await?;
    driver.publish("first", volume).await?;
    disk.sync()?;
    let case = format!("one file of {} beside {} small ones", bytes(size), number(BESIDE));
    let file = driver.target("first")?.join("data/large");
    let dd = |flag: Option<&str>| {
        let mut command = Command::new("dd");
        command
            .arg(format!("if={}", file.display()))
            .args(["of=/dev/null", "bs=1M", "status=none"])
            .args(flag);
        command
    };
    // Loaders of models map their files.
    let mut map = Command::new("xfs_io");
    map.args(["-r", "-c", &format!("mmap -r 0 {size}"), "-c", &format!("mread 0 {size}")]).arg(&file);
    let ways = [("read", dd(None)), ("read with O_DIRECT", dd(Some("iflag=direct"))), ("read by mmap", map)];
    for (name, mut command) in ways {
        drop_caches()?;
        let begun = Instant::now();
        run_command(&mut command)?;
        let rate = size as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64();
        record.add(&format!("{case}: {name}"), program, "MiB/s", vec![rate])?;
    }
    driver.unpublish("first").await?;
    Ok(())
}

fn used_inodes(disk: &Disk) -> Result<f64> {
    let found = rustix::fs::statvfs(disk.path())?;
    Ok((found.f_files - found.f_ffree) as f64)
}

fn drop_caches() -> Result<()> {
    sync(Path::new("/"))?;
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the caches of the kernel")
}

/// Reads every file beneath a folder.
fn read_all(folder: &Path) -> Result<()> {
    let mut content = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            } else {
                content.clear();
                File::open(entry.path())?.read_to_end(&mut content)?;
            }
        }
    }
    Ok(())
}
