//! The API server that `tests/testbed/api-server` or `one-node` runs beside the tests.

use std::process::Command;
use std::time::{Duration, Instant};

use kube::{Client, Config};

use crate::parts::testbed;

/// Returns a `kubectl` command with the permissions of an administrator.
pub fn kubectl(arguments: &[&str]) -> Command {
    let mut command = Command::new(testbed("kubectl"));
    command.args(arguments);
    command
}

/// Returns a client with the permissions of an administrator, from `KUBECONFIG`.
pub async fn client() -> Client {
    // Fails if another test of this process has installed it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    assert!(
        std::env::var_os("KUBECONFIG").is_some(),
        "no KUBECONFIG: run `make test-integration` or `make test-e2e`"
    );
    let mut config = Config::infer().await.expect("a configuration");
    // Some tests wait for a refusal, also with 503: it must not be retried for minutes.
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

/// Calls `ask` every 100 ms until it returns `Ok`; fails after `patience` with its last error.
pub async fn eventually<T>(
    what: &str,
    patience: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let started = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(words) => assert!(started.elapsed() < patience, "{what}: not in {patience:?}: {words}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
