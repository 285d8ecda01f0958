//! After `kill -9`, the next pull downloads the missing bytes of a file, and the whole of an archive
//! (docs/decisions/archives-are-written-once.md): the command as a process, and the registry of the distribution project
//! behind a proxy that counts bytes.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::{Running, run};
use oras_csi_tests::registry::{Distribution, push, write_hosts_toml};

const MIB: u64 = 1 << 20;
/// The limit of bytes that are downloaded twice: those not yet recorded when the pull was killed, and those in sockets.
const TWICE: u64 = 24 * MIB;

/// The size of socket buffers.
const UNDER_WAY: usize = 256 << 10;
/// One test at a time, so that the client can keep up with the proxy.
static ALONE: Mutex<()> = Mutex::new(());

/// Returns the size of the blob: several times the memory and the repeated bytes that are allowed. ORAS_CSI_RESUME_MIB sets
/// another size.
fn size() -> u64 {
    let mib = std::env::var("ORAS_CSI_RESUME_MIB").ok().and_then(|text| text.parse::<u64>().ok());
    mib.unwrap_or(256) * MIB
}

/// Forwards connections, and counts the bytes from the server.
struct Counter {
    port: u16,
    bytes: Arc<AtomicU64>,
}

impl Counter {
    /// In front of `address`, with so many bytes a second and connection at most.
    fn start(address: String, pace: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = bytes.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().filter_map(Result::ok) {
                // Bytes in this buffer are counted and not received, so it is small.
                rustix::net::sockopt::set_socket_send_buffer_size(&client, UNDER_WAY).expect("a buffer");
                let Ok(server) = TcpStream::connect(&address) else { continue };
                let (mut asks, mut hears) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = io::copy(&mut asks, &mut hears);
                    let _ = hears.shutdown(std::net::Shutdown::Write);
                });
                let counted = counted.clone();
                std::thread::spawn(move || answers(server, client, &counted, pace));
            }
        });
        Self { port, bytes }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

fn answers(mut server: TcpStream, mut client: TcpStream, counted: &AtomicU64, pace: u64) {
    let mut buffer = vec![0; 128 << 10];
    let (began, mut passed) = (Instant::now(), 0);
    while let Ok(count @ 1..) = server.read(&mut buffer) {
        if client.write_all(&buffer[..count]).is_err() {
            break;
        }
        passed += count as u64;
        counted.fetch_add(count as u64, Ordering::SeqCst);
        let due = Duration::from_millis(passed * 1_000 / pace);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
}

/// Writes incompressible bytes.
fn write_noise(path: &Path, size: u64) {
    let mut file = io::BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..size / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
}

/// The largest resident set of a process so far, in KiB.
fn peak_memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

fn pull(folder: &Path, certs: &Path, reference: &str, into: &Path) -> Command {
    let mut command = Command::new(oras_csi());
    command.arg("pull").arg(reference).arg(into);
    command.arg("--store").arg(folder.join("store")).arg("--certs-dir").arg(certs);
    command
}

/// What the second pull downloads.
#[derive(PartialEq)]
enum Second {
    MissingBytes,
    Everything,
}

/// Kills a pull and runs a second one to its end. `name` is pushed: `file`, or a folder that contains only it.
fn is_killed_and_repeated(name: &str, file: &str, second: &Second) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let made = tempfile::tempdir().expect("a folder");
    let original = made.path().join(file);
    fs::create_dir_all(original.parent().expect("it has one")).unwrap();
    write_noise(&original, size());
    let registry = Distribution::start();
    // Slow enough to be killed in the middle, on any machine.
    let counter = Counter::start(registry.host(), 60 * MIB);
    let folder = tempfile::tempdir().expect("a folder");
    let certs = tempfile::tempdir().expect("a folder");
    write_hosts_toml(certs.path(), "big.example:5000", &format!("http://127.0.0.1:{}", counter.port));
    let digest = push(&format!("{}/big:v1", registry.host()), made.path(), &[name]);
    let reference = format!("big.example:5000/big@{digest}");
    let into = folder.path().join("out");

    let began = Instant::now();
    let mut command = pull(folder.path(), certs.path(), &reference, &into);
    let mut killed = Running::start(&mut command, "pull", folder.path());
    killed.wait_until("in the middle", Duration::from_mins(5), || counter.bytes() > size() / 2);
    let mut highest = peak_memory(killed.id());
    killed.kill();
    assert!(!into.exists());
    let first = counter.bytes();
    let mut last = pull(folder.path(), certs.path(), &reference, &into).spawn().expect("it starts");
    let status = loop {
        highest = highest.max(peak_memory(last.id()));
        match last.try_wait().expect("it was started") {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(status.success(), "{status}");
    let (came, wanted) = (counter.bytes(), size());
    eprintln!(
        "{name}: {} MiB came for {} MiB in both runs, {} s; at most {} MiB of memory",
        came / MIB,
        wanted / MIB,
        began.elapsed().as_secs(),
        highest / 1024
    );
    let needed = if *second == Second::Everything { first + wanted } else { wanted };
    assert!(came >= wanted && came < needed + TWICE, "{came} bytes for {wanted}");
    assert!(highest < 64 * 1024, "{highest} KiB");
    run(Command::new("cmp").arg(into.join(file)).arg(original));
    let left = fs::read_dir(folder.path().join("store/partial")).map(Iterator::count).unwrap_or_default();
    assert_eq!(left, 0, "nothing is left on its way");
}

#[test]
fn resumes_a_killed_pull_of_a_file() {
    is_killed_and_repeated("model.bin", "model.bin", &Second::MissingBytes);
}

#[test]
fn downloads_an_archive_again_after_a_kill() {
    is_killed_and_repeated("model", "model/f", &Second::Everything);
}
