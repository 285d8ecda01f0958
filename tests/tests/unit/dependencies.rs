//! Checks the licences and the banned crates of `deny.toml` without cargo-deny and without a network.

use std::collections::BTreeSet;
use std::process::Command;

use oras_csi_tests::parts::repository;
use oras_csi_tests::process::run;
use spdx::{Expression, ParseMode};

/// Returns name and licence of every crate that is linked.
fn linked() -> BTreeSet<(String, String)> {
    let mut tree = Command::new(env!("CARGO"));
    tree.args([
        "tree",
        "--locked",
        "--offline",
        "-p",
        "oras-csi",
        "-e",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}|{l}",
    ]);
    let tree = run(tree.current_dir(repository()));
    let crates = tree.lines().filter_map(|line| line.trim_end_matches(" (*)").split_once('|'));
    let name = |package: &str| package.split(' ').next().unwrap_or(package).to_owned();
    crates.map(|(package, licence)| (name(package), licence.to_owned())).collect()
}

fn rules() -> toml::Table {
    let text = std::fs::read_to_string(repository().join("deny.toml")).expect("deny.toml");
    text.parse().expect("TOML")
}

#[test]
fn every_licence_is_allowed() {
    let rules = rules();
    let allowed: BTreeSet<&str> = rules["licenses"]["allow"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(toml::Value::as_str)
        .collect();
    let linked = linked();
    assert!(linked.len() > 100, "{} crates are too few to be all", linked.len());
    for (name, licence) in linked {
        let expression = Expression::parse_mode(&licence, ParseMode::LAX)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            expression.evaluate(|required| allowed.contains(required.to_string().as_str())),
            "{name}: {licence}"
        );
    }
}

#[test]
fn no_banned_crate_is_linked() {
    let rules = rules();
    let banned: Vec<&str> = rules["bans"]["deny"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|ban| ban["name"].as_str())
        .collect();
    assert!(banned.contains(&"ring"));
    let found: Vec<String> =
        linked().into_iter().map(|(name, _)| name).filter(|name| banned.contains(&name.as_str())).collect();
    assert!(found.is_empty(), "{found:?}");
}
