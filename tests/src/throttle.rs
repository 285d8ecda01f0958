//! A slow connection to a registry: a limit of bytes per second from the registry, for all connections together.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The size of a write.
const PIECE: usize = 16 << 10;

/// The connection. It lasts until the test process ends.
#[derive(Clone, Debug)]
pub struct Throttle {
    address: SocketAddr,
    line: Arc<Line>,
}

#[derive(Debug)]
struct Line {
    bytes_per_second: AtomicU64,
    /// When the next write is allowed.
    next: Mutex<Instant>,
    came: AtomicU64,
}

impl Throttle {
    /// Listens on a free port of `address`, and forwards to `upstream` (`HOST:PORT`).
    pub fn start(address: &str, upstream: &str, bytes_per_second: u64) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let line = Line {
            bytes_per_second: AtomicU64::new(bytes_per_second),
            next: Mutex::new(Instant::now()),
            came: AtomicU64::new(0),
        };
        let (line, upstream) = (Arc::new(line), upstream.to_owned());
        let accepting = line.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&upstream) else { continue };
                let (Ok(asks), Ok(asked)) = (client.try_clone(), server.try_clone()) else { continue };
                thread::spawn(move || copy(asks, asked, |_| ()));
                let line = accepting.clone();
                thread::spawn(move || copy(server, client, |bytes| line.wait(bytes)));
            }
        });
        Self { address, line }
    }

    /// `address:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Changes the limit.
    pub fn set(&self, bytes_per_second: u64) {
        self.line.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Returns the number of bytes from the registry so far.
    pub fn came(&self) -> u64 {
        self.line.came.load(Ordering::Relaxed)
    }
}

impl Line {
    fn wait(&self, bytes: usize) {
        let rate = self.bytes_per_second.load(Ordering::Relaxed).max(1);
        let takes = Duration::from_micros(bytes as u64 * 1_000_000 / rate);
        let until = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next = (*next).max(Instant::now()) + takes;
            *next
        };
        thread::sleep(until.saturating_duration_since(Instant::now()));
        self.came.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, pace: impl Fn(usize)) {
    let mut piece = [0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        pace(count);
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = (to.shutdown(std::net::Shutdown::Both), from.shutdown(std::net::Shutdown::Both));
}
