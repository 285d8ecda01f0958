//! Authorization: pods share stored content, and each pod needs its own pull permission.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use oras_csi_core::credentials::Credential;
use oras_csi_core::digest::Digest;
use oras_csi_driver::proto::csi::NodePublishVolumeRequest;
use tonic::Code;

use crate::calls::{Running, request, request_for};
use crate::namespace::entered;
use crate::registry::{FakeRegistry, add, add_from, recipe};

const HOST: &str = "kind-registry:5000";

fn credential(user: &str) -> Credential {
    Credential::basic(user.to_owned(), format!("secret of {user}")).unwrap()
}

/// Adds a pull secret to a request, as kubelet does.
fn with_secret(mut request: NodePublishVolumeRequest, user: &str) -> NodePublishVolumeRequest {
    let password = format!("secret of {user}");
    let config = serde_json::json!({"auths": {HOST: {"username": user, "password": password}}});
    request.secrets = HashMap::from([(".dockerconfigjson".to_owned(), config.to_string())]);
    request
}

async fn restarted(driver: Running) -> Running {
    let (folder, registry) = (driver.folder.clone(), driver.registry.clone());
    driver.stop().await.unwrap();
    Running::start_in(folder, registry, Duration::from_secs(20)).await
}

/// Starts a driver whose registry accepts only user A, and publishes an artifact with the credentials of A.
async fn published_by_a() -> (Running, Digest) {
    let driver = Running::start().await;
    let digest = driver.artifact(b"precious");
    *driver.registry.accepted.lock().unwrap() = Some(vec![credential("a")]);
    driver.publish(with_secret(request("csi-a", &driver.target("a"), &digest), "a")).await.unwrap();
    (driver, digest)
}

