//! Runs the commands of the pages that install, operate and uninstall, as a reader copies them.
//!
//! The comment `<!-- run on a node -->` before a block says that this test runs it. Names that stand for something of the
//! reader are replaced: registries, tags, folders of the node. The image of this build is pushed to a registry without TLS,
//! and the node pulls it from there.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use base64::Engine as _;

use oras_csi_tests::blocks::{ON_A_NODE, blocks, script};
use oras_csi_tests::installation::{helm_and_wait, images, wait_until_ready};
use oras_csi_tests::node::{Node, apply, kubelet_dir, phase, until, work};
use oras_csi_tests::parts::{oras_csi, repository, testbed};
use oras_csi_tests::process::{run, try_run};
use serde_json::{Value, json};

use super::{PATIENCE, STAYS, SYSTEM, goes_without_a_trace, pod, says};

/// A reader of the pages, with a folder in which the commands run.
struct Reader {
    folder: tempfile::TempDir,
    /// The names of the pages that stand for something of the reader.
    replacements: Vec<(String, String)>,
}

impl Reader {
    fn new(registry: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let programs = folder.path().join("bin");
        fs::create_dir(&programs).expect("a folder");
        symlink(oras_csi(), programs.join("oras-csi")).expect("a link");
        // Kubelet of this node has a folder and a taint of its own, which the pages cannot know.
        let values = folder.path().join("node.yaml");
        let text = format!(
            "driver: {{kubeletDir: \"{}\", store: \"{}\", startupTaint: true}}\n",
            kubelet_dir().display(),
            work().join("store").display()
        );
        fs::write(&values, text).expect("a file");
        let helm = format!(
            "#!/bin/sh\nif [ \"$1\" = install ]; then set -- \"$@\" --values {}; fi\nexec {} \"$@\"\n",
            values.display(),
            testbed("helm").display()
        );
        fs::write(programs.join("helm"), helm).expect("a program");
        fs::set_permissions(programs.join("helm"), fs::Permissions::from_mode(0o755)).expect("a mode");
        for name in ["deploy", "examples"] {
            symlink(repository().join(name), folder.path().join(name)).expect("a link");
        }
        let (address, port) = registry.rsplit_once(':').expect("a port");
        let image = std::env::var("IMAGES").expect("the image of this build: run `make test-e2e`");
        let dots = address.replace('.', "\\.");
        let store = work().join("store").display().to_string();
        let certs = work().join("certs.d").display().to_string();
        let replacements = [
            (
                "make image PUSH=",
                format!("PLAIN_HTTP=1 {}/deploy/release/push-image {image} ", repository().display()),
            ),
            (" PLAIN_HTTP=1\n", "\n".to_owned()),
            ("10\\.0\\.0\\.2_5000_", format!("{dots}_{port}_")),
            ("10.0.0.2:5000", registry.to_owned()),
            ("registry.example.com/team/oras-csi", format!("{registry}/oras-csi")),
            ("registry.example.com/team", format!("{registry}/team")),
            ("oras push ", "oras push --plain-http ".to_owned()),
            ("busybox:1.37", "localhost/busybox:1".to_owned()),
            ("/etc/containerd/certs.d", certs),
            ("/var/lib/oras-csi ", format!("{store} ")),
            ("image.tag=TAG", "image.tag=next".to_owned()),
        ];
        let replacements = replacements.into_iter().map(|(from, to)| (from.to_owned(), to)).collect();
        Self { folder, replacements }
    }

    /// Runs the blocks of a page in their order, and calls `after` with the commands of each. Returns what they print.
    fn runs(&self, page: &str, mut after: impl FnMut(&str)) -> String {
        let text = fs::read_to_string(repository().join(page)).expect("a page");
        let (mut printed, mut count) = (String::new(), 0);
        let blocks = blocks(page, &text);
        let blocks = blocks.iter().filter(|block| block.mark.as_deref() == Some(ON_A_NODE));
        for block in blocks {
            let commands = self.replace_names(script(block));
            let started = Instant::now();
            let output = self.shell(&commands);
            let words = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            let place = format!("{page}:{}", block.line);
            assert!(
                output.status.success(),
                "{place} ended with {}:\n{words}\n--- script:\n{commands}",
                output.status
            );
            printed.push_str(&words);
            count += 1;
            let ran = started.elapsed();
            after(&commands);
            eprintln!("{place}: {ran:?}, with its effect {:?}", started.elapsed());
        }
        assert!(count > 0, "{page} has no block with <!-- {ON_A_NODE} -->");
        printed
    }

    fn replace_names(&self, mut commands: String) -> String {
        for (from, to) in &self.replacements {
            commands = commands.replace(from, to);
        }
        commands
    }

