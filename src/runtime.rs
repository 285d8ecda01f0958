//! What a command runs on, and how it hears that it shall end.

use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Runs a command on a runtime of its own, with the one cryptography provider of this program.
pub(crate) fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    // Fails only where it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?.block_on(command)
}

/// Cancelled at the first SIGTERM or Ctrl-C, so that what is under way is finished; at the second the process
/// ends at once.
pub(crate) fn stopped_by_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        interrupted().await;
        tracing::info!("ending: what is under way is finished first");
        signal.cancel();
        interrupted().await;
        tracing::warn!("ending at once: asked a second time");
        std::process::exit(1);
    });
    stop
}

/// Ends when this process is asked to: SIGTERM, or Ctrl-C.
pub(crate) async fn interrupted() {
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
