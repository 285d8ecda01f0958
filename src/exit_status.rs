//! The error type of the subcommands: a message, and the exit status that a script can act on.
//!
//! Every error of the libraries becomes an exit status here and nowhere else.

use std::fmt;
use std::process::ExitCode;

use oras_csi_core::patch::PatchError;
use oras_csi_core::registry::{PublishError, RegistryError, RegistryErrorKind};
#[cfg(feature = "node")]
use oras_csi_store::ErrorClass;
use oras_csi_webhook::denial::{Code, Denial};

/// The error that ends a subcommand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    status: ExitStatus,
    message: String,
}

/// The exit statuses other than 0 (docs/design.md, "Command line and exit codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// The network, a registry or the disk failed. A retry may succeed.
    Failed = 1,
    /// A flag, a reference, a manifest or a configuration file is invalid.
    BadInput = 2,
    /// A policy denies the request.
    Denied = 3,
    /// The content is refused: a digest does not match, a path leaves the tree, or a limit is exceeded.
    Refused = 4,
}

impl Failure {
    pub(crate) fn new(status: ExitStatus, message: impl fmt::Display) -> Self {
        Self { status, message: message.to_string() }
    }

    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(ExitStatus::Failed, message)
    }

    pub(crate) fn bad_input(message: impl fmt::Display) -> Self {
        Self::new(ExitStatus::BadInput, message)
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> ExitStatus {
        self.status
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status as u8)
    }

    /// Prefixes the message with the place of the error: a file, an object or a reference.
    pub(crate) fn at(self, place: impl fmt::Display) -> Self {
        Self { message: format!("{place}: {}", self.message), ..self }
    }
}

impl From<RegistryErrorKind> for ExitStatus {
    fn from(kind: RegistryErrorKind) -> Self {
        match kind {
            RegistryErrorKind::Untruthful | RegistryErrorKind::TooLarge | RegistryErrorKind::Invalid => {
                Self::Refused
            }
            RegistryErrorKind::Misconfigured => Self::BadInput,
            _ => Self::Failed,
        }
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::new(ExitStatus::from(error.kind()), error)
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        let status = match &error {
            PublishError::Registry { source, .. } => ExitStatus::from(source.kind()),
            PublishError::Digest(_) => ExitStatus::BadInput,
            PublishError::File { .. } | PublishError::Contended { .. } | PublishError::TooMany(_) => {
                ExitStatus::Failed
            }
        };
        Self::new(status, error)
    }
}

impl From<PatchError> for Failure {
    fn from(error: PatchError) -> Self {
        // An error in the arguments is bad input; an error in the content of an artifact is refused content.
        let status = match &error {
            PatchError::Index
            | PatchError::TooLong { .. }
            | PatchError::Kind { .. }
            | PatchError::NotPinned { .. }
            | PatchError::OtherBase { .. }
            | PatchError::NoLevels
            | PatchError::BaseAgain { .. }
            | PatchError::Nested { .. } => ExitStatus::BadInput,
            _ => ExitStatus::Refused,
        };
        Self::new(status, error)
    }
}

impl From<Denial> for Failure {
    fn from(denial: Denial) -> Self {
        // Denials that come from a registry keep the status of the registry error: 403 of a registry is not a denial
        // by a policy, and a digest that does not match is not a network failure.
        let status = match (denial.registry(), denial.code()) {
            (Some(kind), _) => ExitStatus::from(kind),
            (None, _) if denial.is_wrong_request() => ExitStatus::BadInput,
            // A set or a Secret that the manifests do not have.
            (None, Code::BadRequest | Code::NotFound) => ExitStatus::BadInput,
            (None, Code::Forbidden) => ExitStatus::Denied,
            (None, Code::Unprocessable) => ExitStatus::Refused,
            (None, Code::TooManyRequests | Code::Unavailable) => ExitStatus::Failed,
        };
        Self::new(status, denial)
    }
}

