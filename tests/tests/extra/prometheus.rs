//! Prometheus itself: it loads the alerts of the chart, scrapes the running webhook and driver, and evaluates every
//! expression of the alerts and of the dashboard.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_tests::admission::{Cluster, pod};
use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::driver::{Driver, cannot_mount};
use oras_csi_tests::monitoring::{alerts, dashboard, dashboard_expressions, rules_path, without_variables};
use oras_csi_tests::openmetrics::to_text_format;
use oras_csi_tests::parts::{repository, testbed};
use oras_csi_tests::process::{Running, free_port, http_get, listens, run, try_run};
use serde_json::{Value, json};

use crate::picture::{Line, Panel, draw};
use crate::programs::{PATIENCE, install_definitions, text, wait_until};

/// A Prometheus that scrapes a webhook and a driver each second.
struct Prometheus {
    running: Running,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(webhook: &str, ca: &Path, driver: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules_path()],
            "scrape_configs": [
                {"job_name": "oras-csi-webhook", "scheme": "https", "tls_config": {"ca_file": ca},
                    "static_configs": [{"targets": [webhook]}]},
                {"job_name": "oras-csi-driver", "static_configs": [{"targets": [driver]}]},
            ],
        });
        let path = folder.path().join("prometheus.yaml");
        std::fs::write(&path, config.to_string()).expect("writes");
        run(Command::new(testbed("promtool")).args(["check", "config"]).arg(&path));
        let port = free_port();
        let mut command = Command::new(testbed("prometheus"));
        command.arg(format!("--config.file={}", path.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let mut running = Running::start(&mut command, "prometheus", folder.path());
        running.wait_until("listening", PATIENCE, || listens(port));
        Self { running, port, _folder: folder }
    }

    /// Asks the HTTP API.
    fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let host = format!("127.0.0.1:{}", self.port);
        let mut url = url::Url::parse(&format!("http://{host}/api/v1/{path}")).expect("an address");
        url.query_pairs_mut().extend_pairs(parameters);
        let stream = TcpStream::connect(&host).expect("it listens");
        let target = &url[url::Position::BeforePath..];
        let answer: Value = serde_json::from_str(&http_get(stream, &host, target)).expect("JSON");
        assert_eq!(answer["status"], "success", "{target}: {answer}");
        answer["data"].clone()
    }

    /// Evaluates an expression each second of the last `seconds`, and returns a line for each series.
    fn lines(&self, expression: &str, legend: &str, seconds: u64) -> Vec<Line> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs();
        let (start, end) = ((now - seconds).to_string(), now.to_string());
        let parameters = [("query", expression), ("start", &start), ("end", &end), ("step", "1")];
        let data = self.get("query_range", &parameters);
        let series = data["result"].as_array().expect("series").iter();
        let line = |series: &Value| {
            let labels = series["metric"].as_object().expect("labels").iter();
            let legend = labels.fold(legend.to_owned(), |legend, (label, value)| {
                legend.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default())
            });
            let points = series["values"].as_array().expect("values").iter().filter_map(|point| {
                let value = point[1].as_str()?.parse::<f64>().ok()?;
                value.is_finite().then_some((point[0].as_f64()?, value))
            });
            Line { legend, points: points.collect() }
        };
        series.map(line).filter(|line| !line.points.is_empty()).collect()
    }

    /// Evaluates an expression; returns its series.
    fn query(&self, expression: &str) -> Vec<Value> {
        let data = self.get("query", &[("query", expression)]);
        data["result"].as_array().unwrap_or_else(|| panic!("{expression}: {data}")).clone()
    }
}

