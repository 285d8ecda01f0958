//! The measured series: a table for readers, and a line of JSON for each series.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::json;

/// Measured values, by case and program.
pub(crate) struct Results {
    cases: Vec<String>,
    values: BTreeMap<(String, &'static str), (&'static str, Vec<f64>)>,
}

impl Results {
    pub(crate) fn new() -> Self {
        Self { cases: Vec::new(), values: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, case: &str, program: &'static str, unit: &'static str, value: f64) {
        if !self.cases.iter().any(|known| known == case) {
            self.cases.push(case.to_owned());
        }
        self.values.entry((case.to_owned(), program)).or_insert((unit, Vec::new())).1.push(value);
    }

    /// Prints the median, the least and the most of each series, and its ratio to that of the second program.
    pub(crate) fn print(&self, programs: &[&'static str]) {
        for case in &self.cases {
            println!("\n{case}");
            let peer = self.values.get(&(case.clone(), programs[1])).map(|(_, values)| median(values));
            for program in programs {
                let Some((unit, values)) = self.values.get(&(case.clone(), program)) else { continue };
                let (middle, least, most) = (median(values), edge(values, f64::min), edge(values, f64::max));
                let mut line = format!("  {program:36} {:>12}", shown(middle, unit));
                let _ = write!(line, "   {} to {}", shown(least, unit), shown(most, unit));
                if let Some(peer) = peer.filter(|peer| *peer > 0.0) {
                    let _ = write!(line, "   {:.2} x {}", middle / peer, programs[1]);
                }
                println!("{line}");
            }
        }
    }

    /// Appends the series to the file that ORAS_CSI_BENCH_RESULTS names.
    pub(crate) fn append(&self) {
        let Some(path) = std::env::var_os("ORAS_CSI_BENCH_RESULTS") else { return };
        let mut file = std::fs::File::options().create(true).append(true).open(path).expect("a file");
        for case in &self.cases {
            for ((_, program), (unit, values)) in self.values.iter().filter(|((known, _), _)| known == case) {
                let line = json!({"section": "webhook", "case": case, "program": program, "unit": unit,
                    "values": values});
                writeln!(file, "{line}").expect("a line");
            }
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

fn edge(values: &[f64], choose: fn(f64, f64) -> f64) -> f64 {
    values.iter().copied().reduce(choose).unwrap_or_default()
}

fn shown(value: f64, unit: &str) -> String {
    match unit {
        "s" if value < 0.01 => format!("{:.1} µs", value * 1e6),
        "s" => format!("{:.2} ms", value * 1e3),
        "B" => format!("{:.1} MiB", value / f64::from(1 << 20)),
        _ => format!("{value:.0}"),
    }
}

/// Names a number of connections.
pub(crate) fn connections(number: usize) -> String {
    if number == 1 { "1 connection".to_owned() } else { format!("{number} connections") }
}
