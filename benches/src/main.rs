//! Measures oras-csi beside other programs (benches/README.md).
//!
//! ```text
//! oras-csi-bench SECTION...     measures, and appends to the file of results
//! oras-csi-bench report FOLDER  writes RESULTS.md and plots/ from the file of results
//! ```

// It prints, and a count of bytes or files is far below the 52 bits of a float.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

mod api_server;
mod cluster;
mod containerd;
mod content;
mod disk;
mod driver;
mod growth;
mod http;
mod images;
mod measure;
mod plot;
mod pulls;
mod registry;
mod report;
mod results;
mod scale;
mod throttled;
mod tools;
mod warm;

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, bail};

use crate::results::Results;
use crate::scale::Scale;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "measure") {
        return measure::measure_here(&arguments[1..]);
    }
    let scale = Scale::from_environment();
    if let [command, folder] = &arguments[..]
        && command == "report"
    {
        return report::write(Path::new(folder), scale);
    }
    let mut results = Results::open()?;
    for section in &arguments {
        match section.to_str() {
            Some("pulls") => pulls::run(&mut results, scale).await?,
            Some("throttled") => throttled::run(&mut results, scale).await?,
            Some("images") => images::run(&mut results, scale).await?,
            Some("warm") => warm::run(&mut results, scale).await?,
            Some("growth") => growth::run(&mut results, scale).await?,
            Some("cluster") => cluster::run(&mut results, scale).await?,
            _ => bail!(
                "unknown section {}: the sections are pulls, throttled, images, warm, growth and cluster",
                section.display()
            ),
        }
    }
    Ok(())
}
