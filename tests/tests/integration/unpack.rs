//! Hostile artifacts: each pushed to the real registry, pulled by the command and published by the driver.

mod cases;
mod node;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use oras_csi_core::digest::Digest;
use oras_csi_testkit::scripted::{Content, Script, Scripted, Security};
use oras_csi_tests::archive::{archive, entry, gzip, gzip_each, pax};
use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::try_run;
use oras_csi_tests::registry::raw::Raw;
use oras_csi_tests::registry::{Distribution, write_hosts_toml};
use serde_json::{Value, json};

use cases::{Case, End, MANIFEST, Pushed, all, descriptor, manifest};
use node::Node;

/// Low limits, so that artifacts that exceed them can be small.
const LIMITS: [&str; 2] = ["--max-unpacked=64Mi", "--max-entries=5000"];
/// The limit of resident memory of a pull, in MiB.
const MOST_MEMORY: u64 = 64;
/// The driver's after all of them; a zstd window of 128 MiB would be allowed, and none of them gets one.
const MOST_OF_DRIVER: u64 = 128;

/// Runs a pull; returns the peak of its resident memory in MiB, as the kernel reports it.
fn pull(certs: &Path, reference: &str, folder: &Path) -> (Output, u64) {
    pull_within(&LIMITS, certs, reference, folder)
}

fn pull_within(limits: &[&str], certs: &Path, reference: &str, folder: &Path) -> (Output, u64) {
    let mut timed = Command::new("sh");
    timed.args([
        "-c",
        "\"$@\" & pid=$!; while grep VmHWM /proc/$pid/status 2>/dev/null; do sleep 0.02; done; wait $pid",
        "sh",
    ]);
    timed.arg(oras_csi()).arg("pull").arg(reference).arg(folder.join("tree")).arg("--certs-dir").arg(certs);
    let output = try_run(timed.args(limits));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let peaks = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    (output, peaks.max().unwrap_or(0) / 1024)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
}

/// Pulls with the command; returns the peak of memory.
fn check_command(certs: &Path, digest: &Digest, end: &End) -> Result<u64, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let (output, peak) = pull(certs, &format!("kind-registry:5000/hostile@{digest}"), folder.path());
    let words = String::from_utf8(output.stderr).expect("UTF-8");
    let fine = words.chars().all(|char| char == '\n' || !char.is_control());
    expect(fine, || format!("no words for a terminal: {words:?}"))?;
    let status = output.status.code();
    expect(status == Some(end.status()), || format!("the status is {status:?}: {words}"))?;
    let left = entries(folder.path());
    if let Some(expected) = end.words() {
        expect(expected.iter().all(|word| words.contains(word)), || format!("{expected:?} in {words}"))?;
        expect(left.is_empty(), || format!("{left:?} is left"))?;
    } else {
        end.check_files(&folder.path().join("tree"))?;
        expect(left == [folder.path().join("tree")], || format!("{left:?} is left"))?;
    }
    expect(peak < MOST_MEMORY, || format!("{peak} MiB of memory"))?;
    Ok(peak)
}

/// Publishes with the driver, as kubelet does.
async fn check_driver(name: &str, node: &Node, digest: &Digest, end: &End) -> Result<(), String> {
    let target = node.target(name);
    match (end.words(), node.publish(name, &target, digest).await) {
        (None, Ok(())) => {
            let files = end.check_files(&target);
            node.unpublish(name, &target).await;
            files?;
        }
        (Some(words), Err(status)) => {
            let fits = words.iter().all(|word| status.message().contains(word));
            expect(fits && status.code() == end.code(), || {
                format!("{words:?}, {:?} in {status}", end.code())
            })?;
        }
        (_, published) => return Err(format!("the driver says {published:?}")),
    }
    expect(!target.exists(), || "the target is left".to_owned())?;
    node.left_nothing().await
}

