//! `oras-csi pull`: downloads artifacts into a directory.

mod progress;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use clap::Args;
use oras_csi_core::media_type::MediaType;
use oras_csi_core::platform::Platform;
use oras_csi_core::recipe::{Layer, Recipe, Step, WrittenRecipe};
use oras_csi_core::registry::Registry;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_store::Store;
use oras_csi_store::pull::{Fetcher, Progress, pull_into_directory};

use self::progress::ProgressBars;
use crate::commands::store::open_store;
use crate::exit_status::{ExitStatus, Failure};
use crate::options::limits::LimitOptions;
use crate::options::plain_http::PlainHttpOption;
use crate::options::registry::RegistryOptions;
use crate::parsing::{parse_recipe, parse_reference};
use crate::patch_expansion::expand_patches;
use crate::registry_client::{pin_recipe, transfer_client, with_credentials};
use crate::runtime::wait_for_signal;
use crate::yaml_documents::read_file_or_stdin;

/// Download an artifact, or everything that a recipe names, into a directory.
///
/// The command uses the driver's code for the store and for unpacking, so the files are those that a pod would see.
/// DIR must be new or empty. It appears complete, or not at all. The pinned references are written to standard output.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The reference and the directory; with -f, only the directory.
    #[arg(value_names = ["REF", "DIR"], num_args = 1..=2, required = true)]
    operands: Vec<String>,
    /// File with a recipe in YAML or canonical JSON, instead of a reference; - is standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE", conflicts_with_all = ["platform", "media_types"])]
    recipe: Option<PathBuf>,
    /// Folder of a persistent store, which is used by one process at a time. Content that it holds is not downloaded
    /// again [default: a temporary store beside DIR].
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Platform to select from an image index, as os/arch or os/arch/variant [default: that of this machine].
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Keep only layers of this media type; can be repeated.
    #[arg(long = "media-type", value_name = "TYPE")]
    media_types: Vec<MediaType>,
    #[command(flatten)]
    plain_http: PlainHttpOption,
    #[command(flatten)]
    limits: LimitOptions,
    #[command(flatten)]
    registries: RegistryOptions,
}

const EXAMPLES: &str = "\
Examples:
  # Download an artifact into a new directory
  oras-csi pull ghcr.io/acme/model:v1 ./model

  # Download and compose everything that a recipe names
  oras-csi pull -f recipe.yaml ./volume

  # Keep a store, so that a later pull downloads only what is new
  oras-csi pull --store ~/.cache/oras-csi ghcr.io/acme/model:v2 ./model-v2";

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut cleanup = Cleanup::default();
    let done = tokio::select! {
        done = pull(arguments, &mut cleanup) => done,
        () = wait_for_signal() => Err(Failure::failed("pull interrupted by a signal; nothing was written to DIR")),
    };
    cleanup.remove_temporary_store().await;
    done
}

/// Removes the temporary store of a pull that succeeded, failed or was interrupted.
#[derive(Debug, Default)]
struct Cleanup {
    folder: Option<tempfile::TempDir>,
    store: Weak<Store>,
}

impl Cleanup {
    /// Waits until the threads that still write to the store have ended, since a folder with new files in it cannot be
    /// removed. They end because their caller is gone.
    async fn remove_temporary_store(self) {
        while self.store.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(self.folder);
    }
}

async fn pull(arguments: Arguments, cleanup: &mut Cleanup) -> Result<(), Failure> {
    let hosts = arguments.registries.hosts()?;
    let (recipe, directory) = recipe_and_directory(&arguments, &hosts)?;
    let hosts = arguments.plain_http.apply(hosts, recipe.references().map(|(_, reference)| reference));
    let credentials = arguments.registries.user_credentials()?;
    let registry: Arc<dyn Registry> = with_credentials(transfer_client(&hosts), credentials);
    let recipe = expand_patches(registry.as_ref(), &recipe, &hosts).await?;
    let recipe = pin_recipe(registry.as_ref(), &recipe).await?;

    let limits = arguments.limits.limits();
    let open = |folder: &Path| {
        let store = open_store(folder, limits);
        store.map_err(|error| Failure::new(ExitStatus::from(error.class()), error))
    };
    let store = if let Some(folder) = &arguments.store {
        open(folder)?
    } else {
        let beside = temporary_store_beside(&directory)?;
        open(cleanup.folder.insert(beside).path())?.ephemeral()
    };
    let store = Arc::new(store);
    cleanup.store = Arc::downgrade(&store);
    let fetcher = Arc::new(Fetcher::new(store, registry));
    let progress: Arc<dyn Progress> = Arc::new(ProgressBars::new());
    pull_into_directory(&fetcher, &recipe, &directory, &progress)
        .await
        .map_err(|error| Failure::new(ExitStatus::from(error.class()), error))?;
    for reference in recipe.references() {
        println!("{reference}");
    }
    Ok(())
}

/// Returns the recipe to download, and the directory to write to.
fn recipe_and_directory(
    arguments: &Arguments,
    hosts: &HostsConfig,
) -> Result<(WrittenRecipe, PathBuf), Failure> {
    match (&arguments.recipe, arguments.operands.as_slice()) {
        (Some(file), [directory]) => {
            let text = read_file_or_stdin(file)?;
            let recipe = parse_recipe(&text, hosts).map_err(|failure| failure.at(file.display()))?;
            Ok((recipe, directory.into()))
        }
        (None, [reference, directory]) => {
            let mut layer = Layer::new(parse_reference(reference, hosts)?)
                .with_media_types(arguments.media_types.clone());
            if let Some(platform) = &arguments.platform {
                layer = layer.for_platform(platform.clone());
            }
            let recipe = Recipe::new(vec![Step::Add(layer)]).map_err(Failure::bad_input)?;
            Ok((recipe.into(), directory.into()))
        }
        (Some(_), _) => Err(Failure::bad_input(
            "-f takes the place of the reference, so give only the directory: oras-csi pull -f recipe.yaml DIR",
        )),
        (None, _) => {
            Err(Failure::bad_input("a reference and a directory are required: oras-csi pull REF DIR"))
        }
    }
}

/// Creates a temporary folder in the nearest existing parent of `directory`, so that both are on one file system.
fn temporary_store_beside(directory: &Path) -> Result<tempfile::TempDir, Failure> {
    let failed = |error: std::io::Error| {
        let directory = directory.display();
        Failure::failed(format!(
            "cannot create a temporary store beside {directory}: {error}. Give one with --store."
        ))
    };
    let absolute = std::path::absolute(directory).map_err(failed)?;
    let parent = absolute.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    tempfile::Builder::new().prefix(".oras-csi-").tempdir_in(parent).map_err(failed)
}
