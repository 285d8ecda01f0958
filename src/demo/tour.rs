//! The tour itself, from the push to the unmount.

use std::path::Path;
use std::time::Instant;

use oras_csi_core::reference::Reference;
use oras_csi_core::registry::hosts::HostsConfig;
use serde_json::Value;

use super::admission::ApiServer;
use super::artifact::{self, Listing};
use super::narrator::Narrator;
use super::node::Node;
use super::patch;
use super::processes::{Process, free_port};
use super::set;
use crate::exit_status::Failure;
use crate::runtime::wait_for_signal as interrupted;
use crate::yaml_documents as documents;

/// The pod that is admitted: the one that a newcomer copies first.
const POD: &str = include_str!("../../examples/pod.yaml");
pub(super) const NAMESPACE: &str = "default";
pub(super) const REFERENCE: &str = "kind-registry:5000/java-app:v1";
const POD_NAME: &str = "java-app";
const PUSHED: &str = "Byte for byte what was pushed.";

pub(super) async fn run(mounts: Result<(), String>) -> Result<(), Failure> {
    let started = Instant::now();
    let work = tempfile::Builder::new().prefix("oras-csi-demo-").tempdir();
    let work = work.map_err(|error| Failure::failed(format!("cannot make a folder to work in: {error}")))?;
    let ending = if mounts.is_ok() { "" } else { ", but for the mount" };
    let walked = tokio::select! {
        walked = walk(work.path(), mounts) => walked,
        () = interrupted() => Err(Failure::failed("interrupted")),
    };
    // The processes are gone by now, and what they had mounted with them.
    let cleared = work.close().map_err(|error| Failure::failed(format!("something is left behind: {error}")));
    walked.and(cleared)?;
    println!(
        "\nThat was all of it{ending}, in {:.1} s. Nothing is left behind.",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn walk(folder: &Path, mounts: Result<(), String>) -> Result<(), Failure> {
    let mut narrator = Narrator::new();
    println!("oras-csi: from an annotation on a pod to files in it, on this machine alone.");

    narrator.step("A registry with an artifact in it");
    let registry_port = free_port()?;
    let mut registry = Process::start(
        "registry",
        ["demo", "--serve-registry", &format!("127.0.0.1:{registry_port}")],
        folder,
    )?;
    registry
        .until(async || tokio::net::TcpStream::connect(("127.0.0.1", registry_port)).await.is_ok())
        .await?;
    let certs = folder.join("certs.d");
    name_registry(&certs, registry_port).map_err(disk)?;
    let hosts = HostsConfig::load(Some(&certs)).map_err(Failure::bad_input)?;
    let reference = Reference::parse(REFERENCE).map_err(Failure::bad_input)?;
    let files = folder.join("files");
    artifact::write(&files, "1").map_err(disk)?;
    let pushed = artifact::list(&files).map_err(disk)?;
    let digest = artifact::push(&hosts, &reference, &files).await?;
    narrator.say(&format!(
        "A registry runs as process {} at 127.0.0.1:{registry_port}. Two lines of certs.d/kind-registry_5000_/hosts.toml,\n\
         the format of containerd, say that it is kind-registry:5000. Pushed there, as {REFERENCE}:",
        registry.id()
    ));
    show(&narrator, &pushed);
    narrator.say(&format!("The manifest is {digest}."));

    narrator.step("The webhook reads what the pod asks for");
    let webhook_port = free_port()?;
    let tls = folder.join("tls");
    let mut webhook = Process::start(
        "webhook",
        [
            "webhook",
            "--listen",
            &format!("127.0.0.1:{webhook_port}"),
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
        .until(async || match ApiServer::new(webhook_port, &bundle) {
            Ok(api) => api.is_ready().await,
            Err(_) => false,
        })
        .await?;
    let api = ApiServer::new(webhook_port, &bundle)?;
    let pod = documents::parse(POD)?.into_iter().next().unwrap_or(Value::Null);
    let (admitted, warnings) = api.admit(&pod, NAMESPACE).await?;
    narrator.say(&format!(
        "The webhook runs as process {} and has made itself a CA and a certificate. It gets the review of a pod over TLS,\n\
         as from an API server, and answers with a patch. What that does to examples/pod.yaml:\n ",
        webhook.id()
    ));
    narrator.show_change(
        &documents::to_yaml(std::slice::from_ref(&pod))?,
        &documents::to_yaml(std::slice::from_ref(&admitted))?,
    );
    narrator.say(" ");
    for warning in warnings {
        narrator.say(&format!("kubectl would print: Warning: {warning}"));
    }
    let volume = our_volume(&admitted)?;
    let recipe = volume["csi"]["volumeAttributes"]["csi.oras.land/recipe"].as_str().unwrap_or_default();
    if !recipe.contains(&digest.to_string()) {
        return Err(Failure::failed(format!("the volume is not pinned to what was pushed: {recipe}")));
    }

    narrator.step("What is not allowed stays out");
    let elsewhere = POD.replace("kind-registry:5000/", "registry.example/");
    let elsewhere = documents::parse(&elsewhere)?.into_iter().next().unwrap_or(Value::Null);
    match api.admit(&elsewhere, NAMESPACE).await {
        Err(denial) => narrator.say(&format!("The same pod with another registry: {denial}")),
        Ok(_) => return Err(Failure::failed("a registry that is not allowed was admitted")),
    }

    let (mut node, files) = match mounts {
        Ok(()) => {
            narrator.step("The driver mounts the volume");
            let mut node = Node::mounting(folder, &certs).await?;
            narrator.say(&node.introduction());
            let files =
                watch(&mut narrator, &mut node, (&hosts, &reference), volume, &pushed, folder).await?;
            (node, files)
        }
        Err(why) => {
            narrator.step("The files, without the mount");
            narrator.say(&format!("Not mounted: {why}.\nWith root it is: sudo oras-csi demo"));
            let mut node = Node::laying_out(folder, &certs);
            narrator.say(&node.introduction());
            let tree = node.bring(POD_NAME, volume).await?;
            compare(&narrator, &tree, &pushed, PUSHED)?;
            (node, pushed)
        }
    };
    set::step(&mut narrator, (folder, &certs), &mut node, &files).await?;
    patch::step(&mut narrator, (&hosts, &certs), &api, &mut node, &files).await
}

/// A mounted volume stays what it is, whoever writes and whatever is pushed. Gives what the tag stands for in the end.
async fn watch(
    narrator: &mut Narrator,
    node: &mut Node,
    (hosts, reference): (&HostsConfig, &Reference),
    volume: &Value,
    pushed: &Listing,
    folder: &Path,
) -> Result<Listing, Failure> {
    let target = node.bring(POD_NAME, volume).await?;
    compare(narrator, &target, pushed, PUSHED)?;

    narrator.step("Nobody can write to it");
    for (what, result) in [
        ("write HelloWorldServer.jar", std::fs::write(target.join("HelloWorldServer.jar"), "changed").err()),
        ("make a new file", std::fs::write(target.join("new"), "new").err()),
        ("remove config", std::fs::remove_dir_all(target.join("config")).err()),
    ] {
        match result {
            Some(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
                narrator.say(&format!("{what}: {error}"));
            }
            other => return Err(Failure::failed(format!("{what} was not refused by the mount: {other:?}"))),
        }
    }

    narrator.step("The tag moves, the volume does not");
    let files = folder.join("files-2");
    artifact::write(&files, "2").map_err(disk)?;
    let moved = artifact::push(hosts, reference, &files).await?;
    narrator.say(&format!(
        "{reference} is {moved} now. The same volume, mounted again as after a restart of its pod:"
    ));
    node.take_away(POD_NAME, volume).await?;
    node.bring(POD_NAME, volume).await?;
    compare(narrator, &target, pushed, PUSHED)?;

    narrator.step("The pod goes");
    node.take_away(POD_NAME, volume).await?;
    narrator.say("Unmounted, and its directory removed.");
    artifact::list(&files).map_err(disk)
}

/// Runs `oras-csi WORDS…`, and gives what it writes.
pub(super) async fn command(certs: &Path, words: &[&str]) -> Result<String, Failure> {
    let program = std::env::current_exe().map_err(disk)?;
    let mut command = tokio::process::Command::new(program);
    let output = command.args(words).arg("--certs-dir").arg(certs).output().await.map_err(disk)?;
    if !output.status.success() {
        return Err(Failure::failed(String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn name_registry(certs: &Path, port: u16) -> std::io::Result<()> {
    let folder = certs.join("kind-registry_5000_");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("hosts.toml"), format!("server = \"http://127.0.0.1:{port}\"\n"))
}

pub(super) fn our_volume(pod: &Value) -> Result<&Value, Failure> {
    let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let ours = volumes.find(|volume| volume["csi"]["driver"] == oras_csi_core::keys::DRIVER);
    ours.ok_or_else(|| Failure::failed("the webhook has added no volume"))
}

fn show(narrator: &Narrator, listing: &Listing) {
    for (name, digest) in listing {
        narrator.say(&format!("  {digest}  {name}"));
    }
}

/// Shows what is in a folder, which has to be exactly what was pushed, and says so in `words`.
pub(super) fn compare(
    narrator: &Narrator,
    folder: &Path,
    pushed: &Listing,
    words: &str,
) -> Result<(), Failure> {
    let found = artifact::list(folder).map_err(disk)?;
    show(narrator, &found);
    if found != *pushed {
        return Err(Failure::failed(format!("that is not what was pushed: {pushed:?}")));
    }
    narrator.say(words);
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err as it is")]
pub(super) fn disk(error: std::io::Error) -> Failure {
    Failure::failed(format!("on disk: {error}"))
}
