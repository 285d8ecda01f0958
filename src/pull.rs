//! `oras-csi pull`.

mod progress;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use clap::Args;
use oras_csi_core::media_type::MediaType;
use oras_csi_core::platform::Platform;
use oras_csi_core::recipe::{Layer, Recipe, Step, WrittenRecipe};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::Registry;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_store::Store;
use oras_csi_store::pull::{Fetcher, Progress, pull_into_directory};

use self::progress::Shown;
use crate::documents::read_text;
use crate::failure::{Failure, Status};
use crate::limits::LimitOptions;
use crate::recipe::expanded;
use crate::registries::{RegistryOptions, access, patient_client, pin};
use crate::runtime::interrupted;
use crate::store;

/// Fetches an artifact, or all that a recipe names, into a directory: by the driver's own store and unpacking.
///
/// The directory must be new or empty; it appears whole or not at all.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// REF DIR, or with -f just DIR.
    #[arg(value_names = ["REF", "DIR"], num_args = 1..=2, required = true)]
    words: Vec<String>,
    /// A recipe instead of a reference, in YAML or canonical JSON; - is standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE", conflicts_with_all = ["platform", "media_types"])]
    recipe: Option<PathBuf>,
    /// Keep what is fetched in this folder, and take from it what is there; one process at a time
    /// [default: a folder beside DIR that is removed at the end].
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Which manifest of an image index, as os/arch or os/arch/variant [default: this machine's].
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Keep only layers of this media type; may be given several times.
    #[arg(long = "media-type", value_name = "TYPE")]
    media_types: Vec<MediaType>,
    /// Speak plain http to the registries that are named, whatever their address: for a try at the prompt.
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    limits: LimitOptions,
    #[command(flatten)]
    registries: RegistryOptions,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut behind = Behind::default();
    let done = tokio::select! {
        done = pull(arguments, &mut behind) => done,
        () = interrupted() => Err(Failure::failed("interrupted; nothing was put into the directory")),
    };
    behind.clear_away().await;
    done
}

/// What a pull leaves to be cleared away, however it ends.
#[derive(Debug, Default)]
struct Behind {
    folder: Option<tempfile::TempDir>,
    store: Weak<Store>,
}

impl Behind {
    /// Waits for the threads that still write, which notice that nobody waits for them: a folder that is
    /// being written to cannot be removed.
    async fn clear_away(self) {
        while self.store.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(self.folder);
    }
}

async fn pull(arguments: Arguments, behind: &mut Behind) -> Result<(), Failure> {
    let mut hosts = arguments.registries.hosts()?;
    let (recipe, directory) = wanted(&arguments, &hosts)?;
    if arguments.plain_http {
        for (_, reference) in recipe.references() {
            hosts = hosts.with_plain_http(reference.registry().clone());
        }
    }
    let registry: Arc<dyn Registry> = access(patient_client(&hosts), arguments.registries.own_credentials()?);
    let recipe = expanded(registry.as_ref(), &recipe, &hosts).await?;
    let recipe = pin(registry.as_ref(), &recipe).await?;

    let cannot = |path: &Path, error: std::io::Error| Failure::failed(format!("{}: {error}", path.display()));
    let limits = arguments.limits.limits();
    let open = |folder: &Path| {
        let store = store::open(folder, limits);
        store.map_err(|error| Failure::new(Status::from(error.class()), error))
    };
    let store = if let Some(folder) = &arguments.store {
        open(folder)?
    } else {
        let beside = temporary_beside(&directory).map_err(|error| cannot(&directory, error))?;
        open(behind.folder.insert(beside).path())?.ephemeral()
    };
    let store = Arc::new(store);
    behind.store = Arc::downgrade(&store);
    let fetcher = Arc::new(Fetcher::new(store, registry));
    let progress: Arc<dyn Progress> = Arc::new(Shown::new());
    pull_into_directory(&fetcher, &recipe, &directory, &progress)
        .await
        .map_err(|error| Failure::new(Status::from(error.class()), error))?;
    for reference in recipe.references() {
        println!("{reference}");
    }
    Ok(())
}

/// What is asked for, and where it goes.
fn wanted(arguments: &Arguments, hosts: &HostsConfig) -> Result<(WrittenRecipe, PathBuf), Failure> {
    match (&arguments.recipe, arguments.words.as_slice()) {
        (Some(file), [directory]) => {
            let text = read_text(file)?;
            let recipe = WrittenRecipe::from_yaml(&text, &|host| hosts.names(host));
            Ok((recipe.map_err(|error| Failure::bad_input(error).at(file.display()))?, directory.into()))
        }
        (None, [reference, directory]) => {
            let reference = Reference::parse_knowing(reference, &|host| hosts.names(host));
            let mut layer = Layer::new(reference.map_err(Failure::bad_input)?)
                .with_media_types(arguments.media_types.clone());
            if let Some(platform) = &arguments.platform {
                layer = layer.for_platform(platform.clone());
            }
            let recipe = Recipe::new(vec![Step::Add(layer)]).map_err(Failure::bad_input)?;
            Ok((recipe.into(), directory.into()))
        }
        (Some(_), _) => {
            Err(Failure::bad_input("with -f, write only the directory: oras-csi pull -f recipe.yaml DIR"))
        }
        (None, _) => Err(Failure::bad_input("write a reference and a directory: oras-csi pull REF DIR")),
    }
}

/// A folder on the disk of `directory`: in the nearest folder above it that is there.
fn temporary_beside(directory: &Path) -> std::io::Result<tempfile::TempDir> {
    let absolute = std::path::absolute(directory)?;
    let above = absolute.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    tempfile::Builder::new().prefix(".oras-csi-").tempdir_in(above)
}
