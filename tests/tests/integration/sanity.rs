//! Runs csi-sanity, the conformance suite of CSI, against the driver as a process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_tests::controller::{FixedVolumes, Relay};
use oras_csi_tests::parts::{oras_csi, testbed};
use oras_csi_tests::process::{Running, try_run};
use oras_csi_tests::registry::Distribution;

/// The minimum number of passed specs: with fewer, the suite would test less than before.
const FEWEST_PASSED: usize = 17;

/// Specs that can be skipped, with the reason; any other skip is a failure.
const ALLOWED_SKIPS: [(&str, &str); 6] = [
    ("NodeStageVolume", "the driver does not stage: a volume is one mount, made by publish"),
    ("NodeUnstageVolume", "the driver does not stage: a volume is one mount, made by publish"),
    ("NodeExpandVolume", "read-only volumes do not grow"),
    (
        "with single node multi writer capability",
        "volumes are read-only, so the capability is not advertised",
    ),
    ("NodeGetVolumeHealth", "alpha in CSI 1.13, behind a gate of kubelet's"),
    ("NodeGetStorageHealth", "alpha in CSI 1.13, behind a gate of kubelet's"),
];

#[tokio::test(flavor = "multi_thread")]
async fn identity_and_node_pass_csi_sanity() {
    if is_not_root() {
        assert!(std::env::var("CI").is_err(), "csi-sanity mounts, which needs root");
        eprintln!("SKIPPED: csi-sanity mounts, which needs root");
        return;
    }
    let registry = Distribution::start();
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), "bytes").expect("writes");
    let digest = registry.push("java-app:v1", folder.path(), &["file"]);
    let certs = registry.certs_d(&["kind-registry:5000"]);

    let kubelet = folder.path().join("kubelet");
    let mut driver = Running::start(
        Command::new(oras_csi())
            .arg("driver")
            .arg("--node-id=sanity")
            .arg(format!("--kubelet-dir={}", kubelet.display()))
            .arg(format!("--store={}", folder.path().join("store").display()))
            .arg(format!("--certs-dir={}", certs.path().display())),
        "driver",
        folder.path(),
    );
    let socket = kubelet.join("plugins/csi.oras.land/csi.sock");
    driver.wait_until("listening", Duration::from_secs(30), || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });

    // The driver by itself, with a controller elsewhere; then both behind one socket, for the specs that want that.
    let controller = folder.path().join("controller.sock");
    FixedVolumes::serve(attributes(&digest), &controller);
    let relay = folder.path().join("relay.sock");
    Relay::serve(attributes(&digest), &relay, &socket);
    let folder = folder.path().to_owned();
    let direct = sanity(
        &folder,
        "direct",
        &[
            format!("--csi.endpoint=unix://{}", socket.display()),
            format!("--csi.controllerendpoint=unix://{}", controller.display()),
        ],
    )
    .await;
    let relayed = sanity(&folder, "relayed", &[format!("--csi.endpoint=unix://{}", relay.display())]).await;

    let passed: BTreeSet<&String> = direct
        .iter()
        .chain(&relayed)
        .filter(|(_, status)| *status == "passed")
        .map(|(name, _)| name)
        .collect();
    let skipped: BTreeSet<&String> = direct.keys().filter(|name| !passed.contains(name)).collect();
    eprintln!("csi-sanity: {} passed, {} skipped", passed.len(), skipped.len());
    for name in skipped {
        let reason = ALLOWED_SKIPS.iter().find(|(allowed, _)| name.contains(allowed));
        let (_, reason) = reason.unwrap_or_else(|| panic!("\"{name}\" was skipped, and is not on the list"));
        eprintln!("skipped: {name}: {reason}");
    }
    assert!(passed.len() >= FEWEST_PASSED, "only {} specs passed", passed.len());
}

/// Runs the Identity and Node suites; gives the status of each of their specs, none of which failed.
async fn sanity(folder: &Path, run: &str, endpoints: &[String]) -> BTreeMap<String, String> {
    let report = folder.join(format!("{run}.xml"));
    let mut command = Command::new(testbed("csi-sanity"));
    command
        .args(endpoints)
        .arg(format!("--csi.mountdir={}", folder.join("mount").display()))
        .arg(format!("--csi.stagingdir={}", folder.join("staging").display()))
        .arg("--ginkgo.focus=Identity Service|Node Service")
        .arg("--ginkgo.no-color")
        .arg(format!("--ginkgo.junit-report={}", report.display()));
    let output = tokio::task::spawn_blocking(move || try_run(&mut command)).await.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{run}: {text}");
    let specs = specs(&std::fs::read_to_string(&report).expect("a report"));
    assert!(specs.values().all(|status| status != "failed"), "{specs:?}");
    specs
}

fn is_not_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    !status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

/// The attributes of a canonical volume, and the one of kubelet's that the driver insists on.
fn attributes(digest: &str) -> HashMap<String, String> {
    let reference = Reference::parse("kind-registry:5000/java-app").expect("a reference");
    let pinned = reference.pin(digest.parse().expect("a digest"));
    let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).expect("a recipe");
    let volume = CanonicalVolume::new(None, recipe).expect("it fits");
    let ours = volume.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value));
    let kubelets = [("csi.storage.k8s.io/pod.namespace".to_owned(), "sanity".to_owned())];
    ours.chain(kubelets).collect()
}

/// Name and status of each spec of the two suites in a JUnit report: ginkgo writes one
/// `<testcase name="…" … status="…"` a line. The controller suites are out of focus.
fn specs(report: &str) -> BTreeMap<String, String> {
    let attribute = |line: &str, name: &str| {
        let rest = line.split_once(&format!(" {name}=\""))?.1;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let cases = report.lines().filter(|line| line.trim_start().starts_with("<testcase"));
    let specs = cases.filter_map(|line| Some((attribute(line, "name")?, attribute(line, "status")?)));
    specs.filter(|(name, _)| name.contains("Identity Service") || name.contains("Node Service")).collect()
}
