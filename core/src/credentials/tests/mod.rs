//! Tests of credentials, with small shell scripts as helpers and providers.

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

use super::helper::Timing;
use super::{Credential, DockerConfig};
use crate::reference::RegistryHost;

/// A secret that must not appear in any message.
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

/// Short enough for a test, and long enough for a busy machine.
fn timing() -> Timing {
    let [timeout, success_lifetime, failure_lifetime] = [20, 60, 60].map(Duration::from_secs);
    Timing { timeout, success_lifetime, failure_lifetime }
}

/// Creates a shell script. Another process writes it, because a program cannot be run while a process has it open for
/// writing, and a child process of a concurrent test might.
fn program(folder: &Path, name: &str, lines: &str) {
    let path = folder.join(name);
    let mut writer = Command::new("sh");
    writer.args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"]).arg(&path).stdin(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    writer.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{lines}\n").as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}

/// Returns how often a program ran, by the lines that it wrote to a file.
fn runs(folder: &Path) -> usize {
    std::fs::read_to_string(folder.join("runs")).map_or(0, |text| text.lines().count())
}
