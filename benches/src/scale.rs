//! How much is measured: all of it, or the part that takes a few minutes (`make bench-quick`).

use crate::disk::Kind;

/// The size of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Everything is smaller.
    pub(crate) quick: bool,
    /// The most rounds of each comparison.
    rounds: usize,
}

impl Scale {
    /// Reads `ORAS_CSI_BENCH_QUICK` and `ORAS_CSI_BENCH_ROUNDS`.
    pub(crate) fn from_environment() -> Self {
        let quick = std::env::var_os("ORAS_CSI_BENCH_QUICK").is_some_and(|value| value == "1");
        let rounds = std::env::var("ORAS_CSI_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
        Self { quick, rounds: rounds.unwrap_or(usize::MAX).max(1) }
    }

    /// The number of rounds of a comparison.
    pub(crate) fn rounds(self, full: usize, quick: usize) -> usize {
        self.pick(full, quick).min(self.rounds)
    }

    /// What was measured, for the report.
    pub(crate) fn extent(self) -> String {
        let extent = self.pick("full (`make bench`)", "quick (`make bench-quick`): smaller cases");
        match self.rounds {
            usize::MAX => extent.to_owned(),
            1 => format!("{extent}, one round of each comparison"),
            rounds => format!("{extent}, at most {rounds} rounds of each comparison"),
        }
    }

    /// The disks of cold pulls, and how often each program runs on them.
    pub(crate) fn disks(self) -> Vec<(Kind, usize)> {
        if self.quick {
            vec![(Kind::Ext4, self.rounds(2, 2))]
        } else {
            vec![(Kind::Memory, self.rounds(3, 3)), (Kind::Ext4, self.rounds(2, 2)), (Kind::Xfs, 1)]
        }
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