#[cfg(feature = "node")]
impl From<ErrorClass> for ExitStatus {
    fn from(class: ErrorClass) -> Self {
        match class {
            ErrorClass::Failed => Self::Failed,
            ErrorClass::BadInput => Self::BadInput,
            ErrorClass::Refused => Self::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::Arc;

    use oras_csi_core::registry::Registry as _;
    use oras_csi_core::registry::hosts::HostsConfig;
    use oras_csi_store::pull::PullError;
    use oras_csi_webhook::admit::Admission;
    use oras_csi_webhook::metrics::Metrics;
    use oras_csi_webhook::policy::Loaded;
    use serde_json::json;
    use tokio::time::{Duration, Instant};

    use super::*;
    use crate::admission::admission;
    use crate::options::policy::PolicyOptions;
    use crate::registry_client::interactive_client;

    /// A registry that gives one fixed answer, and an admission pipeline that reaches it.
    struct FixedAnswer {
        host: std::net::SocketAddr,
        admission: Arc<Admission>,
        _folder: tempfile::TempDir,
    }

    fn fixed_answer(answer: &'static str, rules: &[&str]) -> Result<FixedAnswer, Box<dyn std::error::Error>> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let host = listener.local_addr()?;
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let _ = client.read(&mut [0; 4_096]);
                let _ = client.write_all(answer.as_bytes());
            }
        });
        let folder = tempfile::tempdir()?;
        let certs = folder.path().join(format!("127.0.0.1_{}_", host.port()));
        std::fs::create_dir(&certs)?;
        std::fs::write(certs.join("hosts.toml"), format!("server = \"http://{host}\"\n"))?;
        let hosts = HostsConfig::load(Some(folder.path()))?;
        let policies = PolicyOptions::of(rules)?;
        let policies = policies.policies(Loaded::default()).map_err(|failure| failure.to_string())?;
        let none = oras_csi_webhook::credentials::CredentialSources::default();
        let admission =
            admission(interactive_client(&hosts), &hosts, policies, none, &Arc::new(Metrics::new()));
        Ok(FixedAnswer { host, admission: Arc::new(admission), _folder: folder })
    }

    impl FixedAnswer {
        /// Returns the denial of a pod that requests an artifact of this registry, within 8 s of the 10 s of the API
        /// server.
        async fn denial(&self, suffix: &str) -> Option<Denial> {
            let reference = format!("{}/a/b{suffix}", self.host);
            let pod = json!({"metadata": {"annotations": {"oras.land/artifact": reference}},
                "spec": {"containers": [{"name": "c"}]}});
            let deadline = Instant::now() + Duration::from_secs(8);
            self.admission.admit_pod(&pod, "team", deadline).await.err()
        }
    }

    /// Returns the exit status for a pod whose registry always gives `answer`.
    async fn exit_status_for(
        answer: &'static str,
        rules: &[&str],
    ) -> Result<Option<ExitStatus>, Box<dyn std::error::Error>> {
        let denial = fixed_answer(answer, rules)?.denial(&format!("@sha256:{}", "0".repeat(64))).await;
        Ok(denial.map(|denial| Failure::from(denial).status))
    }

    /// The file must be corrected; a retry does not help.
    #[tokio::test]
    async fn a_broken_hosts_toml_is_bad_input() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let certs = folder.path().join("r.example");
        std::fs::create_dir(&certs)?;
        std::fs::write(certs.join("hosts.toml"), "server = 5\n")?;
        let hosts = HostsConfig::load(Some(folder.path()))?;
        let error =
            interactive_client(&hosts).resolve(&"r.example/a/b:1".parse()?).await.err().ok_or("no error")?;
        let pull = PullError::Registry {
            reference: Box::new(format!("r.example/a/b@sha256:{}", "0".repeat(64)).parse()?),
            source: error.clone(),
        };
        assert_eq!(ExitStatus::from(pull.class()), ExitStatus::BadInput);
        let failure = Failure::from(error);
        assert_eq!(failure.status, ExitStatus::BadInput, "{failure}");
        assert!(
            failure
                .message
                .contains("r.example/hosts.toml: server: it must be a string: write a URL in quotes"),
            "{failure}"
        );
        let policies = PolicyOptions::of(&[])?;
        let policies = policies.policies(Loaded::default()).map_err(|failure| failure.to_string())?;
        let none = oras_csi_webhook::credentials::CredentialSources::default();
        let admission =
            admission(interactive_client(&hosts), &hosts, policies, none, &Arc::new(Metrics::new()));
        let pod = json!({"metadata": {"annotations": {"oras.land/artifact": "r.example/a/b:1"}},
            "spec": {"containers": [{"name": "c"}]}});
        let denial = admission.admit_pod(&pod, "team", Instant::now() + Duration::from_secs(20)).await;
        let denial = denial.err().ok_or("no denial")?;
        assert_eq!(denial.code().number(), 503, "the user cannot correct it in the pod: {denial}");
        assert_eq!(Failure::from(denial).status, ExitStatus::BadInput);
        Ok(())
    }

    #[tokio::test]
    async fn a_registry_403_is_a_failure_and_a_wrong_digest_is_refused_content()
    -> Result<(), Box<dyn std::error::Error>> {
        let refused = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let wrong_digest = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n\
            Content-Length: 2\r\nConnection: close\r\n\r\n{}";
        assert_eq!(exit_status_for(refused, &[]).await?, Some(ExitStatus::Failed));
        assert_eq!(exit_status_for(wrong_digest, &[]).await?, Some(ExitStatus::Refused));
        assert_eq!(
            exit_status_for(refused, &["--allow-registry", "ghcr.io"]).await?,
            Some(ExitStatus::Denied)
        );
        Ok(())
    }

    /// The request must be changed, as for `pull`.
    #[tokio::test]
    async fn a_platform_that_an_index_lacks_is_bad_input() -> Result<(), Box<dyn std::error::Error>> {
        const INDEX: &str = concat!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\nConnection: close\r\n\r\n",
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"#,
            r#""application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:"#,
            "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            r#"","platform":{"os":"windows","architecture":"amd64"}}]}"#
        );
        let denial = fixed_answer(INDEX, &[])?.denial(":v1").await.ok_or("it is denied")?;
        assert!(denial.message().contains("has no manifest for linux/amd64"), "{denial}");
        assert_eq!(Failure::from(denial).status, ExitStatus::BadInput);
        Ok(())
    }

    const LIMITED: &str = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\
        Connection: close\r\n\r\n";

    #[tokio::test]
    async fn a_429_is_reported_without_waiting_for_retry_after() -> Result<(), Box<dyn std::error::Error>> {
        let registry = fixed_answer(LIMITED, &[])?;
        let digest = format!("@sha256:{}", "0".repeat(64));
        for suffix in [":v1", digest.as_str()] {
            let started = Instant::now();
            let denial = registry.denial(suffix).await.ok_or("it is denied")?;
            assert_eq!((denial.code(), denial.retry_after()), (Code::TooManyRequests, Some(7)), "{denial}");
            assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_429_does_not_count_as_a_stalled_registry() -> Result<(), Box<dyn std::error::Error>> {
        let registry = Arc::new(fixed_answer(LIMITED, &[])?);
        let request_tag = |number: usize| {
            let registry = Arc::clone(&registry);
            async move { registry.denial(&format!(":v{number}")).await }
        };
        let many: Vec<_> = (0..300).map(|number| tokio::spawn(request_tag(number))).collect();
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let denial = request_tag(300).await.ok_or("it is denied")?;
        assert_eq!(denial.code(), Code::TooManyRequests, "{denial}");
        for denial in many {
            let denial = denial.await?.ok_or("it is denied")?;
            assert_eq!(denial.code(), Code::TooManyRequests, "{denial}");
        }
        Ok(())
    }
}
