//! Real registries, and the real `oras` that pushes to them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::parts::testbed;
use crate::process::{Running, free_port, listens, run};

/// The distribution project's registry over plain http, empty at first.
#[derive(Debug)]
pub struct Distribution {
    running: Option<Running>,
    folder: tempfile::TempDir,
    address: String,
    port: u16,
}

impl Distribution {
    /// Starts one at a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1")
    }

    /// Starts one at a free port of an address of this machine.
    pub fn start_at(address: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut registry = Self { running: None, folder, address: address.to_owned(), port: free_port() };
        registry.start_again();
        registry
    }

    /// Starts it again after [`Self::stop`], with what it held.
    pub fn start_again(&mut self) {
        let folder = self.folder.path();
        let config = folder.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"{}:{}\"}}\n",
            folder.join("data").display(),
            self.address,
            self.port
        );
        std::fs::write(&config, text).expect("writes");
        let mut command = Command::new(testbed("registry"));
        let mut running = Running::start(command.arg("serve").arg(config), "registry", folder);
        let address = (self.address.clone(), self.port);
        running.wait_until("listening", Duration::from_secs(20), || {
            std::net::TcpStream::connect((address.0.as_str(), address.1)).is_ok()
        });
        self.running = Some(running);
    }

    /// Stops it; what it holds stays.
    pub fn stop(&mut self) {
        self.running = None;
        assert!(!listens(self.port), "the registry is down");
    }

    /// `address:port`.
    pub fn host(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    /// Pushes files of `folder` (a name, or `NAME:MEDIA_TYPE`) with the real `oras`, and gives the digest.
    pub fn push(&self, repository_and_tag: &str, folder: &Path, files: &[&str]) -> String {
        push(&format!("{}/{repository_and_tag}", self.host()), folder, files)
    }

    /// A `certs.d` folder in which `name` (as `kind-registry:5000`) is this registry.
    pub fn certs_d(&self, names: &[&str]) -> tempfile::TempDir {
        let certs = tempfile::tempdir().expect("a folder");
        for name in names {
            write_hosts_toml(certs.path(), name, &format!("http://{}", self.host()));
        }
        certs
    }
}

/// Writes `HOST_PORT_/hosts.toml` under a `certs.d` folder, with nothing but its server.
pub fn write_hosts_toml(certs: &Path, name: &str, server: &str) -> PathBuf {
    let folder = certs.join(name.replacen(':', "_", 1) + if name.contains(':') { "_" } else { "" });
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("hosts.toml");
    std::fs::write(&file, format!("server = \"{server}\"\n")).expect("writes");
    file
}

/// Pushes files of `folder` with the real `oras` over plain http, and gives the manifest's digest.
pub fn push(reference: &str, folder: &Path, files: &[&str]) -> String {
    let mut command = oras();
    command.args(["push", "--plain-http", "--format", "json", reference]).args(files).current_dir(folder);
    let answer: serde_json::Value = serde_json::from_str(&run(&mut command)).expect("oras answers in JSON");
    answer["digest"].as_str().expect("with a digest").to_owned()
}

/// The real `oras`, with a configuration of its own.
pub fn oras() -> Command {
    let mut command = Command::new(testbed("oras"));
    command.env("DOCKER_CONFIG", "/nonexistent");
    command
}
