//! A patch artifact: replaces one file of an artifact without a digest written by a person.

use std::path::Path;

use oras_csi_core::digest::Digest;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::{Artifact, Content, HostsConfig, Layer};

use crate::admission::ApiServer;
use crate::artifact::{Listing, publish};
use crate::manifests;
use crate::narrator::Narrator;
use crate::node::Node;
use crate::processes::Programs;
use crate::tour::{NAMESPACE, REFERENCE, compare, find_volume};

const POD: &str = include_str!("../../patch.yaml");
const NAME: &str = "patch";
const PATCH: &str = "kind-registry:5000/java-app:patched";
const FIX: &str = "kind-registry:5000/java-app:fix-port";
/// The file that the patch replaces, and its new content.
const FILE: &str = "config/server.properties";
const FIXED: &str = "version=fixed\nport=8443\n";

/// Makes a patch of the artifact that the tag names now, whose files are `base`, and publishes a pod's volume with it.
pub(crate) async fn step(
    narrator: &mut Narrator,
    (programs, hosts, certs): (&Programs, &HostsConfig, &Path),
    api: &ApiServer,
    node: &mut Node,
    base: &Listing,
) -> anyhow::Result<()> {
    narrator.step("A patch overlays it");
    let fix = Layer::new("text/plain", Content::Bytes(FIXED.into()))
        .annotated("org.opencontainers.image.title", FILE);
    let artifact = Artifact::new("application/vnd.example.fix", vec![fix]);
    let reference = Reference::parse(FIX)?;
    publish(hosts, &reference, artifact).await?;
    let arguments = ["patch", REFERENCE, "--minor", FIX, "--push", PATCH];
    let patched = programs.run(certs, &arguments).await?;
    narrator.print(&format!("$ oras-csi {}\n{}", arguments.join(" "), patched.trim_end()));

    let pod = manifests::parse_first(POD)?;
    let (admitted, _) = api.admit(&pod, NAMESPACE).await?;
    let volume = find_volume(&admitted)?;
    narrator.print(&format!(
        "The patch names its base and the fix by digest, and a pod names only the patch. A pod with oras.land/patch: {PATCH} has:"
    ));
    let files = node.publish(NAME, volume).await?;
    let mut expected = base.clone();
    expected.insert(FILE.to_owned(), Digest::sha256_of(FIXED.as_bytes()));
    compare(narrator, &files, &expected, "The base, with the one file that the patch replaces.")?;
    node.unpublish(NAME, volume).await
}
