//! The boot id of the machine.

/// Which start of the machine this is. Where nobody knows, no two are the same.
pub(crate) fn boot_id() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let read = read.trim();
    if read.is_empty() { format!("unknown-{}", std::process::id()) } else { read.to_owned() }
}
