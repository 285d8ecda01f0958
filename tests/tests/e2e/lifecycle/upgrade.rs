//! Upgrade, drain of the node, and rollback.

use std::process::Command;

use oras_csi_tests::installation::{helm_and_wait, images, wait_until_ready};
use oras_csi_tests::load::Load;
use oras_csi_tests::node::{Node, mounts, until};
use oras_csi_tests::parts::testbed;
use oras_csi_tests::process::run;

use crate::{PATIENCE, says};

/// The other version is this build under another tag. [`super::skew`] has an upgrade from an earlier commit.
const OTHER_TAG: &str = "upgraded";
/// Only one node is there, so the webhook must find a place while it is drained. This stands for another node.
const STAYS_ON_A_DRAINED_NODE: &str =
    r#"webhook.tolerations=[{"key":"node.kubernetes.io/unschedulable","operator":"Exists"}]"#;

fn tag_image() {
    let name = format!("localhost/oras-csi:{OTHER_TAG}");
    run(Command::new(testbed("ctr")).args(["images", "tag", "--force", "localhost/oras-csi:dev", &name]));
}

#[test]
fn an_upgrade_a_drain_and_a_rollback_fail_no_creation_and_no_read() {
    let node = Node::get();
    tag_image();
    let load = Load::start(node, 2);

    let tag = format!("image.tag={OTHER_TAG}");
    let upgraded = load.during("`helm upgrade` to another version", || {
        node.upgrade_chart(&["--set", &tag, "--set-json", STAYS_ON_A_DRAINED_NODE]);
    });
    upgraded.has_no_failure();
    until("every pod has the other version", PATIENCE, || {
        (images() == [format!("localhost/oras-csi:{OTHER_TAG}")]).then_some(())
    });

    // The drain ends all pods of the load, and the readers do not come back. So they must not count as read errors.
    let load = load.without_readers();
    let drained = load.during("`kubectl drain` of the node, then `uncordon`", || {
        let drain = ["drain", "node1", "--ignore-daemonsets", "--delete-emptydir-data", "--force"];
        says(&[&drain[..], &["--timeout=120s"]].concat());
        until("no volume is mounted on the drained node", PATIENCE, || {
            mounts(&["kubernetes.io~csi", "oras-artifacts"]).is_empty().then_some(())
        });
        wait_until_ready("webhook", 2);
        says(&["uncordon", "node1"]);
    });
    drained.has_no_failed_creation();

    let load = load.with_readers(2);
    let rolled_back = load.during("`helm rollback`", || {
        helm_and_wait("rollback");
    });
    rolled_back.has_no_failure();
    until("every pod has the first version again", PATIENCE, || {
        (images() == ["localhost/oras-csi:dev"]).then_some(())
    });
    load.finish();
}
