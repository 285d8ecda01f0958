//! Components are killed with SIGKILL: those of oras-csi, and those of the node.

use std::time::{Duration, Instant};

use oras_csi_tests::installation::{processes, wait_until_ready};
use oras_csi_tests::load::Load;
use oras_csi_tests::node::{Node, reboot, until, without};
use oras_csi_tests::process::signal;

use crate::PATIENCE;

/// How long the API server calls a webhook that was killed: until kubelet has seen it, and every endpoint is updated. Longer
/// than on any production node, for a machine that runs other tests at once.
const UNTIL_NOT_CALLED: Duration = Duration::from_secs(15);
/// How long a node needs to start its containers again.
const NODE_AWAY: Duration = Duration::from_mins(3);
/// How long the API server is away.
const API_SERVER_AWAY: Duration = Duration::from_mins(1);

/// Kills one process of a component, and waits until another runs in its place.
fn kill_one(component: &str, replicas: usize) {
    // A replica that an earlier test replaced can still answer for some seconds.
    let before = until(&format!("{replicas} processes of the {component}"), PATIENCE, || {
        Some(processes(component)).filter(|found| found.len() == replicas)
    });
    signal(before[0], "KILL");
    until(&format!("another {component} runs"), PATIENCE, || {
        let now = processes(component);
        (now.len() == replicas && !now.contains(&before[0])).then_some(())
    });
    wait_until_ready(component, replicas);
}

#[test]
fn killed_components_fail_no_read_and_no_creation_that_another_replica_can_serve() {
    let load = Load::start(Node::get(), 2);

    let since = Instant::now();
    load.during("`kill -9` of one of two webhook replicas", || kill_one("webhook", 2))
        .has_failures_only_until(
            since,
            UNTIL_NOT_CALLED,
            &["failed calling webhook"],
            "the API server calls the dead replica until its endpoint is removed",
        );

    load.during("`kill -9` of the driver", || kill_one("driver", 1)).has_no_failure();

    load.during("`kill -9` of kubelet", || without("kubelet", || ())).has_no_failure();

    load.during("`kill -9` of containerd", || without("containerd", || ())).has_no_failure();

    let since = Instant::now();
    load.during("`kill -9` of the only API server", || without("kube-apiserver", || ()))
        .has_failures_only_until(since, API_SERVER_AWAY, &[""], "no API server answers");
    wait_until_ready("webhook", 2);
    wait_until_ready("driver", 1);

    // A reboot ends the readers, so what they miss must not count. New ones show that the volumes are back.
    let load = load.without_readers();
    let since = Instant::now();
    load.during("the only node reboots", || {
        reboot();
        wait_until_ready("webhook", 2);
        wait_until_ready("driver", 1);
    })
    .has_failed_creations_only_until(
        since,
        NODE_AWAY,
        &["failed calling webhook"],
        "both replicas of the webhook were on the node",
    );
    let load = load.with_readers(2);
    load.during("the node is back", || ()).has_no_failure();
    load.finish();
}
