//! Runs the commands of the documentation that need only `oras-csi`, `oras` and a registry.
//!
//! The comment `<!-- run -->` before a block of commands says that this test runs it, `<!-- not run: REASON -->` that it
//! does not. A block with a command of `oras-csi` or `oras` must have one of the two. The e2e tier runs blocks with
//! `<!-- run on a node -->`. Blocks of other programs are named by what they need. The blocks of a page run one after the other in one shell, in a folder with the files that the pages name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use oras_csi_tests::blocks::{Block, ON_A_NODE, blocks, script};
use oras_csi_tests::parts::{oras_csi, repository, testbed};
use oras_csi_tests::process::run;
use oras_csi_tests::registry::Distribution;

/// Programs in blocks that other tests or a reader runs, with what they need.
const OTHER_PROGRAMS: &[(&str, &str)] = &[
    ("kubectl", "a cluster"),
    ("helm", "a cluster"),
    ("kind", "Docker"),
    ("docker", "Docker"),
    ("gcloud", "a cloud"),
    ("make", "a build: the tiers of the Makefile"),
    ("cargo", "a build: the tiers of the Makefile"),
    ("sudo", "root: the e2e tier"),
    ("git", "the repository"),
    ("srun", "Slurm"),
    ("flux", "Flux"),
    ("singularity", "Singularity"),
    ("rm", "a node"),
];

/// Subcommands that read a cluster or run on a node. Other tests run them there.
const OF_A_CLUSTER: &[&str] = &["status", "why", "webhook", "driver", "store", "completion"];

/// The first words of the lines of a script.
fn programs(script: &str) -> Vec<&str> {
    script.lines().filter_map(|line| line.split_whitespace().next()).collect()
}

fn pages() -> Vec<(String, String)> {
    let mut list = Command::new("git");
    list.args(["ls-files", "-z", "--", "README.md", "CONTRIBUTING.md", "docs/*.md", "examples/README.md"]);
    let pages = run(list.current_dir(repository()));
    let pages = pages.split('\0').filter(|page| !page.is_empty());
    let pages =
        pages.filter_map(|page| Some((page.to_owned(), fs::read_to_string(repository().join(page)).ok()?)));
    pages.collect()
}