fn expect(fits: bool, words: impl FnOnce() -> String) -> Result<(), String> {
    if fits { Ok(()) } else { Err(words()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_artifacts_are_refused_with_a_message_and_leave_nothing() {
    let registry = Distribution::start();
    let certs = registry.certs_d(&["kind-registry:5000"]);
    let raw = Raw::new(&registry.host(), "hostile");
    let node = Node::start(certs.path(), &LIMITS);
    let canary = tempfile::tempdir().expect("a folder");
    let (mut count, mut most, mut refused) = (0, 0, 0);
    let mut wrong = Vec::new();
    for Case { name, push, end } in all(canary.path()) {
        let Pushed { manifest, media_type, then } = push(&raw);
        let digest = match raw.manifest(media_type, &manifest) {
            Ok(digest) => {
                then(&registry, &raw);
                digest
            }
            Err((status, _)) => {
                eprintln!(
                    "{name}: the registry itself refuses it with {status}; from one that says anything then"
                );
                let digest = Digest::sha256_of(&manifest);
                let content =
                    Content::default().with_manifest("v1", &digest.to_string(), media_type, manifest);
                let (peak, _) = tokio::task::block_in_place(|| from_script(content, &digest, &end));
                most = most.max(peak);
                refused += 1;
                continue;
            }
        };
        match check_command(certs.path(), &digest, &end) {
            Ok(peak) => most = most.max(peak),
            Err(words) => wrong.push(format!("{name}, pulled: {words}")),
        }
        if let Some(node) = &node
            && let Err(words) = check_driver(name, node, &digest, &end).await
        {
            wrong.push(format!("{name}, published: {words}"));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(entries(canary.path()), Vec::<PathBuf>::new(), "nothing was written outside");
    let peak = node.as_ref().map_or(0, Node::peak);
    eprintln!(
        "{count} hostile artifacts, {refused} refused by the registry; a pull took {most} MiB at most, the driver {peak} MiB"
    );
    assert!(count >= cases::FEWEST, "only {count} reached us");
    assert!(peak < MOST_OF_DRIVER, "{peak} MiB");
}

/// For content that the real registry refuses: a scripted registry.
fn from_script(content: Content, digest: &Digest, end: &End) -> (u64, Vec<String>) {
    let server = Scripted::start("127.0.0.1", Security::Plain, Arc::new(content), Script::default());
    let certs = tempfile::tempdir().expect("a folder");
    write_hosts_toml(certs.path(), "kind-registry:5000", &format!("http://{}", server.host()));
    let peak = check_command(certs.path(), digest, end).unwrap_or_else(|words| panic!("{words}"));
    (peak, server.requests().into_iter().map(|request| request.target).collect())
}

#[test]
fn a_manifest_of_fifty_megabytes_is_not_read_to_its_end() {
    let mut text =
        manifest(&[descriptor("application/octet-stream", b"x", Some("file"))]).to_string().into_bytes();
    text.truncate(text.len() - 1);
    text.extend(br#","x":""#);
    text.resize(50 << 20, b'x');
    text.extend(br#""}"#);
    let digest = Digest::sha256_of(&text);
    let content = Content::default()
        .with_manifest("v1", &digest.to_string(), MANIFEST, text)
        .with_blob(&Digest::sha256_of(b"x").to_string(), b"x".to_vec());
    let (peak, _) = from_script(content, &digest, &End::Refused(&["manifest", "4194304"]));
    assert!(peak < 48, "{peak} MiB");
}

#[test]
fn an_index_that_names_itself_does_not_match_its_digest() {
    let mut digest = Digest::sha256_of(b"anything");
    // It cannot hold its own digest; the nearest to it is one that is served under the digest that it names.
    let index = |names: &Digest| {
        let entry = json!({"mediaType": cases::INDEX, "digest": names.to_string(), "size": 300});
        json!({"schemaVersion": 2, "mediaType": cases::INDEX, "manifests": [entry]}).to_string().into_bytes()
    };
    let text = index(&digest);
    let content = Content::default().with_manifest("v1", &digest.to_string(), cases::INDEX, text);
    from_script(content, &digest, &End::Refused(&["digest"]));
    // An honest index of such a one is followed, once.
    let inner = index(&digest);
    let names_itself = digest.clone();
    let outer = json!({"schemaVersion": 2, "mediaType": cases::INDEX, "manifests": [
        {"mediaType": cases::INDEX, "digest": Digest::sha256_of(&inner).to_string(), "size": inner.len()}]});
    let outer = outer.to_string().into_bytes();
    digest = Digest::sha256_of(&outer);
    let content = Content::default()
        .with_manifest("v1", &digest.to_string(), cases::INDEX, outer)
        .with_manifest("v2", &Digest::sha256_of(&inner).to_string(), cases::INDEX, inner);
    let (_, asked) = from_script(content, &digest, &End::NotFound(&["not found"]));
    let times = asked.iter().filter(|target| target.contains(names_itself.hex())).count();
    assert_eq!(times, 1, "{asked:?}");
}

#[test]
fn the_urls_of_a_layer_are_not_dialled() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    elsewhere.set_nonblocking(true).expect("it takes that");
    let url = format!("http://{}/layer", elsewhere.local_addr().expect("it is bound"));
    let bytes = gzip(&archive(&[entry("file", b'0', "", b"bytes")]));
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    for media_type in [foreign, "application/vnd.oci.image.layer.v1.tar+gzip"] {
        let mut layer = descriptor(media_type, &bytes, None);
        layer["urls"] = json!([url, "http://169.254.169.254/latest/meta-data"]);
        let text = manifest(&[layer]).to_string().into_bytes();
        let digest = Digest::sha256_of(&text);
        let content = || Content::default().with_manifest("v1", &digest.to_string(), MANIFEST, text.clone());
        from_script(content(), &digest, &End::NotFound(&["not found"]));
        let with_blob = content().with_blob(&Digest::sha256_of(&bytes).to_string(), bytes.clone());
        from_script(with_blob, &digest, &End::Files(&[("file", Some("bytes"))]));
    }
    let dialled = elsewhere.accept().map(|(_, from)| from);
    assert!(dialled.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "nobody came");
}

#[test]
fn the_administrator_sets_the_limits() {
    let registry = Distribution::start();
    let certs = registry.certs_d(&["kind-registry:5000"]);
    let raw = Raw::new(&registry.host(), "hostile");
    let files: Vec<Value> = (0..3)
        .map(|number| {
            let bytes = vec![number; 2_000];
            raw.blob(&bytes);
            descriptor("application/octet-stream", &bytes, Some(&format!("a/b/c/{number}")))
        })
        .collect();
    raw.blob(b"{}");
    let digest = raw.manifest(MANIFEST, manifest(&files).to_string().as_bytes()).expect("it is taken");
    let reference = format!("kind-registry:5000/hostile@{digest}");
    for (flag, status, words) in [
        ("--max-layers=2", 4, "the manifest has 3 layers: the limit is 2"),
        ("--max-entries=5", 4, "more than 5 entries"),
        ("--max-unpacked=5k", 4, "more than 5000 bytes"),
        ("--max-path=6", 4, "7 bytes: the limit is 6"),
        ("--max-depth=3", 4, "4 directories deep: the limit is 3"),
        ("--max-layers=5000", 2, "1..=4096"),
        ("--max-unpacked=lots", 2, "number of bytes"),
        ("--max-layers=3", 0, ""),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(oras_csi());
        command.arg("pull").arg(&reference).arg(folder.path().join("tree")).arg(flag);
        let output = try_run(command.arg("--certs-dir").arg(certs.path()));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{flag}: {said}");
        assert!(said.contains(words), "{flag}: {words} in {said}");
        assert_eq!(entries(folder.path()).len(), usize::from(status == 0), "{flag}");
    }
}

/// 30,000 directories whose paths have 4,000 bytes each: 120 MB, were they all remembered.
#[test]
fn long_paths_do_not_use_much_memory() {
    let registry = Distribution::start();
    let certs = registry.certs_d(&["kind-registry:5000"]);
    let raw = Raw::new(&registry.host(), "hostile");
    let above = vec!["x".repeat(249); 16].join("/");
    let directories = (0..30_000).map(|number| {
        let path = format!("{above}/{number}/");
        [pax(&[("path", path.as_bytes())]), entry("d", b'5', "", b"")].concat()
    });
    let bytes = gzip_each(directories);
    raw.blob(&bytes);
    raw.blob(b"{}");
    let layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &bytes, None);
    let digest = raw.manifest(MANIFEST, manifest(&[layer]).to_string().as_bytes()).expect("it is taken");
    let folder = tempfile::tempdir().expect("a folder");
    let reference = format!("kind-registry:5000/hostile@{digest}");
    let (output, peak) = pull_within(&[], certs.path(), &reference, folder.path());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{peak} MiB");
    assert!(peak < MOST_MEMORY, "{peak} MiB");
}
