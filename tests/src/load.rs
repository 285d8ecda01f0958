//! A steady load of pods on the node while a test changes something: pods are created, restarted and deleted, and mounted
//! files are read. What fails meanwhile is counted.

mod counts;
mod pods;
mod readers;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::kubectl;
use crate::node::{Node, apply};
use crate::process::run;

use counts::State;
use readers::Reader;

pub use counts::Failure;
pub use table::Row;

/// The label of all pods of the load.
const LABEL: &str = "tests.oras.land/load";
/// How many loads were started. Each has a tag of its own: the webhook caches tags, and a tag that moves would be two
/// artifacts.
static LOADS: AtomicUsize = AtomicUsize::new(0);
/// The content of the file in the artifact.
const CONTENT: &str = "lasting";
/// How long pods can take to start after a change.
const PATIENCE: Duration = Duration::from_mins(3);
/// How many pods are created after a change, at least, before it counts as survived.
const CREATIONS_AFTER: u64 = 4;

/// The load. It ends when this value is dropped.
#[derive(Debug)]
pub struct Load {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
    readers: Vec<Reader>,
    reference: String,
    creates: bool,
}

impl Load {
    /// Starts `readers` pods that read their volume all the time. Two threads create pods: one creates pods that wait
    /// behind a scheduling gate, which tests admission, and one starts pods and restarts those of a Deployment.
    pub fn start(node: &Node, readers: usize) -> Self {
        let mut load = Self::only_readers(node, readers);
        apply(&pods::deployment(load.reference()));
        for work in [pods::create_all_the_time, pods::start_all_the_time] {
            let (state, reference) = (Arc::clone(&load.state), load.reference.clone());
            load.threads.push(std::thread::spawn(move || work(&state, &reference)));
        }
        load.creates = true;
        // The first pods show that the load runs before anything changes.
        load.during("nothing", || ());
        load
    }

    /// Starts only the pods that read.
    pub fn only_readers(node: &Node, readers: usize) -> Self {
        let tag = format!("lifecycle:v{}", LOADS.fetch_add(1, Ordering::SeqCst));
        node.push(&tag, &[("file", CONTENT), ("more/a", "a"), ("more/b", "b")]);
        let reference = format!("kind-registry:5000/{tag}");
        let (state, threads) = (Arc::default(), Vec::new());
        let load = Self { state, threads, readers: Vec::new(), reference, creates: false };
        let mut load = load.with_readers(readers);
        let reading = Arc::clone(&load.state);
        load.threads.push(std::thread::spawn(move || readers::read_all_the_time(&reading)));
        load
    }

    /// The artifact of all pods of the load.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Starts more pods that read.
    #[must_use]
    pub fn with_readers(mut self, readers: usize) -> Self {
        for number in 0..readers {
            let reader = Reader::start(&format!("reader-{number}"), &self.reference);
            self.state.files().insert(reader.file());
            self.readers.push(reader);
        }
        self
    }

    /// Makes a change, and returns what the load counted from then on until pods start as before.
    pub fn during(&self, what: &str, change: impl FnOnce()) -> Row {
        let before = self.state.snapshot();
        let reads = self.reads_in_pods();
        let begun = Instant::now();
        change();
        let changed = Instant::now();
        let created = self.state.snapshot().created;
        self.wait("pods are created and start as before", || {
            let now = self.state.snapshot();
            !self.creates
                || now.created >= created + CREATIONS_AFTER
                    && now.last_begun.is_some_and(|begun| begun > changed)
        });
        // A reader that does not read would have no error.
        let read = self.reads_in_pods();
        self.wait("every reader reads", || {
            self.reads_in_pods().iter().zip(&read).all(|(now, read)| now.good > read.good)
        });
        let after = self.state.snapshot();
        let mut row = Row::between(what, begun.elapsed(), &before, &after);
        for (now, before) in self.reads_in_pods().iter().zip(&reads) {
            row.add_reads(now, before);
        }
        eprintln!("lifecycle: {row}");
        row
    }

    /// Deletes a reader without waiting, and stops reading its volume; returns the uid of its pod.
    pub fn delete_reader(&mut self) -> String {
        let reader = self.readers.pop().expect("there is a reader");
        self.state.files().remove(&reader.file());
        run(&mut kubectl(&["delete", "pod", &reader.name, "--grace-period=0", "--wait=false"]));
        reader.uid
    }

    /// Ends the readers, and goes on without them.
    #[must_use]
    pub fn without_readers(mut self) -> Self {
        let names: Vec<String> = self.readers.iter().map(|reader| reader.name.clone()).collect();
        while !self.readers.is_empty() {
            self.delete_reader();
        }
        for name in names {
            run(&mut kubectl(&["wait", "--for=delete", "pod", &name, "--timeout=60s"]));
        }
        self
    }

    fn reads_in_pods(&self) -> Vec<readers::Reads> {
        self.readers.iter().map(Reader::reads).collect()
    }

    fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let started = Instant::now();
        while !done() {
            let threads_run = self.threads.iter().all(|thread| !thread.is_finished());
            assert!(threads_run, "{what}: a thread of the load has panicked");
            let counts = self.state.snapshot();
            assert!(started.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}: {counts:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the load, and waits until its pods are gone.
    pub fn finish(mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            thread.join().expect("a thread of the load");
        }
        delete_all();
    }

    fn stop(&self) {
        self.state.stop();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.stop();
            let _ = std::panic::catch_unwind(delete_all);
        }
    }
}

/// Deletes all pods of the load and waits until they are gone, because the next load has pods of the same names.
fn delete_all() {
    let common = ["-l", LABEL, "--ignore-not-found", "--grace-period=0", "--timeout=120s", "--wait=true"];
    run(kubectl(&["delete", "deployments"]).args(common));
    run(kubectl(&["delete", "pods"]).args(common));
}

/// The annotations of a pod with the artifact.
fn annotations(reference: &str) -> serde_json::Value {
    json!({"oras.land/artifact": reference})
}
