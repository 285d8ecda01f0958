//! Running the program of a helper or of a provider: bounded in time, in output and in number.
//!
//! Its stderr goes nowhere, and its stdout into no error: what such a program prints when it fails may be the
//! very secret that it was asked for. Whoever needs its words runs it by hand.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::display::Shown;

/// More output is none that a helper gives.
const LONGEST_OUTPUT: usize = 64 << 10;
/// How many programs run at once, whoever asks: each name of a registry that a pod writes may start one.
static SLOTS: Semaphore = Semaphore::const_new(16);

/// What to run.
pub(super) struct Program<'a> {
    pub(super) path: &'a Path,
    pub(super) args: &'a [String],
    pub(super) env: &'a [(String, Zeroizing<String>)],
    pub(super) input: &'a [u8],
    /// The wait for a slot is part of it.
    pub(super) timeout: Duration,
}

/// How it ended, and what it wrote.
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) output: Zeroizing<Vec<u8>>,
}

/// Why a program has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// The operating system does not run it, or its pipes broke.
    #[error("it cannot be run: {0}")]
    Run(Shown),
    /// It was killed, with all that it had started.
    #[error("it had not answered after {} s and was killed", .0.as_secs_f64())]
    Timeout(Duration),
    /// It was killed for it.
    #[error("it wrote more than {LONGEST_OUTPUT} bytes")]
    TooLong,
}

/// Runs a program to its end.
pub(super) async fn run(program: Program<'_>) -> Result<Finished, ProcessError> {
    let timeout = program.timeout;
    let running = async {
        let _slot = SLOTS.acquire().await;
        run_unbounded(program).await
    };
    tokio::time::timeout(timeout, running).await.unwrap_or(Err(ProcessError::Timeout(timeout)))
}

async fn run_unbounded(program: Program<'_>) -> Result<Finished, ProcessError> {
    let broken = |error: std::io::Error| ProcessError::Run(Shown::new(&error.to_string()));
    let mut command = Command::new(program.path);
    command.args(program.args).envs(program.env.iter().map(|(name, value)| (name, value.as_str())));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut group = Group(command.process_group(0).kill_on_drop(true).spawn().map_err(broken)?);
    let (stdin, stdout) = (group.0.stdin.take(), group.0.stdout.take());
    let write = async {
        // A program may answer without reading: a pipe that it closed is no failure.
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(program.input).await;
        }
    };
    let read = async {
        // With room for all from the start, so that no copy stays behind when it grows.
        let mut output = Zeroizing::new(Vec::with_capacity(LONGEST_OUTPUT + 64));
        if let Some(stdout) = stdout {
            stdout.take(LONGEST_OUTPUT as u64 + 1).read_to_end(&mut output).await.map_err(broken)?;
        }
        if output.len() > LONGEST_OUTPUT { Err(ProcessError::TooLong) } else { Ok(output) }
    };
    let write_and_read = async { tokio::join!(write, read).1 };
    let output = write_and_read.await?;
    let status = group.0.wait().await.map_err(broken)?;
    Ok(Finished { status, output })
}

/// A program and what it started, killed when nobody waits for it any more.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Has no id any more once it was waited for; before that, nobody else can have the number.
        let id = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            let _ = kill_process_group(id, Signal::KILL);
        }
    }
}
