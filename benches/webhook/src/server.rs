//! The programs that are measured, as processes.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server that runs until this value is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts a program on the first CPU, with its output in `folder/NAME.log`, and waits until it listens.
    pub(crate) fn start(name: &str, folder: &Path, command: impl FnOnce(SocketAddr) -> Command) -> Self {
        let address = free_address();
        let inner = command(address);
        let log = folder.join(format!("{}.log", name.replace(' ', "-")));
        let output = File::create(&log).expect("a log file");
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a handle")).stderr(output);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let mut server = Self { child, address, log };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = server.child.try_wait().expect("a child");
            assert!(
                ended.is_none() && started.elapsed() < Duration::from_secs(20),
                "{name} does not listen: {}",
                fs::read_to_string(&server.log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Returns the CPU time of the process so far, of the user and of the system.
    pub(crate) fn cpu(&self) -> [Duration; 2] {
        // proc_pid_stat(5): utime and stime are the fields 14 and 15, in ticks of which Linux has 100 a second. The
        // second field, the name of the program, may have spaces and ends with the last parenthesis.
        let text = self.read("stat");
        let fields: Vec<&str> =
            text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).expect("a name");
        [11, 12].map(|field: usize| {
            let ticks: u64 = fields[field].parse().expect("a number");
            Duration::from_millis(10 * ticks)
        })
    }

    /// Returns the resident memory, its peak, and the part of it that is no page of a file, in bytes. Pages of the program
    /// count as resident where the kernel has mapped them, whether or not the process used them.
    pub(crate) fn memory(&self) -> [u64; 3] {
        let text = self.read("status");
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
            let number: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
            number << 10
        };
        ["VmRSS:", "VmHWM:", "RssAnon:"].map(field)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("the process runs")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("{}", log.lines().rev().take(20).collect::<Vec<_>>().join("\n"));
        }
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}
