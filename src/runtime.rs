//! The tokio runtime of a subcommand, and the signals that end it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

use crate::exit_status::Failure;

/// The maximum number of threads for work that blocks. A download that has begun has up to three of them until it is
/// complete. The driver limits these downloads by namespace, so that threads remain for calls of other namespaces.
const MAX_BLOCKING_THREADS: usize = 2_048;

/// Runs a subcommand on its own multi-threaded runtime, with aws-lc-rs as the cryptography provider of rustls.
pub(crate) fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    // Fails only where a provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .build();
    runtime.map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?.block_on(command)
}

/// The highest limit of open files that is set. Where the hard limit is higher, or there is none, programs that the driver
/// starts and that close all possible files would take long.
const MAX_OPEN_FILES: u64 = 1 << 20;

/// Raises the soft limit of open files to the hard limit. Container runtimes and service managers often leave it at 1,024,
/// for programs that use select(2), which this process does not.
pub(crate) fn raise_file_limit() {
    let Some(raised) = raised(getrlimit(Resource::Nofile)) else { return };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::debug!(limit = raised.current, "raised the limit of open files"),
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files; continuing with the present one");
        }
    }
}

/// Returns the limits with a raised soft limit, or `None` if it is high enough. In [`Rlimit`], `None` is no limit.
fn raised(limits: Rlimit) -> Option<Rlimit> {
    let wanted = limits.maximum.map_or(MAX_OPEN_FILES, |maximum| maximum.min(MAX_OPEN_FILES));
    let is_lower = limits.current.is_some_and(|current| current < wanted);
    is_lower.then_some(Rlimit { current: Some(wanted), maximum: limits.maximum })
}

/// Returns a token that the first SIGTERM or Ctrl-C cancels, so that running work is finished; the second signal
/// ends the process at once.
pub(crate) fn cancelled_by_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        wait_for_signal().await;
        tracing::info!("shutting down: finishing running requests; a second signal exits at once");
        signal.cancel();
        wait_for_signal().await;
        tracing::warn!("exiting at once: received a second signal");
        std::process::exit(1);
    });
    stop
}

/// Waits for SIGTERM or Ctrl-C.
pub(crate) async fn wait_for_signal() {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_is_raised_to_the_hard_limit() {
        let limits = |current, maximum| Rlimit { current, maximum };
        let raised = |current, maximum| raised(limits(current, maximum)).map(|limits| limits.current);
        assert_eq!(raised(Some(1_024), Some(524_288)), Some(Some(524_288)));
        assert_eq!(raised(Some(1_024), Some(u64::MAX)), Some(Some(MAX_OPEN_FILES)));
        assert_eq!(raised(Some(1_024), None), Some(Some(MAX_OPEN_FILES)));
        assert_eq!(raised(Some(4_096), Some(4_096)), None);
        assert_eq!(raised(None, None), None, "it is never lowered");
        assert_eq!(raised(Some(MAX_OPEN_FILES + 1), None), None, "it is never lowered");
    }
}
