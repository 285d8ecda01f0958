//! What a command costs: its time, and what the kernel counted for it and its children.
//!
//! The command runs below a process of its own (`oras-csi-bench measure COMMAND...`), because the kernel adds up the use
//! of ended children for each parent (getrusage(2), `RUSAGE_CHILDREN`; proc(5), `/proc/PID/io`).

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde::{Deserialize, Serialize};

/// What a command, or a process over some time, has cost.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Seconds from start to end.
    pub(crate) wall: f64,
    /// Seconds of CPU in user mode.
    pub(crate) user: f64,
    /// Seconds of CPU in the kernel.
    pub(crate) system: f64,
    /// The largest resident memory of one process, in MiB.
    pub(crate) peak: f64,
    /// The bytes that the processes gave to the page cache of a block device, or to the device.
    pub(crate) written: f64,
}

impl Usage {
    /// Seconds of CPU.
    pub(crate) fn cpu(&self) -> f64 {
        self.user + self.system
    }
}

/// Runs a command, which must succeed, and measures it.
pub(crate) fn measure(command: impl IntoIterator<Item = OsString>) -> Result<Usage> {
    let command: Vec<OsString> = command.into_iter().collect();
    let exe = std::env::current_exe().context("this program has no path")?;
    let output = Command::new(exe).arg("measure").args(&command).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {command:?}"))?;
    let err = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}:\n{err}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("{command:?} was not measured: {err}"))
}

/// The process between: runs the command and prints what it cost as JSON.
pub(crate) fn measure_here(command: &[OsString]) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { bail!("usage: measure COMMAND...") };
    let begun = Instant::now();
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {}", program.display()))?;
    let wall = begun.elapsed().as_secs_f64();
    ensure!(status.success(), "{} ended with {status}", program.display());
    let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let usage = Usage {
        wall,
        user: microseconds(used.user_time().num_microseconds()),
        system: microseconds(used.system_time().num_microseconds()),
        // In KiB.
        peak: used.max_rss() as f64 / 1024.0,
        written: written("self")?,
    };
    println!("{}", serde_json::to_string(&usage)?);
    Ok(())
}

fn microseconds(count: i64) -> f64 {
    count as f64 / 1e6
}

/// Returns the bytes that a process has written to block devices (`write_bytes` of `/proc/PID/io`).
fn written(process: &str) -> Result<f64> {
    let path = format!("/proc/{process}/io");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
    value.with_context(|| format!("{path} has no write_bytes"))
}

/// Returns what a running process has used so far; `wall` is 0.
pub(crate) fn usage_of(process: u32) -> Result<Usage> {
    let read = |name: &str| {
        let path = format!("/proc/{process}/{name}");
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let stat = read("stat")?;
    // The name of the program, in parentheses, can have spaces (proc(5)).
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks =
        |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok(Usage {
        wall: 0.0,
        user: ticks(11) / ticks_per_second,
        system: ticks(12) / ticks_per_second,
        peak: memory(&read("status")?, "VmHWM:"),
        written: written(&process.to_string())?,
    })
}

/// Returns the seconds of CPU of the present threads of a process, to the nanosecond (Documentation/scheduler/sched-stats.rst).
pub(crate) fn cpu_seconds(process: u32) -> Result<f64> {
    let tasks = format!("/proc/{process}/task");
    let mut nanoseconds = 0.0;
    for task in std::fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
        // A thread can end in the meantime.
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    }
    Ok(nanoseconds / 1e9)
}

/// Returns a line of `/proc/PID/status` in MiB.
fn memory(status: &str, line: &str) -> f64 {
    let kib = status
        .lines()
        .find_map(|text| text.strip_prefix(line)?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

/// Returns the resident memory of a process in MiB.
pub(crate) fn resident(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    Ok(memory(&std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?, "VmRSS:"))
}
