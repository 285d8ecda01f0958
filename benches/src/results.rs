//! The results: one JSON line for each series, in the file that `ORAS_CSI_BENCH_RESULTS` names.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Our program in each comparison.
pub(crate) const OURS: &str = "oras-csi";
/// The beginning of the names of series that are a limit of the machine.
pub(crate) const LIMIT: &str = "limit: ";

/// The values that one program reached in one case, all of the same unit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    /// A heading of the report.
    pub(crate) section: String,
    /// A row of its table.
    pub(crate) case: String,
    /// A column of its table.
    pub(crate) program: String,
    /// What the values are: `s`, `ms`, `CPU s`, `MiB`, `written/files`.
    pub(crate) unit: String,
    /// One value for each round.
    pub(crate) values: Vec<f64>,
    /// The position on the axis of a plot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) x: Option<f64>,
    /// The name of that axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) axis: Option<String>,
}

impl Series {
    /// The median; 0 without values.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.get(middle) {
            Some(value) if sorted.len().is_multiple_of(2) => f64::midpoint(sorted[middle - 1], *value),
            value => value.copied().unwrap_or_default(),
        }
    }

    /// The smallest and the largest value.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let smallest = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        (smallest, self.values.iter().copied().fold(0.0, f64::max))
    }
}

/// Returns the smallest value that is not below `percent` of the values (nearest rank); 0 without values.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// Appends series to the file of results.
#[derive(Debug)]
pub(crate) struct Results(File);

impl Results {
    /// Opens the file that `ORAS_CSI_BENCH_RESULTS` names.
    pub(crate) fn open() -> Result<Self> {
        let path = std::env::var_os("ORAS_CSI_BENCH_RESULTS").map(PathBuf::from);
        let path = path.context("ORAS_CSI_BENCH_RESULTS names no file: run `make bench`")?;
        let file = File::options().create(true).append(true).open(&path);
        Ok(Self(file.with_context(|| format!("cannot open the results {}", path.display()))?))
    }

    /// Appends one series.
    pub(crate) fn add(&mut self, series: &Series) -> Result<()> {
        println!(
            "{:<34} {:<28} {:<26} {:>12.4} {}",
            series.section,
            series.case,
            series.program,
            series.median(),
            series.unit
        );
        let line = serde_json::to_string(series)? + "\n";
        self.0.write_all(line.as_bytes()).context("cannot write to the results")
    }
}

/// Appends series of one section.
pub(crate) struct Section<'a> {
    results: &'a mut Results,
    name: &'static str,
}

impl<'a> Section<'a> {
    /// Adds to the section of this name.
    pub(crate) fn new(results: &'a mut Results, name: &'static str) -> Self {
        Self { results, name }
    }

    /// Adds the values of a program in a case.
    pub(crate) fn add(&mut self, case: &str, program: &str, unit: &str, values: Vec<f64>) -> Result<()> {
        self.add_at(case, program, unit, values, None)
    }

    /// The same for a point of a plot: the name of the axis and the position.
    pub(crate) fn add_at(
        &mut self,
        case: &str,
        program: &str,
        unit: &str,
        values: Vec<f64>,
        at: Option<(&str, u64)>,
    ) -> Result<()> {
        self.results.add(&Series {
            section: self.name.to_owned(),
            case: case.to_owned(),
            program: program.to_owned(),
            unit: unit.to_owned(),
            values,
            x: at.map(|(_, x)| x as f64),
            axis: at.map(|(axis, _)| axis.to_owned()),
        })
    }
}
