//! How cost grows with what a node or a cluster has: one axis each.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::api_server::ApiServer;
use crate::content;
use crate::disk::{Disk, Kind};
use crate::driver::{Driver, Volume};
use crate::http::Connection;
use crate::measure::{cpu_seconds, resident, usage_of};
use crate::registry::{NAME, Registry};
use crate::results::{OURS, Results, Section, percentile};
use crate::scale::Scale;
use crate::tools;

const SECTION: &str = "how cost grows";
const API: &str = "/apis/oras.land/v1alpha1";
/// How many artifacts of one small file there are.
const ARTIFACTS: usize = 25;

/// One curve for each thing that is measured along an axis.
struct Axis<'a>(&'a mut Results, &'static str);

impl Axis<'_> {
    fn add(&mut self, x: u64, case: &str, unit: &str, value: f64) -> Result<()> {
        Section::new(self.0, SECTION).add_at(case, OURS, unit, vec![value], Some((self.1, x)))
    }

    /// Adds the median and the CPU of reviews, whose case is named `review`, and the memory of the webhook after them.
    fn add_reviews(&mut self, x: u64, review: &str, (times, cpu): &(Vec<f64>, f64)) -> Result<()> {
        self.add(x, &format!("{review}, p50"), "ms", percentile(times, 50))?;
        self.add(x, &format!("CPU of a {review}"), "ms", *cpu)
    }

    fn add_memory(&mut self, x: u64, webhook: &Webhook) -> Result<()> {
        self.add(x, "memory of the webhook", "MiB", resident(webhook.child.id())?)
    }
}

/// Measures all axes. The files of a tree and the volumes of a node are in the section of the warm driver.
pub(crate) async fn run(results: &mut Results, scale: Scale) -> Result<()> {
    let registry = Registry::start()?;
    let folder = tempfile::Builder::new().prefix("b-").tempdir()?;
    let mut artifacts = Vec::new();
    for number in 0..ARTIFACTS {
        content::write_noise(&folder.path().join("file"), number as u64, 4 << 10)?;
        let repository = format!("s/{number}");
        let pushed = registry.push(&repository, folder.path(), &["file".to_owned()])?;
        artifacts.push((repository, pushed.digest, Some(format!("p{number}"))));
    }
    references(results, &registry, &artifacts).await?;
    policies(results, &registry, scale).await?;
    sets(results, &registry, scale).await?;
    namespaces(results, &registry, scale).await?;
    bytes(results, scale).await
}

/// References a pod: the review, the first publish and a further publish.
async fn references(
    results: &mut Results,
    registry: &Registry,
    artifacts: &[(String, String, Option<String>)],
) -> Result<()> {
    let mut axis = Axis(results, "references of a pod");
    let disk = Disk::new(Kind::Ext4, 4 << 30)?;
    let server = ApiServer::default();
    server.add("/api/v1", None, "namespaces", "team", json!({}));
    let mut webhook = Webhook::start(registry, &server).await?;
    for count in [1, 2, 5, 10, 25] {
        let x = count as u64;
        let annotations: Value = (0..count)
            .map(|number| (format!("oras.land/artifact.p{number}"), json!(format!("{NAME}/s/{number}:v1"))))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let review = review("team", &annotations, &[]);
        webhook.review(&review).await?;
        axis.add_reviews(x, "review", &webhook.reviews(&[review], 300).await?)?;

        let driver = Driver::start(&disk.path(), &format!("driver-{count}"), &registry.certs()).await?;
        let volume = Volume::new(&artifacts[..count]);
        let cold = driver.publish("cold", &volume).await?;
        axis.add(x, "first publish", "ms", 1_000.0 * cold.as_secs_f64())?;
        let mut warm = Vec::new();
        for number in 0..50 {
            warm.push(1_000.0 * driver.publish(&format!("warm-{number}"), &volume).await?.as_secs_f64());
        }
        axis.add(x, "further publish", "ms", percentile(&warm, 50))?;
    }
    Ok(())
}