fn asks(name: &str, reference: &str) -> Value {
    pod(name, &json!({"oras.land/artifact": reference}))
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_evaluates_every_alert_and_panel_over_the_running_programs() {
    let cluster = Cluster::start("prometheus", &[]).await;
    let driver = Driver::start(cluster.certs.path(), &[]);
    let prometheus =
        Prometheus::start(&cluster.webhook.address(), &cluster.webhook.ca(), &driver.metrics_address());
    cluster.create(&asks("allowed", "kind-registry:5000/java-app:v1")).await.expect("it exists");
    cluster.refusal(&asks("missing", "kind-registry:5000/none:v1")).await;
    let reference = Reference::parse("kind-registry:5000/java-app").expect("a reference");
    let recipe = Step::Add(Layer::new(reference.pin(cluster.digest.parse().expect("a digest"))));
    let recipe = PinnedRecipe::new(vec![recipe]).expect("a recipe");
    if cannot_mount().is_none() {
        driver.publish("pod", &recipe, None).await.expect("it is mounted");
    }
    wait_until("both targets are scraped", || {
        let up = prometheus.query("up == 1");
        if up.len() == 2 { Ok(()) } else { Err(prometheus.get("targets", &[]).to_string()) }
    });
    // Rates need two scrapes.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for (kind, least) in [("alert", 20), ("panel", 30)] {
        let expressions: Vec<(String, String)> = if kind == "alert" {
            let text = |alert: &Value, key: &str| alert[key].as_str().expect("text").to_owned();
            alerts().iter().map(|alert| (text(alert, "alert"), text(alert, "expr"))).collect()
        } else {
            dashboard_expressions()
        };
        assert!(expressions.len() >= least, "{kind}: {}", expressions.len());
        for (name, expression) in expressions {
            let found = prometheus.query(&without_variables(&expression));
            eprintln!("prometheus: {kind} {name}: {} series", found.len());
        }
    }
    for (expression, least) in [
        ("sum(oras_csi_webhook_requests_total{outcome=\"patched\"})", 1.0),
        ("count(oras_csi_driver_build_info)", 1.0),
        ("sum(oras_csi_webhook_registry_request_failures_total{kind=\"not_found\"})", 1.0),
        (
            "histogram_quantile(1, sum by (le) (oras_csi_webhook_deadline_slack_seconds_bucket{le=~\"1.0|10.0|[+]Inf\"}))",
            1.0,
        ),
    ] {
        let found = prometheus.query(expression);
        let value = found.first().and_then(|series| series["value"][1].as_str()?.parse::<f64>().ok());
        assert!(value.is_some_and(|value| value >= least), "{expression}: {found:?}");
    }
    let rules = prometheus.get("rules", &[("type", "alert")]);
    let rules =
        rules["groups"].as_array().expect("groups").iter().filter_map(|group| group["rules"].as_array());
    let rules: Vec<&Value> = rules.flatten().collect();
    assert_eq!(rules.len(), alerts().len());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        // The programs have just started, and nothing is wrong with them.
        assert_eq!(rule["state"], "inactive", "{rule}");
    }
    assert!(!prometheus.running.output().contains("level=ERROR"), "{}", prometheus.running.output());
    for text in [cluster.webhook.metrics(), driver.metrics()] {
        let mut promtool = Command::new("sh");
        promtool.args(["-c", "printf %s \"$METRICS\" | \"$0\" check metrics"]).arg(testbed("promtool"));
        let lint = try_run(promtool.env("METRICS", to_text_format(&text)));
        assert!(lint.status.success(), "{}", self::text(&lint));
    }
}

#[test]
fn each_alert_fires_and_is_silent() {
    let tests = repository().join("deploy/monitoring/tests.yaml");
    let promtool = |words: &[&str], path: PathBuf| {
        let output = try_run(Command::new(testbed("promtool")).args(words).arg(path));
        assert!(output.status.success(), "{}", text(&output));
    };
    promtool(&["check", "rules", "--lint=all", "--lint-fatal"], rules_path());
    promtool(&["test", "rules"], tests);
}

/// The objects of the chart, against the definitions of Prometheus Operator.
#[tokio::test]
async fn prometheus_operator_accepts_the_objects_of_the_chart() {
    install_definitions("prometheus-operator.yaml");
    let folder = tempfile::tempdir().expect("a folder");
    let rendered = folder.path().join("monitoring.yaml");
    let mut helm = Command::new(testbed("helm"));
    helm.args(["template", "oras-csi"]).arg(repository().join("deploy/chart"));
    helm.args(["--set", "image.repository=localhost/oras-csi", "--show-only", "templates/monitoring.yaml"]);
    for part in ["monitors", "rules", "dashboard"] {
        helm.args(["--set", &format!("monitoring.{part}.enabled=true")]);
    }
    helm.args(["--set", "monitoring.labels.release=stack", "--namespace", "default"]);
    std::fs::write(&rendered, run(&mut helm)).expect("writes");
    let apply = ["apply", "--dry-run=server", "--validate=strict", "-o", "name", "-f"];
    let names = run(kubectl(&apply).arg(&rendered));
    for name in ["servicemonitor", "podmonitor", "prometheusrule", "configmap"] {
        assert!(names.contains(name), "{names}");
    }
    let object = repository().join("deploy/monitoring/prometheus-rules.yaml");
    run(kubectl(&apply).arg(object));
}

