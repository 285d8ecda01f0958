//! `oras-csi store`: inspects the store of a node, verifies it, and runs garbage collection by hand.

mod list;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use oras_csi_core::policy::ByteSize;
use oras_csi_driver::NodeRoots;
use oras_csi_store::gc::{Goal, Watermarks, collect};
use oras_csi_store::{
    CollectionReport, DiskError, Inventory, Layout, Limits, Store, StoreError, Unpaced, locate_store,
};
use oras_csi_store::{Verdict, verify_blob, verify_layer, verify_tree};

use self::list::Listing;
use crate::cluster::format::size;
use crate::exit_status::{ExitStatus, Failure};
use crate::options::output::OutputFormat;

/// Opens a store. Its garbage collection keeps what the volumes of this node use, as the driver's does.
pub(crate) fn open_store(path: &Path, limits: Limits) -> Result<Store, StoreError> {
    Ok(Store::open(path, limits)?.with_garbage_collection(Arc::new(NodeRoots)))
}

/// List the store of a node's driver, verify it, or run garbage collection.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(Ls),
    Verify(Verify),
    Gc(Gc),
}

const EXAMPLES: &str = "\
Examples:
  # List the trees, volumes and preloaded sets of a node, also while its driver runs
  oras-csi store ls

  # Verify everything; the exit status is 4 if something is damaged
  oras-csi store verify --store /var/lib/oras-csi

  # Delete unused content until the store holds at most 20 GiB; the driver must be stopped
  oras-csi store gc --to 20Gi";

#[derive(Debug, Args)]
struct StoreFolder {
    /// Folder of the store, as given to the driver.
    #[arg(long = "store", value_name = "DIR", default_value = "/var/lib/oras-csi")]
    path: PathBuf,
}

/// Verify the digests and checksums of everything in the store.
///
/// Read-only; the driver may run. The exit status is 4 if something is damaged.
#[derive(Debug, Args)]
struct Verify {
    #[command(flatten)]
    folder: StoreFolder,
}

/// List the content of the store, the volumes and sets that use it, and damage that was found.
///
/// Read-only; the driver may run.
#[derive(Debug, Args)]
struct Ls {
    #[command(flatten)]
    folder: StoreFolder,
    /// Output format: a table, or one JSON object.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

/// Run garbage collection: delete unused content.
///
/// The driver must be stopped; while it runs, it collects garbage by itself. Without a flag, the driver's default
/// thresholds apply (85 and 80 percent of the file system).
#[derive(Debug, Args)]
struct Gc {
    #[command(flatten)]
    folder: StoreFolder,
    /// Delete all unused content.
    #[arg(long)]
    all: bool,
    /// Delete unused content until the store holds no more than this, for example 20Gi.
    #[arg(long, value_name = "BYTES", conflicts_with = "all")]
    to: Option<ByteSize>,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Ls(ls) => {
            let layout = open_read_only(&ls.folder)?;
            let listing = Listing::read(&layout)?;
            match ls.output {
                OutputFormat::Text => listing.print(&layout),
                OutputFormat::Json => println!("{:#}", listing.to_json(&layout)),
            }
            Ok(())
        }
        Command::Verify(Verify { folder }) => verify(&open_read_only(&folder)?),
        Command::Gc(gc) => collect_garbage(&gc),
    }
}

/// Opens a store for reading, without its lock.
fn open_read_only(folder: &StoreFolder) -> Result<Layout, Failure> {
    locate_store(&folder.path).map_err(store_failure)
}

fn store_failure(error: StoreError) -> Failure {
    Failure::new(ExitStatus::from(error.class()), error)
}

/// Verifies every blob, layer and tree, and prints the damaged ones.
fn verify(layout: &Layout) -> Result<(), Failure> {
    let disk = |error: DiskError| Failure::failed(error);
    let inventory = Inventory::read(layout).map_err(disk)?;
    let (mut damaged, mut without_checksums) = (0_usize, 0_usize);
    let mut report = |name: String, verdict: Verdict| match verdict {
        Verdict::Damaged(found) => {
            damaged += 1;
            println!("damaged: {name}: {found}");
        }
        Verdict::NoChecksums => without_checksums += 1,
        Verdict::Good | Verdict::Gone | Verdict::Stopped => {}
    };
    for blob in inventory.blobs() {
        report(format!("blob {}", blob.digest()), verify_blob(layout, blob.digest(), &mut Unpaced));
    }
    for layer in inventory.layers() {
        let verdict = confirm_damage(|| verify_layer(layout, layer.key(), &mut Unpaced)).map_err(disk)?;
        report(format!("layer {}", layer.key()), verdict);
    }
    for tree in inventory.trees() {
        let verdict = confirm_damage(|| verify_tree(layout, tree, &mut Unpaced)).map_err(disk)?;
        report(format!("tree {}", tree.key()), verdict);
    }
    let (blobs, layers, trees) = (inventory.blobs().len(), inventory.layers().len(), inventory.trees().len());
    println!("verified {blobs} blobs, {layers} layers and {trees} trees: {damaged} damaged");
    if without_checksums > 0 {
        println!(
            "{without_checksums} layers were not verified: an earlier version created them without checksums. The \
             driver's next scrub records their checksums."
        );
    }
    if damaged > 0 {
        return Err(Failure::new(
            ExitStatus::Refused,
            "the store is damaged. The driver quarantines the damaged entries at its next scrub and downloads them \
             again when a pod requests them. To remove them now, stop the driver and delete the entries listed above.",
        ));
    }
    Ok(())
}

/// Verifies a damaged entry a second time: a running driver may have deleted it during the first.
fn confirm_damage(verify: impl Fn() -> Result<Verdict, DiskError>) -> Result<Verdict, DiskError> {
    match verify()? {
        Verdict::Damaged(_) => verify(),
        verdict => Ok(verdict),
    }
}

/// Deletes unused content, under the lock of the store.
fn collect_garbage(gc: &Gc) -> Result<(), Failure> {
    // Does not create a store in a folder that has none.
    open_read_only(&gc.folder)?;
    let store = open_store(&gc.folder.path, Limits::default()).map_err(|error| match error {
        StoreError::Locked(path) => Failure::failed(format!(
            "cannot collect garbage in the store {}: it is in use. A running driver collects garbage by itself \
             (--gc-high-threshold, --store-max-bytes); to do it by hand, stop the driver first.",
            path.display()
        )),
        error => store_failure(error),
    })?;
    let watermarks = Watermarks::default();
    let (goal, age) = match &gc.to {
        _ if gc.all => (Goal::All, Duration::ZERO),
        Some(max) => (Goal::MaxBytes(max.bytes()), Duration::ZERO),
        None => (Goal::Watermarks(&watermarks), watermarks.minimum_age()),
    };
    let CollectionReport { trees, layers, blobs, quarantined, bytes, .. } =
        collect(&store, goal, age).map_err(Failure::failed)?;
    println!(
        "deleted {trees} trees, {layers} layers, {blobs} blobs and {quarantined} quarantined entries: about {}",
        size(bytes)
    );
    Ok(())
}

#[cfg(test)]
mod tests;
