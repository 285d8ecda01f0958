//! The boot id of the machine.

/// Returns the kernel's boot id. If it cannot be read, every process counts as a new boot.
pub(crate) fn boot_id() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let read = read.trim();
    if read.is_empty() { format!("unknown-{}", std::process::id()) } else { read.to_owned() }
}
