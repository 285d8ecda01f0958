//! Measures the webhook beside other admission webhooks, in turns within one run: CPU for one admission, memory, and
//! latency at a fixed rate.
//!
//! `benches/webhook/run` builds what this needs and starts it. The server has the first CPU and the client the second, so
//! the client takes no time from the server.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark cannot go on with a server that is not set up, and writes to its terminal"
)]

mod cluster;
mod constant;
mod load;
mod results;
mod review;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use serde_json::Value;

use self::cluster::Cluster;
use self::load::{Target, closed_loop, open_loop};
use self::results::Results;
use self::server::Server;

const OURS: &str = "oras-csi";
const PINNED: &str = "oras-csi, pod of a ReplicaSet";
const HANDLER: &str = "bare Go handler";
const METADATA_HANDLER: &str = "bare Go handler, metadata only";
const CONTROLLER: &str = "controller-runtime";
const CONSTANT: &str = "TLS server with a constant answer";

/// In the order in which they are measured. Ratios are to the second.
const PROGRAMS: [&str; 6] = [OURS, HANDLER, METADATA_HANDLER, CONTROLLER, CONSTANT, PINNED];

/// How many connections the loaded server has.
const CONNECTIONS: u32 = 50;
/// How many requests a second the latency is measured at.
const RATE: u32 = 1_000;

/// How long things are measured.
#[derive(Clone, Copy)]
struct Plan {
    rounds: usize,
    load: Duration,
    latency: Duration,
}

impl Plan {
    fn from_environment() -> Self {
        if std::env::var_os("ORAS_CSI_BENCH_QUICK").is_some_and(|value| value == "1") {
            Self { rounds: 2, load: Duration::from_secs(1), latency: Duration::from_secs(1) }
        } else {
            Self { rounds: 5, load: Duration::from_secs(3), latency: Duration::from_secs(3) }
        }
    }
}

/// The files and programs of the benchmark.
struct Bench {
    folder: PathBuf,
    cluster: Cluster,
    programs: PathBuf,
    oras_csi: PathBuf,
}

impl Bench {
    fn webhook(&self) -> Server {
        Server::start(OURS, &self.folder, |address| {
            let mut command = Command::new(&self.oras_csi);
            command.args(["webhook", &format!("--listen={address}"), "--lame-duck=0"]);
            command.args(["--watch-policies", "--keep-pins", "--seal-secret=oras-csi-system/oras-csi-seal"]);
            command.arg("--tls-dir").arg(self.tls()).arg("--certs-dir").arg(&self.cluster.certs);
            command.env("KUBECONFIG", &self.cluster.kubeconfig).env("RUST_LOG", "info");
            command
        })
    }

    fn tls(&self) -> PathBuf {
        self.folder.join("tls")
    }

    /// Starts another program with the certificate of the webhook, and a file with what it answers.
    fn peer(&self, name: &str, program: &Path, more: &[&str], answer: &str) -> Server {
        Server::start(name, &self.folder, |address| {
            let mut command = Command::new(program);
            command.args(more).arg(address.to_string());
            command.arg(self.tls().join("tls.crt")).arg(self.tls().join("tls.key"));
            command.arg(self.folder.join(answer));
            command
        })
    }

    fn start(&self, name: &str) -> Server {
        match name {
            HANDLER => self.peer(name, &self.programs.join("webhook-handler"), &["pod"], "patch"),
            METADATA_HANDLER => {
                self.peer(name, &self.programs.join("webhook-handler"), &["metadata"], "patch")
            }
            CONTROLLER => {
                self.peer(name, &self.programs.join("webhook-controller-runtime"), &[], "attributes")
            }
            CONSTANT => {
                let own = std::env::current_exe().expect("a program");
                self.peer(name, &own, &["constant"], "answer")
            }
            _ => self.webhook(),
        }
    }

    fn target(&self, server: &Server, is_owned: bool) -> Target {
        Target::new(server.address, &self.tls().join("ca.crt"), &review::body(is_owned))
    }

