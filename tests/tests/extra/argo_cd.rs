//! Argo CD: its application-controller compares and applies the manifests of a git repository.

use std::path::Path;
use std::process::Command;

use oras_csi_tests::admission::Cluster;
use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::parts::testbed;
use oras_csi_tests::process::{Running, free_port, listens, run};
use rstest::rstest;
use serde_json::{Value, json};

use crate::manifests::{all_stored, manifests, move_tag, write};
use crate::programs::{PATIENCE, apply, install_definitions, stored, wait_until};

/// How often the same manifests are compared and applied after they were applied.
const ROUNDS: usize = 3;
const NAMESPACE: &str = "argocd";

/// How Argo CD compares and applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// As installed: it compares by itself, and applies as `kubectl apply`.
    Default,
    /// The API server compares: `ServerSideDiff=true`.
    ServerSideDiff,
    /// The API server also applies: `ServerSideApply=true`.
    ServerSideApply,
}

/// The parts of Argo CD without its API and its user interface. They act on every namespace.
struct ArgoCd {
    controller: Running,
    _repositories: Running,
    _redis: Running,
    _folder: tempfile::TempDir,
}

impl ArgoCd {
    fn start() -> Self {
        install_definitions("argocd.yaml");
        apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}), &[]);
        let labels = json!({"app.kubernetes.io/part-of": "argocd"});
        for (kind, name) in [("ConfigMap", "argocd-cm"), ("Secret", "argocd-secret")] {
            apply(
                &json!({"apiVersion": "v1", "kind": kind,
                    "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}}),
                &[],
            );
        }
        let any = json!([{"group": "*", "kind": "*"}]);
        apply(
            &json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "AppProject",
                "metadata": {"name": "default", "namespace": NAMESPACE},
                "spec": {"sourceRepos": ["*"], "destinations": [{"namespace": "*", "server": "*"}],
                    "clusterResourceWhitelist": any}}),
            &[],
        );
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path();
        let (redis_port, repositories_port) = (free_port(), free_port());
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &redis_port.to_string(), "--save", "", "--dir"])
            .arg(at);
        let mut redis = Running::start(&mut command, "redis", at);
        redis.wait_until("serving", PATIENCE, || listens(redis_port));
        let start = |name: &str, arguments: &[String]| {
            let mut command = Command::new(testbed("argocd"));
            command
                .env("ARGOCD_BINARY_NAME", name)
                .env("HOSTNAME", "argocd-0")
                .env("HOME", at)
                .env("TMPDIR", at);
            command.envs([("ARGOCD_FAKE_IN_CLUSTER", "true"), ("ARGOCD_GPG_ENABLED", "false")]);
            command.env("ARGOCD_TLS_DATA_PATH", at.join("tls")).env("ARGOCD_SSH_DATA_PATH", at.join("ssh"));
            command.env("ARGOCD_ASK_PASS_SOCK", at.join("ask-pass")).current_dir(at);
            command.arg(format!("--redis=127.0.0.1:{redis_port}")).args(arguments);
            Running::start(&mut command, name, at)
        };
        let mut repositories = start(
            "argocd-repo-server",
            &[
                "--disable-tls".to_owned(),
                "--address=127.0.0.1".to_owned(),
                "--metrics-address=127.0.0.1".to_owned(),
                format!("--port={repositories_port}"),
                format!("--metrics-port={}", free_port()),
            ],
        );
        repositories.wait_until("serving", PATIENCE, || listens(repositories_port));
        let controller = start(
            "argocd-application-controller",
            &[
                format!("--kubeconfig={}", std::env::var("KUBECONFIG").expect("it is set")),
                format!("--namespace={NAMESPACE}"),
                format!("--metrics-port={}", free_port()),
                format!("--repo-server=127.0.0.1:{repositories_port}"),
                "--repo-server-plaintext".to_owned(),
            ],
        );
        Self { controller, _repositories: repositories, _redis: redis, _folder: folder }
    }

    /// Returns the errors in the log of the controller.
    fn errors(&self) -> Vec<String> {
        let is_error =
            |line: &&str| line.contains("\"level\":\"error\"") || line.contains("\"level\":\"fatal\"");
        self.controller.output().lines().filter(is_error).map(str::to_owned).collect()
    }
}

/// Makes a git repository from the files of a folder.
fn commit(folder: &Path) {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=test", "-c", "user.email=test@example.org", "-C"]).arg(folder);
        command.args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null");
        run(&mut command);
    };
    git(&["init", "--quiet", "--initial-branch=main"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "--message=manifests"]);
}

