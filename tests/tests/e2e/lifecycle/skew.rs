//! Upgrade from an earlier commit, with its image and its chart, and the rollback to it. `make skew COMMIT=…` names both.

use std::path::PathBuf;
use std::process::Command;

use oras_csi_tests::installation::{helm_and_wait, images};
use oras_csi_tests::load::Load;
use oras_csi_tests::node::{Node, until, work};
use oras_csi_tests::parts::testbed;
use oras_csi_tests::process::run;

use crate::PATIENCE;

const OTHER_IMAGE: &str = "ORAS_CSI_OTHER_IMAGE";
const OTHER_CHART: &str = "ORAS_CSI_OTHER_CHART";
/// The name of the image in the archive: see tests/testbed/skew.
const EARLIER: &str = "localhost/oras-csi:other";
const THIS: &str = "localhost/oras-csi:dev";

#[test]
fn an_upgrade_from_an_earlier_commit_fails_no_creation_and_no_read() {
    let named = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(image), Some(chart)) = (named(OTHER_IMAGE), named(OTHER_CHART)) else {
        eprintln!("SKIPPED: no earlier commit: `make skew COMMIT=…` runs this test");
        return;
    };
    let node = Node::get();
    run(Command::new(testbed("ctr")).args(["images", "import"]).arg(image));
    let store = work().join("store-of-an-earlier-commit");
    let store_value = format!("driver.store={}", store.display());
    let format = || std::fs::read_to_string(store.join("format")).expect("the format of a store");
    let uses = |image: &str| {
        until(&format!("every pod has the image {image}"), PATIENCE, || (images() == [image]).then_some(()));
    };
    helm_and_wait("uninstall");
    node.install_other_chart(&chart, &["--set", "image.tag=other", "--set", &store_value]);
    uses(EARLIER);

    let load = Load::start(node, 2);
    let before = format();
    let upgraded = load.during("`helm upgrade` from an earlier commit", || {
        node.upgrade_chart(&["--set", &store_value]);
    });
    upgraded.has_no_failure();
    uses(THIS);
    if format() == before {
        let rolled_back = load.during("`helm rollback` to an earlier commit", || helm_and_wait("rollback"));
        rolled_back.has_no_failure();
        uses(EARLIER);
    } else {
        eprintln!(
            "no rollback: the store had {before:?} and has {:?}, which the earlier driver refuses",
            format()
        );
    }
    load.finish();
    helm_and_wait("uninstall");
    node.install_chart();
}
