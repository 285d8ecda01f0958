//! How a command ends: a sentence, and an exit status that a script can act on.

use std::fmt;
use std::process::ExitCode;

use oras_csi_core::patch::PatchError;
use oras_csi_core::registry::{PublishError, RegistryError, RegistryErrorKind};
use oras_csi_store::ErrorClass;
use oras_csi_webhook::denial::{Code, Denial};

/// Why a command did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    status: Status,
    message: String,
}

/// The exit statuses of the command other than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Network, registry, disk: trying again may help.
    Failed = 1,
    /// What was asked for is wrong.
    BadInput = 2,
    /// A policy says no.
    Denied = 3,
    /// The content is refused: a digest, a path, a limit.
    Refused = 4,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl fmt::Display) -> Self {
        Self { status, message: message.to_string() }
    }

    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(Status::Failed, message)
    }

    pub(crate) fn bad_input(message: impl fmt::Display) -> Self {
        Self::new(Status::BadInput, message)
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> Status {
        self.status
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status as u8)
    }

    /// The same with where it happened in front.
    pub(crate) fn at(self, place: impl fmt::Display) -> Self {
        Self { message: format!("{place}: {}", self.message), ..self }
    }
}

impl From<RegistryErrorKind> for Status {
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
        Self::new(Status::from(error.kind()), error)
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        let status = match &error {
            PublishError::Registry { source, .. } => Status::from(source.kind()),
            PublishError::Digest(_) => Status::BadInput,
            PublishError::Contended { .. } | PublishError::TooMany(_) => Status::Failed,
        };
        Self::new(status, error)
    }
}

impl From<PatchError> for Failure {
    fn from(error: PatchError) -> Self {
        // What somebody names at the prompt is wrong; what an artifact says is refused.
        let status = match &error {
            PatchError::Index
            | PatchError::TooLong { .. }
            | PatchError::Kind { .. }
            | PatchError::NotPinned { .. }
            | PatchError::OtherBase { .. }
            | PatchError::NoLevels
            | PatchError::BaseAgain { .. }
            | PatchError::Nested { .. } => Status::BadInput,
            _ => Status::Refused,
        };
        Self::new(status, error)
    }
}

impl From<Denial> for Failure {
    fn from(denial: Denial) -> Self {
        // A registry that refuses is no policy that does, and one that lies is not just out of reach.
        let status = match (denial.registry(), denial.code()) {
            (Some(kind), _) => Status::from(kind),
            (None, Code::BadRequest) => Status::BadInput,
            (None, Code::Forbidden) => Status::Denied,
            (None, Code::Unprocessable) => Status::Refused,
            (None, Code::NotFound | Code::TooManyRequests | Code::Unavailable) => Status::Failed,
        };
        Self::new(status, denial)
    }
}

impl From<ErrorClass> for Status {
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
    use crate::policies::PolicyOptions;
    use crate::registries::{admission, client};

    /// A registry that always gives `answer`, and what admits pods that name it.
    struct Scripted {
        host: std::net::SocketAddr,
        admission: Arc<Admission>,
        _folder: tempfile::TempDir,
    }

    fn scripted(answer: &'static str, rules: &[&str]) -> Result<Scripted, Box<dyn std::error::Error>> {
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
        let admission = admission(client(&hosts), &hosts, policies, none, &Arc::new(Metrics::new()));
        Ok(Scripted { host, admission: Arc::new(admission), _folder: folder })
    }

    impl Scripted {
        /// The denial of a pod that asks for something of the registry, within what the API server leaves of 10 s.
        async fn denial(&self, behind: &str) -> Option<Denial> {
            let reference = format!("{}/a/b{behind}", self.host);
            let pod = json!({"metadata": {"annotations": {"oras.land/artifact": reference}},
                "spec": {"containers": [{"name": "c"}]}});
            let deadline = Instant::now() + Duration::from_secs(8);
            self.admission.admit_pod(&pod, "team", deadline).await.err()
        }
    }

