//! A real node with oras-csi installed on it from the chart, as pods of the image of this build.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::kubectl;
use crate::parts::{repository, testbed};
use crate::process::{run, signal, try_run};
use crate::registry::{Configuration, Distribution, Login, Oras};
use crate::throttle::Throttle;

/// The only image of containers on the node.
const IMAGE: &str = "localhost/busybox:1";

/// The name of the registry of [`Node::push_private`].
pub const PRIVATE: &str = "private.example:5000";
/// The node's registry behind a slow line.
pub const SLOW: &str = "slow.example:5000";
/// Of that line.
const SLOW_BYTES_PER_SECOND: u64 = 2 << 20;
/// How long a publish call waits before it reports the progress of the pull in the pod's events. Short, because the tests
/// wait for it.
const PUBLISH_WAIT: &str = "driver.publishWaitSeconds=5";
const PRIVATE_USER: (&str, &str) = ("reader", "open sesame");

/// The installation, which is made once, its registry `kind-registry:5000`, and a registry with a password.
#[derive(Debug)]
pub struct Node {
    registry: Mutex<Distribution>,
    private: Distribution,
    _slow: Throttle,
    files: tempfile::TempDir,
    /// The values of the chart, as options of helm.
    values: Vec<String>,
}

static NODE: LazyLock<Node> = LazyLock::new(Node::install);

impl Node {
    /// The node of this test run.
    pub fn get() -> &'static Self {
        &NODE
    }

    fn install() -> Self {
        let address = std::env::var("ORAS_CSI_NODE_IP").expect("run `make test-e2e`");
        let registry = Distribution::start_at(&address);
        let private =
            Distribution::start_at_with(&address, Configuration::default().with_htpasswd(&[PRIVATE_USER]));
        let slow = Throttle::start(&address, &registry.host(), SLOW_BYTES_PER_SECOND);
        let files = tempfile::tempdir().expect("a folder");
        let hosts = |name: &str, server: &str| {
            let file = files.path().join(name);
            std::fs::write(&file, format!("server = \"http://{server}\"\n")).expect("writes");
            // Helm takes a dot for the end of a key.
            format!("registries.{}={}", name.replace('.', "\\."), file.display())
        };
        let configured = [
            hosts("kind-registry_5000_", &registry.host()),
            hosts("private.example_5000_", &private.host()),
            hosts("slow.example_5000_", &slow.host()),
            // No program listens on the discard port.
            hosts("unreachable_5000_", &format!("{address}:9")),
        ];
        let configured = configured.into_iter().flat_map(|hosts| ["--set-file".to_owned(), hosts]);
        let values = ["--set".to_owned(), PUBLISH_WAIT.to_owned()].into_iter().chain(configured).collect();
        let node = Self { registry: Mutex::new(registry), private, _slow: slow, files, values };
        node.install_chart();
        node
    }

    /// Runs `helm install`, at first and after `helm uninstall`, and waits until the release is ready.
    pub fn install_chart(&self) {
        self.helm("install", None, &[]);
    }

    /// Runs `helm upgrade` with the values of the installation and more, and waits until the release is ready.
    pub fn upgrade_chart(&self, more: &[&str]) {
        self.helm("upgrade", None, &[&["upgrade"], more].concat());
    }

    /// Runs `helm install` with another chart, the values of the installation and more, and waits until it is ready.
    pub fn install_other_chart(&self, chart: &Path, more: &[&str]) {
        self.helm("install of another chart", Some(chart), more);
    }

    fn helm(&self, what: &str, chart: Option<&Path>, words: &[&str]) {
        let started = Instant::now();
        let mut helm = Command::new(repository().join("tests/testbed/install"));
        if let Some(chart) = chart {
            helm.env("CHART", chart);
        }
        run(helm.args(words).args(&self.values));
        eprintln!("helm {what}: {:?}", started.elapsed());
    }

    /// The registry; one test at a time has it.
    pub fn registry(&self) -> MutexGuard<'_, Distribution> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Returns the login for [`PRIVATE`].
    pub fn private_login() -> Login {
        Login::password(PRIVATE_USER.0, PRIVATE_USER.1)
    }

    /// Pushes a file to [`PRIVATE`].
    pub fn push_private(&self, repository_and_tag: &str, name: &str, content: &str) {
        let folder = tempfile::tempdir_in(self.files.path()).expect("a folder");
        std::fs::write(folder.path().join(name), content).expect("writes");
        let oras = Oras::plain_http().with_login(&self.private.host(), &Self::private_login());
        oras.push(&format!("{}/{repository_and_tag}", self.private.host()), folder.path(), &[name]);
    }

    /// Pushes files with these contents, and gives the digest.
    pub fn push(&self, repository_and_tag: &str, files: &[(&str, &str)]) -> String {
        let folder = tempfile::tempdir_in(self.files.path()).expect("a folder");
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("makes");
            std::fs::write(path, content).expect("writes");
        }
        let mut names: Vec<&str> =
            files.iter().map(|(name, _)| name.split('/').next().expect("a name")).collect();
        names.dedup();
        let typed = names.into_iter().map(|name| match name.rsplit_once('.') {
            Some((_, "jar")) => format!("{name}:application/java-archive"),
            Some((_, "txt")) => format!("{name}:text/plain"),
            _ => name.to_owned(),
        });
        let typed: Vec<String> = typed.collect();
        let typed: Vec<&str> = typed.iter().map(String::as_str).collect();
        self.registry().push(repository_and_tag, folder.path(), &typed)
    }
}

