//! What all commands share at the terminal: logs on standard error, and pipes that close early.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging at `level`, or at what `RUST_LOG` says: lines for people on a terminal, JSON elsewhere.
pub(crate) fn start_log(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() { log.init() } else { log.json().init() }
}

/// `oras-csi render … | head` ends quietly, as other commands do.
pub(crate) fn keep_quiet_about_closed_pipes() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>();
        if message.is_some_and(|message| message.contains("Broken pipe")) {
            std::process::exit(0);
        }
        default(panic);
    }));
}
