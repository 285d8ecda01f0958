//! `oras-csi why`: shows where a pod stands on the way to its volumes, and what to do next.

mod collect;
mod denial;
mod facts;
mod judge;
mod policies;
mod report;
mod target;

#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;

use clap::Args;

use self::target::Target;
use crate::exit_status::Failure;
use crate::options::cluster::ClusterOptions;
use crate::options::output::OutputFormat;
use crate::standard_output::write_stdout;

/// Show why a pod does not have its volumes, step by step, and what to do next.
///
/// The steps are: annotation, admission, policy, digest, credential, node, pull, mount. Reads objects of the API server only,
/// and needs no access to the node. The exit status is 0 if the pod has its volumes or waits for a pull.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Pod, or a workload whose pods are explained: POD, deploy/NAME, rs/NAME, sts/NAME, ds/NAME or job/NAME.
    #[arg(value_name = "POD")]
    target: Target,
    /// Output format: one line for each step, or one JSON object.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
    #[command(flatten)]
    cluster: ClusterOptions,
}

const EXAMPLES: &str = "\
Examples:
  # Show why a pod does not start
  oras-csi why web-7d9f8-abcde -n team

  # Show why a Deployment has no pods
  oras-csi why deploy/web -n team";

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let connection = arguments.cluster.connect().await?;
    let facts = collect::collect(&connection.client, &connection.namespace, arguments.target).await?;
    let verdict = judge::judge(&facts);
    write_stdout(&match arguments.output {
        OutputFormat::Json => format!("{:#}\n", serde_json::json!(verdict)),
        OutputFormat::Text => report::render(&verdict, std::io::stdout().is_terminal()),
    })?;
    match verdict.status {
        None => Ok(()),
        Some(status) => Err(Failure::new(status, &verdict.summary)),
    }
}
