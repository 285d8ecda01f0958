//! Runs `oras-csi pull` against a registry, with limits of time and memory, and checks how it ended.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::parts::oras_csi;
use crate::registry::write_hosts;

/// The interval between two looks at the process.
const LOOK: Duration = Duration::from_millis(5);
/// The limit of an error message.
const MAX_MESSAGE: usize = 2_048;
/// A process that runs this long is looked at in any case.
const SEEN_AFTER: Duration = Duration::from_millis(500);
/// The limit of resident memory in MiB.
const MAX_MEMORY: u64 = 64;

/// One pull, with its own folder for all files that it writes.
pub struct Trial {
    folder: TempDir,
    host: String,
    stored: bool,
}

/// How it ended.
#[derive(Debug)]
pub struct Verdict {
    /// The exit status; `None` if it had to be killed.
    pub status: Option<i32>,
    /// Standard error.
    pub words: Vec<u8>,
    /// `VmHWM` in MiB.
    pub peak: u64,
    /// How long it took.
    pub took: Duration,
    /// The files of the target folder, by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Other files that it left behind.
    pub left: Vec<PathBuf>,
}

impl Trial {
    /// Prepares a pull from the registry at `host`; `stored` is with `--store`.
    pub fn new(host: &str, stored: bool) -> Self {
        let trial = Self { folder: tempfile::tempdir().expect("a folder"), host: host.to_owned(), stored };
        for name in ["certs", "docker", "out", "store", "scratch"] {
            fs::create_dir(trial.folder.path().join(name)).expect("a folder");
        }
        trial
    }

    /// Writes the registry's `hosts.toml`.
    #[must_use]
    pub fn with_hosts(self, toml: &str) -> Self {
        write_hosts(&self.folder.path().join("certs"), &self.host, toml);
        self
    }

    /// Writes a docker config with credentials.
    #[must_use]
    pub fn with_docker_config(self, json: &str) -> Self {
        fs::write(self.folder.path().join("docker/config.json"), json).expect("writes");
        self
    }

    /// Runs the pull, and kills it after `bound`.
    pub fn run(&self, bound: Duration) -> Verdict {
        let at = |name: &str| self.folder.path().join(name);
        let log = at("scratch").join("stderr");
        let mut command = Command::new(oras_csi());
        command.arg("pull").arg("--certs-dir").arg(at("certs"));
        command.arg(format!("{}/artifact:v1", self.host)).arg(at("out").join("tree"));
        if self.stored {
            command.arg("--store").arg(at("store"));
        }
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command.env("DOCKER_CONFIG", at("docker")).env("HOME", at("docker")).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).expect("a file"));
        let begun = Instant::now();
        let mut child = command.spawn().expect("it starts");
        let mut peak = 0;
        let status = loop {
            peak = peak.max(high_water(child.id()).unwrap_or_default());
            if let Some(status) = child.try_wait().expect("it was started") {
                break status.code();
            }
            if begun.elapsed() > bound {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            std::thread::sleep(LOOK);
        };
        let took = begun.elapsed();
        let mut left: Vec<_> = entries(&at("out")).filter(|path| !path.ends_with("tree")).collect();
        left.extend(entries(&at("store").join("tmp")));
        let mut files = BTreeMap::new();
        read_all(&at("out/tree"), "", &mut files);
        let words = fs::read(log).expect("reads");
        Verdict { status, words, peak: peak.div_ceil(1_024), took, files, left }
    }
}

impl Verdict {
    /// Returns what is wrong, if anything. `files` are those of the artifact, by path.
    pub fn problem(&self, status: i32, host: &str, files: &BTreeMap<String, Vec<u8>>) -> Option<String> {
        let Some(ended) = self.status else { return Some(format!("still running after {:?}", self.took)) };
        if ended != status {
            return Some(format!("exit status {ended}, not {status}"));
        }
        let Ok(words) = std::str::from_utf8(&self.words) else { return Some("not UTF-8".to_owned()) };
        if let Some(odd) = words.chars().find(|char| *char != '\n' && is_odd(*char)) {
            return Some(format!("prints {odd:?}"));
        }
        if words.len() > MAX_MESSAGE {
            return Some(format!("prints {} bytes", words.len()));
        }
        if status != 0 && !words.contains(host) {
            return Some(format!("does not name the registry {host}"));
        }
        let wanted = if status == 0 { files } else { &BTreeMap::new() };
        if self.files != *wanted {
            let names: Vec<_> = self.files.iter().map(|(name, bytes)| (name, bytes.len())).collect();
            return Some(format!("other files than the artifact's: {names:?}"));
        }
        if !self.left.is_empty() {
            return Some(format!("leaves {:?}", self.left));
        }
        // A process that ended before the first look had no time to use much memory.
        let unseen = self.peak == 0 && self.took >= SEEN_AFTER;
        (unseen || self.peak >= MAX_MEMORY).then(|| format!("a peak of {} MiB", self.peak))
    }
}

/// Reports whether a character is a control character or changes the direction of text (Unicode UAX #9).
fn is_odd(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `VmHWM` in KiB: of this process alone, where `ru_maxrss` begins with its parent's. Until it runs the program, for a
/// moment after it was started, its memory is that of this test.
fn high_water(process: u32) -> Option<u64> {
    let program = fs::read_link(format!("/proc/{process}/exe")).ok()?;
    if Some(program) == std::env::current_exe().ok() {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
}

fn read_all(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for path in entries(folder) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            read_all(&path, &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read(&path).expect("reads"));
        }
    }
}