/// Pushes what the pages name, and writes the files that they name.
fn prepare(registry: &Distribution, folder: &Path) {
    for (path, text) in [
        ("HelloWorldServer.jar", "not really a jar"),
        ("notes.txt", "notes"),
        ("fix/notes.txt", "better notes"),
        (
            "recipe.yaml",
            "- add: kind-registry:5000/java-app:v1\n- overlay: kind-registry:5000/fixes/openssl:3.0.15\n",
        ),
    ] {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    for (reference, files) in [
        ("java-app:v1", &["HelloWorldServer.jar:application/java-archive", "notes.txt:text/plain"][..]),
        ("acme/config:v1", &["notes.txt:text/plain"]),
        ("acme/model:v1", &["HelloWorldServer.jar:application/vnd.acme.weights", "notes.txt:text/plain"]),
    ] {
        registry.push(reference, folder, files);
    }
    registry.push("fixes/openssl:3.0.15", &folder.join("fix"), &["notes.txt:text/plain"]);
    let examples = repository().join("examples");
    fs::copy(examples.join("pod.yaml"), folder.join("pod.yaml")).expect("a manifest");
    fs::copy(examples.join("deployment.yaml"), folder.join("manifests.yaml")).expect("a manifest");
    let policy = "{apiVersion: oras.land/v1alpha1, kind: ArtifactPolicy, metadata: {name: registries}, \
                  spec: {registries: {allow: [\"kind-registry:5000/**\"]}}}\n";
    fs::create_dir(folder.join("policies")).expect("a folder");
    fs::write(folder.join("policies/policy.yaml"), policy).expect("a policy");
    for host in ["ghcr.io", "kind-registry_5000_"] {
        let hosts = folder.join("hosts").join(host);
        fs::create_dir_all(&hosts).expect("a folder");
        fs::write(hosts.join("hosts.toml"), format!("server = \"{}\"\n", registry.url())).expect("a file");
    }
}

/// The script with the address of the registry of this test. `oras` reads no hosts.toml.
fn with_registry(script: &str, registry: &Distribution) -> String {
    let host = registry.host();
    let port = host.rsplit(':').next().unwrap_or_default();
    let mut text = script.replace("localhost:5000", &format!("localhost:{port}"));
    text = text.replace("localhost_5000_", &format!("localhost_{port}_"));
    let lines = text.lines().map(|line| {
        if !line.trim_start().starts_with("oras ") {
            return line.to_owned();
        }
        let mut line = line.to_owned();
        for host in ["kind-registry:5000/", "ghcr.io/", "REGISTRY/"] {
            line = line.replace(host, &format!("localhost:{port}/"));
        }
        if line.contains("--plain-http") {
            line
        } else {
            line.replacen("oras push", "oras push --plain-http", 1)
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn commands_of_the_documentation_work() {
    let mut pages_to_run: BTreeMap<String, Vec<Block>> = BTreeMap::new();
    let (mut unmarked, mut not_run) = (Vec::new(), Vec::new());
    for (page, text) in pages() {
        for block in blocks(&page, &text) {
            let script = script(&block);
            let place = format!("{}:{}", block.page, block.line);
            let programs = programs(&script);
            let is_ours = programs.iter().any(|program| ["oras-csi", "oras"].contains(program));
            let is_of_a_cluster = is_ours
                && script
                    .lines()
                    .filter(|line| line.starts_with("oras"))
                    .all(|line| OF_A_CLUSTER.contains(&line.split_whitespace().nth(1).unwrap_or_default()));
            match block.mark.as_deref() {
                Some("run") => pages_to_run.entry(page.clone()).or_default().push(block),
                Some(mark)
                    if mark.starts_with("not run: ") || mark.starts_with("test: ") || mark == ON_A_NODE =>
                {
                    not_run.push(format!("{place}: {mark}"));
                }
                _ => {
                    let other = programs.iter().find_map(|program| {
                        OTHER_PROGRAMS
                            .iter()
                            .find(|(other, _)| other == program || program.starts_with("tests/testbed/"))
                    });
                    match other {
                        Some((program, needs)) => not_run.push(format!("{place}: {program} needs {needs}")),
                        None if is_of_a_cluster => {
                            not_run.push(format!("{place}: it needs a cluster or a node"));
                        }
                        None if is_ours => unmarked.push(place),
                        None => {}
                    }
                }
            }
        }
    }
    assert!(
        unmarked.is_empty(),
        "write <!-- run --> or <!-- not run: REASON --> before these blocks: {unmarked:#?}"
    );
    let count: usize = pages_to_run.values().map(Vec::len).sum();
    assert!(count >= 10, "only {count} blocks are run");
    eprintln!("{count} blocks are run; these are not:\n{}", not_run.join("\n"));

    let registry = Distribution::start();
    let binaries = tempfile::tempdir().expect("a folder");
    for (name, path) in [("oras-csi", oras_csi()), ("oras", testbed("oras"))] {
        std::os::unix::fs::symlink(path, binaries.path().join(name)).expect("a link");
    }
    let path = format!("{}:{}", binaries.path().display(), std::env::var("PATH").unwrap_or_default());
    for (page, blocks) in pages_to_run {
        let folder = tempfile::tempdir().expect("a folder");
        prepare(&registry, folder.path());
        let script: String = blocks.iter().fold(String::new(), |mut text, block| {
            writeln!(text, "echo '# {page}:{}' >&2\n{}", block.line, script(block))
                .expect("a string accepts text");
            text
        });
        let script = with_registry(&script, &registry);
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &script]).current_dir(folder.path()).stdin(Stdio::null());
        shell.env("PATH", &path).env("HOME", folder.path()).env("DOCKER_CONFIG", folder.path());
        shell.env("ORAS_CSI_CERTS_DIR", folder.path().join("hosts"));
        let output = shell.output().expect("bash");
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success(),
            "{page} ended with {}:\n{text}\n--- script:\n{script}",
            output.status
        );
    }
}
