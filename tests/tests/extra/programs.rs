//! What all programs of this tier need: their definitions, objects, and answers with a time limit.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::parts::testbed;
use oras_csi_tests::process::{run, try_run};
use serde_json::Value;

/// The time limit for one step of a program.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Installs the custom resource definitions that `tests/testbed/build` copied from a Go module.
pub(crate) fn install_definitions(file: &str) {
    run(kubectl(&["apply", "--server-side", "--force-conflicts", "-f"]).arg(testbed(file)));
    wait_until_served();
}

/// Waits until the API server serves all definitions.
pub(crate) fn wait_until_served() {
    // `kubectl wait` fails for a definition that has no conditions yet.
    wait_until("all definitions are served", || {
        let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
        let output = try_run(&mut kubectl(&wait));
        if output.status.success() { Ok(()) } else { Err(text(&output)) }
    });
}

/// Runs a command with an object on its standard input.
fn with_input(command: &mut Command, object: &Value) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    child.stdin.take().expect("an input").write_all(object.to_string().as_bytes()).expect("writes");
    child.wait_with_output().expect("it was started")
}

/// Applies an object, as a user does.
pub(crate) fn try_apply(object: &Value, flags: &[&str]) -> Output {
    with_input(kubectl(&["apply", "-f", "-"]).args(flags), object)
}

/// Applies an object, which must be accepted; returns the standard output.
pub(crate) fn apply(object: &Value, flags: &[&str]) -> String {
    let output = try_apply(object, flags);
    assert!(output.status.success(), "{object}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Deletes an object, if it exists.
pub(crate) fn delete(object: &Value) {
    with_input(&mut kubectl(&["delete", "--wait=false", "--ignore-not-found", "-f", "-"]), object);
}

/// Returns what a command printed.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns an object as the API server stores it.
pub(crate) fn try_stored(kind: &str, namespace: &str, name: &str) -> Option<Value> {
    let flags = ["get", kind, name, "--namespace", namespace, "-o", "json", "--show-managed-fields"];
    let found = try_run(&mut kubectl(&flags));
    found.status.success().then(|| serde_json::from_slice(&found.stdout).expect("JSON"))
}

/// Returns an object as the API server stores it, which must exist.
pub(crate) fn stored(kind: &str, namespace: &str, name: &str) -> Value {
    try_stored(kind, namespace, name).unwrap_or_else(|| panic!("{kind} {namespace}/{name} exists"))
}

/// Asks until the answer is `Ok`; fails after [`PATIENCE`] with the last error.
pub(crate) fn wait_until<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(words) => assert!(started.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}: {words}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
