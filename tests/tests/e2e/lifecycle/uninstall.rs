//! Uninstallation while volumes are mounted, and installation over the store that stayed.

use std::time::Duration;

use oras_csi_tests::installation::{helm_and_wait, processes, wait_until_ready};
use oras_csi_tests::load::Load;
use oras_csi_tests::node::{Node, apply, logs_of_finished, mounts, until, work};
use serde_json::json;

use crate::{PATIENCE, SYSTEM, delete, pod, says};

/// How long the pods read without an installation.
const READ: Duration = Duration::from_secs(5);

/// Installs the chart when the test ends, also if it fails: the next tests need it.
struct Installed<'a> {
    node: &'a Node,
    is_away: bool,
}

impl Installed<'_> {
    fn away(&mut self) {
        self.is_away = true;
        helm_and_wait("uninstall");
    }

    fn again(&mut self) {
        self.node.install_chart();
        self.is_away = false;
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        if self.is_away {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.node.install_chart()));
        }
    }
}

/// Objects of these kinds whose names contain `oras`, as `kind/name`.
fn objects(kinds: &str, namespaces: &[&str]) -> Vec<String> {
    let found = says(&[&["get", kinds, "-o", "name"], namespaces].concat());
    let mut names: Vec<String> =
        found.lines().filter(|name| name.contains("oras")).map(str::to_owned).collect();
    names.sort();
    names
}

/// What `helm uninstall` must remove everywhere in the cluster.
const REMOVED: &str = "mutatingwebhookconfigurations,validatingwebhookconfigurations,\
    validatingadmissionpolicies,validatingadmissionpolicybindings,csidrivers,clusterroles,clusterrolebindings";

/// The finalizers of oras-csi, with their objects.
fn finalizers() -> Vec<String> {
    let kinds = "nodes,namespaces,configmaps,secrets,pods,crds,artifactpins,artifactpolicies,artifactsets,\
        clusterartifactsets,nodeartifacts";
    let columns = "jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.finalizers}{\"\\n\"}{end}";
    let found = says(&["get", kinds, "--all-namespaces", "-o", columns]);
    assert!(found.contains("Namespace/kube-system "), "objects were listed: {found}");
    let is_ours =
        |line: &&str| line.split_once(' ').is_some_and(|(_, finalizers)| finalizers.contains("oras"));
    found.lines().filter(is_ours).map(str::to_owned).collect()
}

#[test]
fn pods_read_on_after_an_uninstallation_and_an_installation_uses_the_store_again() {
    let node = Node::get();
    let mut installed = Installed { node, is_away: false };
    let mut load = Load::only_readers(node, 2);

    load.during("`helm uninstall` with mounted volumes", || {
        installed.away();
        until("webhook and driver have ended", PATIENCE, || {
            (processes("webhook").is_empty() && processes("driver").is_empty()).then_some(())
        });
        std::thread::sleep(READ);
    })
    .has_no_failure();
    assert_eq!(objects(REMOVED, &[]), [""; 0]);
    assert_eq!(finalizers(), [""; 0]);
    // These stay, and docs/operate/lifecycle.md says so.
    let definitions =
        ["artifactpins", "artifactpolicies", "artifactsets", "clusterartifactsets", "nodeartifacts"];
    let kept =
        definitions.map(|name| format!("customresourcedefinition.apiextensions.k8s.io/{name}.oras.land"));
    assert_eq!(objects("crds", &[]), kept);
    let kept = ["configmap/oras-csi-seal", "secret/oras-csi-seal", "secret/oras-csi-webhook-tls"];
    assert_eq!(objects("configmaps,secrets,services,deployments,daemonsets", &["-n", SYSTEM]), kept);
    assert!(work().join("store/format").exists(), "the store stays on the node");

    // Without the driver, kubelet cannot unpublish.
    let deleted = load.delete_reader();
    std::thread::sleep(READ);
    assert_eq!(mounts(&[&deleted, "kubernetes.io~csi"]).len(), 1);

    let blobs =
        || node.registry().requests().iter().filter(|line| line.contains("/lifecycle/blobs/")).count();
    let before = blobs();
    load.during("`helm install` over a kept store", || {
        installed.again();
        wait_until_ready("driver", 1);
        apply(&pod("reinstalled", &json!({"oras.land/artifact": load.reference()}), "cat /mnt/oras/file"));
        assert_eq!(logs_of_finished("reinstalled"), "lasting");
    })
    .has_no_failure();
    assert_eq!(blobs(), before, "nothing was downloaded again");
    until("the volume of the deleted pod is unmounted", PATIENCE, || {
        mounts(&[&deleted]).is_empty().then_some(())
    });
    delete("reinstalled");
    load.finish();
}
