//! The tokio runtime of a subcommand, and the signals that end it.

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
