//! The API server that `tests/testbed/api-server` or `one-node` runs beside the tests.

use std::process::Command;
use std::time::{Duration, Instant};

use kube::{Client, Config};

use crate::parts::testbed;

/// `kubectl` with the testbed's administrator.
pub fn kubectl(arguments: &[&str]) -> Command {
    let mut command = Command::new(testbed("kubectl"));
    command.args(arguments);
    command
}

/// A client with the rights of an administrator, from `KUBECONFIG`.
pub async fn client() -> Client {
    // A second test of the same process finds it there already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    assert!(
        std::env::var_os("KUBECONFIG").is_some(),
        "no KUBECONFIG: run this by `make test-parts` or `make test-node`"
    );
    let mut config = Config::infer().await.expect("a configuration");
    // A refusal is what some tests wait for, 503 among them: it shall be told once, not retried for minutes.
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

/// Asks every 100 ms until there is an answer; fails after `patience` with the last words of `ask`.
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
