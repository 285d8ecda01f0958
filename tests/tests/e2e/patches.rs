//! Patches: created with the command, named by a pod, applied over their base by the driver.

use oras_csi_tests::archive::{archive, entry, gzip};
use oras_csi_tests::node::{Node, apply, logs_of_finished};
use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::run;
use oras_csi_tests::registry::raw::Raw;
use serde_json::{Value, json};

use super::{delete, pod};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const NAME: &str = "kind-registry:5000";
const LIST: &str =
    "cd /mnt/oras && for file in $(find . -type f | sort); do echo \"$file $(cat $file)\"; done";

/// An image of these layers.
fn image(registry: &Raw, layers: &[&[u8]]) -> String {
    let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": registry.blob(bytes), "size": bytes.len()});
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
    let config =
        descriptor("application/vnd.oci.image.config.v1+json", br#"{"os":"linux","architecture":"amd64"}"#);
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}).to_string();
    registry.manifest(MANIFEST, manifest.as_bytes()).expect("the registry takes it").to_string()
}

fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let entries: Vec<_> = files.iter().map(|(name, text)| entry(name, b'0', "", text.as_bytes())).collect();
    gzip(&archive(&entries))
}

#[test]
fn a_pod_has_the_base_overlaid_by_the_patch_up_to_its_level() {
    let node = Node::get();
    let (certs, raw) = {
        let registry = node.registry();
        (registry.certs_d(&[NAME]), Raw::new(&registry.host(), "patched"))
    };
    let ground = layer(&[("kept", "base"), ("fixed", "base"), ("gone", "base")]);
    let base = image(&raw, &[&ground]);
    // What copacetic makes: the base's layers, and one more.
    let minor = image(&raw, &[&ground, &layer(&[("fixed", "minor"), (".wh.gone", "")])]);
    // An artifact of a repository of its own, found by a tag.
    node.push("fixes/patched:critical", &[("kept", "critical"), ("new.txt", "critical")]);
    let patch = run(std::process::Command::new(oras_csi())
        .args(["patch", &format!("{NAME}/patched@{base}"), "--minor", &minor])
        .args([
            "--crit",
            &format!("{NAME}/fixes/patched:critical"),
            "--push",
            &format!("{NAME}/patched:fixed"),
        ])
        .arg("--certs-dir")
        .arg(certs.path()));
    eprintln!("{patch}");

    for (name, level, files) in [
        ("patch-minor", Some("minor"), "./fixed minor\n./kept base\n"),
        ("patch-all", None, "./fixed minor\n./kept critical\n./new.txt critical\n"),
    ] {
        let mut annotations = json!({"oras.land/patch": format!("{NAME}/patched:fixed")});
        if let Some(level) = level {
            annotations["oras.land/patch-level"] = json!(level);
        }
        eprintln!("{}", apply(&pod(name, &annotations, LIST)));
        assert_eq!(logs_of_finished(name), files, "{name}");
        delete(name);
    }
}
