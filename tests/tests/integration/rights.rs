//! Two tenants of a private registry on one node: the driver as a process, over its socket, without mounts.
//!
//! `driver/tests` covers mounts. These tests cover errors of the registry, real tokens, and all files that the driver
//! writes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_driver::proto::csi::node_client::NodeClient;
use oras_csi_driver::proto::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode};
use oras_csi_driver::proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability};
use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::Running;
use oras_csi_tests::registry::files::one_file;
use oras_csi_tests::registry::tenants::{behind, push_as_admin, rules};
use oras_csi_tests::registry::{Distribution, Login, TokenService};
use tonic::transport::Endpoint;
use tonic::{Code, Status};

const NAME: &str = "private.example:5000";

struct Node {
    folder: tempfile::TempDir,
    certs: tempfile::TempDir,
    driver: Option<Running>,
}

impl Node {
    fn start(registry: &Distribution) -> Self {
        let certs = registry.certs_d(&[NAME]);
        let mut node = Self { folder: tempfile::tempdir().expect("a folder"), certs, driver: None };
        node.start_again();
        node
    }

    fn start_again(&mut self) {
        self.driver = None;
        let folder = self.folder.path();
        let mut command = Command::new(oras_csi());
        command.args(["driver", "--node-id=node"]).env("RUST_LOG", "trace");
        command.arg(format!("--kubelet-dir={}", folder.join("kubelet").display()));
        command.arg(format!("--store={}", folder.join("store").display()));
        command.arg(format!("--certs-dir={}", self.certs.path().display()));
        let mut driver = Running::start(&mut command, "driver", folder);
        let socket = self.socket();
        driver.wait_until("listening", Duration::from_secs(30), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        self.driver = Some(driver);
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("kubelet/plugins/csi.oras.land/csi.sock")
    }

    async fn client(&self) -> NodeClient<tonic::transport::Channel> {
        let endpoint =
            Endpoint::from_shared(format!("unix://{}", self.socket().display())).expect("an address");
        NodeClient::new(endpoint.connect().await.expect("it listens"))
    }

    async fn publish(
        &self,
        volume: &str,
        digest: &str,
        login: Option<(&str, &str)>,
    ) -> Result<String, Status> {
        let target = self.folder.path().join("kubelet/pods").join(volume).join("mount");
        fs::create_dir_all(target.parent().expect("it has one")).expect("a folder");
        let reference = Reference::parse(&format!("{NAME}/team-a/app")).expect("a reference");
        let pinned = reference.pin(digest.parse().expect("a digest"));
        let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).expect("a recipe");
        let canonical = CanonicalVolume::new(None, recipe).expect("it fits");
        let ours = canonical.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value));
        let namespace = ("csi.storage.k8s.io/pod.namespace".to_owned(), "default".to_owned());
        let secrets = login.map(|(user, password)| {
            let config = Login::password(user, password).docker_config(NAME).to_string();
            HashMap::from([(".dockerconfigjson".to_owned(), config)])
        });
        let request = NodePublishVolumeRequest {
            volume_id: volume.to_owned(),
            target_path: target.to_str().expect("it is text").to_owned(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode { mode: access_mode::Mode::SingleNodeWriter.into() }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            volume_context: ours.chain([namespace]).collect(),
            secrets: secrets.unwrap_or_default(),
            ..Default::default()
        };
        self.client().await.node_publish_volume(request).await?;
        let mounted = fs::read_to_string(target.join("app.jar")).expect("it is there");
        let unpublish = NodeUnpublishVolumeRequest {
            volume_id: volume.to_owned(),
            target_path: target.to_str().expect("it is text").to_owned(),
        };
        self.client().await.node_unpublish_volume(unpublish).await?;
        Ok(mounted)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_share_cached_bytes_and_not_pull_permission() {
    let service = TokenService::start(rules());
    let (mut registry, files) = (behind(&service), one_file());
    let digest = push_as_admin(&registry, "team-a/app", files.path());
    let mut node = Node::start(&registry);
    let (a, b) = (Some(("a", "secret of a")), Some(("b", "secret of b")));

    let refused = async |node: &Node, login, code: Code| {
        let status = node.publish("refused", &digest, login).await.expect_err("refused");
        assert_eq!(status.code(), code, "{status}");
        status.message().to_owned()
    };
    let cold = refused(&node, b, Code::PermissionDenied).await;
    let mounted = node.publish("of-a", &digest, a).await.expect("a may");
    // From here on the bytes are cached. B does not learn that; nor does any tenant after a restart.
    assert_eq!(refused(&node, b, Code::PermissionDenied).await, cold);
    node.start_again();
    for login in [b, Some(("a", "guessed")), None] {
        let words = refused(&node, login, Code::PermissionDenied).await;
        eprintln!("{words}");
    }
    assert_eq!(node.publish("of-a-again", &digest, a).await.expect("a may"), mounted);

    // Without the registry only credentials that it accepted recently are authorized.
    registry.stop();
    assert_eq!(node.publish("of-a-offline", &digest, a).await.expect("it was let in"), mounted);
    let words = refused(&node, b, Code::Unavailable).await;
    assert!(words.contains("were not accepted since the driver started"), "{words}");
    node.start_again();
    refused(&node, a, Code::Unavailable).await;
    registry.start_again();
    assert_eq!(node.publish("of-a-at-last", &digest, a).await.expect("a may"), mounted);

    // The log with its most verbose level, and the store.
    let mut seen = 0;
    look_through(node.folder.path(), &mut |path, text| {
        seen += 1;
        for secret in ["secret of", "guessed", "c2VjcmV0IG9m", "NlY3JldCBvZ", "zZWNyZXQgb2"] {
            assert!(!text.contains(secret), "{secret} in {}", path.display());
        }
    });
    assert!(seen > 5, "{seen}");
}

fn look_through(folder: &Path, see: &mut dyn FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).expect("it is there") {
        let entry = entry.expect("it is there");
        match entry.file_type().expect("it has one") {
            kind if kind.is_dir() => look_through(&entry.path(), see),
            kind if kind.is_file() => {
                let bytes = fs::read(entry.path()).expect("it is there");
                see(&entry.path(), &String::from_utf8_lossy(&bytes));
            }
            _ => {}
        }
    }
}
