//! Runs the program of a credential helper or provider, with limits on time, output and concurrency.
//!
//! The program's stderr is discarded, and its stdout never appears in an error, because a failing program may print the
//! secret. To see the messages, run the program by hand.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::display::Shown;

/// The maximum length of the output in bytes.
const MAX_OUTPUT: usize = 64 << 10;
/// How many programs run at the same time. Each registry name in a pod may start one.
static SLOTS: Semaphore = Semaphore::const_new(16);

/// A program and its input.
pub(super) struct Program<'a> {
    pub(super) path: &'a Path,
    pub(super) args: &'a [String],
    pub(super) env: &'a [(String, Zeroizing<String>)],
    pub(super) input: &'a [u8],
    /// The time limit, which includes waiting for a slot.
    pub(super) timeout: Duration,
}

/// The exit status and the output of a program.
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) output: Zeroizing<Vec<u8>>,
}

/// Why a program has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// The program cannot be started, or reading its output failed.
    #[error("it cannot be run: {0}")]
    Run(Shown),
    /// The program exceeded the time limit. It and its children were killed.
    #[error("it did not answer within {} s and was killed", .0.as_secs_f64())]
    Timeout(Duration),
    /// The program wrote too much and was killed.
    #[error("it wrote more than {MAX_OUTPUT} bytes and was killed")]
    TooLong,
}

/// Runs a program until it exits.
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
    let mut group = ProcessGroup(command.process_group(0).kill_on_drop(true).spawn().map_err(broken)?);
    let (stdin, stdout) = (group.0.stdin.take(), group.0.stdout.take());
    let write = async {
        // A program may answer without reading its input, so a closed pipe is not an error.
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(program.input).await;
        }
    };
    let read = async {
        // The full capacity from the start: a reallocation would leave a copy of a secret in memory.
        let mut output = Zeroizing::new(Vec::with_capacity(MAX_OUTPUT + 64));
        if let Some(stdout) = stdout {
            stdout.take(MAX_OUTPUT as u64 + 1).read_to_end(&mut output).await.map_err(broken)?;
        }
        if output.len() > MAX_OUTPUT { Err(ProcessError::TooLong) } else { Ok(output) }
    };
    let write_and_read = async { tokio::join!(write, read).1 };
    let output = write_and_read.await?;
    let status = group.0.wait().await.map_err(broken)?;
    Ok(Finished { status, output })
}

/// The process group of a program. It is killed when the value is dropped.
struct ProcessGroup(Child);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // After the program was waited for, `id` is `None`. Before that, no other process can have the same id.
        let id = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            let _ = kill_process_group(id, Signal::KILL);
        }
    }
}
