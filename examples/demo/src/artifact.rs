//! The files of the demo, and how they are pushed to the registry.

use std::collections::BTreeMap;
use std::io;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use oras_csi_core::digest::Digest;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::{
    Anonymous, Artifact, Content, HostsConfig, HttpRegistry, Layer, Publication, Publisher, Settings,
};

/// SHA-256 digests of files by their relative path.
pub(crate) type Listing = BTreeMap<String, Digest>;

/// The jar of issue 25: a ZIP archive that consists of its end record (APPNOTE 4.3.16) and a comment.
fn jar(comment: &str) -> Vec<u8> {
    let length = u16::try_from(comment.len()).unwrap_or(u16::MAX);
    let mut jar = b"PK\x05\x06".to_vec();
    jar.extend([0; 16]);
    jar.extend(length.to_le_bytes());
    jar.extend(comment.bytes().take(usize::from(length)));
    jar
}

/// Writes the files to push: a jar, and a directory beside it.
pub(crate) fn write(folder: &Path, version: &str) -> io::Result<()> {
    let config = folder.join("config");
    std::fs::create_dir_all(config.join("profiles"))?;
    std::fs::write(folder.join("HelloWorldServer.jar"), jar(version))?;
    std::fs::write(config.join("server.properties"), format!("version={version}\nport=8080\n"))?;
    std::fs::write(config.join("profiles/default.yaml"), "greeting: hello\n")
}

/// Lists the files below a folder with their digests.
pub(crate) fn list(folder: &Path) -> io::Result<Listing> {
    let mut listing = Listing::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                let path = entry.path();
                let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
                listing.insert(name, Digest::sha256_of(&std::fs::read(&path)?));
            }
        }
    }
    Ok(listing)
}

/// Pushes them as `oras push REFERENCE HelloWorldServer.jar config/` does: a file layer with a title, and a directory as a
/// gzipped tar that is marked for unpacking (ORAS, "file annotations").
pub(crate) async fn push(
    hosts: &HostsConfig,
    reference: &Reference,
    folder: &Path,
) -> anyhow::Result<Digest> {
    let title = "org.opencontainers.image.title";
    let jar = Layer::new("application/java-archive", Content::File(folder.join("HelloWorldServer.jar")))
        .annotated(title, "HelloWorldServer.jar");
    let archive = archive(folder, "config").context("cannot read the files to push")?;
    let config = Layer::new(
        "application/vnd.oci.image.layer.v1.tar+gzip",
        Content::Bytes(gzip(&archive).context("cannot compress the files to push")?.into()),
    )
    .annotated(title, "config")
    .annotated("io.deis.oras.content.unpack", "true")
    .annotated("io.deis.oras.content.digest", Digest::sha256_of(&archive).to_string());
    let artifact = Artifact::new("application/vnd.example.java-app", vec![jar, config]);
    publish(hosts, reference, artifact).await
}

/// Pushes an artifact without credentials.
pub(crate) async fn publish(
    hosts: &HostsConfig,
    reference: &Reference,
    artifact: Artifact,
) -> anyhow::Result<Digest> {
    let registry = Arc::new(HttpRegistry::new(hosts.clone(), Settings::default()));
    let publisher = Publisher::new(registry, Arc::new(Anonymous));
    let publication = Publication::of_artifact(artifact);
    Ok(publisher.publish(reference, reference.tag(), &publication).await?.into_listed()?.digest().clone())
}

fn archive(folder: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_dir_all(name, folder.join(name))?;
    archive.into_inner()
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}
