//! Compares the metrics of the programs with their documentation, the alerts and the dashboard.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use oras_csi_certs::Expiry;
use oras_csi_tests::monitoring::{alerts, dashboard, dashboard_expressions, rules};
use oras_csi_tests::openmetrics::{Family, named, parse};
use oras_csi_tests::parts::repository;
use serde_json::{Value, json};

const REMEDY: &str =
    "run `UPDATE_DOCS=1 cargo test -p oras-csi-tests --test unit metrics` and look at the change";
const PAGE: &str = "docs/operate/metrics.md";
const RULE_OBJECT: &str = "deploy/monitoring/prometheus-rules.yaml";
/// Labels that Prometheus adds to each target.
const TARGET_LABELS: [&str; 2] = ["instance", "job"];
/// Labels whose values come from users or from the build.
const FREE_LABELS: [&str; 3] = ["policy", "registry", "version"];

/// Returns what each program answers at `/metrics` before it has done anything, with known certificates.
fn texts() -> [(&'static str, String); 2] {
    let webhook = oras_csi_webhook::metrics::Metrics::new();
    webhook.set_certificate_expiry(Expiry { leaf: Some(1), authority: Some(2) });
    let driver = oras_csi_driver::metrics::Metrics::default();
    [("webhook", webhook.encode()), ("driver", driver.encode())]
}

fn families() -> Vec<Family> {
    texts().iter().flat_map(|(_, text)| parse(text)).collect()
}

/// Prometheus, "Metric and label naming" and "Writing exporters".
#[test]
fn names_follow_the_conventions_of_prometheus() {
    let families = families();
    assert!(families.len() > 30, "{}", families.len());
    for family in &families {
        let Family { name, kind, help, labels, series } = family;
        let is_snake_case = |name: &str| {
            name.chars().all(|one| one.is_ascii_lowercase() || one.is_ascii_digit() || one == '_')
        };
        assert!(name.starts_with("oras_csi_webhook_") || name.starts_with("oras_csi_driver_"), "{name}");
        assert!(is_snake_case(name) && labels.keys().all(|label| is_snake_case(label)), "{family:?}");
        assert!(help.len() > 10 && !name.ends_with("_total"), "{name}: {help}");
        let words: Vec<&str> = name.split('_').collect();
        for unit in ["milliseconds", "ms", "minutes", "hours", "kib", "mib", "gib", "percent", "kilobytes"] {
            assert!(!words.contains(&unit), "{name} has another unit than seconds, bytes or a ratio");
        }
        match kind.as_str() {
            "counter" => assert_eq!(series.iter().collect::<Vec<_>>(), [&format!("{name}_total")]),
            "histogram" => assert!(name.ends_with("_seconds") || name.ends_with("_bytes"), "{name}"),
            "gauge" => assert!(!name.ends_with("_count") && !name.ends_with("_sum"), "{name}"),
            "info" => assert!(name.ends_with("_build"), "{name}"),
            other => panic!("{name} is a {other}"),
        }
        // A class of sizes is a number, and no word.
        for (label, values) in labels.iter().filter(|(label, _)| label.contains("bytes")) {
            assert!(values.iter().all(|value| value.parse::<f64>().is_ok()), "{name} {label}: {values:?}");
        }
    }
    let names: BTreeSet<_> = families.iter().map(|family| &family.name).collect();
    assert_eq!(names.len(), families.len(), "a name occurs twice");
}

/// All series of labels with fixed values exist from the start, so that a rate does not miss the first event.
#[test]
fn labels_are_bounded_and_their_series_exist_from_the_start() {
    for family in families() {
        assert!(!family.series.is_empty(), "{} has no series", family.name);
        for (label, values) in &family.labels {
            if FREE_LABELS[..2].contains(&label.as_str()) {
                assert_eq!(values.iter().collect::<Vec<_>>(), ["other"], "{} {label}", family.name);
            } else {
                assert!((1..=13).contains(&values.len()), "{} {label}: {values:?}", family.name);
            }
        }
    }
}

fn table(text: &str) -> String {
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for family in parse(text) {
        let labels = family.labels.iter().map(|(label, values)| {
            let values = values.iter().filter(|value| !value.is_empty()).map(String::as_str);
            let mut values = values.collect::<Vec<_>>();
            let number = |value: &&str| value.parse::<f64>().unwrap_or_default();
            values.sort_by(|one, other| number(one).total_cmp(&number(other)));
            let values = values.join(", ");
            if FREE_LABELS.contains(&label.as_str()) {
                format!("`{label}`")
            } else {
                format!("`{label}`: {values}")
            }
        });
        let labels = labels.collect::<Vec<_>>().join("; ");
        let (name, kind, help) = (family.shown_name(), &family.kind, &family.help);
        writeln!(table, "| `{name}` | {kind} | {labels} | {help} |").expect("a string accepts text");
    }
    table
}

/// Puts `table` between the markers of a program on a page.
fn replace_table(page: &str, program: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- begin: {program} -->\n"), format!("<!-- end: {program} -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("{PAGE} has no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{PAGE} has no {end}"));
    format!("{before}{begin}\n{table}\n{end}{after}")
}

#[test]
fn the_reference_has_the_metrics_of_the_code() {
    let path = repository().join(PAGE);
    let written = std::fs::read_to_string(&path).expect("the page");
    let page = texts()
        .iter()
        .fold(written.clone(), |page, (program, text)| replace_table(&page, program, &table(text)));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("the page can be written");
        return;
    }
    assert!(written == page, "{PAGE} differs from the code: {REMEDY}");
}

