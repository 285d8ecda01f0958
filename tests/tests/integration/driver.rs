//! The driver as a process, with the real registry and real mounts.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_tests::cluster::eventually;
use oras_csi_tests::driver::{Driver, cannot_mount};
use oras_csi_tests::registry::{Configuration, Distribution, Login, Oras};
use oras_csi_tests::throttle::Throttle;
use tonic::Code;

const NAME: &str = "kind-registry:5000";
const PATIENCE: Duration = Duration::from_mins(1);

fn recipe(repository: &str, digest: &str) -> PinnedRecipe {
    let reference = Reference::parse(&format!("{NAME}/{repository}")).expect("a reference");
    let pinned = reference.pin(digest.parse().expect("a digest"));
    PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).expect("a recipe")
}

/// Returns incompressible bytes.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next(&mut state)).take(length).collect()
}

fn push(registry: &Distribution, repository: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), bytes).expect("writes");
    registry.push(&format!("{repository}:v1"), folder.path(), &["file"])
}

fn file(target: &Path) -> Vec<u8> {
    std::fs::read(target.join("file")).expect("the volume has its file")
}

fn is_blob(line: &str) -> bool {
    line.starts_with("GET ") && line.contains("/blobs/")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pods_at_the_same_time_cause_one_download() {
    if cannot_mount().is_some() {
        return;
    }
    let registry = Distribution::start();
    let bytes = noise(2 << 20);
    let digest = push(&registry, "crowd", &bytes);
    let certs = registry.certs_d(&[NAME]);
    let driver = Driver::start(certs.path(), &[]);
    let (recipe, begun) = (recipe("crowd", &digest), Instant::now());
    let pods: Vec<String> = (0..100).map(|number| format!("crowd-{number}")).collect();
    let answers = join_all(pods.iter().map(|pod| driver.publish(pod, &recipe, None))).await;
    eprintln!("100 pods have their volumes after {:?}", begun.elapsed());
    for (pod, answer) in pods.iter().zip(answers) {
        answer.unwrap_or_else(|status| panic!("{pod}: {status}"));
        assert!(file(&driver.target(pod)) == bytes, "{pod}");
    }
    let whole =
        registry.requests().into_iter().filter(|line| is_blob(line) && line.ends_with(" 200")).count();
    assert_eq!(whole, 1, "{:?}", registry.requests());
    for pod in &pods {
        driver.unpublish(pod).await.expect("it goes");
    }
}

/// Kubelet calls again, and gets the volume when the pull has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_pull_reports_its_progress_and_continues_in_the_background() {
    if cannot_mount().is_some() {
        return;
    }
    let registry = Distribution::start();
    let bytes = noise(16 << 20);
    let digest = push(&registry, "slow", &bytes);
    let line = Throttle::start("127.0.0.1", &registry.host(), 2 << 20);
    let certs = tempfile::tempdir().expect("a folder");
    oras_csi_tests::registry::write_hosts_toml(certs.path(), NAME, &format!("http://{}", line.host()));
    let driver = Driver::start(certs.path(), &["--publish-wait=3"]);
    let recipe = recipe("slow", &digest);
    let status = driver.publish("slow", &recipe, None).await.expect_err("it takes longer");
    eprintln!("{status}");
    assert_eq!(status.code(), Code::Aborted, "{status}");
    let words = status.message();
    assert!(words.contains(" of 16.0 MiB (") && words.contains(" %)") && words.contains(" left"), "{words}");
    assert!(!driver.target("slow").exists(), "nothing half-made is there");
    // The pull continues without another call.
    eventually("the pull ends by itself", PATIENCE, async || {
        let done = driver.metric("oras_csi_driver_pulls_total");
        if done >= 1.0 { Ok(()) } else { Err(format!("{done}")) }
    })
    .await;
    let before = line.came();
    driver.publish("slow", &recipe, None).await.expect("it is there");
    assert!(file(&driver.target("slow")) == bytes);
    assert!(line.came() - before < 64 << 10, "nothing was fetched twice");
    driver.unpublish("slow").await.expect("it goes");
}

/// Tenants share cached bytes, and each needs its own pull permission.
#[tokio::test(flavor = "multi_thread")]
async fn cached_bytes_are_mounted_only_with_credentials_that_the_registry_accepts() {
    if cannot_mount().is_some() {
        return;
    }
    let users = [("alice", "open sesame"), ("bob", "of another time")];
    let mut registry = Distribution::start_with(Configuration::default().with_htpasswd(&users[..1]));
    let alice = Login::password(users[0].0, users[0].1);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), "of alice").expect("writes");
    let oras = Oras::plain_http().with_login(&registry.host(), &alice);
    let digest = oras.push(&format!("{}/private:v1", registry.host()), folder.path(), &["file"]);
    let certs = registry.certs_d(&[NAME]);
    let (alice, bob) =
        (alice.docker_config(NAME), Login::password(users[1].0, users[1].1).docker_config(NAME));
    let recipe = recipe("private", &digest);
    let mut driver = Driver::start(certs.path(), &[]);
    driver.publish("alice", &recipe, Some(&alice)).await.expect("she may");
    assert_eq!(file(&driver.target("alice")), b"of alice");

    driver.kill();
    driver.start_again();
    for (pod, secret) in [("bob", Some(&bob)), ("nobody", None)] {
        let status = driver.publish(pod, &recipe, secret).await.expect_err("they may not");
        eprintln!("{status}");
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(!driver.target(pod).exists());
    }
    driver.publish("alice-2", &recipe, Some(&alice)).await.expect("the twin");
    assert_eq!(file(&driver.target("alice-2")), b"of alice");

    // Without the registry only credentials that it accepted recently are authorized.
    registry.stop();
    driver.publish("alice-3", &recipe, Some(&alice)).await.expect("her right is remembered");
    let status = driver.publish("bob", &recipe, Some(&bob)).await.expect_err("he never had any");
    eprintln!("{status}");
    driver.kill();
    driver.start_again();
    let status = driver.publish("alice-4", &recipe, Some(&alice)).await.expect_err("nothing is remembered");
    eprintln!("{status}");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    // What was mounted stays, and goes.
    assert_eq!(file(&driver.target("alice")), b"of alice");
    for pod in ["alice", "alice-2", "alice-3"] {
        driver.unpublish(pod).await.expect("it goes");
    }

    let written =
        |(user, password): (&str, &str)| [password.to_owned(), STANDARD.encode(format!("{user}:{password}"))];
    let secrets: Vec<String> = users.into_iter().flat_map(written).collect();
    let log = driver.log();
    let mut files = vec![driver.store()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                std::fs::read_dir(&path).expect("lists").map(|entry| entry.expect("an entry").path()),
            );
        } else if path.is_file() {
            let bytes = std::fs::read(&path).expect("reads");
            for secret in &secrets {
                assert!(!contains(&bytes, secret.as_bytes()), "{} has a password", path.display());
            }
        }
    }
    for secret in &secrets {
        assert!(!log.contains(secret), "the log has a password");
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
