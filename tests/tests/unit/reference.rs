//! The parts of the documentation that are made from the code: the API from the custom resource definitions, annotations and
//! attributes from core/src/keys.rs, and the costs of a start from the results of the benchmark.

use std::fmt::Write as _;

use oras_csi_core::keys::annotation;
use oras_csi_tests::parts::repository;
use serde_json::Value;

use crate::crds::crds;

/// Compares a page with what the code says, or writes it where `UPDATE_DOCS` is set.
fn check(page: &str, expected: &str) {
    let path = repository().join(page);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, expected).expect("the page can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let line = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "{page} differs from the code (line {:?}): run `UPDATE_DOCS=1 cargo test -p oras-csi-tests --test unit reference` and look at the change",
        line.map(|line| line + 1)
    );
}

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

/// The type of a field, with what the API server checks.
fn type_of(schema: &Value) -> String {
    if schema["x-kubernetes-int-or-string"] == true {
        return "number or string".to_owned();
    }
    match schema["type"].as_str() {
        Some("array") => format!("list of {}", type_of(&schema["items"])),
        Some("object") if schema["additionalProperties"].is_object() => {
            format!("map of {}", type_of(&schema["additionalProperties"]))
        }
        Some(name) => name.to_owned(),
        None => "any".to_owned(),
    }
}

/// The limits that the API server checks for a field.
fn limits_of(schema: &Value) -> Vec<String> {
    let mut limits = Vec::new();
    if let Some(values) = schema["enum"].as_array() {
        let values = values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`"));
        limits.push(format!("one of {}", values.collect::<Vec<_>>().join(", ")));
    }
    for (key, words) in [
        ("minimum", "at least"),
        ("maximum", "at most"),
        ("minLength", "characters: at least"),
        ("maxLength", "characters: at most"),
        ("minItems", "entries: at least"),
        ("maxItems", "entries: at most"),
        ("maxProperties", "entries: at most"),
    ] {
        if let Some(number) = schema[key].as_f64() {
            limits.push(format!("{words} {number}"));
        }
    }
    if !schema["default"].is_null() {
        limits.push(format!("default `{}`", schema["default"]));
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        limits.extend(rule["message"].as_str().map(str::to_owned));
    }
    limits
}

/// Writes a row for each field below a schema.
fn fields(path: &str, schema: &Value, page: &mut String) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let mut description = cell(field["description"].as_str().unwrap_or_default());
        let limits = limits_of(field);
        if !limits.is_empty() {
            write!(description, " ({})", cell(&limits.join("; "))).expect("a string accepts text");
        }
        let is_required = if required.contains(&name.as_str()) { ", required" } else { "" };
        writeln!(page, "| `{path}` | {}{is_required} | {description} |", type_of(field))
            .expect("a string accepts text");
        fields(&path, field, page);
        fields(&format!("{path}[]"), &field["items"], page);
    }
}

#[test]
fn the_api_page_is_made_from_the_custom_resource_definitions() {
    let mut page = "# API\n\nMade from the custom resource definitions of the chart; a test compares them. `kubectl explain` has the same \
                    text. All objects are in `oras.land/v1alpha1`.\n"
        .to_owned();
    let mut definitions = crds().map(|(crd, _)| crd);
    definitions.sort_by_key(|crd| crd["spec"]["names"]["kind"].to_string());
    for crd in definitions {
        let spec = &crd["spec"];
        let version = &spec["versions"][0];
        let schema = &version["schema"]["openAPIV3Schema"];
        let kind = spec["names"]["kind"].as_str().expect("a kind");
        let plural = spec["names"]["plural"].as_str().expect("a plural");
        let scope = if spec["scope"] == "Cluster" { "the cluster" } else { "a namespace" };
        write!(
            page,
            "\n## {kind}\n\n{}\n\n`kubectl get {plural}`; an object of {scope}. ",
            schema["description"].as_str().unwrap_or_default()
        )
        .expect("a string accepts text");
        let columns = version["additionalPrinterColumns"].as_array().into_iter().flatten();
        let columns: Vec<&str> = columns.filter_map(|column| column["name"].as_str()).collect();
        writeln!(page, "Columns: {}.\n", columns.join(", ")).expect("a string accepts text");
        page.push_str("| field | type | meaning |\n|---|---|---|\n");
        for part in ["spec", "status"] {
            let part_schema = &schema["properties"][part];
            if part_schema.is_object() {
                fields(part, part_schema, &mut page);
            }
        }
    }
    check("docs/reference/api.md", &page);
}

/// The constants of a module in a source: value and documentation.
fn constants(source: &str, module: &str) -> Vec<(String, String)> {
    let body = source.split(&format!("pub mod {module} {{")).nth(1).and_then(|rest| rest.split("\n}").next());
    let (mut constants, mut documentation) = (Vec::new(), Vec::new());
    for line in body.expect("the module exists").lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            documentation.push(text.to_owned());
        } else if let Some(value) = line.strip_prefix("pub const ").and_then(|rest| rest.split('"').nth(1)) {
            // Links to the code have no place in the page.
            let text = documentation.join(" ");
            let text = text.split(" ([`crate::").enumerate().map(|(index, part)| {
                if index == 0 { part } else { part.split_once("`])").map_or("", |(_, rest)| rest) }
            });
            constants.push((value.to_owned(), text.collect()));
            documentation.clear();
        } else {
            documentation.clear();
        }
    }
    constants
}

