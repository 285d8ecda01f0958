//! Compares the keys of log messages with their documentation.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use oras_csi_tests::parts::repository;
use oras_csi_tests::process::run;

const SOURCES: [&str; 8] = [
    "webhook/src",
    "driver/src",
    "store/src",
    "certs/src",
    "core/src",
    "kube-support/src",
    "metrics/src",
    "src",
];
const LEVELS: [&str; 3] = ["error", "warn", "info"];

/// Splits the arguments of a macro at the commas between them. `text` begins behind the opening parenthesis.
fn arguments(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut depth, mut is_string) = (0_usize, false);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' if is_string => drop(characters.next()),
            '"' => is_string = !is_string,
            '(' | '[' | '{' if !is_string => depth += 1,
            ')' | ']' | '}' if !is_string => match depth.checked_sub(1) {
                Some(outer) => depth = outer,
                None => break,
            },
            ',' if depth == 0 && !is_string => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts
}

/// Returns the keys of all messages of these levels in a source.
fn keys(source: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for level in LEVELS {
        for call in source.split(&format!("tracing::{level}!(")).skip(1) {
            let arguments = arguments(call);
            let before_message = arguments.iter().take_while(|argument| !argument.trim().starts_with('"'));
            for argument in before_message {
                let name = argument.trim().trim_start_matches(['%', '?']);
                let name = name.split(['=', '.']).next().unwrap_or_default().trim();
                assert!(name.chars().all(|one| one.is_ascii_lowercase() || one == '_'), "{argument}");
                if !name.is_empty() {
                    keys.insert(name.to_owned());
                }
            }
        }
    }
    keys
}

#[test]
fn the_keys_of_logs_are_documented() {
    let mut list = Command::new("git");
    list.args(["ls-files", "--"]).args(SOURCES).current_dir(repository());
    let mut used = BTreeSet::new();
    for path in run(&mut list)
        .lines()
        .filter(|path| Path::new(path).extension().is_some_and(|extension| extension == "rs"))
    {
        used.extend(keys(&std::fs::read_to_string(repository().join(path)).unwrap_or_default()));
    }
    assert!(used.contains("namespace") && used.len() > 50, "{used:?}");
    let page = std::fs::read_to_string(repository().join("docs/operate/logs.md")).expect("the page");
    let (_, tables) = page.split_once("## Keys of the levels").expect("the tables");
    let rows = tables.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    let documented: BTreeSet<String> = rows
        .flat_map(|row| row.split(['`', ',', ' ']))
        .filter(|key| !key.is_empty())
        .map(str::to_owned)
        .collect();
    let missing: Vec<_> = used.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/operate/logs.md lacks keys: {missing:?}");
    let unused: Vec<_> = documented.difference(&used).collect();
    assert!(unused.is_empty(), "docs/operate/logs.md has keys that no message has: {unused:?}");
}

#[test]
fn finds_keys_before_the_message() {
    let source = r#"tracing::info!(volume, id = %request.id(), ?delay, path = %path.display(), list = f(a, b), "a, b = {c}", c = 1);
        tracing::debug!(unseen, "x"); tracing::warn!("no keys")"#;
    let found = keys(source);
    assert_eq!(found.iter().collect::<Vec<_>>(), ["delay", "id", "list", "path", "volume"]);
}
