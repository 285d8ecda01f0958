//! The registry of the distribution project.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Configuration, push, write_hosts_toml};
use crate::parts::testbed;
use crate::process::{Running, free_port, listens};

/// The registry of the distribution project, empty at first, with plain HTTP unless configured otherwise.
#[derive(Debug)]
pub struct Distribution {
    running: Option<Running>,
    folder: tempfile::TempDir,
    address: String,
    port: u16,
    configuration: Configuration,
}

impl Distribution {
    /// Starts one at a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1")
    }

    /// Starts one at a free port of an address of this machine.
    pub fn start_at(address: &str) -> Self {
        Self::start_at_with(address, Configuration::default())
    }

    /// Starts one with a configuration at a free port of an address.
    pub fn start_at_with(address: &str, configuration: Configuration) -> Self {
        let mut registry = Self::prepare(address, configuration);
        registry.start_again();
        registry
    }

    /// Starts one with a configuration at a free port of 127.0.0.1.
    pub fn start_with(configuration: Configuration) -> Self {
        Self::start_at_with("127.0.0.1", configuration)
    }

    /// Prepares one that does not run until [`Self::start_again`].
    pub fn down(configuration: Configuration) -> Self {
        Self::prepare("127.0.0.1", configuration)
    }

    fn prepare(address: &str, configuration: Configuration) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { running: None, folder, address: address.to_owned(), port: free_port(), configuration }
    }

    /// Starts it again after [`Self::stop`], with its content.
    pub fn start_again(&mut self) {
        let folder = self.folder.path();
        let config = folder.join("config.yml");
        std::fs::write(&config, self.configuration.text(folder, &self.address, self.port)).expect("writes");
        let mut command = Command::new(testbed("registry"));
        let mut running = Running::start(command.arg("serve").arg(config), "registry", folder);
        let address = (self.address.clone(), self.port);
        running.wait_until("listening", Duration::from_secs(20), || {
            std::net::TcpStream::connect((address.0.as_str(), address.1)).is_ok()
        });
        self.running = Some(running);
    }

    /// Stops it, and keeps its content.
    pub fn stop(&mut self) {
        self.running = None;
        assert!(!listens(self.port), "the registry is down");
    }

    /// `address:port`.
    pub fn host(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    /// `http://address:port`, or https.
    pub fn url(&self) -> String {
        format!("{}://{}", self.configuration.scheme(), self.host())
    }

    /// Overwrites a stored blob.
    pub fn damage(&self, digest: &str, bytes: &[u8]) {
        let hex = digest.strip_prefix("sha256:").expect("a sha256 digest");
        let blob = format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        let blob = self.folder.path().join(blob);
        assert!(blob.exists(), "{} is there", blob.display());
        std::fs::write(blob, bytes).expect("writes");
    }

    /// Returns the requests of its access log, as `GET /v2/java-app/manifests/v1 200`.
    pub fn requests(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.path().join("registry.log")).unwrap_or_default();
        log.lines().filter_map(request).collect()
    }

    /// Reports whether it received such a request. Waits a moment, because the access log is written after the answer.
    pub fn got(&self, is_meant: impl Fn(&str) -> bool) -> bool {
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            if self.requests().iter().any(|line| is_meant(line)) {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Pushes files of `folder` (a name, or `NAME:MEDIA_TYPE`) with the real `oras` over plain http, and gives
    /// the digest.
    pub fn push(&self, repository_and_tag: &str, folder: &Path, files: &[&str]) -> String {
        push(&format!("{}/{repository_and_tag}", self.host()), folder, files)
    }

    /// A `certs.d` folder in which `name` (as `kind-registry:5000`) is this registry.
    pub fn certs_d(&self, names: &[&str]) -> tempfile::TempDir {
        let certs = tempfile::tempdir().expect("a folder");
        for name in names {
            write_hosts_toml(certs.path(), name, &self.url());
        }
        certs
    }
}

/// A line of the Combined Log Format: `ADDRESS - USER [TIME] "METHOD PATH PROTOCOL" STATUS …`.
fn request(line: &str) -> Option<String> {
    let mut parts = line.split('"').skip(1);
    let (request, rest) = (parts.next()?, parts.next()?);
    let mut words = request.split(' ');
    let (method, path, _) = (words.next()?, words.next()?, words.next()?.strip_prefix("HTTP/")?);
    Some(format!("{method} {path} {}", rest.trim().split(' ').next()?))
}