    fn shell(&self, commands: &str) -> Output {
        let home = self.folder.path();
        let path = [home.join("bin"), home.join(".local/bin")].map(|folder| folder.display().to_string());
        let path = format!("{}:{}", path.join(":"), std::env::var("PATH").unwrap_or_default());
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", commands]).current_dir(home).stdin(Stdio::null());
        shell.env("PATH", path).env("HOME", home).env("DOCKER_CONFIG", home);
        try_run(&mut shell)
    }
}

/// The installation of the other tests. It is made again when the test ends, also if it fails.
struct Others(&'static Node);

impl Drop for Others {
    fn drop(&mut self) {
        let again = || {
            if says(&["get", "namespaces"]).contains(SYSTEM) {
                helm_and_wait("uninstall");
            }
            self.0.install_chart();
        };
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(again));
    }
}

/// The number of CAs in the `caBundle` of the webhook.
fn trusted_authorities() -> usize {
    let path = "jsonpath={.webhooks[0].clientConfig.caBundle}";
    let bundle = says(&["get", "mutatingwebhookconfiguration", "oras-csi", "-o", path]);
    let bundle = base64::engine::general_purpose::STANDARD.decode(bundle).expect("base64");
    String::from_utf8_lossy(&bundle).matches("BEGIN CERTIFICATE").count()
}

/// The ids of the keys of seals that drivers trust.
fn seal_keys() -> Vec<String> {
    let keys = says(&["get", "configmap", "oras-csi-seal", "-n", SYSTEM, "-o", "json"]);
    let keys: Value = serde_json::from_str(&keys).expect("JSON");
    keys["data"].as_object().expect("keys").keys().cloned().collect()
}

#[test]
fn the_pages_uninstall_and_install() {
    let node = Node::get();
    let registry = node.registry().host();
    let reader = Reader::new(&registry);
    let _others = Others(node);
    let words = reader.runs("docs/operate/uninstall.md", |_| {});
    assert!(words.contains("release \"oras-csi\" uninstalled"), "{words}");
    assert!(!says(&["get", "crd", "-o", "name"]).contains("oras.land"), "a custom resource stays");

    let words = reader.runs("docs/install.md", |_| {});
    assert!(words.contains("is pinned to sha256:") && words.contains("condition met\nhello\n"), "{words}");
    assert_eq!(images(), [format!("{registry}/oras-csi:dev")]);
    goes_without_a_trace("hello");
}

#[test]
fn the_pages_about_operation_work_beside_a_pod() {
    let node = Node::get();
    node.push("pages:v1", &[("file", "pages")]);
    apply(&pod("operated", &json!({"oras.land/artifact": "kind-registry:5000/pages:v1"}), STAYS));
    until("the pod runs", PATIENCE, || (phase("operated") == "Running").then_some(()));
    let reader = Reader::new(&node.registry().host());
    let words = reader.runs("docs/operate/status.md", |_| {});
    assert!(words.contains("operated") && words.contains("mounted"), "{words}");
    reader.runs("docs/operate/backup.md", |_| {});
    for file in ["oras-csi-seal.yaml", "artifactpins.yaml"] {
        let text = fs::read_to_string(reader.folder.path().join(file)).expect("the block writes it");
        assert!(text.contains("apiVersion: v1"), "{text}");
    }

    let (before, keys) = (trusted_authorities(), seal_keys());
    reader.runs("docs/operate/rotate.md", |commands| {
        if commands.contains("from-file=ca-previous.crt") {
            until("the new CA is trusted as well", PATIENCE, || {
                (trusted_authorities() > before).then_some(())
            });
        } else if commands.contains("delete secret oras-csi-seal") {
            until("drivers trust the new key of seals", PATIENCE, || {
                (seal_keys().len() > keys.len()).then_some(())
            });
        }
    });
    let now = seal_keys();
    assert!(keys.iter().all(|key| now.contains(key)), "old keys stay: {keys:?} {now:?}");

    run(Command::new(testbed("ctr")).args([
        "images",
        "tag",
        "localhost/oras-csi:dev",
        "localhost/oras-csi:next",
    ]));
    reader.runs("docs/operate/upgrade.md", |commands| {
        let tag = if commands.contains("upgrade") { "next" } else { "dev" };
        until("the pods have the image", PATIENCE, || {
            (images() == [format!("localhost/oras-csi:{tag}")]).then_some(())
        });
        wait_until_ready("webhook", 2);
        wait_until_ready("driver", 1);
    });
    assert_eq!(phase("operated"), "Running");
    goes_without_a_trace("operated");
}
