//! Programs that run beside a test, and programs that run to their end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// A program that runs until this value is dropped; what it prints is in a file.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Running {
    /// Starts `command`, with its output in `folder/NAME.log`.
    pub fn start(command: &mut Command, name: &str, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { child, name: name.to_owned(), log }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` says yes; fails when the program ends before, or after `patience`.
    pub fn wait_until(&mut self, what: &str, patience: Duration, mut ready: impl FnMut() -> bool) {
        let started = Instant::now();
        while !ready() {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended with {status} before {what}:\n{}", self.name, self.output());
            }
            assert!(
                started.elapsed() < patience,
                "{}: not {what} in {patience:?}:\n{}",
                self.name,
                self.output()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end, as kubelet does, and waits.
    pub fn terminate(mut self) -> ExitStatus {
        signal(self.child.id(), "TERM");
        self.child.wait().expect("it was started")
    }

    /// Kills it with no warning.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.output());
        }
    }
}

/// Sends a signal by the shell's own `kill`: a small machine has no other.
pub fn signal(process: u32, name: &str) {
    run(Command::new("sh").args(["-c", &format!("kill -{name} {process}")]));
}

/// The children of a process on whose command line `words` stand.
pub fn children(parent: u32, words: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("it is there").filter_map(Result::ok);
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_meant = |id: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{parent}"))
            && line.replace('\0', " ").contains(words)
    };
    ids.filter(is_meant).collect()
}

/// Runs to the end, whatever that is.
pub fn try_run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Runs to the end, which has to be a success; gives what was printed on standard output.
pub fn run(command: &mut Command) -> String {
    let output = try_run(command);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} ended with {}:\n{out}{err}", output.status);
    out.into_owned()
}

/// A port of 127.0.0.1 that nobody had a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// Whether somebody listens at that port of 127.0.0.1.
pub fn listens(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}