/// Checks that the programs have each metric of an expression with each label.
fn check_expression(place: &str, expression: &str) {
    let families = families();
    let named = named(expression);
    assert!(!named.selectors.is_empty(), "{place}: {expression} names no metric");
    let mut known: BTreeSet<&str> = TARGET_LABELS.into();
    for (metric, labels) in &named.selectors {
        let mut own: BTreeSet<&str> = TARGET_LABELS.into();
        if metric != "up" {
            let family = families.iter().find(|family| family.series.contains(metric));
            let family = family.unwrap_or_else(|| panic!("{place}: no program has the metric {metric}"));
            own.extend(family.labels.keys().map(String::as_str));
            own.extend(metric.ends_with("_bucket").then_some("le"));
            for (label, operator, value) in labels {
                if label == "le" {
                    let bucket = format!("{metric}{{le=\"{value}\"");
                    assert!(texts().iter().any(|(_, text)| text.contains(&bucket)), "{place}: no {bucket}");
                }
                let values = family.labels.get(label);
                let is_fixed = values.is_some() && !FREE_LABELS.contains(&label.as_str());
                for value in value.split('|').filter(|_| is_fixed && !value.contains(['.', '$'])) {
                    let exists = values.is_some_and(|values| values.contains(value));
                    assert!(exists, "{place}: {metric} never has {label}{operator}{value}");
                }
            }
        }
        for (label, ..) in labels {
            assert!(own.contains(label.as_str()), "{place}: {metric} has no label {label}");
        }
        known.extend(own);
    }
    for label in &named.groups {
        assert!(known.contains(label.as_str()), "{place}: no metric of {expression} has the label {label}");
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{value} has no {key}"))
}

#[test]
fn alerts_name_metrics_that_exist() {
    for alert in alerts() {
        check_expression(text(&alert, "alert"), text(&alert, "expr"));
    }
}

#[test]
fn panels_name_metrics_that_exist() {
    let expressions = dashboard_expressions();
    assert!(expressions.len() > 30, "{}", expressions.len());
    for (title, expression) in expressions {
        check_expression(&title, &expression);
    }
}

/// The anchor of a heading, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    heading.to_lowercase().replace(' ', "-")
}

#[test]
fn every_alert_has_a_runbook_and_a_test() {
    let page = std::fs::read_to_string(repository().join("docs/operate/runbooks.md")).expect("the page");
    let mut sections = BTreeSet::new();
    for section in page.split("\n## ").skip(1) {
        let (heading, body) = section.split_once('\n').expect("a section has text");
        sections.insert(heading.to_owned());
        for part in ["**Meaning.**", "**Impact.**", "**Diagnosis.**", "**Fix.**"] {
            assert!(body.contains(part), "the runbook {heading} has no {part}");
        }
        assert!(body.contains("    "), "the runbook {heading} has no command");
    }
    let tests =
        std::fs::read_to_string(repository().join("deploy/monitoring/tests.yaml")).expect("the tests");
    let tests: Value = serde_saphyr::from_str(&tests).expect("the tests are YAML");
    let tested = tests["tests"].as_array().expect("tests").iter();
    let tested = tested.flat_map(|test| test["alert_rule_test"].as_array().into_iter().flatten());
    let tested: Vec<_> = tested.collect();
    let alerts = alerts();
    for alert in &alerts {
        let name = text(alert, "alert");
        assert!(sections.remove(name), "docs/operate/runbooks.md has no section for {name}");
        let link = format!("docs/operate/runbooks.md#{}", anchor(name));
        assert_eq!(text(&alert["annotations"], "runbook_url"), link);
        assert!(matches!(text(&alert["labels"], "severity"), "critical" | "warning" | "info"), "{name}");
        for part in ["summary", "description"] {
            assert!(text(&alert["annotations"], part).len() > 20, "{name} has no {part}");
        }
        let of_alert = || tested.iter().filter(|test| test["alertname"] == name);
        let fires = |test: &&&Value| test["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
        assert!(of_alert().any(|test| fires(&test)), "deploy/monitoring/tests.yaml does not let {name} fire");
        assert!(
            of_alert().any(|test| !fires(&test)),
            "deploy/monitoring/tests.yaml has no silence of {name}"
        );
    }
    assert!(sections.is_empty(), "docs/operate/runbooks.md has sections without an alert: {sections:?}");
}

/// The object for clusters where the alerts are not installed by the chart.
#[test]
fn the_rule_object_has_the_rules_of_the_chart() {
    let object = json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "oras-csi", "labels": {"app.kubernetes.io/name": "oras-csi"}},
        "spec": rules(),
    });
    let path = repository().join(RULE_OBJECT);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let header = "# Made from deploy/chart/files/monitoring/rules.yaml; a test compares them.";
        let yaml = serde_saphyr::to_string(&object).expect("YAML");
        std::fs::write(&path, format!("{header}\n{yaml}")).expect("the file can be written");
    }
    let there: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(&path).unwrap_or_default()).expect("YAML");
    assert_eq!(there, object, "{RULE_OBJECT} differs from the rules: {REMEDY}");
}

#[test]
fn the_dashboard_is_one_that_grafana_imports() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 39));
    assert_eq!((&dashboard["id"], text(&dashboard, "uid")), (&Value::Null, "oras-csi"));
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    assert!(variables.iter().any(|one| one["type"] == "datasource" && one["name"] == "datasource"));
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len(), "an id occurs twice");
    let mut cells = BTreeSet::new();
    for panel in panels {
        let title = text(panel, "title");
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a position");
        assert!(at("x") + at("w") <= 24, "{title} is wider than the grid");
        for cell in
            (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(cells.insert(cell), "{title} overlaps another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(text(panel, "description").len() > 10, "{title}");
        assert!(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{title}");
        for target in panel["targets"].as_array().expect("targets").iter().chain([panel]) {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    // The dashboard works in any Grafana: it names no data source.
    assert!(!dashboard.to_string().contains("__inputs"));
}
