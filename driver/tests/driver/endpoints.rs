//! The ports of the driver, which any pod can reach on the network of the node.

use std::sync::Arc;

use tokio::net::TcpStream;

use crate::calls::{Running, get};
use crate::namespace::entered;
use crate::registry::FakeRegistry;

/// The sockets of this process: those of the clients below, and those of the driver.
fn sockets() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

#[tokio::test]
async fn idle_connections_to_the_metrics_take_nothing_from_the_rest_of_the_driver() {
    if !entered("endpoints::idle_connections_to_the_metrics_take_nothing_from_the_rest_of_the_driver") {
        return;
    }
    let any_port = Some("127.0.0.1:0".parse().unwrap());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let driver =
        Running::start_with(folder, FakeRegistry::new(), |settings| settings.with_health(any_port)).await;
    let health = driver.health.unwrap();
    assert_ne!(health, driver.metrics);
    let before = sockets();
    let mut idle = Vec::new();
    for _ in 0..500 {
        idle.push(TcpStream::connect(driver.metrics).await.unwrap());
    }
    assert!(driver.metrics_text().await.starts_with("HTTP/1.1 200"), "the next client gets its answer");
    assert!(sockets() < before + idle.len() + 50, "{} sockets, {before} before", sockets());
    assert!(get(health, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(health, "/metrics").await.starts_with("HTTP/1.1 404"));
    let digest = driver.artifact(b"jar");
    let target = driver.target("a");
    driver.publish(crate::calls::request("csi-1", &target, &digest)).await.unwrap();
    drop(idle);
    driver.stop().await.unwrap();
}