/// The bytes of one file: the first publish, and the memory of the driver.
async fn bytes(results: &mut Results, scale: Scale) -> Result<()> {
    let mut axis = Axis(results, "bytes of the file");
    for bytes in scale.up_to(64 << 20, &[1 << 10, 1 << 20, 64 << 20, 1 << 30, 10 << 30]) {
        // A registry of its own, so that the largest file is deleted with it.
        let registry = Registry::start()?;
        let folder = tempfile::Builder::new().prefix("b-").tempdir()?;
        content::write_noise(&folder.path().join("file"), 7, bytes)?;
        let pushed = registry.push("bytes", folder.path(), &["file".to_owned()])?;
        drop(folder);
        let disk = Disk::new(Kind::Ext4, bytes + (4 << 30))?;
        let driver = Driver::start(&disk.path(), "driver", &registry.certs()).await?;
        disk.sync()?;
        let before = usage_of(driver.id())?;
        let time = driver.publish("cold", &Volume::of(&pushed.repository, &pushed.digest)).await?;
        let after = usage_of(driver.id())?;
        axis.add(bytes, "from nothing to mounted", "s", time.as_secs_f64())?;
        axis.add(bytes, "CPU of the driver", "s", after.cpu() - before.cpu())?;
        axis.add(bytes, "largest memory of the driver", "MiB", after.peak)?;
    }
    Ok(())
}

/// Policies that all select the namespace of the pod.
async fn policies(results: &mut Results, registry: &Registry, scale: Scale) -> Result<()> {
    let mut axis = Axis(results, "policies");
    for count in scale.up_to(100, &[1, 10, 100, 500]) {
        let server = ApiServer::default();
        server.add("/api/v1", None, "namespaces", "team", json!({}));
        for number in 0..count {
            let spec = json!({"registries": {"allow": [format!("{NAME}/**"), format!("ghcr.io/team-{number}/**")],
                "deny": [format!("{NAME}/attic-{number}/**")]}, "deniedTags": [format!("*-old-{number}")]});
            let policy = json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPolicy", "spec": spec});
            server.add(API, None, "artifactpolicies", &format!("policy-{number}"), policy);
        }
        let mut webhook = Webhook::start(registry, &server).await?;
        let review = review("team", &json!({"oras.land/artifact": format!("{NAME}/s/0:v1")}), &[]);
        webhook.review(&review).await?;
        axis.add_reviews(count, "review", &webhook.reviews(&[review], 500).await?)?;
        axis.add_memory(count, &webhook)?;
    }
    Ok(())
}

/// Sets of one namespace: until all of them are resolved after a start, and a review that names one.
async fn sets(results: &mut Results, registry: &Registry, scale: Scale) -> Result<()> {
    let mut axis = Axis(results, "sets");
    for count in scale.up_to(100, &[1, 10, 100, 1_000]) {
        let server = ApiServer::default();
        server.add("/api/v1", None, "namespaces", "team", json!({}));
        for number in 0..count {
            let reference = format!("{NAME}/s/{}:v1", number as usize % ARTIFACTS);
            let set = json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactSet",
                "spec": {"recipe": [{"add": reference}]}});
            server.add(API, Some("team"), "artifactsets", &format!("set-{number}"), set);
        }
        let begun = Instant::now();
        let mut webhook = Webhook::start(registry, &server).await?;
        while server.changes() < count as usize {
            if begun.elapsed() > Duration::from_mins(3) {
                bail!("only {} of {count} sets are resolved:\n{}", server.changes(), webhook.log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (time, used) = (begun.elapsed(), cpu_seconds(webhook.child.id())?);
        axis.add(count, "start, until all sets are resolved", "s", time.as_secs_f64())?;
        axis.add(count, "CPU of that", "s", used)?;
        let review = review("team", &json!({"oras.land/artifact-set": "set-0"}), &[]);
        webhook.review(&review).await?;
        axis.add_reviews(count, "review", &webhook.reviews(&[review], 300).await?)?;
        axis.add_memory(count, &webhook)?;
    }
    Ok(())
}

/// Namespaces, each with a pull secret of its own, that create pods in turn.
async fn namespaces(results: &mut Results, registry: &Registry, scale: Scale) -> Result<()> {
    let mut axis = Axis(results, "namespaces with credentials");
    for count in scale.up_to(1_000, &[1, 10, 100, 1_000, 10_000]) {
        let server = ApiServer::default();
        let mut reviews = Vec::new();
        for number in 0..count {
            let namespace = format!("team-{number}");
            server.add("/api/v1", None, "namespaces", &namespace, json!({}));
            let config = json!({"auths": {NAME: {"username": format!("user-{number}"), "password": "pass"}}});
            let data = STANDARD.encode(config.to_string());
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
                "data": {".dockerconfigjson": data}});
            server.add("/api/v1", Some(&namespace), "secrets", "pull", secret);
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount"});
            server.add("/api/v1", Some(&namespace), "serviceaccounts", "default", account);
            let annotations = json!({"oras.land/artifact": format!("{NAME}/s/0:v1")});
            reviews.push(review(&namespace, &annotations, &["pull"]));
        }
        let mut webhook = Webhook::start(registry, &server).await?;
        axis.add_reviews(
            count,
            "first review of each namespace",
            &webhook.reviews(&reviews, reviews.len()).await?,
        )?;
        axis.add_reviews(
            count,
            "further review",
            &webhook.reviews(&reviews, 500.max(reviews.len()).min(2_000)).await?,
        )?;
        axis.add_memory(count, &webhook)?;
    }
    Ok(())
}

