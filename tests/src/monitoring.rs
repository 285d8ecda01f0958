//! The alerts and the dashboard of the chart, as values.

use std::path::PathBuf;

use serde_json::Value;

use crate::parts::repository;

/// Returns the path of the rule file.
pub fn rules_path() -> PathBuf {
    repository().join("deploy/chart/files/monitoring/rules.yaml")
}

/// Returns the rule file.
pub fn rules() -> Value {
    let text = std::fs::read_to_string(rules_path()).expect("the rules");
    serde_saphyr::from_str(&text).expect("the rules are YAML")
}

/// Returns all alerts of the rule file.
pub fn alerts() -> Vec<Value> {
    let rules = rules();
    let groups = rules["groups"].as_array().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

/// Returns the dashboard.
pub fn dashboard() -> Value {
    let path = repository().join("deploy/chart/files/monitoring/dashboard.json");
    let text = std::fs::read_to_string(path).expect("the dashboard");
    serde_json::from_str(&text).expect("the dashboard is JSON")
}

/// Returns the expressions of the dashboard, each with the title of its panel.
pub fn dashboard_expressions() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().expect("a title");
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets
            .map(move |target| (title.to_owned(), target["expr"].as_str().expect("an expression").to_owned()))
    });
    targets.collect()
}

/// Replaces the variables of the dashboard as Grafana does when all values are selected.
pub fn without_variables(expression: &str) -> String {
    expression.replace("$__rate_interval", "5m").replace("$node", ".*").replace("$registry", ".*")
}
