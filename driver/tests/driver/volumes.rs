//! Volumes that are published over the CSI socket, with real mounts.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use oras_csi_core::digest::Digest;
use oras_csi_driver::RunError;
use oras_csi_driver::proto::csi::identity_client::IdentityClient;
use oras_csi_driver::proto::csi::volume_capability::{AccessType, BlockVolume};
use oras_csi_driver::proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, ProbeRequest,
};
use oras_csi_driver::proto::registration::registration_client::RegistrationClient;
use oras_csi_driver::proto::registration::{InfoRequest, RegistrationStatus};
use oras_csi_store::{HeldBlob, HeldLayer, HeldTree, Inventory, Layout, Usage};
use tonic::Code;

use crate::calls::{Running, connect, mounts, request, request_for};
use crate::namespace::{entered, entered_as_root, entered_with_locked_flags};
use crate::registry::{Artifact, FakeRegistry, NOISE_SEED, add, noise, recipe};

#[tokio::test]
async fn a_volume_is_published_and_unpublished() {
    if entered("volumes::a_volume_is_published_and_unpublished") {
        publish_and_unpublish().await;
    }
}

#[tokio::test]
async fn locked_flags_are_kept() {
    if entered_with_locked_flags("volumes::locked_flags_are_kept") {
        publish_and_unpublish().await;
    }
}

