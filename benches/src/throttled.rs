//! Cold pulls onto a disk with a fixed rate, where each byte that is written twice costs its time twice.

use anyhow::Result;

use crate::content::Packing;
use crate::disk::{Disk, Kind, can_throttle};
use crate::pulls::{Case, Program, pull_onto};
use crate::registry::Registry;
use crate::results::{Results, Series};
use crate::scale::Scale;

const SECTION: &str = "a disk of 64 MiB a second";
const RATE: u64 = 64 << 20;

/// Measures all cases.
pub(crate) async fn run(results: &mut Results, scale: Scale) -> Result<()> {
    if !can_throttle() {
        println!("SKIPPED: {SECTION}: this machine has no blkio controller of cgroup v1");
        return Ok(());
    }
    let registry = Registry::start()?;
    let bytes = scale.pick(512 << 20, 128 << 20);
    let cases = [
        Case::blob(&registry, bytes)?,
        Case::archive(&registry, bytes, Packing::Plain)?,
        Case::archive(&registry, bytes, Packing::Gzip)?,
        Case::archive(&registry, bytes, Packing::Zstd)?,
    ];
    for case in &cases {
        let programs = [Program::OursMounted, case.oras(), Program::Write];
        let mut pulls = vec![Vec::new(); programs.len()];
        for _ in 0..scale.rounds(2, 1) {
            for (program, pulls) in programs.iter().zip(&mut pulls) {
                let disk = Disk::new(Kind::Ext4, 3 * bytes + (2 << 30))?;
                disk.throttle(RATE)?;
                pulls.push(pull_onto(&disk, &registry, case, *program).await?);
            }
        }
        let line = bytes as f64 / RATE as f64;
        for (program, pulls) in programs.iter().zip(pulls) {
            let mut add = |unit: &str, values: Vec<f64>| {
                results.add(&Series {
                    section: SECTION.to_owned(),
                    case: case.name.clone(),
                    program: program.name().to_owned(),
                    unit: unit.to_owned(),
                    values,
                    x: None,
                    axis: None,
                })
            };
            add("s until synced", pulls.iter().map(|pull| pull.synced).collect())?;
            add("time / (bytes of the files / rate)", pulls.iter().map(|pull| pull.synced / line).collect())?;
            add("s until the command ends", pulls.iter().map(|pull| pull.usage.wall).collect())?;
            add(
                "bytes to the device / bytes of the files",
                pulls.iter().map(|pull| pull.device / bytes as f64).collect(),
            )?;
        }
    }
    Ok(())
}
