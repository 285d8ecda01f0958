//! The installation on the node, as its pods and processes show it.

use std::process::Command;
use std::time::Duration;

use crate::cluster::kubectl;
use crate::node::until;
use crate::parts::testbed;
use crate::process::{run, try_run};

/// Where the chart is installed.
pub const SYSTEM: &str = "oras-csi-system";
/// How long a rollout or a restart can take.
const PATIENCE: Duration = Duration::from_mins(3);

/// Returns something of all pods of a component (`webhook` or `driver`), by a JSON path.
fn of_pods(component: &str, path: &str) -> String {
    let selector = format!("app.kubernetes.io/component={component}");
    let path = format!("jsonpath={path}");
    run(&mut kubectl(&["get", "pods", "-n", SYSTEM, "-l", &selector, "-o", &path]))
}

/// Returns the number of ready pods of a component.
pub fn ready_pods(component: &str) -> usize {
    let ready = of_pods(component, "{.items[*].status.conditions[?(@.type==\"Ready\")].status}");
    ready.split_whitespace().filter(|status| *status == "True").count()
}

/// Waits until so many pods of a component are ready, and no other pod of it exists.
pub fn wait_until_ready(component: &str, wanted: usize) {
    until(&format!("{wanted} ready pods of the {component}"), PATIENCE, || {
        let all = of_pods(component, "{.items[*].metadata.name}");
        (all.split_whitespace().count() == wanted && ready_pods(component) == wanted).then_some(())
    });
}

/// Runs a command of helm for the release, such as `uninstall`, and waits until it has taken effect.
pub fn helm_and_wait(command: &str) {
    let release = ["oras-csi", "--namespace", SYSTEM, "--wait", "--timeout", "120s"];
    run(Command::new(testbed("helm")).arg(command).args(release));
}

/// Returns how often the containers of a component were restarted.
pub fn restarts(component: &str) -> String {
    of_pods(component, "{.items[*].status.containerStatuses[*].restartCount}")
}

/// Returns the images of all pods of the installation, each once.
pub fn images() -> Vec<String> {
    let path = "jsonpath={.items[*].spec.containers[*].image}";
    let images = run(&mut kubectl(&["get", "pods", "-n", SYSTEM, "-o", path]));
    let mut images: Vec<String> = images.split_whitespace().map(str::to_owned).collect();
    images.sort();
    images.dedup();
    images
}

/// Returns the processes of a component on this node.
pub fn processes(component: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("it is there").filter_map(Result::ok);
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_meant = |id: &u32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.starts_with(format!("/oras-csi\0{component}\0").as_bytes())
    };
    let mut found: Vec<u32> = ids.filter(is_meant).collect();
    found.sort_unstable();
    found
}

/// Returns the issuer and the serial number of the certificate that each replica of the webhook serves, as `openssl` prints
/// them. The text of a replica that does not answer is empty.
pub fn served_certificates() -> Vec<String> {
    let serves = |address: &str| {
        let script = format!(
            "openssl s_client -connect {address}:8443 </dev/null 2>/dev/null | openssl x509 -noout -issuer -serial"
        );
        String::from_utf8_lossy(&try_run(Command::new("sh").args(["-c", &script])).stdout).into_owned()
    };
    of_pods("webhook", "{.items[*].status.podIP}").split_whitespace().map(serves).collect()
}

/// Waits until each replica of the webhook serves a certificate that no replica served when `before` was read.
pub fn wait_until_all_serve_others(before: &[String]) {
    until("every replica serves another certificate", PATIENCE, || {
        let now = served_certificates();
        let is_other = |served: &String| !served.is_empty() && !before.contains(served);
        (now.len() == before.len() && now.iter().all(is_other)).then_some(())
    });
}
