//! A fix for what runs already, named by no digest.

use std::path::Path;

use oras_csi_core::digest::Digest;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::{Artifact, Content, HostsConfig, Layer, Publication};
use serde_json::Value;

use super::admission::ApiServer;
use super::artifact::Listing;
use super::narrator::Narrator;
use super::node::Node;
use super::tour::{NAMESPACE, REFERENCE, command, compare, our_volume};
use crate::exit_status::Failure;
use crate::registry_client::{publisher, transfer_client};
use crate::yaml_documents as documents;

const POD: &str = include_str!("../../examples/patch.yaml");
const NAME: &str = "patch";
const PATCH: &str = "kind-registry:5000/java-app:patched";
const FIX: &str = "kind-registry:5000/java-app:fix-port";
/// The file that is fixed, and how.
const FILE: &str = "config/server.properties";
const FIXED: &str = "version=fixed\nport=8443\n";

/// Makes a patch of what is at the tag now, whose files are `base`, and has a pod with it.
pub(super) async fn step(
    narrator: &mut Narrator,
    (hosts, certs): (&HostsConfig, &Path),
    api: &ApiServer,
    node: &mut Node,
    base: &Listing,
) -> Result<(), Failure> {
    narrator.step("A patch is laid over it");
    let fix = Layer::new("text/plain", Content::Bytes(FIXED.into()))
        .annotated("org.opencontainers.image.title", FILE);
    let artifact = Artifact::new("application/vnd.example.fix", vec![fix]);
    let reference = Reference::parse(FIX).map_err(Failure::bad_input)?;
    publisher(transfer_client(hosts), None)
        .publish(&reference, reference.tag(), &Publication::of_artifact(artifact))
        .await?;
    let words = ["patch", REFERENCE, "--minor", FIX, "--push", PATCH];
    let patched = command(certs, &words).await?;
    narrator.say(&format!("$ oras-csi {}\n{}", words.join(" "), patched.trim_end()));

    let pod = documents::parse(POD)?.into_iter().next().unwrap_or(Value::Null);
    let (admitted, _) = api.admit(&pod, NAMESPACE).await?;
    let volume = our_volume(&admitted)?;
    narrator.say(&format!(
        "It names both by digest, and whoever mounts it writes none. A pod with oras.land/patch: {PATCH} has:"
    ));
    let files = node.bring(NAME, volume).await?;
    let mut wanted = base.clone();
    wanted.insert(FILE.to_owned(), Digest::sha256_of(FIXED.as_bytes()));
    compare(narrator, &files, &wanted, "The base, with the one file that the patch replaces.")?;
    node.take_away(NAME, volume).await
}
