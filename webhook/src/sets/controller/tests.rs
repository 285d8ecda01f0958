//! The controller with an API server in memory: which sets are resolved while others wait for a registry.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use oras_csi_testkit::api_server::ApiServer;
use serde_json::{Value, json};
use tokio::time::{sleep, sleep_until};

use super::super::Resolved;
use super::*;
use crate::denial::{At, Code, Denial};

/// Resolves the sets of namespaces whose name begins with `calm`. For others the registry never answers.
#[derive(Default)]
struct HalfDeadRegistry {
    tries: Mutex<BTreeMap<String, usize>>,
    waiting: AtomicUsize,
    most_waiting: AtomicUsize,
}

#[async_trait]
impl SetResolver for HalfDeadRegistry {
    async fn resolve_set(&self, set: SetToResolve<'_>, deadline: Instant) -> Result<Resolved, Denial> {
        *self.tries.lock().unwrap().entry(set.name.to_owned()).or_default() += 1;
        if set.namespace.is_some_and(|namespace| namespace.starts_with("calm")) {
            return Ok(Resolved { recipe: "[]".into(), id: "id".into(), references: Vec::new() });
        }
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_waiting.fetch_max(waiting, Ordering::SeqCst);
        sleep_until(deadline).await;
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Err(Denial::new(Code::Unavailable, At::Field("spec.recipe"), None, "did not answer", "try again"))
    }
}

struct Scene {
    server: ApiServer,
    registry: Arc<HalfDeadRegistry>,
    shutdown: CancellationToken,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn path(namespace: &str, name: &str) -> String {
    format!("/apis/oras.land/v1alpha1/namespaces/{namespace}/artifactsets/{name}")
}

fn set(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactSet",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("{namespace}/{name}"), "generation": 1},
        "spec": {"recipe": [{"add": "r.io/model:v1"}]}})
}

impl Scene {
    /// Starts the controller with `count` sets in each namespace.
    fn new<'a>(namespaces: impl IntoIterator<Item = &'a String>, count: usize) -> Self {
        let server = ApiServer::new();
        server.edit(|objects| {
            for namespace in namespaces {
                for number in 0..count {
                    let name = format!("{namespace}-{number}");
                    objects.insert(path(namespace, &name), set(namespace, &name));
                }
            }
        });
        let scene = Self { server, registry: Arc::default(), shutdown: CancellationToken::new() };
        run_controller(&scene.server.client(), &scene.registry, &scene.shutdown, &TaskTracker::new());
        scene
    }

    /// Creates a set in the namespace `calm`, and returns how long it takes until it is resolved.
    async fn time_to_resolve_another(&self) -> Duration {
        let (path, started) = (path("calm", "model"), Instant::now());
        self.server.put(&path, set("calm", "model"));
        while self.server.get(&path).is_none_or(|set| set["status"]["recipe"].is_null()) {
            assert!(started.elapsed() < Duration::from_mins(10), "the set is never resolved");
            sleep(Duration::from_millis(100)).await;
        }
        started.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn sets_of_one_namespace_at_a_dead_registry_do_not_delay_those_of_another() {
    let scene = Scene::new([&"noisy".to_owned()], 400);
    for _ in 0..2 {
        sleep(Duration::from_secs(2)).await;
        assert!(scene.time_to_resolve_another().await < Duration::from_secs(3));
        scene.server.remove(&path("calm", "model"));
        sleep(Duration::from_mins(5)).await;
    }
    assert_eq!(scene.registry.most_waiting.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn sets_that_failed_leave_places_to_others_also_if_they_are_of_many_namespaces() {
    let namespaces: Vec<String> = (0..40).map(|number| format!("noisy-{number}")).collect();
    let scene = Scene::new(&namespaces, 10);
    sleep(Duration::from_mins(10)).await;
    assert_eq!(scene.registry.tries.lock().unwrap().len(), 400, "each was tried");
    assert!(scene.time_to_resolve_another().await < Duration::from_secs(3));
}

/// The retries of a namespace do not take all of its turns.
#[tokio::test(start_paused = true)]
async fn every_set_of_a_namespace_has_its_turn() {
    let scene = Scene::new([&"noisy".to_owned()], 100);
    // Each turn of four sets takes 20 s, and retries have half of the turns.
    sleep(Duration::from_secs(2 * 20 * 100 / 4)).await;
    let tries = scene.registry.tries.lock().unwrap();
    assert_eq!(tries.len(), 100);
    assert!(tries.values().any(|tries| *tries > 1), "and those that failed are tried again");
}
