//! `oras-csi pull` against a registry that stalls, breaks connections, sends wrong content or too much of it.
//!
//! A pull either succeeds with the exact bytes or fails in bounded time with the exit status of
//! its kind and a message that is safe to print, leaves nothing behind and uses less than 64 MiB. Every row
//! is checked for that; a row can add checks of its own.
//!
//! The rows of a table run at the same time in one test: those that wait for the timeouts of the command
//! of 30 and 60 seconds then wait for them together. `ROW=words` runs only the rows with these words in
//! their name.

mod content;
mod cuts;
mod digests;
mod failures;
mod floods;
mod framing;
mod honest;
mod lengths;
mod redirects;
mod stalls;
mod tokens;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oras_csi_core::digest::Digest;
use oras_csi_testkit::scripted::tricks::cut;
use oras_csi_testkit::scripted::{Content, Request, Script, Scripted, Security, Trick};
use oras_csi_tests::registry::tls::Authority;
use oras_csi_tests::trial::{Trial, Verdict};
use serde_json::Value;
use serde_json::json;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DIGEST: &str = "Docker-Content-Digest";
/// A digest without content.
const OTHER: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
/// The signature of a presigned address, which must not be printed.
const SECRET: &str = "hunter2";

const DONE: i32 = 0;
const FAILED: i32 = 1;
const REFUSED: i32 = 4;

/// Returns 300 KiB in which every four bytes are different, so that a misplaced part is noticed.
fn large() -> Vec<u8> {
    (0..76_800_u32).flat_map(u32::to_le_bytes).collect()
}

type Files = BTreeMap<String, Vec<u8>>;

/// The content of `artifact:v1`, and its files.
struct Artifact {
    content: Content,
    files: Files,
}

fn sha256(bytes: &[u8]) -> String {
    Digest::sha256_of(bytes).to_string()
}

fn layer(bytes: &[u8], title: &str) -> Value {
    json!({"mediaType": "application/octet-stream", "digest": sha256(bytes), "size": bytes.len(),
        "annotations": {"org.opencontainers.image.title": title}})
}

fn manifest(layers: &[Value]) -> Value {
    let config =
        json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2});
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
}

/// A manifest with any text, whose digest is right.
fn holding(text: impl Into<Vec<u8>>) -> Artifact {
    let (text, large) = (text.into(), large());
    let content = Content::default().with_blob(&sha256(&large), large.clone());
    let content = content.with_manifest("v1", &sha256(&text), MANIFEST, text);
    Artifact { content, files: Files::from([("large.bin".to_owned(), large)]) }
}

/// One file.
fn one_file() -> Artifact {
    holding(manifest(&[layer(&large(), "large.bin")]).to_string())
}

/// One file with a changed descriptor.
fn described(change: impl FnOnce(&mut Value)) -> Artifact {
    let mut layer = layer(&large(), "large.bin");
    change(&mut layer);
    holding(manifest(&[layer]).to_string())
}

/// One file with other bytes than its digest says.
fn with_bytes(bytes: Vec<u8>) -> Artifact {
    let Artifact { content, files } = one_file();
    Artifact { content: content.with_blob(&sha256(&large()), bytes), files }
}

/// Files in paths, one of them empty.
fn many_files() -> Artifact {
    let names = ["a", "b/c", "b/d/e", "empty"];
    let bytes = |name: &str| if name == "empty" { Vec::new() } else { [name.as_bytes(), &large()].concat() };
    let layers: Vec<_> = names.iter().map(|name| layer(&bytes(name), name)).collect();
    let mut content = holding(manifest(&layers).to_string()).content;
    for name in names {
        content = content.with_blob(&sha256(&bytes(name)), bytes(name));
    }
    Artifact { content, files: names.iter().map(|name| ((*name).to_owned(), bytes(name))).collect() }
}

/// The result of a row, for its own checks.
struct Seen {
    verdict: Verdict,
    registry: Vec<Request>,
    storage: Vec<Request>,
}

impl Seen {
    fn words(&self) -> String {
        String::from_utf8_lossy(&self.verdict.words).into_owned()
    }
}

type Making = Box<dyn FnOnce(&str) -> Script + Send>;
type Check = Box<dyn Fn(&Seen) -> bool + Send>;

/// Which side uses TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tls {
    No,
    Both,
    /// The registry, and not the storage host.
    Registry,
    /// Only the client: the server does not answer the handshake.
    Client,
}

/// A registry with `artifact:v1`, a second server for redirects, and the expected result of the pull.
struct Row {
    name: &'static str,
    status: i32,
    script: Making,
    artifact: Artifact,
    bound: Duration,
    tls: Tls,
    stored: bool,
    storage: Script,
    docker_config: bool,
    checks: Vec<(&'static str, Check)>,
}

/// `script` is given the base address of the storage host.
fn row(name: &'static str, status: i32, script: impl FnOnce(&str) -> Script + Send + 'static) -> Row {
    Row {
        name,
        status,
        script: Box::new(script),
        artifact: one_file(),
        bound: Duration::from_secs(20),
        tls: Tls::No,
        stored: false,
        storage: Script::default(),
        docker_config: false,
        checks: Vec::new(),
    }
}

/// A row in which an answer is always wrong.
fn always(name: &'static str, status: i32, what: &'static str, trick: Trick) -> Row {
    row(name, status, move |_| Script::default().on(what, trick))
}

/// A row in which an answer is wrong the first time.
fn once(name: &'static str, status: i32, what: &'static str, trick: Trick) -> Row {
    row(name, status, move |_| Script::default().once(what, trick))
}

/// A row in which the blob is cut, and the answer to the request for the rest is wrong.
fn resumed(name: &'static str, status: i32, trick: Trick) -> Row {
    row(name, status, move |_| Script::default().once("/blobs/", cut(100_000)).on("/blobs/", trick)).stored()
}

impl Row {
    fn artifact(mut self, artifact: Artifact) -> Self {
        self.artifact = artifact;
        self
    }

