//! How much is measured: all of it, or the part that takes a few minutes (`make bench-quick`).

use crate::disk::Kind;

/// The size of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Everything is smaller.
    pub(crate) quick: bool,
}

impl Scale {
    /// Reads `ORAS_CSI_BENCH_QUICK`.
    pub(crate) fn from_environment() -> Self {
        Self { quick: std::env::var_os("ORAS_CSI_BENCH_QUICK").is_some_and(|value| value == "1") }
    }

    /// The disks of cold pulls, and how often each program runs on them.
    pub(crate) fn disks(self) -> &'static [(Kind, usize)] {
        if self.quick { &[(Kind::Ext4, 2)] } else { &[(Kind::Memory, 3), (Kind::Ext4, 2), (Kind::Xfs, 1)] }
    }

    /// One of two values.
    pub(crate) fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// The positions of a growth curve: a quick run leaves out those above `largest`.
    pub(crate) fn up_to(self, largest: u64, all: &[u64]) -> Vec<u64> {
        all.iter().copied().filter(|&x| !self.quick || x <= largest).collect()
    }
}

/// A number of bytes as people write it.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB"];
    let unit = units.iter().enumerate().rev().find(|(power, _)| count >= 1 << (10 * power));
    unit.map_or_else(|| "0 B".to_owned(), |(power, unit)| format!("{} {unit}", count >> (10 * power)))
}

/// A number with commas.
pub(crate) fn number(count: u64) -> String {
    let digits = count.to_string();
    let first = digits.len() % 3;
    let mut text = digits[..first].to_owned();
    for chunk in digits.as_bytes()[first..].chunks(3) {
        if !text.is_empty() {
            text.push(',');
        }
        text.extend(chunk.iter().map(|&byte| char::from(byte)));
    }
    text
}