/// The review of a new pod with annotations and pull secrets.
fn review(namespace: &str, annotations: &Value, secrets: &[&str]) -> Bytes {
    let secrets: Vec<Value> = secrets.iter().map(|name| json!({"name": name})).collect();
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "app", "namespace": namespace, "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "busybox"}], "imagePullSecrets": secrets,
            "serviceAccountName": "default"}});
    let resource = json!({"group": "", "version": "v1", "resource": "pods"});
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "kind": kind, "resource": resource, "requestKind": kind,
        "requestResource": resource, "name": "app", "namespace": namespace, "operation": "CREATE", "dryRun": false,
        "userInfo": {"username": "bench"}, "object": pod, "oldObject": null}});
    Bytes::from(review.to_string())
}

/// The webhook as a process beside the scripted API server, and a connection to it.
struct Webhook {
    child: Child,
    folder: tempfile::TempDir,
    connection: Connection,
}

impl Webhook {
    async fn start(registry: &Registry, server: &ApiServer) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("b-").tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(tools::ours()?);
        command.args(["webhook", "--watch-policies", "--sets=oras-csi-system", "--read-pull-secrets"]);
        command.arg(format!("--listen=127.0.0.1:{port}")).arg(format!("--tls-dir={}", at("tls").display()));
        command.arg(format!("--seal-dir={}", at("seal").display()));
        command.arg(format!("--certs-dir={}", registry.certs().display()));
        let log = File::create(at("log"))?;
        command.env("KUBECONFIG", server.serve(folder.path()).await?);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("cannot start the webhook")?;
        let begun = Instant::now();
        let authority: PathBuf = at("tls").join("ca.crt");
        let is_ready = async || -> Result<Connection> {
            let mut connection = Connection::tls(port, &authority).await?;
            connection.must("GET", "/readyz", &Value::Null).await?;
            Ok(connection)
        };
        loop {
            match is_ready().await {
                Ok(connection) => return Ok(Self { child, folder, connection }),
                Err(error) if begun.elapsed() > Duration::from_mins(1) || child.try_wait()?.is_some() => {
                    let log = std::fs::read_to_string(at("log")).unwrap_or_default();
                    let _ = child.kill();
                    bail!("the webhook is not ready: {error:#}\n{log}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Sends a review, which must be allowed and change the pod.
    async fn review(&mut self, review: &Bytes) -> Result<Duration> {
        let begun = Instant::now();
        let (status, answer) = self.connection.send("POST", "/mutate?timeout=10s", review).await?;
        let time = begun.elapsed();
        if status != 200 || answer["response"]["allowed"] != true || !answer["response"]["patch"].is_string()
        {
            bail!("the review was answered with {status}: {answer}\n{}", self.log());
        }
        Ok(time)
    }

    /// Sends `count` of the reviews in turn; returns their times and the CPU of each, in ms.
    async fn reviews(&mut self, reviews: &[Bytes], count: usize) -> Result<(Vec<f64>, f64)> {
        let before = cpu_seconds(self.child.id())?;
        let mut times = Vec::new();
        for review in reviews.iter().cycle().take(count) {
            times.push(1_000.0 * self.review(review).await?.as_secs_f64());
        }
        let used = cpu_seconds(self.child.id())? - before;
        Ok((times, 1_000.0 * used / count as f64))
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
