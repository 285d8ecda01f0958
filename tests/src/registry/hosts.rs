//! containerd's `certs.d`, which gives a registry of a test the name that users write.

use std::path::{Path, PathBuf};

/// Writes `HOST_PORT_/hosts.toml` under a `certs.d` folder, with nothing but its server.
pub fn write_hosts_toml(certs: &Path, name: &str, server: &str) -> PathBuf {
    write_hosts(certs, name, &format!("server = \"{server}\"\n"))
}

/// Writes `HOST_PORT_/hosts.toml` under a `certs.d` folder; `name` may be `_default`.
pub fn write_hosts(certs: &Path, name: &str, text: &str) -> PathBuf {
    let folder = certs.join(name.replacen(':', "_", 1) + if name.contains(':') { "_" } else { "" });
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("hosts.toml");
    std::fs::write(&file, text).expect("writes");
    file
}