async fn publish_and_unpublish() {
    let driver = Running::start().await;
    let (target, digest) = (driver.target("a"), driver.artifact(b"jar"));
    let wanted = request("csi-1", &target, &digest);
    driver.publish(wanted.clone()).await.unwrap();
    assert_eq!(fs::read(target.join("app.jar")).unwrap(), b"jar");
    assert_eq!(fs::read(target.join("conf/a.yaml")).unwrap(), b"yaml");
    let flags = mounts(&target);
    assert_eq!(flags.len(), 1);
    for flag in ["ro", "nosuid", "nodev"] {
        assert!(flags[0].split(',').any(|found| found == flag), "{flags:?}");
    }
    for written in [
        fs::write(target.join("app.jar"), "x"),
        fs::write(target.join("new"), "x"),
        fs::remove_file(target.join("app.jar")),
        fs::set_permissions(target.join("app.jar"), fs::Permissions::from_mode(0o777)),
        fs::hard_link(target.join("app.jar"), target.join("link")),
    ] {
        assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    // A second call changes nothing.
    driver.publish(wanted).await.unwrap();
    assert_eq!((mounts(&target).len(), driver.records()), (1, 1));
    let path = target.to_str().unwrap();
    // What the disk is charged for the tree, its file and its layer, and not for the manifest.
    let inventory = Inventory::read(&Layout::new(driver.store())).unwrap();
    let files = inventory.blobs().iter().filter(|blob| blob.size() < 5).map(HeldBlob::usage);
    let layers = inventory.layers().iter().map(HeldLayer::usage);
    let trees = inventory.trees().iter().map(HeldTree::own_usage);
    let parts: Vec<Usage> = files.chain(layers).chain(trees).collect();
    assert_eq!(parts.len(), 3);
    let sum = |amount: fn(&Usage) -> u64| i64::try_from(parts.iter().map(amount).sum::<u64>()).unwrap();
    let wanted = (sum(|usage| usage.bytes), sum(|usage| usage.inodes));
    assert_eq!(driver.stats("csi-1", path).await.unwrap(), wanted);
    for (volume, path) in [("csi-2", path), ("csi-1", "/nowhere"), ("csi-1", "some/path")] {
        assert_eq!(driver.stats(volume, path).await.unwrap_err().code(), Code::NotFound);
    }
    for (volume, path) in [("", path), ("csi-1", "")] {
        assert_eq!(driver.stats(volume, path).await.unwrap_err().code(), Code::InvalidArgument);
    }
    driver.unpublish("csi-1", &target).await.unwrap();
    assert!(!target.exists() && mounts(&target).is_empty());
    assert_eq!(driver.records(), 0);
    driver.unpublish("csi-1", &target).await.unwrap();
    driver.unpublish("never", Path::new("/never/was/here")).await.unwrap();
    assert_eq!(driver.stats("csi-1", path).await.unwrap_err().code(), Code::NotFound);
    let view = driver.store().join("readonly");
    assert_eq!(mounts(&view).len(), 1);
    driver.stop().await.unwrap();
    assert!(mounts(&view).is_empty());
}

#[tokio::test]
async fn rejects_requests_that_are_not_canonical() {
    if !entered("volumes::rejects_requests_that_are_not_canonical") {
        return;
    }
    let driver = Running::start().await;
    let (target, digest) = (driver.target("a"), driver.artifact(b"jar"));
    let good = request("csi-1", &target, &digest);
    let with = |change: fn(&mut NodePublishVolumeRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    for (request, words) in [
        (with(|request| request.volume_id.clear()), "volume_id"),
        (with(|request| request.target_path.clear()), "target_path"),
        (with(|request| request.target_path = "a/b".into()), "absolute"),
        (with(|request| request.target_path = "/a/../b".into()), "absolute"),
        (with(|request| request.volume_capability = None), "volume_capability"),
        (
            with(|request| {
                request.volume_capability.as_mut().unwrap().access_type =
                    Some(AccessType::Block(BlockVolume {}));
            }),
            "Filesystem",
        ),
        (
            with(|request| drop(request.volume_context.remove("csi.storage.k8s.io/pod.namespace"))),
            "podInfoOnMount",
        ),
        (with(|request| drop(request.volume_context.remove("csi.oras.land/id"))), "csi.oras.land/id"),
        (
            with(|request| drop(request.volume_context.insert("csi.oras.land/id".into(), "other-0".into()))),
            "csi.oras.land/id",
        ),
        (
            with(|request| {
                request.volume_context.insert("oras.artifact.reference".into(), "x:1".into());
            }),
            "webhook",
        ),
        (
            with(|request| {
                let tag = r#"[{"add":"ghcr.io/a/b:v1"}]"#;
                request.volume_context.insert("csi.oras.land/recipe".into(), tag.into());
            }),
            "csi.oras.land/recipe",
        ),
    ] {
        let status = driver.publish(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(words), "{status}");
    }
    assert_eq!((driver.registry.requests(), driver.records()), (0, 0));
    assert!(!target.exists());
    for (volume, path) in [("", target.to_str().unwrap()), ("csi-1", ""), ("csi-1", "relative")] {
        let status = driver.unpublish(volume, Path::new(path)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    let status = driver.node.clone().node_stage_volume(NodeStageVolumeRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn a_publish_that_fails_leaves_nothing() {
    if !entered("volumes::a_publish_that_fails_leaves_nothing") {
        return;
    }
    let driver = Running::start().await;
    let target = driver.target("a");
    let evil = Artifact::new(&driver.registry).file("../evil", b"x").push();
    let damaged = Artifact::new(&driver.registry).file("f", b"right").push();
    driver.registry.corrupt(&Digest::sha256_of(b"right"), b"wrong");
    let never = Digest::sha256_of(b"never");
    for (digest, code) in
        [(&evil, Code::FailedPrecondition), (&damaged, Code::DataLoss), (&never, Code::NotFound)]
    {
        let status = driver.publish(request("csi-1", &target, digest)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains("java-app@sha256:"), "{status}");
        assert!(!target.exists() && driver.records() == 0);
    }
    let good = driver.artifact(b"jar");
    driver.registry.is_down.store(true, Ordering::SeqCst);
    let status = driver.publish(request("csi-1", &target, &good)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    // Kubelet's folder does not exist: nothing is pulled.
    let orphan = driver.folder.path().join("kubelet/no/such/mount");
    let status = driver.publish(request("csi-1", &orphan, &good)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    driver.registry.is_down.store(false, Ordering::SeqCst);
    driver.publish(request("csi-1", &target, &good)).await.unwrap();
    // Stored content needs no registry.
    driver.registry.is_down.store(true, Ordering::SeqCst);
    driver.publish(request("csi-2", &driver.target("b"), &good)).await.unwrap();
    // The mount fails after all other steps succeeded, because kubelet's folder is read-only.
    let (recorded, target) = (driver.records(), driver.target("c"));
    let parent = target.parent().unwrap();
    crate::namespace::mount(&["--bind", parent.to_str().unwrap()], parent);
    crate::namespace::mount(&["-o", "remount,bind,ro"], parent);
    let status = driver.publish(request("csi-3", &target, &good)).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status}");
    assert!(!target.exists() && driver.records() == recorded);
    assert!(Command::new("umount").arg(parent).status().unwrap().success());
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn other_files_are_not_touched() {
    if !entered("volumes::other_files_are_not_touched") {
        return;
    }
    let driver = Running::start().await;
    let digest = driver.artifact(b"jar");
    let refused = async |target: &Path, code: Code| {
        let status = driver.publish(request("csi-1", target, &digest)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        let status = driver.unpublish("csi-1", target).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    };
    let file = driver.target("file");
    fs::write(&file, "precious").unwrap();
    refused(&file, Code::FailedPrecondition).await;
    assert_eq!(fs::read(&file).unwrap(), b"precious");

    let (link, elsewhere) = (driver.target("link"), driver.folder.path().join("elsewhere"));
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    refused(&link, Code::FailedPrecondition).await;
    assert!(mounts(&elsewhere).is_empty() && fs::symlink_metadata(&link).unwrap().is_symlink());

    let full = driver.target("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious"), "").unwrap();
    refused(&full, Code::FailedPrecondition).await;
    assert!(full.join("precious").exists());

    let foreign = driver.target("foreign");
    fs::create_dir(&foreign).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&foreign).status().unwrap();
    assert!(mounted.success());
    fs::write(foreign.join("precious"), "").unwrap();
    refused(&foreign, Code::FailedPrecondition).await;
    assert!(foreign.join("precious").exists());

    // An empty directory is accepted: older versions of kubelet create it.
    let empty = driver.target("empty");
    fs::create_dir(&empty).unwrap();
    driver.publish(request("csi-1", &empty, &digest)).await.unwrap();

    // A volume with another recipe is neither mounted on top nor replaces this one.
    let other = driver.artifact(b"another jar");
    let status = driver.publish(request("csi-1", &empty, &other)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    let status = driver.publish(request("csi-2", &empty, &digest)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    let status = driver.unpublish("csi-2", &empty).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert_eq!(fs::read(empty.join("app.jar")).unwrap(), b"jar");

    // A stacked mount of the driver is unmounted as well, even while a process reads it.
    let bind = Command::new("mount").arg("--bind").arg(&empty).arg(&empty).status().unwrap();
    assert!(bind.success() && mounts(&empty).len() == 2);
    let reader = fs::File::open(empty.join("app.jar")).unwrap();
    driver.unpublish("csi-1", &empty).await.unwrap();
    assert!(mounts(&empty).is_empty() && !empty.exists());
    drop(reader);
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn a_parent_that_is_a_link_is_followed() {
    if !entered("volumes::a_parent_that_is_a_link_is_followed") {
        return;
    }
    // As if /var/lib/kubelet is a link to a larger disk.
    let driver = Running::start().await;
    let (real, digest) = (driver.target("real"), driver.artifact(b"jar"));
    let link = driver.folder.path().join("link");
    std::os::unix::fs::symlink(real.parent().unwrap(), &link).unwrap();
    let target = link.join("mount");
    driver.publish(request("csi-1", &target, &digest)).await.unwrap();
    driver.publish(request("csi-1", &target, &digest)).await.unwrap();
    assert_eq!(mounts(&real).len(), 1);
    driver.unpublish("csi-1", &target).await.unwrap();
    assert!(mounts(&real).is_empty() && !real.exists());
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn a_pull_outlives_the_call() {
    if !entered("volumes::a_pull_outlives_the_call") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let driver = Running::start_in(folder, FakeRegistry::new(), Duration::from_millis(1_300)).await;
    let bytes = vec![7; 40_960];
    let digest = Artifact::new(&driver.registry).file("f", &bytes).push();
    let target = driver.target("a");
    let gate = driver.registry.close_gate();
    gate.add_permits(5);
    let wanted = request("csi-1", &target, &digest);
    let status = driver.publish(wanted.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    assert!(status.message().contains("20.0 KiB of 40.0 KiB (50 %), about"), "{status}");
    assert!(!target.exists() && driver.records() == 0);
    // While one call waits, a second call for the same target fails with a message.
    let (first, second) = tokio::join!(driver.publish(wanted.clone()), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        driver.publish(wanted.clone()).await
    });
    assert!(first.unwrap_err().message().contains("pulling java-app-"));
    let second = second.unwrap_err();
    assert!(second.code() == Code::Aborted && second.message().contains("another call"), "{second}");
    // A volume can be unpublished while it is pulled.
    driver.unpublish("csi-1", &target).await.unwrap();
    gate.add_permits(1_000);
    driver.publish(wanted).await.unwrap();
    assert_eq!(fs::read(target.join("f")).unwrap(), bytes);
    assert_eq!(driver.registry.requests_for(&Digest::sha256_of(&bytes)), 1);
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn a_failure_in_the_background_is_reported_once() {
    if !entered("volumes::a_failure_in_the_background_is_reported_once") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let driver = Running::start_in(folder, FakeRegistry::new(), Duration::from_millis(200)).await;
    let digest = Artifact::new(&driver.registry).file("f", b"right").push();
    driver.registry.corrupt(&Digest::sha256_of(b"right"), b"wrong");
    let gate = driver.registry.close_gate();
    let wanted = request("csi-1", &driver.target("a"), &digest);
    let status = driver.publish(wanted.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    gate.add_permits(10);
    tokio::time::sleep(Duration::from_millis(300)).await;
    driver.registry.corrupt(&Digest::sha256_of(b"right"), b"right");
    let status = driver.publish(wanted.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    driver.publish(wanted).await.unwrap();
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn kubelet_finds_and_registers_the_driver() {
    if !entered("volumes::kubelet_finds_and_registers_the_driver") {
        return;
    }
    let driver = Running::start().await;
    for socket in [&driver.socket, &driver.registration] {
        let found = fs::symlink_metadata(socket).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    }
    assert!(driver.registration.ends_with("plugins_registry/csi.oras.land-reg.sock"));
    let mut kubelet = RegistrationClient::new(connect(&driver.registration).await);
    let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.oras.land"));
    assert_eq!(info.supported_versions, ["1.0.0"]);
    let channel = connect(Path::new(&info.endpoint)).await;
    let mut node = oras_csi_driver::proto::csi::node_client::NodeClient::new(channel.clone());
    let answer = node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((answer.node_id.as_str(), answer.max_volumes_per_node), ("node-1", 0));
    assert_eq!(
        node.node_get_capabilities(NodeGetCapabilitiesRequest {})
            .await
            .unwrap()
            .into_inner()
            .capabilities
            .len(),
        1
    );
    let mut identity = IdentityClient::new(channel);
    let plugin = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(plugin.name, "csi.oras.land");
    assert_eq!(identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
    let capabilities = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    assert!(capabilities.into_inner().capabilities.is_empty());
    let told = |plugin_registered, error: &str| RegistrationStatus { plugin_registered, error: error.into() };
    kubelet.notify_registration_status(told(true, "")).await.unwrap();
    drop((kubelet, node, identity));

    let (socket, registration) = (driver.socket.clone(), driver.registration.clone());
    driver.stop().await.unwrap();
    assert!(!socket.exists() && !registration.exists());

    // A driver that kubelet rejects exits, so that it is started again.
    let driver = Running::start().await;
    let mut kubelet = RegistrationClient::new(connect(&driver.registration).await);
    kubelet.notify_registration_status(told(false, "no such\u{1b}[31m node")).await.unwrap();
    drop(kubelet);
    let error = driver.ended().await.unwrap_err();
    assert!(
        matches!(error, RunError::RegistrationRejected(_)) && error.to_string().contains("no such"),
        "{error}"
    );
}

#[tokio::test]
async fn metrics_are_served() {
    if !entered("volumes::metrics_are_served") {
        return;
    }
    let driver = Running::start().await;
    let digest = driver.artifact(b"jar");
    driver.publish(request("csi-1", &driver.target("a"), &digest)).await.unwrap();
    driver.publish(request("csi-2", &driver.target("b"), &digest)).await.unwrap();
    driver.publish(NodePublishVolumeRequest::default()).await.unwrap_err();
    let get = async |path: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(driver.metrics).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
    let text = get("/metrics").await;
    for line in [
        "oras_csi_driver_publishes_total{outcome=\"done\"} 2",
        "oras_csi_driver_publishes_total{outcome=\"refused\"} 1",
        "oras_csi_driver_pulls_total{outcome=\"done\"} 1",
        "oras_csi_driver_volumes 2",
        // The first volume is downloaded, as two blobs. The second one has its files, `jar` and `yaml`, in the store.
        "oras_csi_driver_content_bytes_total{source=\"store\"} 7\n",
        "oras_csi_driver_download_wait_seconds_count{priority=\"pods\"} 2",
        "oras_csi_driver_downloads_waiting{priority=\"pods\"} 0",
        "oras_csi_driver_pull_duration_seconds_count{max_bytes=\"1048576\"} 1",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let received = text
        .lines()
        .find_map(|line| line.strip_prefix("oras_csi_driver_content_bytes_total{source=\"registry\"} "));
    assert!(received.is_some_and(|bytes| bytes.parse::<u64>().unwrap() > 7), "{text}");
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn several_artifacts_are_one_mount() {
    if !entered("volumes::several_artifacts_are_one_mount") {
        return;
    }
    let driver = Running::start().await;
    let (first, second) = (driver.artifact(b"one"), driver.artifact(b"two"));
    let target = driver.target("a");
    let steps = recipe([add(&first), add(&second).at("tokenizer".parse().unwrap())]);
    driver.publish(request_for("csi-1", &target, steps)).await.unwrap();
    assert_eq!(fs::read(target.join("app.jar")).unwrap(), b"one");
    assert_eq!(fs::read(target.join("tokenizer/app.jar")).unwrap(), b"two");
    assert_eq!(mounts(&target).len(), 1);
    driver.stop().await.unwrap();
}

fn label(path: &Path) -> String {
    let mut found = [0; 256];
    let length = rustix::fs::lgetxattr(path, "security.selinux", &mut found[..]);
    length.map_or_else(
        |errno| errno.to_string(),
        |length| String::from_utf8_lossy(&found[..length]).into_owned(),
    )
}

/// The kernel of the test has no SELinux, so it does not pass on the label of a folder.
#[tokio::test]
async fn every_file_of_the_store_has_the_selinux_label_that_was_set() {
    const LABEL: &str = "system_u:object_r:container_file_t:s0";
    if !entered_as_root("volumes::every_file_of_the_store_has_the_selinux_label_that_was_set") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    // What an earlier version left has no label.
    let driver = Running::start_with(folder.clone(), FakeRegistry::new(), |settings| settings).await;
    let before = driver.artifact(b"before");
    let target = driver.target("before");
    driver.publish(request("csi-before", &target, &before)).await.unwrap();
    let registry = driver.registry.clone();
    driver.stop().await.unwrap();

    let driver = Running::start_with(folder, registry, |settings| {
        settings.with_selinux_label(Some(LABEL.parse().unwrap()))
    })
    .await;
    let large = noise(NOISE_SEED, 17 << 20);
    let digest = Artifact::new(&driver.registry)
        .file("file", b"content")
        .file("large", &large)
        .directory("d", &[("below", b"content")])
        .push();
    let after = driver.target("after");
    driver.publish(request("csi-after", &after, &digest)).await.unwrap();
    for path in [
        "before/mount/app.jar",
        "after/mount/file",
        "after/mount/large",
        "after/mount/d",
        "after/mount/d/below",
    ] {
        let path = target.parent().unwrap().parent().unwrap().join(path);
        assert_eq!(label(&path), LABEL, "{}", path.display());
    }
    for path in ["", "trees", "blobs/sha256", "tmp"] {
        assert_eq!(label(&driver.store().join(path)), LABEL, "{path}");
    }
    driver.stop().await.unwrap();
}
