//! `oras-csi pull` against a registry that misbehaves.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use oras_csi_core::digest::Digest;
use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::{run, signal, try_run};
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TITLE: &str = "org.opencontainers.image.title";

/// How the registry sends a blob.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Whole,
    /// Only the headers for the first request.
    CutBeforeTheFirstByte,
    /// One byte for each request.
    OneByte,
    /// A few bytes, and then nothing for a long time.
    Hang,
}

/// One artifact, `artifact:v1`, at a port of its own.
struct Hostile {
    address: String,
    asked: Arc<Mutex<usize>>,
}

impl Hostile {
    fn start(manifest: Vec<u8>, blobs: Vec<Vec<u8>>, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let asked = Arc::<Mutex<usize>>::default();
        let blobs = blobs.into_iter().map(|blob| (Digest::sha256_of(&blob).to_string(), blob));
        let (blobs, counter) = (Arc::new(blobs.collect::<HashMap<_, _>>()), asked.clone());
        let manifest = Arc::new(manifest);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (manifest, blobs, counter) = (manifest.clone(), blobs.clone(), counter.clone());
                std::thread::spawn(move || {
                    answer(stream.expect("a peer"), &manifest, &blobs, manner, &counter)
                });
            }
        });
        Self { address, asked }
    }

    fn pull(&self, target: &Path) -> Command {
        let mut command = Command::new(oras_csi());
        command.args(["pull", "--plain-http", &format!("{}/artifact:v1", self.address)]).arg(target);
        command
    }
}

/// Answers one request per connection.
fn answer(
    mut stream: TcpStream,
    manifest: &[u8],
    blobs: &HashMap<String, Vec<u8>>,
    manner: Manner,
    asked: &Mutex<usize>,
) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    let mut from = None;
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            from = range.split('-').next().and_then(|first| first.parse::<usize>().ok());
        }
    }
    let name = request.split(' ').nth(1)?.rsplit('/').next()?.to_owned();
    let head = request.starts_with("HEAD");
    let mut reply = |status: &str, headers: &str, length: usize, body: &[u8]| {
        let text =
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(text.as_bytes()).ok()?;
        stream.write_all(if head { &[] } else { body }).ok()
    };
    if request.contains("/manifests/") {
        let digest = Digest::sha256_of(manifest);
        let headers = format!("Content-Type: {MANIFEST}\r\nDocker-Content-Digest: {digest}\r\n");
        return reply("200 OK", &headers, manifest.len(), manifest);
    }
    let Some(blob) = blobs.get(&name) else { return reply("404 Not Found", "", 0, b"") };
    let time = {
        let mut asked = asked.lock().expect("no panic");
        *asked += 1;
        *asked
    };
    let rest = &blob[from.unwrap_or(0)..];
    let (status, range) = match from {
        None => ("200 OK", String::new()),
        Some(from) => {
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", blob.len() - 1, blob.len());
            ("206 Partial Content", range)
        }
    };
    let given = match manner {
        Manner::CutBeforeTheFirstByte if time == 1 => &[],
        Manner::Whole | Manner::CutBeforeTheFirstByte => rest,
        Manner::OneByte => &rest[..1],
        Manner::Hang => &rest[..rest.len() / 2],
    };
    reply(status, &range, rest.len(), given)?;
    if matches!(manner, Manner::Hang) {
        std::thread::sleep(Duration::from_mins(10));
    }
    Some(())
}

fn descriptor(media_type: &str, bytes: &[u8], title: Option<&str>) -> Value {
    let mut descriptor =
        json!({"mediaType": media_type, "digest": Digest::sha256_of(bytes).to_string(), "size": bytes.len()});
    if let Some(title) = title {
        descriptor["annotations"] = json!({TITLE: title});
    }
    descriptor
}

fn manifest(layers: &[Value]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}", None),
        "layers": layers,
    })
}

fn file(bytes: &[u8]) -> Vec<u8> {
    manifest(&[descriptor("application/octet-stream", bytes, Some("file"))]).to_string().into_bytes()
}

/// Fails unless the command ended with `status` and a printable message, and `folder` is empty.
fn failed_cleanly(output: &Output, status: i32, folder: &Path) -> String {
    let words = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(output.status.code(), Some(status), "{words}");
    assert!(words.chars().all(|char| char == '\n' || !char.is_control()), "{words:?}");
    assert_eq!(entries(folder), Vec::<PathBuf>::new(), "{words}");
    words
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
}

/// Returns the peak of resident memory in MiB, as the kernel reports it for this child.
fn pull_with_peak(command: &Command) -> (Output, u64) {
    let mut timed = Command::new("sh");
    timed.args(["-c", "\"$@\" & pid=$!; peak=0; while grep VmHWM /proc/$pid/status 2>/dev/null; do sleep 0.02; done; wait $pid", "sh"]);
    timed.arg(command.get_program()).args(command.get_args());
    let output = try_run(&mut timed);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let peaks = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    (output, peaks.max().expect("it was seen running") / 1024)
}

