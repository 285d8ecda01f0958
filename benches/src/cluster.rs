//! In a real cluster of one node (`tests/testbed/one-node`): what the webhook adds to the creation of a pod, and how long
//! a pod waits for its volume, beside an image volume of containerd with the same bytes.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::content::{self, Packing};
use crate::disk::run as run_command;
use crate::http::Connection;
use crate::registry::{NAME, Registry};
use crate::results::{OURS, Results, Series};
use crate::scale::{self, Scale};
use crate::tools;

const SECTION: &str = "in the cluster";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn series(case: &str, program: &str, unit: &str, values: Vec<f64>) -> Series {
    let (section, case, program, unit) = (SECTION.into(), case.into(), program.into(), unit.into());
    Series { section, case, program, unit, values, x: None, axis: None }
}

/// `kubectl proxy`: the API server without TLS, for a client that sends many requests over one connection.
struct Proxy(Child, u16);

impl Proxy {
    fn start() -> Result<Self> {
        let mut command = Command::new(tools::testbed("kubectl")?);
        let mut child = command.args(["proxy", "--port=0"]).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("kubectl has an output")?).read_line(&mut line)?;
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.with_context(|| format!("kubectl proxy printed \"{line}\", which has no port"))?;
        Ok(Self(child, port))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures all of it.
pub(crate) async fn run(results: &mut Results, scale: Scale) -> Result<()> {
    let address = std::env::var("ORAS_CSI_NODE_IP").context("there is no node: run benches/cluster")?;
    let registry = Registry::start_at(&address)?;
    let proxy = Proxy::start()?;
    let mut api = Connection::plain(proxy.1).await?;
    let count = scale.pick(200, 50);

    // No scheduler takes these pods, so that only their creation is measured.
    let plain = |name: &str| pod(name, "none", &json!({}), &json!([]));
    let without = create(&mut api, count, "without", plain).await?;
    let hosts = registry.certs().join(NAME).join("hosts.toml");
    let mut install = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/testbed/install"));
    install.arg("--set-file").arg(format!("registries.{}={}", NAME.replace('.', "\\."), hosts.display()));
    run_command(&mut install)?;
    push(&registry, "created", 0, 1 << 20)?;
    let annotations = json!({"oras.land/artifact": format!("{NAME}/created:v1")});
    let asking = |name: &str| pod(name, "none", &annotations, &json!([]));
    create(&mut api, 1, "warm-up", asking).await?;
    let beside = create(&mut api, count, "beside", plain).await?;
    let with = create(&mut api, count, "with", asking).await?;
    let case = "creation of a pod";
    results.add(&series(case, "limit: no webhook", "ms", without))?;
    results.add(&series(case, "pod without an artifact", "ms", beside))?;
    results.add(&series(case, OURS, "ms", with))?;

    ready(results, &registry, &mut api, scale).await
}

/// Pushes an archive of files, half of them text.
fn push(registry: &Registry, repository: &str, seed: u64, bytes: u64) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("b-").tempdir()?;
    let file = folder.path().join("archive");
    let add = |to: &mut content::Archive<'_>| content::append_files(to, seed, bytes / 16, 16);
    let diff = content::write_archive(&file, Packing::Gzip, add)?;
    registry.push_archive(repository, &file, Packing::Gzip, &diff).map(|_| ())
}

fn pod(name: &str, scheduler: &str, annotations: &Value, volumes: &Value) -> Value {
    let mounts = if volumes.as_array().is_some_and(Vec::is_empty) {
        json!([])
    } else {
        json!([{"name": "data", "mountPath": "/mnt/data"}])
    };
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
        "spec": {"schedulerName": scheduler, "terminationGracePeriodSeconds": 0, "volumes": volumes,
            "containers": [{"name": "app", "image": "localhost/busybox:1", "imagePullPolicy": "Never",
                "command": ["sleep", "1000000"], "volumeMounts": mounts}]}})
}

/// Creates pods in turn; returns the time of each in ms.
async fn create(
    api: &mut Connection,
    count: usize,
    name: &str,
    pod: impl Fn(&str) -> Value,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for number in 0..count {
        let body = pod(&format!("{name}-{number}"));
        let begun = Instant::now();
        api.must("POST", PODS, &body).await?;
        times.push(1_000.0 * begun.elapsed().as_secs_f64());
        delete(api, &format!("{name}-{number}")).await?;
    }
    Ok(times)
}

async fn delete(api: &mut Connection, name: &str) -> Result<()> {
    let options = json!({"gracePeriodSeconds": 0});
    api.must("DELETE", &format!("{PODS}/{name}"), &options).await.map(|_| ())
}

/// Creates pods on the node, each with content that the node does not have, and then each again.
async fn ready(results: &mut Results, registry: &Registry, api: &mut Connection, scale: Scale) -> Result<()> {
    let bytes: u64 = scale.pick(256 << 20, 32 << 20);
    let size = scale::bytes(bytes);
    let mut times: [Vec<f64>; 6] = Default::default();
    for round in 0..scale.pick(5, 2) {
        let repository = format!("round-{round}");
        push(registry, &repository, 1 + round, bytes)?;
        let annotations = json!({"oras.land/artifact": format!("{NAME}/{repository}:v1")});
        let image = json!([{"name": "data", "image": {"reference": registry.reference(&format!("{repository}:image"))}}]);
        let ours = |name: &str| pod(name, "default-scheduler", &annotations, &json!([]));
        let theirs = |name: &str| pod(name, "default-scheduler", &json!({}), &image);
        let plain = |name: &str| pod(name, "default-scheduler", &json!({}), &json!([]));
        let name = |what: &str| format!("{what}-{round}");
        let pods = [
            plain(&name("nothing")),
            ours(&name("first")),
            theirs(&name("first-image")),
            plain(&name("nothing-again")),
            ours(&name("further")),
            theirs(&name("further-image")),
        ];
        for (pod, times) in pods.iter().zip(&mut times) {
            times.push(until_ready(api, pod).await?);
        }
        for pod in &pods {
            delete(api, pod["metadata"]["name"].as_str().unwrap_or_default()).await?;
        }
    }
    let (first, second) = (format!("first pod, {size} tar+gzip"), format!("further pod, {size} tar+gzip"));
    let programs = [("limit: no volume", &first), (OURS, &first), ("image volume", &first)];
    let programs = programs.into_iter().chain(programs.map(|(program, _)| (program, &second)));
    for ((program, case), values) in programs.zip(times) {
        results.add(&series(case, program, "s", values))?;
    }
    Ok(())
}

/// Creates a pod; returns the seconds until it is ready.
async fn until_ready(api: &mut Connection, pod: &Value) -> Result<f64> {
    let name = pod["metadata"]["name"].as_str().context("a pod has a name")?.to_owned();
    let begun = Instant::now();
    api.must("POST", PODS, pod).await?;
    loop {
        let (_, found) = api.send("GET", &format!("{PODS}/{name}"), &Bytes::new()).await?;
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
            return Ok(begun.elapsed().as_secs_f64());
        }
        if begun.elapsed() > Duration::from_mins(3) {
            let events = run_command(Command::new(tools::testbed("kubectl")?).args(["get", "events"]))?;
            bail!("the pod {name} is not ready: {}\n{events}", found["status"]);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
