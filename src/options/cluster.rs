//! Flags that name a cluster and a namespace, as those of kubectl do.

use std::path::PathBuf;

use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

use crate::exit_status::Failure;

/// The cluster and the namespace of a command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterOptions {
    /// Namespace [default: that of the context].
    #[arg(short, long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Context of the kubeconfig [default: its current context].
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Kubeconfig file [default: KUBECONFIG, ~/.kube/config, or the service account of the pod].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// A connection to the API server.
pub(crate) struct Connection {
    pub(crate) client: kube::Client,
    /// The namespace of the command.
    pub(crate) namespace: String,
}

impl ClusterOptions {
    /// Configures a client. It sends no request yet.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        let mut config = self.config().await?;
        // A person waits, and the retries of `kube` take minutes.
        config.default_retry = false;
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = kube::Client::try_from(config).map_err(|error| {
            Failure::bad_input(format!(
                "cannot use the kubeconfig: {error}. Check the certificates and the credentials of its context"
            ))
        })?;
        Ok(Connection { client, namespace })
    }

    async fn config(&self) -> Result<kube::Config, Failure> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = match &self.kubeconfig {
            Some(file) => {
                let invalid = |error: KubeconfigError| invalid_kubeconfig(&error).at(file.display());
                let kubeconfig = Kubeconfig::read_from(file).map_err(invalid)?;
                kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(invalid)?
            }
            None if self.context.is_some() => {
                let config = kube::Config::from_kubeconfig(&options).await;
                config.map_err(|error| invalid_kubeconfig(&error))?
            }
            None => kube::Config::infer().await.map_err(|error| {
                Failure::bad_input(format!(
                    "cannot find a cluster: {error}. Set --kubeconfig or KUBECONFIG, or run this in a pod with a service \
                     account"
                ))
            })?,
        };
        Ok(config)
    }
}

fn invalid_kubeconfig(error: &KubeconfigError) -> Failure {
    Failure::bad_input(format!(
        "cannot use the kubeconfig: {error}. Correct it, or choose another one with --kubeconfig and --context"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit_status::ExitStatus;

    const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
current-context: one
clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: u, user: {}}]
contexts:
- {name: one, context: {cluster: c, user: u, namespace: team}}
- {name: two, context: {cluster: c, user: u}}
- {name: broken, context: {cluster: missing, user: u}}
";

    #[tokio::test]
    async fn the_namespace_is_that_of_the_option_or_of_the_context() -> Result<(), Box<dyn std::error::Error>>
    {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("config");
        std::fs::write(&file, KUBECONFIG)?;
        let connect = async |namespace: Option<&str>, context: Option<&str>| {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            let options = ClusterOptions {
                namespace: owned(namespace),
                context: owned(context),
                kubeconfig: Some(file.clone()),
            };
            options.connect().await.map(|connection| connection.namespace)
        };
        assert_eq!(connect(None, None).await.as_deref(), Ok("team"));
        assert_eq!(connect(None, Some("two")).await.as_deref(), Ok("default"));
        assert_eq!(connect(Some("other"), Some("one")).await.as_deref(), Ok("other"));
        for context in ["none", "broken"] {
            let failure = connect(None, Some(context)).await.err().ok_or("it connects")?;
            assert_eq!(failure.status(), ExitStatus::BadInput, "{failure}");
            assert!(failure.to_string().contains("--context"), "{failure}");
        }
        std::fs::remove_file(&file)?;
        let failure = connect(None, None).await.err().ok_or("it connects")?;
        assert_eq!(failure.status(), ExitStatus::BadInput, "{failure}");
        Ok(())
    }
}