#[test]
fn a_manifest_with_too_many_values_is_refused_before_it_is_parsed() {
    let mut text = file(b"x");
    text.truncate(text.len() - 1);
    text.extend(br#","x":["#);
    text.extend(b"[[[[0]]]],".repeat(400_000));
    text.extend(b"0]}");
    let registry = Hostile::start(text, vec![b"x".to_vec()], Manner::Whole);
    let out = tempfile::tempdir().expect("a folder");
    let (output, peak) = pull_with_peak(&registry.pull(&out.path().join("tree")));
    let words = failed_cleanly(&output, 4, out.path());
    assert!(words.contains("more values than are accepted in a manifest"), "{words}");
    assert!(peak < 64, "{peak} MiB");
}

#[test]
fn one_blob_of_two_lengths_is_refused_in_either_order() {
    let mut layers = [
        descriptor("application/octet-stream", b"hello", Some("a")),
        descriptor("application/octet-stream", b"hello", Some("b")),
    ];
    layers[1]["size"] = json!(3);
    for _ in 0..2 {
        layers.reverse();
        let text = manifest(&layers).to_string().into_bytes();
        let registry = Hostile::start(text, vec![b"hello".to_vec()], Manner::Whole);
        let out = tempfile::tempdir().expect("a folder");
        let words = failed_cleanly(&try_run(&mut registry.pull(&out.path().join("tree"))), 4, out.path());
        assert!(
            words.contains("5 bytes in one layer") && words.contains("3 in another")
                || words.contains("3 bytes in one layer") && words.contains("5 in another"),
            "{words}"
        );
    }
}

#[test]
fn a_cut_before_the_first_byte_is_survived() {
    let bytes = b"exact".repeat(10_000);
    let registry = Hostile::start(file(&bytes), vec![bytes.clone()], Manner::CutBeforeTheFirstByte);
    let out = tempfile::tempdir().expect("a folder");
    let target = out.path().join("tree");
    run(&mut registry.pull(&target));
    assert_eq!(fs::read(target.join("file")).expect("reads"), bytes);
}

#[test]
fn gives_up_on_a_registry_that_sends_one_byte_per_connection() {
    let bytes = b"slow".repeat(10_000);
    let registry = Hostile::start(file(&bytes), vec![bytes], Manner::OneByte);
    let out = tempfile::tempdir().expect("a folder");
    let begun = Instant::now();
    failed_cleanly(&try_run(&mut registry.pull(&out.path().join("tree"))), 1, out.path());
    let asked = *registry.asked.lock().expect("no panic");
    assert!(asked <= 10 && begun.elapsed() < Duration::from_mins(1), "{asked} in {:?}", begun.elapsed());
}

#[test]
fn an_interrupted_pull_leaves_nothing() {
    let bytes = vec![7; 4 << 20];
    for name in ["INT", "TERM"] {
        let registry = Hostile::start(file(&bytes), vec![bytes.clone()], Manner::Hang);
        let out = tempfile::tempdir().expect("a folder");
        let child = registry
            .pull(&out.path().join("tree"))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("starts");
        let begun = Instant::now();
        while *registry.asked.lock().expect("no panic") == 0 && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_ne!(entries(out.path()).len(), 0, "its store is there");
        signal(child.id(), name);
        let output = child.wait_with_output().expect("it was started");
        let words = failed_cleanly(&output, 1, out.path());
        assert!(words.contains("interrupted"), "{words}");
    }
}

/// Interrupts the command while a layer of many files is unpacked, hard-linked or copied: it must wait for the
/// threads that write, and the directory must be complete or absent.
#[test]
fn an_interruption_while_files_are_written_leaves_nothing() {
    let source = tempfile::tempdir().expect("a folder");
    for number in 0..5_000 {
        fs::write(source.path().join(number.to_string()), b"x").expect("writes");
    }
    let archive = tempfile::NamedTempFile::new().expect("a file");
    run(Command::new("tar").arg("-C").arg(source.path()).arg("-cf").arg(archive.path()).arg("."));
    let bytes = fs::read(archive.path()).expect("reads");
    let layer = descriptor("application/vnd.oci.image.layer.v1.tar", &bytes, None);
    let text = manifest(&[layer]).to_string().into_bytes();
    let registry = Hostile::start(text, vec![bytes], Manner::Whole);
    for step in 0..12_u64 {
        let out = tempfile::tempdir().expect("a folder");
        let child = registry
            .pull(&out.path().join("tree"))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("starts");
        std::thread::sleep(Duration::from_millis(60 + 60 * step));
        // It may have ended by now, but it is not reaped yet.
        signal(child.id(), "INT");
        let output = child.wait_with_output().expect("it was started");
        if output.status.success() {
            assert_eq!(entries(out.path()), [out.path().join("tree")]);
            assert_eq!(entries(&out.path().join("tree")).len(), 5_000);
        } else if output.status.code().is_some() {
            failed_cleanly(&output, 1, out.path());
        } else {
            assert!(step < 3, "it takes signals as soon as it runs");
        }
    }
}
