//! Instructions and system calls of one admission by the release binary. Both are counted, not timed, so they do not
//! depend on the load of the machine: callgrind counts instructions on a processor that it emulates, and strace counts
//! system calls.
//!
//! `UPDATE_COUNTS=1` writes `benches/webhook/counts.json` instead of comparing with it (docs/performance.md).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use oras_csi_tests::parts::{oras_csi, repository};
use oras_csi_tests::process::{Running, children, free_port, signal};
use oras_csi_tests::registry::{Distribution, files, write_hosts_toml};
use serde_json::{Value, json};

use crate::flood::{Client, ask, connector};

/// How much more than recorded is allowed.
const TOLERANCE: f64 = 1.1;
/// A count is the difference of two runs with these many admissions, so that the start of the process does not count. The
/// start is not the same each time, because aws-lc collects entropy from the jitter of the clock.
const ADMISSIONS: [u32; 2] = [100, 2_100];
/// Emulated code is about fifty times as slow.
const PATIENCE: Duration = Duration::from_mins(2);
const REGISTRY: &str = "registry.example:5000";
const POLICIES: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: team, labels: {team: ml}}}
---
apiVersion: oras.land/v1alpha1
kind: ArtifactPolicy
metadata: {name: registries}
spec: {registries: {allow: ["ghcr.io/acme/**", "registry.example:5000/acme/*"]}}
---
apiVersion: oras.land/v1alpha1
kind: ArtifactPolicy
metadata: {name: models}
spec:
  namespaceSelector: {matchLabels: {team: ml}}
  registries: {deny: ["registry.example:5000/acme/experimental"]}
"#;

/// What the webhook needs: policies, a registry with the artifact of the review, and folders for its keys.
struct Parts {
    folder: tempfile::TempDir,
    _registry: Distribution,
}

impl Parts {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("policies.yaml"), POLICIES).unwrap();
        let registry = Distribution::start();
        registry.push("acme/model:v1", files::one_file().path(), &["app.jar"]);
        write_hosts_toml(&folder.path().join("certs"), REGISTRY, &registry.url());
        Self { folder, _registry: registry }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Lets the webhook admit pods below `tool`, and returns what the tool wrote to `output` when the webhook ended.
    async fn run(&self, tool: &[String], output: &Path, admissions: u32) -> String {
        let port = free_port();
        let mut command = Command::new(&tool[0]);
        command.args(&tool[1..]).arg(oras_csi()).args(["webhook", "--lame-duck=0"]);
        command.arg(format!("--listen=127.0.0.1:{port}")).arg("--policy").arg(self.path("policies.yaml"));
        command.arg("--tls-dir").arg(self.path("tls")).arg("--seal-dir").arg(self.path("seal"));
        command.arg("--certs-dir").arg(self.path("certs"));
        // With one worker thread, counts do not depend on the number of CPUs.
        command.env("RUST_LOG", "info").env("TOKIO_WORKER_THREADS", "1");
        let mut webhook = Running::start(&mut command, "webhook", self.folder.path());
        webhook.wait_until("listening", PATIENCE, || {
            self.path("tls/ca.crt").exists() && std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let client = Client::new(port, connector(self.folder.path()));
        let body = include_str!("../../../benches/webhook/review.json");
        let mut stream = client.connect().await.expect("a connection");
        for _ in 0..admissions {
            let answer = ask(&mut stream, body).await.expect("an answer");
            assert!(answer["response"]["patch"].is_string(), "{answer}");
        }
        drop(stream);
        // strace passes no signal on to its child.
        let child = children(webhook.id(), "webhook").first().copied();
        signal(child.unwrap_or(webhook.id()), "TERM");
        webhook.wait_until_ended(PATIENCE);
        std::fs::read_to_string(output).expect("the tool writes a file")
    }

    /// Returns how much more `count` finds after the larger number of admissions, for each admission.
    async fn difference(&self, tool: &[String], output: &Path, count: impl Fn(&str) -> f64) -> f64 {
        let mut counts = [0.0; 2];
        for (place, admissions) in counts.iter_mut().zip(ADMISSIONS) {
            let _ = std::fs::remove_file(output);
            *place = count(&self.run(tool, output, admissions).await);
        }
        (counts[1] - counts[0]) / f64::from(ADMISSIONS[1] - ADMISSIONS[0])
    }
}

fn recorded_path() -> PathBuf {
    repository().join("benches/webhook/counts.json")
}

/// Compares a count with the recorded one, or records it.
fn check(name: &str, counted: f64) {
    let path = recorded_path();
    let text = std::fs::read_to_string(&path).unwrap_or_else(|_| "{}".to_owned());
    let mut recorded: Value = serde_json::from_str(&text).expect("JSON");
    eprintln!("counts: {counted:.2} {name}, recorded: {}", recorded[name]);
    if std::env::var_os("UPDATE_COUNTS").is_some() {
        recorded[name] = json!((counted * 100.0).round() / 100.0);
        std::fs::write(&path, format!("{recorded:#}\n")).expect("a file");
        return;
    }
    let limit = recorded[name].as_f64().unwrap_or_default() * TOLERANCE;
    assert!(
        counted <= limit,
        "{counted:.2} {name}: more than {limit:.2}, which is 10 % above {}. If that is intended, record it: \
         UPDATE_COUNTS=1 (docs/performance.md)",
        path.display()
    );
}

fn is_available(tool: &[&str]) -> bool {
    let mut command = Command::new(tool[0]);
    command.args(&tool[1..]).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    let is_available = command.status().is_ok_and(|status| status.success());
    if !is_available {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{} does not run here", tool[0]);
        eprintln!("counts: SKIPPED: {} does not run here", tool[0]);
    }
    is_available
}

#[tokio::test]
async fn an_admission_takes_no_more_instructions_than_recorded() {
    if !is_available(&["valgrind", "--tool=none"]) {
        return;
    }
    let parts = Parts::new();
    let output = parts.path("callgrind.out");
    let tool = [
        "valgrind".to_owned(),
        "--tool=callgrind".to_owned(),
        format!("--callgrind-out-file={}", output.display()),
    ];
    let instructions = |text: &str| {
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        total.and_then(|total| total.trim().parse().ok()).expect("a total")
    };
    let counted = parts.difference(&tool, &output, instructions).await;
    check("instructions for one admission", counted);
}

/// Returns how often a system call of these names occurs in the table of `strace -c`.
fn calls(table: &str, names: &[&str]) -> f64 {
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows = rows.filter(|row| row.last().is_some_and(|name| names.contains(name)));
    rows.filter_map(|row| row.get(3)?.parse::<f64>().ok()).sum()
}

#[tokio::test]
async fn an_answer_is_one_write() {
    let output = tempfile::NamedTempFile::new().unwrap();
    let path = output.path().to_str().expect("a path");
    let tool = ["strace", "-f", "-c", "-o", path];
    if !is_available(&tool) {
        return;
    }
    let parts = Parts::new();
    let tool: Vec<String> = tool.map(str::to_owned).into();
    let sends = ["sendto", "sendmsg", "writev"];
    let sent = parts.difference(&tool, output.path(), |table| calls(table, &sends)).await;
    assert!((0.99..1.01).contains(&sent), "{sent} writes on the socket for one answer");
    let all = parts.difference(&tool, output.path(), |table| calls(table, &["total"])).await;
    check("system calls for one admission", all);
}
