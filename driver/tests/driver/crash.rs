//! A driver that is killed and started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oras_csi_driver::proto::csi::node_client::NodeClient;
use oras_csi_driver::{RunError, bind};
use tokio_util::sync::CancellationToken;

use crate::calls::{Running, connect, mounts, request, settings, unpublish};
use crate::namespace::{entered, this};
use crate::registry::{Artifact, FakeRegistry};

/// The environment variable with the folder for the driver in another process.
const FOLDER: &str = "ORAS_CSI_TEST_DRIVER";

fn artifact(registry: &FakeRegistry) -> oras_csi_core::digest::Digest {
    Artifact::new(registry).file("app.jar", b"jar").push()
}

/// Not a test: the driver that the test below starts and kills in a process of its own.
#[tokio::test]
async fn a_driver_in_a_process_of_its_own() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let registry = FakeRegistry::new();
    artifact(&registry);
    let bound = bind(settings(Path::new(&folder)), registry).await.unwrap();
    bound.serve(CancellationToken::new()).await.unwrap();
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn start(folder: &Path) -> (Killed, NodeClient<tonic::transport::Channel>) {
    let child = Command::new(this())
        .args(["--exact", "crash::a_driver_in_a_process_of_its_own", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let child = Killed(child);
    let socket = folder.join("kubelet/plugins/csi.oras.land/csi.sock");
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(20), "the driver does not start");
        if tokio::net::UnixStream::connect(&socket).await.is_ok() {
            return (child, NodeClient::new(connect(&socket).await));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn target(folder: &Path, name: &str) -> PathBuf {
    let parent = folder.join("kubelet/pods").join(name);
    fs::create_dir_all(&parent).unwrap();
    parent.join("mount")
}

#[tokio::test]
async fn a_driver_recovers_its_mounts_after_a_kill() {
    if !entered("crash::a_driver_recovers_its_mounts_after_a_kill") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let digest = artifact(&FakeRegistry::new());
    let (first, second) = (target(folder, "a"), target(folder, "b"));

    let (driver, node) = start(folder).await;
    for (volume, target) in [("csi-a", &first), ("csi-b", &second)] {
        node.clone().node_publish_volume(request(volume, target, &digest)).await.unwrap();
    }
    drop(driver);
    let view = folder.join("store/readonly");
    assert_eq!((mounts(&first).len(), mounts(&view).len()), (1, 1), "a kill removes no mount");
    assert_eq!(fs::read(first.join("app.jar")).unwrap(), b"jar");

    let (driver, node) = start(folder).await;
    assert_eq!(mounts(&view).len(), 1, "the view is mounted once");
    node.clone().node_publish_volume(request("csi-a", &first, &digest)).await.unwrap();
    assert_eq!(mounts(&first).len(), 1);
    unpublish(&node, "csi-a", &first).await.unwrap();
    assert!(!first.exists());
    drop(driver);

    // As after a reboot: records and directories exist, mounts do not.
    assert!(Command::new("umount").arg(&second).status().unwrap().success());
    let (driver, node) = start(folder).await;
    node.clone().node_publish_volume(request("csi-b", &second, &digest)).await.unwrap();
    assert_eq!(fs::read(second.join("app.jar")).unwrap(), b"jar");
    unpublish(&node, "csi-b", &second).await.unwrap();
    assert!(!second.exists());
    assert_eq!(fs::read_dir(folder.join("store/volumes")).unwrap().count(), 0);
    drop(driver);
}

/// Changes a published volume to a state that a crash can leave.
type Breaks = fn(&Running, &Path);

#[tokio::test]
async fn the_next_call_repairs_what_a_crash_left() {
    if !entered("crash::the_next_call_repairs_what_a_crash_left") {
        return;
    }
    // Each state between two steps of a publish or an unpublish.
    let states: [(&str, Breaks); 4] = [
        ("a record alone", |_, target| {
            umount(target);
            fs::remove_dir(target).unwrap();
        }),
        ("a record and an empty directory", |_, target| umount(target)),
        ("a mount without a record", |driver, _| forget(driver)),
        ("an empty directory alone", |driver, target| {
            umount(target);
            forget(driver);
        }),
    ];
    let driver = Running::start().await;
    let digest = driver.artifact(b"jar");
    for (name, make) in states {
        for publish_first in [true, false] {
            let target = driver.target("a");
            let wanted = request("csi-1", &target, &digest);
            driver.publish(wanted.clone()).await.unwrap();
            make(&driver, &target);
            if publish_first {
                driver.publish(wanted).await.unwrap_or_else(|status| panic!("{name}: {status}"));
                assert_eq!((mounts(&target).len(), driver.records()), (1, 1), "{name}");
                assert_eq!(fs::read(target.join("app.jar")).unwrap(), b"jar");
            }
            driver.unpublish("csi-1", &target).await.unwrap_or_else(|status| panic!("{name}: {status}"));
            assert!(!target.exists() && driver.records() == 0, "{name}");
        }
    }
    driver.stop().await.unwrap();
}

fn umount(target: &Path) {
    assert!(Command::new("umount").arg(target).status().unwrap().success());
}

fn forget(driver: &Running) {
    for entry in fs::read_dir(driver.store().join("volumes")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

#[tokio::test]
async fn a_store_has_one_driver() {
    if !entered("crash::a_store_has_one_driver") {
        return;
    }
    let driver = Running::start().await;
    let elsewhere = driver.folder.path().join("other.sock");
    let second = settings(driver.folder.path()).with_socket(elsewhere).with_registration(None);
    let Err(error) = bind(second, FakeRegistry::new()).await else { panic!("two drivers on one store") };
    assert!(
        matches!(error, RunError::Store(_)) && error.to_string().contains("another process has it open"),
        "{error}"
    );
    let folder = Arc::clone(&driver.folder);
    driver.stop().await.unwrap();
    Running::start_in(folder, FakeRegistry::new(), Duration::from_secs(1)).await.stop().await.unwrap();
}
