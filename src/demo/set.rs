//! A name instead of references: what `oras-csi render` makes of a set and a pod, as a GitOps pipeline has them.

use std::path::Path;

use serde_json::{Value, json};

use super::artifact::Listing;
use super::narrator::Narrator;
use super::node::Node;
use super::tour::{REFERENCE, command, compare, disk, our_volume};
use crate::exit_status::Failure;
use crate::yaml_documents as documents;

const NAME: &str = "by-name";

/// Has a pod ask for a set by its name alone; the set holds what is at the tag now, whose files are `wanted`.
pub(super) async fn step(
    narrator: &mut Narrator,
    (folder, certs): (&Path, &Path),
    node: &mut Node,
    wanted: &Listing,
) -> Result<(), Failure> {
    narrator.step("A set gives it a name");
    let set = json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactSet", "metadata": {"name": "my-app"},
        "spec": {"recipe": [{"add": REFERENCE}]}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": NAME, "annotations": {"oras.land/artifact-set": "my-app"}},
        "spec": {"containers": [{"name": "app", "image": "busybox:1.37"}]}});
    let file = folder.join("set.yaml");
    std::fs::write(&file, documents::to_yaml(&[set.clone(), pod])?).map_err(disk)?;
    let rendered = command(certs, &["render", "-f", &file.display().to_string()]).await?;
    narrator.say(&documents::to_yaml(std::slice::from_ref(&set))?);
    narrator.say(
        "In a cluster the webhook keeps in its status what the tag stands for, and no pod's start waits for a registry.\n\
         Here `oras-csi render` does what the webhook would. A pod with oras.land/artifact-set: my-app, and no reference, has:",
    );
    let rendered = documents::parse(&rendered)?;
    let pod = rendered.iter().find(|document| document["kind"] == "Pod").unwrap_or(&Value::Null);
    let volume = our_volume(pod)?;
    let files = node.bring(NAME, volume).await?;
    compare(narrator, &files, wanted, "What the name stands for.")?;
    node.take_away(NAME, volume).await
}
