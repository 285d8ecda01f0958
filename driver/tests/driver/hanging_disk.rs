//! A disk that hangs: each write waits until the disk answers again, as on a stalled network disk.
//!
//! The store lies on an ext4 image that `fsfreeze` freezes: writes wait in the kernel, reads go on. The driver and the
//! test share one runtime thread, so a single write on that thread would stop every call below.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oras_csi_driver::proto::csi::ProbeRequest;
use oras_csi_driver::proto::csi::identity_client::IdentityClient;
use tonic::Code;

use crate::calls::{Running, connect, request};
use crate::namespace::{entered_as_root, mount};
use crate::registry::FakeRegistry;

/// How long a call that needs no write may take while the disk hangs.
const PROMPT: Duration = Duration::from_secs(5);
/// When the disk answers again even if the test is stuck.
const RESCUE_AFTER: Duration = Duration::from_secs(30);

fn run(program: &str, arguments: &[&str], path: &Path) {
    let output = Command::new(program).args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn thaw(mounted: &Path) {
    let _ = Command::new("fsfreeze").arg("--unfreeze").arg(mounted).output();
}

/// A frozen file system. It thaws when this is dropped, and after a time limit in any case.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn freeze(mounted: &'a Path) -> Self {
        run("fsfreeze", &["--freeze"], mounted);
        let path = mounted.to_owned();
        std::thread::spawn(move || {
            std::thread::sleep(RESCUE_AFTER);
            thaw(&path);
        });
        Self(mounted)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        thaw(self.0);
    }
}

#[tokio::test]
async fn calls_that_need_no_write_answer_while_the_disk_hangs() {
    if !entered_as_root("hanging_disk::calls_that_need_no_write_answer_while_the_disk_hangs") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let (image, store) = (folder.path().join("disk"), folder.path().join("store"));
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    std::fs::create_dir(&store).unwrap();
    run("mkfs.ext4", &["-q", "-F"], &image);
    mount(&["-o", "loop", image.to_str().unwrap()], &store);
    let driver = Running::start_with(folder.clone(), FakeRegistry::new(), |settings| settings).await;
    let mut identity = IdentityClient::new(connect(&driver.socket).await);

    let mounted = driver.target("mounted");
    let first = driver.artifact(b"first");
    driver.publish(request("csi-mounted", &mounted, &first)).await.unwrap();
    let cold: Vec<_> = (0..4).map(|number| driver.artifact(format!("cold {number}").as_bytes())).collect();

    let frozen = Frozen::freeze(&store);
    let warm = driver.target("warm");
    let mut hanging = vec![tokio::spawn({
        let (mut node, wanted) = (driver.node.clone(), request("csi-warm", &warm, &first));
        async move { node.node_publish_volume(wanted).await.map(|_| ()) }
    })];
    for (number, digest) in cold.iter().enumerate() {
        let target = driver.target(&format!("cold-{number}"));
        let (mut node, wanted) =
            (driver.node.clone(), request(&format!("csi-cold-{number}"), &target, digest));
        hanging.push(tokio::spawn(async move { node.node_publish_volume(wanted).await.map(|_| ()) }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(hanging.iter().all(|call| !call.is_finished()), "the disk does not hang");

    let begun = Instant::now();
    identity.probe(ProbeRequest {}).await.unwrap();
    assert!(driver.http("/healthz").await.ends_with("ok\n"));
    assert!(driver.metrics_text().await.contains("oras_csi_driver_volumes"));
    driver.stats("csi-mounted", mounted.to_str().unwrap()).await.unwrap();
    driver.unpublish("csi-never-published", Path::new("/never/was/here")).await.unwrap();
    let status = driver.publish(request("csi-warm", &warm, &first)).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    assert_eq!(std::fs::read(mounted.join("app.jar")).unwrap(), b"first");
    assert!(begun.elapsed() < PROMPT, "took {:?}", begun.elapsed());
    assert!(hanging.iter().all(|call| !call.is_finished()), "the disk answered too early");

    drop(frozen);
    for call in hanging {
        call.await.unwrap().unwrap();
    }
    assert_eq!(std::fs::read(warm.join("app.jar")).unwrap(), b"first");
    driver.unpublish("csi-mounted", &mounted).await.unwrap();
    driver.unpublish("csi-warm", &warm).await.unwrap();
    for number in 0..cold.len() {
        driver
            .unpublish(&format!("csi-cold-{number}"), &driver.target(&format!("cold-{number}")))
            .await
            .unwrap();
    }
    driver.stop().await.unwrap();
    run("umount", &[], &store);
}