/// The work folder of `tests/testbed/one-node`.
pub fn work() -> PathBuf {
    std::env::var_os("ORAS_CSI_TESTBED_WORK").expect("run `make test-e2e`").into()
}

/// Kubelet's folder.
pub fn kubelet_dir() -> PathBuf {
    std::env::var_os("ORAS_CSI_KUBELET_DIR").expect("run `make test-e2e`").into()
}

/// Runs `meanwhile` while kubelet does not run.
pub fn without_kubelet(meanwhile: impl FnOnce()) {
    without("kubelet", meanwhile);
}

/// Kills a component of the node with SIGKILL, runs `meanwhile`, and starts the component again.
pub fn without(component: &str, meanwhile: impl FnOnce()) {
    // While this file exists, the component is not started again.
    let (rests, number) =
        (work().join(format!("{component}-rests")), work().join(format!("{component}.pid")));
    std::fs::write(&rests, "").expect("writes");
    let before = std::fs::read_to_string(&number).expect("the component runs");
    signal(before.trim().parse().expect("a process"), "KILL");
    // No help from `until`, which asks the API server if it fails: that may be the component.
    let wait = |what: &str, wanted: bool| {
        let started = Instant::now();
        while std::fs::read_to_string(&number).is_ok_and(|now| !now.is_empty()) != wanted {
            assert!(started.elapsed() < Duration::from_secs(30), "{component} {what}: not in 30 s");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait("has ended", false);
    meanwhile();
    std::fs::remove_file(rests).expect("it was written");
    wait("starts", true);
}

/// Does to volumes what a reboot does: kills kubelet and every container, removes the driver's mounts, and starts kubelet.
pub fn reboot() {
    without_kubelet(end_containers_and_mounts);
}

fn end_containers_and_mounts() {
    let ctr = |words: &[&str]| try_run(Command::new(testbed("ctr")).args(words));
    let tasks = || {
        let words = String::from_utf8_lossy(&ctr(&["tasks", "ls"]).stdout).into_owned();
        let running = words.lines().filter(|line| line.ends_with("RUNNING"));
        running.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect::<Vec<_>>()
    };
    for task in tasks() {
        ctr(&["tasks", "kill", "-s", "KILL", &task]);
    }
    until("all containers have ended", Duration::from_secs(30), || tasks().is_empty().then_some(()));
    let store = work().join("store");
    let ours = |line: &str| {
        let path = line.split(' ').nth(4)?.to_owned();
        (path.contains("/volumes/kubernetes.io~csi/") || path.starts_with(store.to_str()?)).then_some(path)
    };
    for path in mounts(&[]).iter().rev().filter_map(|line| ours(line)) {
        run(Command::new("umount").arg(path));
    }
}

/// Makes every container of a pod or of a workload's template run on the node's own image.
pub fn on_this_node(mut document: Value) -> Value {
    fn visit(value: &mut Value) {
        match value {
            Value::Object(map) => {
                if map.contains_key("image") {
                    map.insert("image".into(), json!(IMAGE));
                    map.insert("imagePullPolicy".into(), json!("Never"));
                }
                map.values_mut().for_each(visit);
            }
            Value::Array(list) => list.iter_mut().for_each(visit),
            _ => {}
        }
    }
    visit(&mut document);
    document
}

/// Runs `kubectl apply -f -`.
pub fn try_apply(document: &Value) -> Output {
    try_apply_with(&[], document)
}

/// Waits until the webhook answers for a pod, which is not created. After a restart of kubelet, or without its configuration,
/// the webhook is not ready for some seconds, and its Service has no endpoint.
pub fn wait_until_admitted(pod: &Value) {
    until("the webhook answers", Duration::from_mins(1), || {
        try_apply_with(&["--dry-run=server"], pod).status.success().then_some(())
    });
}

fn try_apply_with(options: &[&str], document: &Value) -> Output {
    let mut child = kubectl(&[&["apply", "-f", "-"], options].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(document.to_string().as_bytes()).expect("kubectl reads");
    drop(stdin);
    child.wait_with_output().expect("kubectl ends")
}

/// Runs `kubectl apply -f -`, which must succeed; returns its output with warnings.
pub fn apply(document: &Value) -> String {
    let output = try_apply(document);
    let words =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words}");
    words
}

/// Runs `kubectl apply -f -`, which must be refused; returns the message.
pub fn refused(document: &Value) -> String {
    let output = try_apply(document);
    assert!(!output.status.success(), "admitted: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Calls `ask` every 100 ms until it returns a value; fails after `patience` with the state of the cluster.
pub fn until<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        if started.elapsed() > patience {
            let pods = try_run(&mut kubectl(&["get", "pods", "--all-namespaces", "-o", "wide"]));
            let events =
                try_run(&mut kubectl(&["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"]));
            let text = |output: Output| String::from_utf8_lossy(&output.stdout).into_owned();
            panic!("{what}: not in {patience:?}\n{}\n{}", text(pods), text(events));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The phase of a pod of the default namespace.
pub fn phase(pod: &str) -> String {
    let output = try_run(&mut kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.phase}"]));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until a pod has succeeded; returns its output.
pub fn logs_of_finished(pod: &str) -> String {
    until(&format!("{pod} has run"), Duration::from_mins(2), || match phase(pod).as_str() {
        "Succeeded" => Some(()),
        "Failed" => panic!("{pod} failed:\n{}", logs(pod)),
        _ => None,
    });
    logs(pod)
}

/// Returns the output of a pod.
pub fn logs(pod: &str) -> String {
    run(&mut kubectl(&["logs", pod, "--all-containers"]))
}

/// The messages of a pod's events.
pub fn events(pod: &str) -> String {
    let selector = format!("involvedObject.name={pod}");
    run(&mut kubectl(&[
        "get",
        "events",
        "--field-selector",
        &selector,
        "-o",
        "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}",
    ]))
}

/// Mounts of this node at whose path all of `parts` occur, as lines of mountinfo.
pub fn mounts(parts: &[&str]) -> Vec<String> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").expect("it is there");
    let lines = mountinfo.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
    lines.map(str::to_owned).collect()
}
