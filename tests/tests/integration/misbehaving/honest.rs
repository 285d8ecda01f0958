//! Registries that work correctly: proves that the checks of the table can pass.

use oras_csi_testkit::scripted::Script;
use oras_csi_testkit::scripted::tricks::redirect_to_host;

use super::{DONE, FEW, Tls, check, many_files, row};

#[test]
fn honest_registries() {
    let nothing = |_: &str| Script::default();
    check(
        FEW,
        vec![
            row("plain http", DONE, nothing).artifact(many_files()).stored(),
            row("TLS", DONE, nothing).artifact(many_files()).tls(Tls::Both),
            row("tokens", DONE, nothing).artifact(many_files()).private(),
            row("storage on another host", DONE, |storage| {
                Script::default().on("/blobs/", redirect_to_host(storage))
            })
            .private()
            .storage_sees_no_secrets(),
        ],
    );
}