    /// How the admission of a pod ends whose registry always gives `answer`.
    async fn ends(
        answer: &'static str,
        rules: &[&str],
    ) -> Result<Option<Status>, Box<dyn std::error::Error>> {
        let denial = scripted(answer, rules)?.denial(&format!("@sha256:{}", "0".repeat(64))).await;
        Ok(denial.map(|denial| Failure::from(denial).status))
    }

    /// What is wrong is the file, and asking again does not help.
    #[tokio::test]
    async fn a_broken_hosts_toml_is_bad_input() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let certs = folder.path().join("r.example");
        std::fs::create_dir(&certs)?;
        std::fs::write(certs.join("hosts.toml"), "server = 5\n")?;
        let hosts = HostsConfig::load(Some(folder.path()))?;
        let error = client(&hosts).resolve(&"r.example/a/b:1".parse()?).await.err().ok_or("no error")?;
        let pull = PullError::Registry {
            reference: Box::new(format!("r.example/a/b@sha256:{}", "0".repeat(64)).parse()?),
            source: error.clone(),
        };
        assert_eq!(Status::from(pull.class()), Status::BadInput);
        let failure = Failure::from(error);
        assert_eq!(failure.status, Status::BadInput, "{failure}");
        assert!(failure.message.contains("r.example/hosts.toml: server: write a URL in quotes"), "{failure}");
        let policies = PolicyOptions::of(&[])?;
        let policies = policies.policies(Loaded::default()).map_err(|failure| failure.to_string())?;
        let none = oras_csi_webhook::credentials::CredentialSources::default();
        let admission = admission(client(&hosts), &hosts, policies, none, &Arc::new(Metrics::new()));
        let pod = json!({"metadata": {"annotations": {"oras.land/artifact": "r.example/a/b:1"}},
            "spec": {"containers": [{"name": "c"}]}});
        let denial = admission.admit_pod(&pod, "team", Instant::now() + Duration::from_secs(20)).await;
        let denial = denial.err().ok_or("no denial")?;
        assert_eq!(denial.code().number(), 503, "it is nothing that the user could rewrite: {denial}");
        assert_eq!(Failure::from(denial).status, Status::BadInput);
        Ok(())
    }

    #[tokio::test]
    async fn a_registrys_refusal_is_no_policys_and_a_lie_is_refused() -> Result<(), Box<dyn std::error::Error>>
    {
        let refused = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let lie = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n\
            Content-Length: 2\r\nConnection: close\r\n\r\n{}";
        assert_eq!(ends(refused, &[]).await?, Some(Status::Failed));
        assert_eq!(ends(lie, &[]).await?, Some(Status::Refused));
        assert_eq!(ends(refused, &["--allow-registry", "ghcr.io"]).await?, Some(Status::Denied));
        Ok(())
    }

    const LIMITED: &str = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\
        Connection: close\r\n\r\n";

    #[tokio::test]
    async fn a_registry_that_limits_requests_is_not_slept_for() -> Result<(), Box<dyn std::error::Error>> {
        let registry = scripted(LIMITED, &[])?;
        let digest = format!("@sha256:{}", "0".repeat(64));
        for behind in [":v1", digest.as_str()] {
            let started = Instant::now();
            let denial = registry.denial(behind).await.ok_or("it is denied")?;
            assert_eq!((denial.code(), denial.retry_after()), (Code::TooManyRequests, Some(7)), "{denial}");
            assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_registry_that_limits_requests_is_not_silent() -> Result<(), Box<dyn std::error::Error>> {
        let registry = Arc::new(scripted(LIMITED, &[])?);
        let ask = |number: usize| {
            let registry = Arc::clone(&registry);
            async move { registry.denial(&format!(":v{number}")).await }
        };
        let many: Vec<_> = (0..300).map(|number| tokio::spawn(ask(number))).collect();
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let denial = ask(300).await.ok_or("it is denied")?;
        assert_eq!(denial.code(), Code::TooManyRequests, "{denial}");
        for denial in many {
            let denial = denial.await?.ok_or("it is denied")?;
            assert_eq!(denial.code(), Code::TooManyRequests, "{denial}");
        }
        Ok(())
    }
}