    /// Asks the webhook once, and writes the files with what the other programs answer: the same patch.
    fn record_answer(&self) {
        let server = self.webhook();
        let target = self.target(&server, false);
        let answer = until_patched(&target);
        let patch = answer["response"]["patch"].as_str().expect("a patch");
        let patch = base64::prelude::BASE64_STANDARD.decode(patch).expect("base64");
        let operations: Vec<Value> = serde_json::from_slice(&patch).expect("a patch");
        let attributes = operations.iter().find_map(|operation| {
            let value = &operation["value"];
            let attributes = [&value["csi"]["volumeAttributes"], &value[0]["csi"]["volumeAttributes"]];
            attributes.into_iter().find(|attributes| attributes.is_object()).cloned()
        });
        let attributes = attributes.expect("the patch adds a volume");
        println!("patch: {} bytes, answer: {} bytes", patch.len(), answer.to_string().len());
        fs::write(self.folder.join("patch"), &patch).expect("a file");
        fs::write(self.folder.join("attributes"), attributes.to_string()).expect("a file");
        fs::write(self.folder.join("answer"), answer.to_string()).expect("a file");
    }

    /// Measures one program.
    fn measure(&self, name: &'static str, plan: Plan, results: &mut Results) {
        let server = self.start(name);
        std::thread::sleep(Duration::from_secs(1));
        let [idle, _, idle_anonymous] = server.memory();
        let target = self.target(&server, name == PINNED);
        until_patched(&target);
        for connections in [1, CONNECTIONS] {
            let connections = usize::try_from(connections).expect("it is small");
            closed_loop(&target, connections, plan.load / 4);
            let before = server.cpu();
            let closed = closed_loop(&target, connections, plan.load);
            let after = server.cpu();
            let count = u32::try_from(closed.answers).expect("it is small");
            let [user, system] = [0, 1].map(|kind| (after[kind].saturating_sub(before[kind])) / count);
            let (many, rate) =
                (results::connections(connections), f64::from(count) / closed.elapsed.as_secs_f64());
            results.add(&format!("{many}, CPU for one admission"), name, "s", (user + system).as_secs_f64());
            results.add(&format!("{many}, system CPU for one admission"), name, "s", system.as_secs_f64());
            results.add(&format!("{many}, admissions a second"), name, "1/s", rate);
        }
        if name == PINNED {
            return;
        }
        let [_, peak, anonymous] = server.memory();
        results.add("memory, idle", name, "B", bytes(idle));
        results.add("memory, idle, without pages of files", name, "B", bytes(idle_anonymous));
        results.add("memory, peak with 50 connections", name, "B", bytes(peak));
        results.add("memory after the load, without pages of files", name, "B", bytes(anonymous));
        let times = open_loop(&target, CONNECTIONS, RATE, plan.latency);
        for (word, percent) in [("median", 50), ("p99", 99), ("p99.9", 999)] {
            let part = if percent == 999 { times.len() * 999 / 1_000 } else { times.len() * percent / 100 };
            let case = format!("1,000 a second, {word}");
            results.add(&case, name, "s", times[part.min(times.len() - 1)].as_secs_f64());
        }
    }
}

fn bytes(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}

/// Asks until the server answers with a patch: the webhook waits for its policies and its key first.
fn until_patched(target: &Target) -> Value {
    let mut last = Value::Null;
    for _ in 0..100 {
        last = serde_json::from_slice(target.connect().ask()).expect("an answer");
        if last["response"]["patch"].is_string() {
            return last;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no patch: {last}");
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if let [_, word, address, certificate, key, answer] = arguments.as_slice()
        && word == "constant"
    {
        constant::serve(address, Path::new(certificate), Path::new(key), Path::new(answer));
        return;
    }
    let variable = |name| std::env::var_os(name).map_or_else(|| panic!("{name} is not set"), PathBuf::from);
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path());
    let bench = Bench {
        folder: folder.path().to_owned(),
        cluster,
        programs: variable("ORAS_CSI_TESTBED_BIN"),
        oras_csi: variable("ORAS_CSI_BIN"),
    };
    let plan = Plan::from_environment();
    println!("review: {} bytes, as kube-apiserver sends it", review::body(false).len());
    bench.record_answer();
    let mut results = Results::new();
    for round in 1..=plan.rounds {
        eprintln!("round {round} of {}", plan.rounds);
        for name in PROGRAMS {
            bench.measure(name, plan, &mut results);
        }
    }
    results.print(&PROGRAMS);
    results.append();
}
