//! An artifact set: a pod names a set instead of a reference. Uses `oras-csi render`, as a GitOps pipeline does.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::artifact::Listing;
use crate::manifests;
use crate::narrator::Narrator;
use crate::node::Node;
use crate::processes::Programs;
use crate::tour::{REFERENCE, compare, find_volume};

const NAME: &str = "by-name";

/// Publishes the volume of a pod that names a set; the set has the artifact that the tag names now, whose files are
/// `expected`.
pub(crate) async fn step(
    narrator: &mut Narrator,
    (programs, folder, certs): (&Programs, &Path, &Path),
    node: &mut Node,
    expected: &Listing,
) -> anyhow::Result<()> {
    narrator.step("A set gives it a name");
    let set = json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactSet", "metadata": {"name": "my-app"},
        "spec": {"recipe": [{"add": REFERENCE}]}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": NAME, "annotations": {"oras.land/artifact-set": "my-app"}},
        "spec": {"containers": [{"name": "app", "image": "busybox:1.37"}]}});
    let file = folder.join("set.yaml");
    std::fs::write(&file, manifests::to_yaml(&[set.clone(), pod])?).context("cannot write set.yaml")?;
    let rendered = programs.run(certs, &["render", "-f", &file.display().to_string()]).await?;
    narrator.print(&manifests::to_yaml(std::slice::from_ref(&set))?);
    narrator.print(
        "In a cluster the webhook keeps the resolved digest in the status of the set, so that no pod start waits for a\n\
         registry. Here `oras-csi render` does the webhook's work. A pod with oras.land/artifact-set: my-app, and no\n\
         reference, has:",
    );
    let rendered = manifests::parse(&rendered)?;
    let pod = rendered.iter().find(|document| document["kind"] == "Pod").unwrap_or(&Value::Null);
    let volume = find_volume(pod)?;
    let files = node.publish(NAME, volume).await?;
    compare(narrator, &files, expected, "The files of the artifact that the set names.")?;
    node.unpublish(NAME, volume).await
}