#[test]
fn the_page_of_names_is_made_from_the_code() {
    let source = std::fs::read_to_string(repository().join("core/src/keys.rs")).expect("the source");
    let mut page = "# Annotations and attributes\n\nMade from `core/src/keys.rs`; a test compares them. [Usage](../usage.md) has examples, \
                    and [design.md](../design.md#annotations) the exact rules.\n\n## Annotations of a pod\n\n\
                    With `.NAME` means that the annotation can end in a name of your choice, for one artifact of several.\n\n\
                    | annotation | with `.NAME` | meaning |\n|---|---|---|\n"
        .to_owned();
    let annotations = constants(&source, "annotation");
    assert_eq!(annotations.len(), annotation::ALL.len());
    for (name, text) in annotations {
        assert!(annotation::ALL.contains(&name.as_str()), "{name} is not in ALL");
        let named = if annotation::NAMED.contains(&name.as_str()) { "yes" } else { "" };
        writeln!(page, "| `{name}` | {named} | {} |", cell(&text)).expect("a string accepts text");
    }
    for (module, heading) in [
        ("attribute", "Attributes of a volume that users write\n\nThey are the names of the earlier driver."),
        ("canonical", "Attributes of a canonical volume\n\nOnly the webhook writes them."),
    ] {
        write!(page, "\n## {heading}\n\n| attribute | meaning |\n|---|---|\n")
            .expect("a string accepts text");
        for (name, text) in constants(&source, module) {
            writeln!(page, "| `{name}` | {} |", cell(&text)).expect("a string accepts text");
        }
    }
    check("docs/reference/annotations.md", &page);
}

/// A cell of a table of benches/RESULTS.md: its median.
fn median<'a>(results: &'a str, section: &str, table: &str, case: &str, column: &str) -> &'a str {
    let section = results.split(&format!("\n## {section}\n")).nth(1).expect("the section");
    let section = section.split("\n## ").next().expect("text");
    let table = section.split(&format!("\n| {table} | ")).nth(1).expect("the table");
    let index = table.lines().next().expect("a header").split('|').position(|name| name.trim() == column);
    let row = table.lines().find_map(|line| line.strip_prefix(&format!("| {case} | "))).expect("the row");
    let cell = row.split('|').nth(index.expect("the column")).expect("the cell").trim();
    cell.split([' ', ',']).next().unwrap_or_default()
}

const BEGIN: &str = "<!-- Made from benches/RESULTS.md; a test compares them. -->\n";
const END: &str = "<!-- End of the part. -->";

#[test]
fn the_costs_of_a_start_are_those_of_the_benchmark() {
    let results = std::fs::read_to_string(repository().join("benches/RESULTS.md")).expect("the results");
    let path = "docs/ml-serving.md";
    let page = std::fs::read_to_string(repository().join(path)).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("the beginning of the part");
    let (_, after) = rest.split_once(END).expect("the end of the part");
    let mut part =
        "| start | oras-csi, until mounted | `oras pull`, until it ends |\n|---|--:|--:|\n".to_owned();
    for (case, words) in [
        ("1 GiB blob", "cold, one file of 1 GiB"),
        ("16 x 64 MiB", "cold, 16 files of 64 MiB"),
        ("2 GiB tar+gzip", "cold, an archive of 2 GiB, gzip"),
        ("2 GiB tar+zstd", "cold, an archive of 2 GiB, zstd"),
    ] {
        let seconds = |column| match median(&results, "Cold pulls: ext4", "Case, s", case, column) {
            "" => String::new(),
            median => format!("{median} s"),
        };
        writeln!(part, "| {words} | {} | {} |", seconds("oras-csi"), seconds("oras pull"))
            .expect("a string accepts text");
    }
    let warm = median(&results, "The driver, warm", "Case, ms", "publish", "oras-csi");
    writeln!(part, "| warm, a file or a million | {warm} ms | |").expect("a string accepts text");
    check(path, &format!("{before}{BEGIN}{part}{END}{after}"));
}
