//! `oras-csi store`: for the person on the node.

mod list;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use oras_csi_core::policy::ByteSize;
use oras_csi_driver::NodeRoots;
use oras_csi_store::Limits;
use oras_csi_store::gc::{Goal, Watermarks, collect};
use oras_csi_store::{
    CollectionReport, DiskError, Inventory, Layout, Store, StoreError, Unpaced, locate_store,
};
use oras_csi_store::{Verdict, verify_blob, verify_layer, verify_tree};

use crate::failure::{Failure, Status};

/// Looks at what a node's driver keeps, compares it with its digests, and takes away what nobody uses.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(Ls),
    Verify(Folder),
    Gc(Gc),
}

#[derive(Debug, Args)]
struct Folder {
    /// The folder of the store, as the driver has it.
    #[arg(long = "store", value_name = "DIR", default_value = "/var/lib/oras-csi")]
    path: PathBuf,
}

/// Lists what is there, who uses it, and what was found damaged. Reads only, also beside a running driver.
#[derive(Debug, Args)]
struct Ls {
    #[command(flatten)]
    folder: Folder,
    /// How to write.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines for people.
    Text,
    /// One JSON object.
    Json,
}

/// Takes away what nobody uses, as the driver does by itself; not while it runs. Without an option: what is above
/// the driver's own thresholds (85 and 80 percent of the file system).
#[derive(Debug, Args)]
struct Gc {
    #[command(flatten)]
    folder: Folder,
    /// Take away all that nobody uses.
    #[arg(long)]
    all: bool,
    /// Go on until the store holds no more than this, as 20Gi.
    #[arg(long, value_name = "BYTES", conflicts_with = "all")]
    to: Option<ByteSize>,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Ls(ls) => list::list(&look(&ls.folder)?, ls.output == Format::Json),
        Command::Verify(folder) => verify(&look(&folder)?),
        Command::Gc(gc) => collect_now(&gc),
    }
}

/// Opens a store. Its garbage collection keeps what the volumes of this node use, as the driver's does.
pub(crate) fn open(path: &Path, limits: Limits) -> Result<Store, StoreError> {
    Ok(Store::open(path, limits)?.with_garbage_collection(Arc::new(NodeRoots)))
}

fn look(folder: &Folder) -> Result<Layout, Failure> {
    locate_store(&folder.path).map_err(failed)
}

fn failed(error: StoreError) -> Failure {
    Failure::new(Status::from(error.class()), error)
}

fn verify(layout: &Layout) -> Result<(), Failure> {
    let disk = |error: DiskError| Failure::failed(error);
    let inventory = Inventory::read(layout).map_err(disk)?;
    let (mut damaged, mut without_sums) = (0_usize, 0_usize);
    let mut tell = |what: String, verdict: Verdict| match verdict {
        Verdict::Damaged(found) => {
            damaged += 1;
            println!("damaged: {what}: {found}");
        }
        Verdict::NoChecksums => without_sums += 1,
        Verdict::Good | Verdict::Gone | Verdict::Stopped => {}
    };
    for blob in inventory.blobs() {
        tell(format!("blob {}", blob.digest()), verify_blob(layout, blob.digest(), &mut Unpaced));
    }
    for layer in inventory.layers() {
        let verdict = twice(|| verify_layer(layout, layer.key(), &mut Unpaced)).map_err(disk)?;
        tell(format!("layer {}", layer.key()), verdict);
    }
    for tree in inventory.trees() {
        let verdict = twice(|| verify_tree(layout, tree, &mut Unpaced)).map_err(disk)?;
        tell(format!("tree {}", tree.key()), verdict);
    }
    let (blobs, layers, trees) = (inventory.blobs().len(), inventory.layers().len(), inventory.trees().len());
    println!("compared {blobs} blobs, {layers} layers and {trees} trees: {damaged} are damaged");
    if without_sums > 0 {
        println!(
            "{without_sums} layers have no checksums yet: they were made by an earlier version, and the driver's next scrub takes them"
        );
    }
    if damaged > 0 {
        return Err(Failure::new(
            Status::Refused,
            "something is damaged: the driver sets it aside at its next scrub, or delete what is named above with the driver stopped; it is fetched again when a pod asks for it",
        ));
    }
    Ok(())
}

/// Looks again where something seems damaged: a driver that runs may have taken it away meanwhile.
fn twice(look: impl Fn() -> Result<Verdict, DiskError>) -> Result<Verdict, DiskError> {
    match look()? {
        Verdict::Damaged(_) => look(),
        verdict => Ok(verdict),
    }
}

fn collect_now(gc: &Gc) -> Result<(), Failure> {
    look(&gc.folder)?;
    let store = open(&gc.folder.path, Limits::default()).map_err(|error| match error {
        StoreError::Locked(path) => Failure::failed(format!(
            "the store {} is in use: the driver collects by itself (--gc-high-threshold, --store-max-bytes); to do it by hand, stop the driver first",
            path.display()
        )),
        error => failed(error),
    })?;
    let marks = Watermarks::default();
    let (goal, age) = match &gc.to {
        _ if gc.all => (Goal::All, Duration::ZERO),
        Some(most) => (Goal::MaxBytes(most.bytes()), Duration::ZERO),
        None => (Goal::Watermarks(&marks), marks.minimum_age()),
    };
    let CollectionReport { trees, layers, blobs, quarantined, bytes, .. } =
        collect(&store, goal, age).map_err(Failure::failed)?;
    println!(
        "took away {trees} trees, {layers} layers, {blobs} blobs and {quarantined} damaged things: about {}",
        list::amount(bytes)
    );
    Ok(())
}

#[cfg(test)]
mod tests;
