//! The client of the Kubernetes API server.

use crate::exit_status::Failure;

/// Which failed requests the client sends again by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryPolicy {
    /// None. An admission request and a publish have seconds, and must report the API server's own error; the retries
    /// of `kube` take minutes. Background work has its own retry loop.
    Never,
    /// Those that `kube` retries by default.
    KubeDefault,
}

/// Connects to the API server of the pod that this runs in, or of `KUBECONFIG`.
pub(crate) async fn connect(retries: RetryPolicy) -> Result<kube::Client, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!(
            "cannot configure a client for the Kubernetes API server: {error}. Run this in a pod with a service \
             account, or set KUBECONFIG."
        ))
    };
    let mut config = kube::Config::infer().await.map_err(|error| failed(&error))?;
    if retries == RetryPolicy::Never {
        config.default_retry = false;
    }
    kube::Client::try_from(config).map_err(|error| failed(&error))
}