#[tokio::test]
async fn after_a_restart_a_mounts_and_b_is_refused() {
    if !entered("rights::after_a_restart_a_mounts_and_b_is_refused") {
        return;
    }
    let (driver, digest) = published_by_a().await;
    let driver = restarted(driver).await;
    let absent = driver.artifact(b"not downloaded yet");
    // A mounted volume stays mounted, without another check.
    driver.publish(request("csi-a", &driver.target("a"), &digest)).await.unwrap();
    let mut words = Vec::new();
    for (user, digest) in [(Some("b"), &digest), (None, &digest), (Some("b"), &absent), (None, &absent)] {
        let target = driver.target("b");
        let mut wanted = request("csi-b", &target, digest);
        if let Some(user) = user {
            wanted = with_secret(wanted, user);
        }
        let status = driver.publish(wanted).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(!target.exists() && driver.records() == 1);
        words.push(status.message().replace(digest.hex(), "…"));
    }
    assert_eq!(words[..2], words[2..], "the errors do not tell what is cached");
    assert!(!words.concat().contains("secret of"), "{words:?}");
    driver.publish(with_secret(request("csi-c", &driver.target("c"), &digest), "a")).await.unwrap();
    assert_eq!(fs::read(driver.target("c").join("app.jar")).unwrap(), b"precious");
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn without_its_registry_only_recently_accepted_credentials_mount() {
    if !entered("rights::without_its_registry_only_recently_accepted_credentials_mount") {
        return;
    }
    let (driver, digest) = published_by_a().await;
    driver.registry.is_down.store(true, Ordering::SeqCst);
    driver.publish(with_secret(request("csi-c", &driver.target("c"), &digest), "a")).await.unwrap();
    let refused = async |driver: &Running, user: &str| {
        let target = driver.target("d");
        let wanted = with_secret(request("csi-d", &target, &digest), user);
        let status = driver.publish(wanted).await.unwrap_err();
        // Not final: kubelet tries again, and unpublishes what may have been made.
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("were not accepted since the driver started"), "{status}");
        assert!(!target.exists());
        driver.unpublish("csi-d", &target).await.unwrap();
    };
    refused(&driver, "b").await;
    // A restart forgets all authorizations.
    let driver = restarted(driver).await;
    refused(&driver, "b").await;
    refused(&driver, "a").await;
    // A volume that was published before a reboot of the node is published again.
    let target = driver.target("a");
    assert!(Command::new("umount").arg(&target).status().unwrap().success());
    driver.publish(with_secret(request("csi-a", &target, &digest), "a")).await.unwrap();
    assert_eq!(fs::read(target.join("app.jar")).unwrap(), b"precious");
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn a_registry_that_accepts_everything_gives_no_access_to_other_content() {
    if !entered("rights::a_registry_that_accepts_everything_gives_no_access_to_other_content") {
        return;
    }
    let (driver, digest) = published_by_a().await;
    *driver.registry.accepted.lock().unwrap() = None;
    driver.registry.confirming_hosts.lock().unwrap().insert("evil".to_owned());
    let target = driver.target("b");
    let wanted = request_for("csi-b", &target, recipe([add_from("evil:5000", &digest)]));
    let status = driver.publish(wanted).await.unwrap_err();
    assert_eq!(
        status.code(),
        Code::NotFound,
        "the registry claims to have the content, but does not serve it: {status}"
    );
    assert!(!target.exists());
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn a_remembered_authorization_needs_no_request() {
    if !entered("rights::a_remembered_authorization_needs_no_request") {
        return;
    }
    let (driver, digest) = published_by_a().await;
    let (questions, asked) = (driver.registry.resolves.load(Ordering::SeqCst), driver.registry.requests());
    let mut times = Vec::new();
    for number in 0..31 {
        let target = driver.target(&format!("w{number}"));
        let wanted = with_secret(request(&format!("csi-w{number}"), &target, &digest), "a");
        let began = Instant::now();
        driver.publish(wanted).await.unwrap();
        times.push(began.elapsed());
    }
    assert_eq!(driver.registry.resolves.load(Ordering::SeqCst), questions);
    assert_eq!(driver.registry.requests(), asked);
    times.sort();
    eprintln!("publish with a warm store: {:?} in the middle, {:?} at least", times[15], times[0]);
    assert!(times[0] < Duration::from_millis(20), "{times:?}");
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn a_secret_does_not_reach_the_store() {
    if !entered("rights::a_secret_does_not_reach_the_store") {
        return;
    }
    let (driver, digest) = published_by_a().await;
    let wanted = with_secret(request("csi-b", &driver.target("b"), &digest), "b");
    driver.publish(wanted).await.unwrap_err();
    let mut files = 0;
    for_each_file(&driver.store(), &mut |path, bytes| {
        files += 1;
        let text = String::from_utf8_lossy(bytes);
        for secret in ["secret of", "c2VjcmV0IG9m", "NlY3JldCBvZ", "zZWNyZXQgb2"] {
            assert!(!text.contains(secret), "{}: {secret}", path.display());
        }
    });
    assert!(files >= 5, "{files}");
    driver.stop().await.unwrap();
}

fn for_each_file(folder: &Path, see: &mut dyn FnMut(&Path, &[u8])) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => for_each_file(&entry.path(), see),
            kind if kind.is_file() => see(&entry.path(), &fs::read(entry.path()).unwrap()),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_hostile_registry_does_not_delay_other_pulls() {
    if !entered("rights::a_hostile_registry_does_not_delay_other_pulls") {
        return;
    }
    let driver = Arc::new(
        Running::start_in(
            Arc::new(tempfile::tempdir().unwrap()),
            FakeRegistry::new(),
            Duration::from_secs(20),
        )
        .await,
    );
    let digest = driver.artifact(b"jar");
    driver.registry.delayed_hosts.lock().unwrap().insert("hostile".to_owned(), Duration::from_hours(1));
    driver.registry.slow_hosts.lock().unwrap().insert("drips".to_owned(), (1, Duration::from_secs(3)));
    for (number, host) in ["hostile:5000", "drips:5000"].into_iter().enumerate() {
        let target = driver.target(&format!("evil-{number}"));
        let wanted = request_for("csi-evil", &target, recipe([add_from(host, &digest)]));
        let driver = driver.clone();
        tokio::spawn(async move { driver.publish(wanted).await });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let target = driver.target("honest");
    let honest = driver.publish(request_for("csi-honest", &target, recipe([add(&digest)])));
    tokio::time::timeout(Duration::from_secs(10), honest).await.unwrap().unwrap();
    assert_eq!(fs::read(target.join("app.jar")).unwrap(), b"jar");
}