    fn bound(mut self, seconds: u64) -> Self {
        self.bound = Duration::from_secs(seconds);
        self
    }

    fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// With `--store`.
    fn stored(mut self) -> Self {
        self.stored = true;
        self
    }

    fn storage(mut self, script: Script) -> Self {
        self.storage = script;
        self
    }

    /// Requires tokens.
    fn private(mut self) -> Self {
        self.artifact.content = self.artifact.content.private();
        self
    }

    /// The user's docker config has a password for the registry.
    fn with_password(mut self) -> Self {
        self.docker_config = true;
        self.private()
    }

    fn check(mut self, what: &'static str, check: impl Fn(&Seen) -> bool + Send + 'static) -> Self {
        self.checks.push((what, Box::new(check)));
        self
    }

    fn says(self, words: &'static str) -> Self {
        self.check(words, move |seen| seen.words().contains(words))
    }

    fn at_most_asked(self, times: usize) -> Self {
        self.check("is asked too often", move |seen| seen.registry.len() <= times)
    }

    fn storage_is_not_asked(self) -> Self {
        self.check("storage is not asked", |seen| seen.storage.is_empty())
    }

    fn storage_sees_no_secrets(self) -> Self {
        self.check("storage is asked, without secrets", |seen| {
            let bare = |request: &Request| {
                request.header("authorization").is_empty() && request.header("cookie").is_empty()
            };
            !seen.storage.is_empty() && seen.storage.iter().all(bare)
        })
    }

    /// Runs the row; returns the result, and the problem if there is one.
    fn run(self, authority: &Authority) -> (Seen, Option<String>) {
        let identity = |address: &str| Security::Tls(authority.server(&[address]).server_config());
        let security = |secure: bool, address: &str| if secure { identity(address) } else { Security::Plain };
        let registry_secure = matches!(self.tls, Tls::Both | Tls::Registry);
        let storage_secure = self.tls == Tls::Both;
        // The same bytes without authentication, as behind presigned addresses.
        let content = Arc::new(one_file().content);
        let storage =
            Scripted::start("127.0.0.2", security(storage_secure, "127.0.0.2"), content, self.storage);
        let storage_base = format!("{}://{}", scheme(storage_secure), storage.host());
        let script = (self.script)(&storage_base);
        let content = Arc::new(self.artifact.content);
        let registry = Scripted::start("127.0.0.1", security(registry_secure, "127.0.0.1"), content, script);
        let host = registry.host();
        // With the capability `push` alone, the administrator allows the host and no pull uses it.
        let ca = authority.certificate().display();
        let client = scheme(self.tls != Tls::No);
        let hosts = format!(
            "server = \"{client}://{host}\"\nca = \"{ca}\"\n[host.\"{storage_base}\"]\ncapabilities = [\"push\"]\n"
        );
        let mut trial = Trial::new(&host, self.stored).with_hosts(&hosts);
        if self.docker_config {
            // user:password
            let config = json!({"auths": {&host: {"auth": "dXNlcjpwYXNzd29yZA=="}}});
            trial = trial.with_docker_config(&config.to_string());
        }
        let verdict = trial.run(self.bound);
        let problem = verdict.problem(self.status, &host, &self.artifact.files);
        let seen = Seen { verdict, registry: registry.requests(), storage: storage.requests() };
        let failed = self.checks.iter().find(|(_, check)| !check(&seen));
        let problem = problem.or_else(|| failed.map(|(what, _)| format!("not so: {what}")));
        let unused = [registry.unused(), storage.unused()].concat();
        let vacuous = (!unused.is_empty()).then(|| format!("nothing of the script for {unused:?} happened"));
        let problem = problem.or(vacuous);
        (seen, problem)
    }
}

fn scheme(secure: bool) -> &'static str {
    if secure { "https" } else { "http" }
}

/// Runs rows, `at_once` at the same time, and reports each.
fn check(at_once: usize, rows: Vec<Row>) {
    let wanted = std::env::var("ROW").unwrap_or_default();
    let (rows, left_out): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.name.contains(&wanted));
    if !left_out.is_empty() {
        eprintln!("ROW={wanted} leaves out {} rows", left_out.len());
    }
    let authority = Authority::new("an authority of the test");
    let (rows, problems) = (Mutex::new(rows.into_iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let next = rows.lock().expect("no panic").next();
                    let Some(row) = next else { return };
                    let (name, bound) = (row.name, row.bound);
                    let (seen, problem) = row.run(&authority);
                    let (verdict, words) = (&seen.verdict, seen.words());
                    let (took, peak) = (verdict.took.as_secs_f32(), verdict.peak);
                    let status = verdict.status;
                    let line = format!("{name}: {status:?} in {took:.1} of {bound:?}, {peak} MiB");
                    match problem {
                        None => eprintln!("ok   {line}"),
                        Some(problem) => {
                            let asked = seen.registry.len();
                            let report = format!(
                                "{line}: {problem}\n     after {asked} requests, it says: {words:.600}"
                            );
                            eprintln!("FAIL {report}");
                            problems.lock().expect("no panic").push(report);
                        }
                    }
                }
            });
        }
    });
    let problems = problems.into_inner().expect("no panic");
    assert!(problems.is_empty(), "{} rows fail:\n{}", problems.len(), problems.join("\n"));
}

/// Each row is a process, and a machine can have only two cores.
const FEW: usize = 4;
