//! The steps of the demo, from the push to the unmount.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::HostsConfig;
use oras_csi_driver::Settings;
use serde_json::Value;

use crate::admission::ApiServer;
use crate::artifact::{self, Listing};
use crate::narrator::Narrator;
use crate::node::{KUBELET, Node};
use crate::processes::{Process, Programs, free_port};
use crate::{interrupted, manifests, patch, set};

/// The pod that is admitted: the first example of the documentation.
const POD: &str = include_str!("../../pod.yaml");
pub(crate) const NAMESPACE: &str = "default";
pub(crate) const REFERENCE: &str = "kind-registry:5000/java-app:v1";
const POD_NAME: &str = "java-app";
const IDENTICAL: &str = "Byte for byte what was pushed.";

pub(crate) async fn run(programs: &Programs, mounts: Result<(), String>) -> anyhow::Result<()> {
    let started = Instant::now();
    let work = create_folder(&std::env::temp_dir()).context("cannot create a temporary folder")?;
    let exception = if mounts.is_ok() { "" } else { ", except for the mount" };
    let result = tokio::select! {
        result = steps(programs, work.path(), mounts) => result,
        () = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    // The processes have ended by now, and their mounts with them.
    let removed = work.close().context("cannot remove the temporary folder");
    result.and(removed)?;
    println!(
        "\nThe demo is complete{exception}, after {:.1} s. It leaves nothing behind.",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The longest path of a Unix socket on Linux (unix(7)), in bytes.
const LONGEST_SOCKET_PATH: usize = 107;

/// Creates a folder below `parent` whose sockets can be bound, or below `/tmp` if `parent` has too long a path.
fn create_folder(parent: &Path) -> std::io::Result<tempfile::TempDir> {
    let create = |parent: &Path| tempfile::Builder::new().prefix("oras-csi-demo-").tempdir_in(parent);
    let folder = create(parent)?;
    let settings = Settings::new("demo", &folder.path().join(KUBELET), folder.path());
    let sockets = [Some(settings.socket()), settings.registration()];
    let fit = sockets.into_iter().flatten().all(|path| path.as_os_str().len() <= LONGEST_SOCKET_PATH);
    if fit { Ok(folder) } else { create(Path::new("/tmp")) }
}

async fn steps(programs: &Programs, folder: &Path, mounts: Result<(), String>) -> anyhow::Result<()> {
    let mut narrator = Narrator::new();
    println!("oras-csi: from an annotation on a pod to files in the pod, on this machine alone.");

    narrator.step("A registry with an artifact");
    let registry_port = free_port()?;
    let listen = format!("127.0.0.1:{registry_port}");
    let mut registry = Process::start("registry", &programs.demo, &["--serve-registry", &listen], folder)?;
    registry
        .wait_until(async || tokio::net::TcpStream::connect(("127.0.0.1", registry_port)).await.is_ok())
        .await?;
    let certs = folder.join("certs.d");
    write_hosts_toml(&certs, registry_port).context("cannot write hosts.toml")?;
    let hosts = HostsConfig::load(Some(&certs))?;
    let reference = Reference::parse(REFERENCE)?;
    let files = folder.join("files");
    artifact::write(&files, "1").context("cannot write the files to push")?;
    let pushed = artifact::list(&files)?;
    let digest = artifact::push(&hosts, &reference, &files).await?;
    narrator.print(&format!(
        "A registry runs as process {} at 127.0.0.1:{registry_port}. The file certs.d/kind-registry_5000_/hosts.toml, in\n\
         containerd's format, names it kind-registry:5000. Pushed there, as {REFERENCE}:",
        registry.id()
    ));
    print_listing(&narrator, &pushed);
    narrator.print(&format!("The digest of the manifest is {digest}."));

    narrator.step("The webhook admits a pod that requests it");
    let (webhook, api) = start_webhook(programs, folder, &certs).await?;
    let pod = manifests::parse_first(POD)?;
    let (admitted, warnings) = api.admit(&pod, NAMESPACE).await?;
    narrator.print(&format!(
        "The webhook runs as process {}, with a CA and a certificate that it made itself. It receives the AdmissionReview of\n\
         a pod over TLS, as from an API server, and answers with a patch. The patch changes examples/pod.yaml:\n ",
        webhook.id()
    ));
    narrator.print_difference(
        &manifests::to_yaml(std::slice::from_ref(&pod))?,
        &manifests::to_yaml(std::slice::from_ref(&admitted))?,
    );
    narrator.print(" ");
    for warning in warnings {
        narrator.print(&format!("kubectl would print: Warning: {warning}"));
    }
    let volume = find_volume(&admitted)?;
    let recipe = volume["csi"]["volumeAttributes"]["csi.oras.land/recipe"].as_str().unwrap_or_default();
    ensure!(
        recipe.contains(&digest.to_string()),
        "the volume is not pinned to the pushed artifact: {recipe}"
    );

    narrator.step("The webhook denies a registry that is not allowed");
    let elsewhere = manifests::parse_first(&POD.replace("kind-registry:5000/", "registry.example/"))?;
    match api.admit(&elsewhere, NAMESPACE).await {
        Err(denial) => narrator.print(&format!("The same pod with another registry: {denial}")),
        Ok(_) => bail!("a registry that is not allowed was admitted"),
    }

    let (mut node, files) = match mounts {
        Ok(()) => {
            narrator.step("The driver mounts the volume");
            let mut node = Node::mounting(programs, folder, &certs).await?;
            narrator.print(&node.introduction());
            let files =
                observe_mount(&mut narrator, &mut node, (&hosts, &reference), volume, &pushed, folder)
                    .await?;
            (node, files)
        }
        Err(reason) => {
            narrator.step("The files, without the mount");
            narrator.print(&format!("Not mounted: {reason}.\nRoot can mount everywhere: sudo make demo"));
            let mut node = Node::pulling(programs, folder, &certs);
            narrator.print(&node.introduction());
            let tree = node.publish(POD_NAME, volume).await?;
            compare(&narrator, &tree, &pushed, IDENTICAL)?;
            (node, pushed)
        }
    };
    set::step(&mut narrator, (programs, folder, &certs), &mut node, &files).await?;
    patch::step(&mut narrator, (programs, &hosts, &certs), &api, &mut node, &files).await
}

async fn start_webhook(
    programs: &Programs,
    folder: &Path,
    certs: &Path,
) -> anyhow::Result<(Process, ApiServer)> {
    let port = free_port()?;
    let tls = folder.join("tls");
    let mut webhook = Process::start(
        "webhook",
        &programs.oras_csi,
        &[
            "webhook",
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--tls-dir",
            &tls.display().to_string(),
            "--lame-duck",
            "0",
            "--certs-dir",
            &certs.display().to_string(),
            "--allow-registry",
            "kind-registry:5000/*",
        ],
        folder,
    )?;
    let bundle = tls.join("ca.crt");
    webhook
        .wait_until(async || match ApiServer::new(port, &bundle) {
            Ok(api) => api.is_ready().await,
            Err(_) => false,
        })
        .await?;
    let api = ApiServer::new(port, &bundle)?;
    Ok((webhook, api))
}

/// Shows that a mounted volume does not change: neither by writes nor by a push to its tag. Returns the files of the
/// artifact that the tag names in the end.
async fn observe_mount(
    narrator: &mut Narrator,
    node: &mut Node,
    (hosts, reference): (&HostsConfig, &Reference),
    volume: &Value,
    pushed: &Listing,
    folder: &Path,
) -> anyhow::Result<Listing> {
    let target = node.publish(POD_NAME, volume).await?;
    compare(narrator, &target, pushed, IDENTICAL)?;

    narrator.step("The mount is read-only");
    for (what, result) in [
        ("write HelloWorldServer.jar", std::fs::write(target.join("HelloWorldServer.jar"), "changed").err()),
        ("create a new file", std::fs::write(target.join("new"), "new").err()),
        ("remove config", std::fs::remove_dir_all(target.join("config")).err()),
    ] {
        match result {
            Some(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
                narrator.print(&format!("{what}: {error}"));
            }
            other => bail!("{what}: expected an error of a read-only file system, got {other:?}"),
        }
    }

    narrator.step("The tag moves, the volume does not");
    let files = folder.join("files-2");
    artifact::write(&files, "2").context("cannot write the files to push")?;
    let moved = artifact::push(hosts, reference, &files).await?;
    narrator.print(&format!(
        "{reference} now names {moved}. The same volume, mounted again as after a restart of its pod:"
    ));
    node.unpublish(POD_NAME, volume).await?;
    node.publish(POD_NAME, volume).await?;
    compare(narrator, &target, pushed, IDENTICAL)?;

    narrator.step("The pod is deleted");
    node.unpublish(POD_NAME, volume).await?;
    narrator.print("Unmounted, and its directory removed.");
    Ok(artifact::list(&files)?)
}

fn write_hosts_toml(certs: &Path, port: u16) -> std::io::Result<()> {
    let folder = certs.join("kind-registry_5000_");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("hosts.toml"), format!("server = \"http://127.0.0.1:{port}\"\n"))
}

/// Returns the volume of the driver in a pod.
pub(crate) fn find_volume(pod: &Value) -> anyhow::Result<&Value> {
    let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let volume = volumes.find(|volume| volume["csi"]["driver"] == oras_csi_core::keys::DRIVER);
    volume.context("the webhook has added no volume")
}

fn print_listing(narrator: &Narrator, listing: &Listing) {
    for (name, digest) in listing {
        narrator.print(&format!("  {digest}  {name}"));
    }
}

/// Prints the files of a folder and then `message`. Fails if they are not exactly `expected`.
pub(crate) fn compare(
    narrator: &Narrator,
    folder: &Path,
    expected: &Listing,
    message: &str,
) -> anyhow::Result<()> {
    let found = artifact::list(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    print_listing(narrator, &found);
    ensure!(found == *expected, "these files differ from the expected ones: {expected:?}");
    narrator.print(message);
    Ok(())
}
