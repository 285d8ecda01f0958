//! No network before policy: a registry and a DNS resolver that record every access, with the registry client that is
//! used in production.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::{Namespaced, default_digest, entries, inline, pod, soon};
use async_trait::async_trait;
use oras_csi_core::registry::guard::HostResolver;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::registry::http::{HttpRegistry, Settings};
use oras_csi_webhook::ResolverSettings;
use oras_csi_webhook::admit::Admission;
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::policy::{NoPolicy, Policies};
use serde_json::{Value, json};

/// Resolves every host to this machine, and records the host names.
#[derive(Debug, Default)]
struct RecordingNames(Mutex<Vec<String>>);

#[async_trait]
impl HostResolver for RecordingNames {
    async fn resolve_host(&self, host: &str) -> std::io::Result<Vec<SocketAddr>> {
        self.0.lock().unwrap().push(host.to_owned());
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))])
    }
}

struct Scene {
    admission: Admission,
    names: Arc<RecordingNames>,
    connections: Arc<AtomicUsize>,
    _certs: tempfile::TempDir,
}

impl Scene {
    /// Two registries at one listener that always answers 404; policies forbid one of them.
    fn open(spec: &Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        std::thread::spawn({
            let connections = Arc::clone(&connections);
            move || {
                for mut client in listener.incoming().flatten() {
                    connections.fetch_add(1, Ordering::SeqCst);
                    let _ = client.read(&mut [0; 4_096]);
                    let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    let _ = client.write_all(answer.as_bytes());
                }
            }
        });
        let certs = tempfile::tempdir().unwrap();
        for host in ["good.example", "evil.example"] {
            let folder = certs.path().join(host);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("hosts.toml"), format!("server = \"http://{host}:{port}\"\n"))
                .unwrap();
        }
        let hosts = HostsConfig::load(Some(certs.path())).unwrap();
        let names = Arc::new(RecordingNames::default());
        let settings = Settings::default().with_resolver(names.clone()).with_proxies(false).with_tries(1);
        let registry = Arc::new(HttpRegistry::new(hosts.clone(), settings));
        let policies = Policies::new(Vec::new(), NoPolicy::Allow, Namespaced);
        policies.set_files(entries(std::slice::from_ref(spec)));
        let admission = Admission::new(
            registry,
            Arc::new(hosts),
            Arc::new(policies),
            ResolverSettings::default(),
            Arc::new(Metrics::new()),
        );
        Self { admission, names, connections, _certs: certs }
    }

    async fn code(&self, pod: &Value) -> u16 {
        let denial = self.admission.admit_pod(pod, "team", soon()).await.unwrap_err();
        denial.code().number()
    }

    fn recorded(&self) -> (usize, usize) {
        (self.names.0.lock().unwrap().len(), self.connections.load(Ordering::SeqCst))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_registry_is_neither_resolved_nor_dialled() {
    let allow = json!({"registries": {"allow": ["good.example"]}});
    let deny = json!({"registries": {"deny": ["evil.example", "*.evil.example"]}});
    for spec in [allow, deny] {
        let scene = Scene::open(&spec);
        let before = scene.recorded();
        assert_eq!(before, (0, 0), "nothing is accessed without a pod");
        assert_eq!(scene.code(&pod(&[("artifact", "good.example/a:1")])).await, 404);
        let (names, connections) = scene.recorded();
        assert!(
            names > 0 && connections > 0,
            "the recording works: {names} lookups, {connections} connections"
        );
        assert_eq!(scene.names.0.lock().unwrap()[0], "good.example");
        let digest = default_digest("x.io/a");
        for forbidden in [
            pod(&[("artifact", "evil.example/a:1")]),
            pod(&[("artifact", "EVIL.example:443/a:1")]),
            pod(&[("artifact", &format!("evil.example/a@{digest}"))]),
            pod(&[("artifact", "good.example/b:1"), ("artifact.x", "evil.example/a:1")]),
            pod(&[("recipe", "- add: good.example/b:1\n- overlay: evil.example/a:1")]),
            inline(&json!({"oras.artifact.reference": "evil.example/a", "oras.options.pullalways": "true"})),
            inline(&json!({"oras-csi.name": "x", "oras-csi.actions": "- add: evil.example/a"})),
        ] {
            assert_eq!(scene.code(&forbidden).await, 403);
        }
        assert_eq!(scene.recorded(), (names, connections));
    }
}
