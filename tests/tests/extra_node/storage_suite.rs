//! Kubernetes' own tests for storage drivers. `docs/operate/storage-suite.md` has the results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use oras_csi_tests::node::Node;
use oras_csi_tests::page::{Page, date_and_commit};
use oras_csi_tests::parts::{repository, testbed};
use oras_csi_tests::process::{run, try_run};
use serde_json::Value;

use crate::says;

const PAGE: Page = Page::new("docs/operate/storage-suite.md", "results");
/// With this variable, the test writes the results into the page. Without it, they must be equal to the page.
const UPDATE: &str = "UPDATE_STORAGE_SUITE";
/// The image of the suite's pods, as the version of Kubernetes in the testbed names it.
const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";
const DEFINITIONS: &str = "tests/testbed/extra/storage-suite";

/// A test of the suite that was selected.
struct Spec {
    /// The volumes that the suite makes for it, as `CSI Ephemeral-volume (default fs)`.
    pattern: String,
    /// The part of the suite, as `ephemeral`.
    part: String,
    name: String,
    state: String,
    message: String,
}

impl Spec {
    fn parse(report: &Value) -> Option<Self> {
        let containers = report["ContainerHierarchyTexts"].as_array()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        containers.first()?.as_str().filter(|first| first.starts_with("External Storage"))?;
        let (pattern, part) =
            containers.get(1)?.as_str()?.strip_prefix("[Testpattern: ")?.split_once("] ")?;
        Some(Self {
            pattern: pattern.to_owned(),
            part: part.to_owned(),
            name: text(&report["LeafNodeText"]),
            state: text(&report["State"]),
            message: text(&report["Failure"]["Message"]),
        })
    }
}

/// Runs the tests of a definition whose names match `focus`.
fn results(definition: &str, focus: &str, folder: &Path) -> Vec<Spec> {
    let report = folder.join(format!("{definition}.json"));
    let definition = repository().join(DEFINITIONS).join(definition);
    let mut suite = Command::new(testbed("e2e.test"));
    suite
        .arg(format!("-storage.testdriver={}", definition.display()))
        .arg(format!("-ginkgo.focus={focus}"))
        .arg(format!("-ginkgo.json-report={}", report.display()))
        .args(["-ginkgo.no-color", "-ginkgo.timeout=20m", "-allowed-not-ready-nodes=-1"])
        .arg(format!("-kubeconfig={}", std::env::var("KUBECONFIG").expect("run `make test-extra`")));
    let output = try_run(&mut suite);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    let reports: Value =
        serde_json::from_slice(&std::fs::read(&report).expect("the suite has written a report"))
            .expect("JSON");
    let reports = reports[0]["SpecReports"].as_array().expect("a list").iter().filter_map(Spec::parse);
    // The suite selects no test by a state and an empty message.
    reports.filter(|spec| spec.state != "skipped" || !spec.message.is_empty()).collect()
}

/// The results as the page has them, without the date.
fn markdown(specs: &[Spec]) -> String {
    let mut text = String::from("| test | volumes | result |\n|---|---|---|\n");
    for spec in specs.iter().filter(|spec| spec.state != "skipped") {
        let _ = writeln!(text, "| {}: {} | {} | {} |", spec.part, spec.name, spec.pattern, spec.state);
    }
    let mut skipped = BTreeMap::new();
    for spec in specs.iter().filter(|spec| spec.state == "skipped") {
        *skipped.entry((&spec.message, &spec.part)).or_insert(0) += 1;
    }
    let all: usize = skipped.values().sum();
    let _ = writeln!(
        text,
        "\n{all} tests were skipped:\n\n| part | tests | reason of the suite |\n|---|---|---|"
    );
    for ((message, part), count) in skipped {
        let _ = writeln!(text, "| {part} | {count} | {} |", message.replace('|', "\\|").replace('\n', " "));
    }
    text.trim().to_owned()
}

#[test]
fn the_tests_of_kubernetes_for_inline_volumes_pass() {
    let node = Node::get();
    run(Command::new(testbed("ctr")).args(["images", "tag", "--force", "localhost/busybox:1", IMAGE]));
    node.push("storage-suite:v1", &[("file", "one")]);
    node.push("storage-suite:v2", &[("file", "two")]);
    let folder = tempfile::tempdir().expect("a folder");
    let mut specs = results("testdriver.yaml", "External.Storage", folder.path());
    let without_writes = "External.Storage.*(two pods which have the same volume|multiple inline ephemeral)";
    let more = results("testdriver-not-writing.yaml", without_writes, folder.path());
    let passed = more.into_iter().filter(|spec| spec.state != "skipped").collect::<Vec<_>>();
    assert_eq!(passed.len(), 2, "two pods, and several volumes");
    specs.retain(|spec| {
        !passed.iter().any(|other| {
            (&other.part, &other.pattern, &other.name) == (&spec.part, &spec.pattern, &spec.name)
        })
    });
    specs.extend(passed);
    let failed = specs.iter().filter(|spec| !["passed", "skipped"].contains(&&*spec.state));
    let failed: Vec<_> = failed.map(|spec| format!("{}: {}", spec.name, spec.message)).collect();
    assert!(failed.is_empty(), "{failed:#?}");

    let found = markdown(&specs);
    eprintln!("{found}");
    let version: Value = serde_json::from_str(&says(&["get", "--raw", "/version"])).expect("JSON");
    let version = version["gitVersion"].as_str().expect("a version");
    if std::env::var_os(UPDATE).is_some() {
        PAGE.write(&format!("Last run: {}, Kubernetes {version}.\n\n{found}", date_and_commit()));
    }
    let page = PAGE.read();
    let (_, written) = page.split_once("\n\n").expect("a date and results");
    assert_eq!(found, written, "run the test with {UPDATE}=1");
}
