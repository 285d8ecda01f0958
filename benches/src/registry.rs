//! The registry of the distribution project, from which all programs pull, and what is pushed to it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::content::Packing;
use crate::disk::{run, sync};
use crate::tools;

/// The name by which the driver knows the registry.
pub(crate) const NAME: &str = "registry.test";

/// A registry on a free port, with its storage in a folder of `TMPDIR`.
#[derive(Debug)]
pub(crate) struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Registry {
    /// Starts one that only this machine reaches.
    pub(crate) fn start() -> Result<Self> {
        Self::start_at("127.0.0.1")
    }

    /// Starts one that is reached at an address of this machine, also from pods.
    pub(crate) fn start_at(address: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("b-").tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let storage = folder.path().join("storage");
        let configuration = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{}:{port}\"}}\n",
            storage.display(),
            if address == "127.0.0.1" { address } else { "0.0.0.0" }
        );
        let file = folder.path().join("config.yml");
        std::fs::write(&file, configuration)?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = Command::new(tools::testbed("registry")?);
        command.arg("serve").arg(file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // The registry is part of the machine, so a client's environment must not reach it.
        command.env("OTEL_TRACES_EXPORTER", "none");
        let mut child = command.spawn().context("cannot start the registry")?;
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if child.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(20) {
                let _ = child.kill();
                bail!(
                    "the registry does not listen:\n{}",
                    std::fs::read_to_string(folder.path().join("log"))?
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let registry = Self { child, folder, port };
        let hosts = registry.certs().join(NAME);
        std::fs::create_dir_all(&hosts)?;
        std::fs::write(hosts.join("hosts.toml"), format!("server = \"http://{address}:{port}\"\n"))?;
        Ok(registry)
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A `certs.d` folder in which [`NAME`] is this registry.
    pub(crate) fn certs(&self) -> PathBuf {
        self.folder.path().join("certs.d")
    }

    /// A reference to `repository:tag`.
    pub(crate) fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}", self.host())
    }

    /// The file in which the registry keeps a blob.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let digits = digest.trim_start_matches("sha256:");
        let blob = format!("storage/docker/registry/v2/blobs/sha256/{}/{digits}/data", &digits[..2]);
        self.folder.path().join(blob)
    }

    /// The address of a blob.
    pub(crate) fn blob_url(&self, repository: &str, digest: &str) -> String {
        format!("http://{}/v2/{repository}/blobs/{digest}", self.host())
    }

    fn oras(words: &[&str], folder: &Path) -> Result<String> {
        let mut command = Command::new(tools::testbed("oras")?);
        command.args(words).arg("--plain-http").current_dir(folder).env("DOCKER_CONFIG", "/nonexistent");
        run(&mut command)
    }

    /// Pushes files of a folder as an artifact.
    pub(crate) fn push(&self, repository: &str, folder: &Path, files: &[String]) -> Result<Pushed> {
        let reference = self.reference(&format!("{repository}:v1"));
        let words = ["push", "--disable-path-validation", "--format", "json", &reference];
        let words: Vec<&str> = words.into_iter().chain(files.iter().map(String::as_str)).collect();
        let answer: Value = serde_json::from_str(&Self::oras(&words, folder)?)?;
        self.pushed(repository, answer["digest"].as_str().context("oras push printed no digest")?)
    }

    /// Pushes an archive whose entries are below `data/` as `oras push` pushes a directory `data`, and as an image.
    pub(crate) fn push_archive(
        &self,
        repository: &str,
        file: &Path,
        packing: Packing,
        diff: &str,
    ) -> Result<Pushed> {
        let (folder, name) = (file.parent().context("a file is in a folder")?, file_name(file)?);
        let annotations = json!({name.as_str(): {"org.opencontainers.image.title": "data",
            "io.deis.oras.content.unpack": "true", "io.deis.oras.content.digest": diff}});
        std::fs::write(folder.join("annotations.json"), annotations.to_string())?;
        let typed = format!("{name}:{}", packing.media_type());
        let files = ["--annotation-file".to_owned(), "annotations.json".to_owned(), typed];
        let pushed = self.push(repository, folder, &files)?;
        let config = json!({"architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff]}});
        std::fs::write(folder.join("config.json"), config.to_string())?;
        let of_config = self.push_blob(repository, folder, "config.json")?;
        let layer = &pushed.layers[0];
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": of_config.digest,
                "size": of_config.size},
            "layers": [{"mediaType": packing.media_type(), "digest": layer.digest, "size": layer.size}]});
        std::fs::write(folder.join("manifest.json"), manifest.to_string())?;
        let image = self.reference(&format!("{repository}:image"));
        Self::oras(&["manifest", "push", &image, "manifest.json"], folder)?;
        Ok(pushed)
    }

    fn push_blob(&self, repository: &str, folder: &Path, file: &str) -> Result<Blob> {
        let answer =
            Self::oras(&["blob", "push", "--descriptor", &self.reference(repository), file], folder)?;
        serde_json::from_str(answer.lines().last().unwrap_or_default())
            .context("oras blob push printed no descriptor")
    }

    fn pushed(&self, repository: &str, digest: &str) -> Result<Pushed> {
        let manifest =
            std::fs::read_to_string(self.blob_file(digest)).context("the registry has no manifest")?;
        let mut manifest: Value = serde_json::from_str(&manifest)?;
        let layers = serde_json::from_value(manifest["layers"].take())?;
        // The registry's own writes must not slow down what is measured next.
        sync(self.folder.path())?;
        Ok(Pushed { repository: repository.to_owned(), digest: digest.to_owned(), layers })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(name.with_context(|| format!("{} has no name", path.display()))?.to_owned())
}

/// A blob of a manifest.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Blob {
    /// Its digest.
    pub(crate) digest: String,
    /// Its length in bytes.
    pub(crate) size: u64,
}

/// An artifact that was pushed.
#[derive(Clone, Debug)]
pub(crate) struct Pushed {
    /// The repository.
    pub(crate) repository: String,
    /// The digest of its manifest.
    pub(crate) digest: String,
    /// Its layers.
    pub(crate) layers: Vec<Blob>,
}