/// Returns the state of each object, as `Pod/inline: Synced`.
fn states(application: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let resources = application["status"]["resources"].as_array().cloned().unwrap_or_default();
    let mut states: Vec<String> = resources
        .iter()
        .map(|found| format!("{}/{}: {}", word(&found["kind"]), word(&found["name"]), word(&found["status"])))
        .collect();
    states.sort();
    states
}

/// Applies the manifests (a sync), then compares them again (a hard refresh). Returns the application.
fn sync(name: &str, round: &str) -> Value {
    let info = json!([{"name": "round", "value": round}]);
    let operation = json!({"operation": {"info": info, "initiatedBy": {"username": "test"},
        "sync": {"syncOptions": stored("application", NAMESPACE, name)["spec"]["syncPolicy"]["syncOptions"]}}});
    let patch = ["patch", "application", name, "--namespace", NAMESPACE, "--type=merge", "-p"];
    let begin = || run(kubectl(&patch).arg(operation.to_string()));
    begin();
    wait_until("the manifests were applied", || {
        let application = stored("application", NAMESPACE, name);
        let state = &application["status"]["operationState"];
        let is_meant = state["operation"]["info"] == info;
        // A controller that has just started does not know its projects yet.
        let message = state["message"].as_str().unwrap_or_default();
        if is_meant && message.contains("project default which does not exist") {
            begin();
            return Err(message.to_owned());
        }
        assert!(!is_meant || state["phase"] != "Failed" && state["phase"] != "Error", "{state}");
        if is_meant && state["phase"] == "Succeeded" {
            Ok(())
        } else {
            Err(application["status"].to_string())
        }
    });
    let refresh = "argocd.argoproj.io/refresh";
    let hard = format!("{refresh}=hard");
    run(&mut kubectl(&["annotate", "--overwrite", "application", name, "--namespace", NAMESPACE, &hard]));
    wait_until("the manifests were compared", || {
        let application = stored("application", NAMESPACE, name);
        let is_done = application["metadata"]["annotations"].get(refresh).is_none();
        if is_done { Ok(application) } else { Err(application["status"].to_string()) }
    })
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn argo_cd_syncs_the_same_manifests(
    #[values(Mode::Default, Mode::ServerSideDiff, Mode::ServerSideApply)] mode: Mode,
) {
    let test = format!("argo-{mode:?}").to_lowercase();
    let mut cluster = Cluster::start(&test, &[]).await;
    let user = manifests(&test);
    let folder = tempfile::tempdir().expect("a folder");
    write(&user, folder.path());
    commit(folder.path());
    let argo = ArgoCd::start();
    let annotations = match mode {
        Mode::Default => json!({}),
        _ => json!({"argocd.argoproj.io/compare-options": "ServerSideDiff=true"}),
    };
    let options = if mode == Mode::ServerSideApply { json!(["ServerSideApply=true"]) } else { json!([]) };
    let application = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Application",
        "metadata": {"name": test, "namespace": NAMESPACE, "annotations": annotations},
        "spec": {"project": "default",
            "source": {"repoURL": format!("file://{}", folder.path().display()), "path": ".",
                "targetRevision": "HEAD"},
            "destination": {"server": "https://kubernetes.default.svc", "namespace": test},
            "syncPolicy": {"syncOptions": options}}});
    apply(&application, &[]);
    sync(&test, "first");
    if mode == Mode::ServerSideApply {
        // The first server-side apply of a PersistentVolumeClaim that exists writes it once, also without this webhook.
        sync(&test, "settled");
    }

    let first = all_stored(&user);
    assert!(first[0]["spec"]["csi"].to_string().contains(&cluster.digest), "{}", first[0]);
    for round in 1..=ROUNDS {
        move_tag(&mut cluster, &format!("moved {round}"));
        let application = sync(&test, &round.to_string());
        for (now, before) in all_stored(&user).iter().zip(&first) {
            assert_eq!(now, before, "round {round}");
        }
        let differ: Vec<String> =
            states(&application).into_iter().filter(|state| !state.ends_with(": Synced")).collect();
        assert_eq!(states(&application).len(), user.len(), "{application}");
        let expected = match mode {
            // It compares with the manifest, and the attributes of the user are not in the objects.
            Mode::Default => {
                vec![format!("PersistentVolume/{test}: OutOfSync"), "Pod/inline: OutOfSync".to_owned()]
            }
            Mode::ServerSideDiff | Mode::ServerSideApply => Vec::new(),
        };
        assert_eq!(differ, expected, "round {round}: {:?}", states(&application));
    }
    assert_eq!(argo.errors(), Vec::<String>::new());
    run(&mut kubectl(&["delete", "application", &test, "--namespace", NAMESPACE]));
    cluster.webhook.uninstall(&cluster.client).await;
}