/// Lets pods come and go for a minute and a half, and draws the dashboard from the results of Prometheus:
/// `docs/images/dashboard.svg`. Windows of 10 seconds stand for `$__rate_interval`, because the scrapes are a second apart.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes docs/images/dashboard.svg"]
async fn a_picture_of_the_dashboard() {
    const SECONDS: u64 = 90;
    if cannot_mount().is_some() {
        return;
    }
    let cluster = Cluster::start("picture", &["--keep-pins"]).await;
    let driver = Driver::start(cluster.certs.path(), &[]);
    let prometheus =
        Prometheus::start(&cluster.webhook.address(), &cluster.webhook.ca(), &driver.metrics_address());
    let folder = tempfile::tempdir().expect("a folder");
    let started = Instant::now();
    for round in 0_u32.. {
        let seconds = started.elapsed().as_secs();
        if seconds >= SECONDS {
            break;
        }
        // The load rises and falls, and a part of the tags does not exist.
        let wave = (seconds / 15) % 2;
        let size = (1 + round as usize % 7) << 18;
        let tag = format!("app-{round}:v1");
        std::fs::write(folder.path().join("file"), noise(round, size)).expect("writes");
        let digest = cluster.registry.push(&tag, folder.path(), &["file"]);
        cluster
            .create(&asks(&format!("app-{round}"), &format!("kind-registry:5000/{tag}")))
            .await
            .expect("it exists");
        for number in 0..=(4 * wave) {
            let name = format!("again-{round}-{number}");
            cluster.create(&asks(&name, "kind-registry:5000/java-app:v1")).await.expect("it exists");
        }
        if round % 3 == 0 {
            cluster.refusal(&asks("missing", &format!("kind-registry:5000/none-{round}:v1"))).await;
        }
        let reference = Reference::parse(&format!("kind-registry:5000/app-{round}")).expect("a reference");
        let step = Step::Add(Layer::new(reference.pin(digest.parse().expect("a digest"))));
        let recipe = PinnedRecipe::new(vec![step]).expect("a recipe");
        for pod in ["a", "b"] {
            driver.publish(&format!("{pod}-{round}"), &recipe, None).await.expect("it is mounted");
        }
        if round % 2 == 0 {
            driver.unpublish(&format!("a-{round}")).await.expect("it is unmounted");
        }
    }
    let dashboard = dashboard();
    let panels =
        dashboard["panels"].as_array().expect("panels").iter().filter(|panel| panel["type"] != "row");
    let panels = panels.map(|panel| {
        let lines = panel["targets"].as_array().expect("targets").iter().flat_map(|target| {
            let text = |key: &str| target[key].as_str().unwrap_or_default();
            let expression = text("expr").replace("$__rate_interval", "10s");
            prometheus.lines(&without_variables(&expression), text("legendFormat"), SECONDS)
        });
        Panel {
            title: panel["title"].as_str().expect("a title").to_owned(),
            unit: panel["fieldConfig"]["defaults"]["unit"].as_str().expect("a unit").to_owned(),
            is_stat: panel["type"] == "stat",
            lines: lines.collect(),
        }
    });
    let path = repository().join("docs/images/dashboard.svg");
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, draw(&panels.collect::<Vec<_>>())).expect("writes");
}

/// Returns bytes that no two rounds have in common.
fn noise(round: u32, size: usize) -> Vec<u8> {
    let mut state = u64::from(round) + 0x9e37_79b9_7f4a_7c15;
    let next = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        state.to_le_bytes()
    };
    (0..size.div_ceil(8)).flat_map(|_| next(&mut state)).collect()
}
