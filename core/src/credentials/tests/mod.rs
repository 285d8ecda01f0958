//! Credentials, with small programs of shell in the place of helpers and providers.

mod administrator;
mod credential;
mod docker_config;
mod helper;
mod match_image;
mod provider;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::helper::Times;
use super::{Credential, DockerConfig};
use crate::reference::RegistryHost;

/// What must be seen nowhere.
const SECRET: &str = "hunter2-geheim";

fn registry(text: &str) -> RegistryHost {
    text.parse().unwrap()
}

fn basic(username: &str, password: &str) -> Credential {
    Credential::basic(username.to_owned(), password.to_owned()).unwrap()
}

fn config(text: &str) -> DockerConfig {
    DockerConfig::parse(text.as_bytes()).unwrap()
}

/// Short enough for a test, and long enough for a machine that is busy.
fn times() -> Times {
    let [timeout, found, failed] = [20, 60, 60].map(Duration::from_secs);
    Times { timeout, found, failed }
}

/// A program of shell. Another process writes it: a program cannot be run while anybody has it open for writing,
/// as a child of a test beside this one would for a moment.
fn program(folder: &Path, name: &str, lines: &str) {
    let path = folder.join(name);
    let mut writer = Command::new("sh");
    writer.args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"]).arg(&path).stdin(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    writer.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{lines}\n").as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}

/// How many lines a program left in a file: how often it ran.
fn runs(folder: &Path) -> usize {
    std::fs::read_to_string(folder.join("runs")).map_or(0, |text| text.lines().count())
}
