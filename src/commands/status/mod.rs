//! `oras-csi status`: shows nodes, sets, pods with volumes, and pins of a cluster.

mod collect;
mod model;
mod table;
mod tags;
mod watch;

#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::{Args, ValueEnum};
use k8s_openapi::jiff::Timestamp;

use self::collect::Collector;
use self::model::Status;
use self::table::Width;
use self::tags::TagChecker;
use crate::exit_status::Failure;
use crate::options::cluster::ClusterOptions;
use crate::options::registry::RegistryOptions;
use crate::standard_output::write_stdout;

/// Show the nodes, sets, pods and pins of oras-csi in a cluster.
///
/// Nodes have the version of the driver, the store, the preloads and damage. Pods have the artifact and the digest of each
/// volume, and whether it is mounted, is being pulled or has failed. Reads the API server only, and only what the user is
/// allowed to read: a line at the end names what is missing.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    cluster: ClusterOptions,
    /// Show pods, sets and pins of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Resolve the tags of the volumes again, and show which of them have another digest now. Contacts the registries with the
    /// credentials of the current user.
    #[arg(long)]
    check_tags: bool,
    /// Show changes until interrupted: on a terminal the whole state with progress bars, otherwise one line for each change,
    /// and with -o json one object for each reading.
    #[arg(short, long)]
    watch: bool,
    /// Seconds between two readings with --watch.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600), requires = "watch")]
    interval: u64,
    #[command(flatten)]
    registries: RegistryOptions,
}

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables.
    Table,
    /// Tables with more columns and without cut messages.
    Wide,
    /// One JSON object.
    Json,
}

const EXAMPLES: &str = "\
Examples:
  # Show the nodes and sets, and the pods and pins of the namespace of the context
  oras-csi status

  # Show the pods of all namespaces, with all columns
  oras-csi status -A -o wide

  # Follow the pulls of a namespace
  oras-csi status -n team --watch

  # Show which tags have moved since the pods were created
  oras-csi status -A --check-tags";

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let connection = arguments.cluster.connect().await?;
    let namespace = (!arguments.all_namespaces).then_some(connection.namespace);
    let tags = if arguments.check_tags { Some(TagChecker::new(&arguments.registries)?) } else { None };
    let reader = Reader { collector: Collector::new(connection.client, namespace), tags };
    if arguments.watch {
        let interval = Duration::from_secs(arguments.interval);
        return Box::pin(watch::run(&reader, arguments.output, interval)).await;
    }
    let status = Box::pin(reader.read()).await?;
    write_stdout(&print(&status, arguments.output))
}

/// Reads the state of the cluster.
struct Reader {
    collector: Collector,
    tags: Option<TagChecker>,
}

impl Reader {
    async fn read(&self) -> Result<Status, Failure> {
        let collected = Box::pin(self.collector.read()).await?;
        let mut status = Status::new(&collected, Timestamp::now());
        if let Some(tags) = &self.tags {
            tags.check(&mut status).await;
        }
        Ok(status)
    }
}

/// Returns the status in a format. On a terminal, tables end with an empty line between two of them.
fn print(status: &Status, format: Format) -> String {
    match format {
        Format::Json => format!("{:#}\n", serde_json::json!(status)),
        Format::Wide => table::render(status, Width::Wide),
        Format::Table => table::render(status, Width::Normal),
    }
}

/// Reports whether standard output is a terminal.
fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
