//! Compares the time from an empty store to a mounted volume with `oras pull` of the same artifact, alternating, from one
//! real registry. Then measures the time of each further pod.
//!
//! The result is the ratio of the medians; absolute times are not comparable between machines. Run it with
//! `benches/mounted [RUNS]`.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_tests::driver::Driver;
use oras_csi_tests::registry::{Distribution, Oras};

const NAME: &str = "bench.example:5000";
/// The number of publishes that are measured with a warm store.
const WARM_PUBLISHES: usize = 200;

/// An artifact to push: a folder, and the files in it.
struct Case {
    name: &'static str,
    folder: tempfile::TempDir,
    files: Vec<String>,
}

/// Writes random data, which does not compress, like the weights of a model.
fn write_random(path: &Path, bytes: u64) {
    let source = File::open("/dev/urandom").expect("open /dev/urandom");
    io::copy(&mut source.take(bytes), &mut File::create(path).expect("a file")).expect("write");
}

fn single() -> Case {
    let folder = tempfile::tempdir().expect("a folder");
    write_random(&folder.path().join("model"), 1 << 30);
    Case { name: "1 GiB", folder, files: vec!["model".to_owned()] }
}

fn many() -> Case {
    let folder = tempfile::tempdir().expect("a folder");
    let files = (0..16).map(|number| number.to_string()).collect::<Vec<_>>();
    for file in &files {
        write_random(&folder.path().join(file), 64 << 20);
    }
    Case { name: "16 x 64 MiB", folder, files }
}

fn small() -> Case {
    let folder = tempfile::tempdir().expect("a folder");
    for directory in 0..100 {
        let path = folder.path().join(format!("small/{directory}"));
        fs::create_dir_all(&path).expect("a folder");
        for file in 0..1_000 {
            let mut file = File::create(path.join(file.to_string())).expect("a file");
            writeln!(file, "{directory}").expect("write");
        }
    }
    Case { name: "100,000 files", folder, files: vec!["small".to_owned()] }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn time(command: &mut Command) -> Duration {
    // Flushes what the previous run wrote, so that it does not slow down this one.
    assert!(Command::new("sync").status().expect("it runs").success());
    let begun = Instant::now();
    let done = command.stdout(Stdio::null()).status().expect("it starts");
    assert!(done.success(), "{command:?}: {done}");
    begun.elapsed()
}

async fn time_publish(driver: &Driver, pod: &str, recipe: &PinnedRecipe) -> Duration {
    let begun = Instant::now();
    driver.publish(pod, recipe, None).await.expect("it is mounted");
    begun.elapsed()
}

/// Returns the slower of copying and hashing, as the lower bound for a verified download.
fn lower_bound(file: &Path, folder: &Path) -> Duration {
    let copy = time(Command::new("cp").arg(file).arg(folder.join("copy")));
    copy.max(time(Command::new("openssl").args(["dgst", "-sha256"]).arg(file)))
}

#[tokio::main]
async fn main() {
    let runs: usize = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3);
    let registry = Distribution::start();
    let certs = registry.certs_d(&[NAME]);
    println!(
        "{:<14} {:>10} {:>10} {:>7} {:>14} {:>12}",
        "case", "oras pull", "mounted", "ratio", "of the limit", "further pod"
    );
    for make in [single, many, small] {
        let case = make();
        // Nothing is deleted between the runs, because some file systems are slow with recently freed inodes.
        let work = tempfile::tempdir().expect("a folder");
        let files = case.files.iter().map(String::as_str).collect::<Vec<_>>();
        let digest = registry.push("bench:v1", case.folder.path(), &files);
        let reference = format!("{NAME}/bench@{digest}").parse().expect("a reference");
        let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(reference))]).expect("a recipe");
        let (mut theirs, mut ours, mut limits) = (Vec::new(), Vec::new(), Vec::new());
        let mut drivers = Vec::new();
        for run in 0..runs {
            let out = work.path().join(format!("{} {run}", case.name));
            theirs.push(time(&mut Oras::plain_http().pull(&format!("{}/bench:v1", registry.host()), &out)));
            let driver = Driver::start(certs.path(), &["--keep-free=0"]);
            time(&mut Command::new("true"));
            ours.push(time_publish(&driver, "first", &recipe).await);
            drivers.push(driver);
            if files.len() == 1 && case.folder.path().join(files[0]).is_file() {
                fs::create_dir_all(&out).expect("a folder");
                limits.push(lower_bound(&case.folder.path().join(files[0]), &out));
            }
        }
        let driver = drivers.last().expect("there was a run");
        let mut warm = Vec::with_capacity(WARM_PUBLISHES);
        for pod in 0..WARM_PUBLISHES {
            warm.push(time_publish(driver, &format!("warm-{pod}"), &recipe).await);
        }
        let (theirs, ours, warm) = (median(&mut theirs), median(&mut ours), median(&mut warm));
        let of_limit = limits.is_empty().then(String::new).unwrap_or_else(|| {
            format!("{:.0} %", 100.0 * median(&mut limits).as_secs_f64() / ours.as_secs_f64())
        });
        println!(
            "{:<14} {:>8.2} s {:>8.2} s {:>6.2}x {:>14} {:>10.2} ms",
            case.name,
            theirs.as_secs_f64(),
            ours.as_secs_f64(),
            theirs.as_secs_f64() / ours.as_secs_f64(),
            of_limit,
            1_000.0 * warm.as_secs_f64()
        );
    }
}
