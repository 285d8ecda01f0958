//! `oras-csi recipe`: recipes as artifacts.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use futures_util::TryStreamExt as _;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::patch::{Instructions, Patch, PatchError};
use oras_csi_core::recipe::{Recipe, RecipeError, Step, WrittenRecipe, artifact};
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::registry::{Publication, Registry};

use crate::documents::{read_text, write_out};
use crate::failure::{Failure, Status};
use crate::registries::{RegistryOptions, access, digest_of, patient_client, pin, publisher};

/// Keeps recipes as artifacts, reads them, and resolves their tags.
///
/// What is pushed can be named wherever a patch can: oras.land/patch on a pod, oras.artifact.patch in a volume. Its
/// steps are then read as if they stood in the pod.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Pushes a recipe, once it is clear that it can be read, and says what it is now.
    Push {
        /// The recipe in YAML; - is standard input.
        #[arg(short, long = "filename", value_name = "FILE")]
        file: PathBuf,
        /// Where it goes.
        #[arg(value_name = "REPO:TAG")]
        to: String,
        #[command(flatten)]
        options: Options,
    },
    /// Writes the recipe that an artifact has; of a patch, the recipe that it comes to.
    Show {
        /// The artifact.
        #[arg(value_name = "REF")]
        reference: String,
        #[command(flatten)]
        options: Options,
    },
    /// Writes the canonical JSON of a recipe, with what its tags stand for now.
    Pin {
        /// The recipe in YAML; - is standard input.
        #[arg(short, long = "filename", value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Debug, Args)]
struct Options {
    /// Speak plain http to the registries that are named, whatever their address: for a try at the prompt.
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    registries: RegistryOptions,
}

impl Options {
    /// The configuration, in which what is named may be plain if that is wanted.
    fn hosts<'a>(
        &self,
        mut hosts: HostsConfig,
        named: impl IntoIterator<Item = &'a Reference>,
    ) -> HostsConfig {
        if self.plain_http {
            for reference in named {
                hosts = hosts.with_plain_http(reference.registry().clone());
            }
        }
        hosts
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.action {
        Action::Push { file, to, options } => push(&file, &to, &options).await,
        Action::Show { reference, options } => show(&reference, &options).await,
        Action::Pin { file, options } => {
            let (hosts, _, recipe) = read(&file, &options)?;
            let hosts = options.hosts(hosts, recipe.references().map(|(_, reference)| reference));
            let registry = access(patient_client(&hosts), options.registries.own_credentials()?);
            let recipe = expanded(registry.as_ref(), &recipe, &hosts).await?;
            let pinned = pin(registry.as_ref(), &recipe).await?;
            write_out(&format!("{}\n", pinned.to_json()))
        }
    }
}

/// The recipe with its patches read.
pub(crate) async fn expanded(
    registry: &dyn Registry,
    written: &WrittenRecipe,
    hosts: &HostsConfig,
) -> Result<Recipe, Failure> {
    let mut come = Vec::new();
    for (number, step) in written.patches() {
        let at = |failure: Failure| failure.at(format_args!("step {number}: {}", step.reference()));
        let (pinned, instructions) = instructions(registry, step.reference()).await.map_err(at)?;
        come.push(match instructions {
            Instructions::Patch(patch) => step.steps(&patch),
            Instructions::Recipe(layer) => {
                let yaml = yaml(registry, &pinned, &layer).await.map_err(at)?;
                let recipe = WrittenRecipe::from_yaml(&yaml, &|host| hosts.is_configured(host));
                let recipe = recipe.map_err(|error| at(Failure::bad_input(error)))?;
                step.steps_of(&recipe).map_err(|error| at(Failure::bad_input(error)))?
            }
        });
    }
    let mut come = come.into_iter();
    let (recipe, _) = written
        .expand(|_, _| Ok::<_, RecipeError>(come.next().unwrap_or_default()))
        .map_err(Failure::bad_input)?;
    Ok(recipe)
}

/// What a patch or the artifact of a recipe says.
async fn instructions(
    registry: &dyn Registry,
    reference: &Reference,
) -> Result<(PinnedReference, Instructions), Failure> {
    let digest = match reference.digest() {
        Some(digest) => digest.clone(),
        None => digest_of(registry, reference).await?,
    };
    let pinned = reference.pin(digest);
    let document = registry.manifest(&pinned).await?.into_document();
    let instructions = Instructions::read(&pinned, &document)?;
    Ok((pinned, instructions))
}

fn read(file: &Path, options: &Options) -> Result<(HostsConfig, String, WrittenRecipe), Failure> {
    let hosts = options.registries.hosts()?;
    let text = read_text(file)?;
    let recipe = WrittenRecipe::from_yaml(&text, &|host| hosts.is_configured(host));
    let recipe = recipe.map_err(|error| Failure::bad_input(error).at(file.display()))?;
    Ok((hosts, text, recipe))
}

async fn push(file: &Path, to: &str, options: &Options) -> Result<(), Failure> {
    let (hosts, text, _) = read(file, options)?;
    let to = Reference::parse_knowing(to, &|host| hosts.is_configured(host)).map_err(Failure::bad_input)?;
    let hosts = options.hosts(hosts, [&to]);
    let publisher = publisher(patient_client(&hosts), options.registries.own_credentials()?);
    let pushed = publisher.publish(&to, to.tag(), &Publication::of_recipe(&text)).await?;
    let tag = to.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
    write_out(&format!("{}{tag}@{}\n", to.name(), pushed.digest()))
}

async fn show(text: &str, options: &Options) -> Result<(), Failure> {
    let hosts = options.registries.hosts()?;
    let reference =
        Reference::parse_knowing(text, &|host| hosts.is_configured(host)).map_err(Failure::bad_input)?;
    let hosts = options.hosts(hosts, [&reference]);
    let registry: Arc<dyn Registry> = access(patient_client(&hosts), options.registries.own_credentials()?);
    let at = |failure: Failure| failure.at(&reference);
    let (pinned, instructions) = instructions(registry.as_ref(), &reference).await.map_err(at)?;
    write_out(&match instructions {
        Instructions::Patch(patch) => steps(&patch),
        Instructions::Recipe(layer) => {
            let yaml = yaml(registry.as_ref(), &pinned, &layer).await.map_err(at)?;
            if yaml.ends_with('\n') { yaml } else { format!("{yaml}\n") }
        }
    })
}

/// The recipe that a patch comes to.
fn steps(patch: &Patch) -> String {
    let mut text = String::new();
    for (part, step) in patch.steps(None) {
        let verb = if matches!(step, Step::Overlay(_)) { "overlay" } else { "add" };
        if let Some(layer) = step.layer() {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "- {verb}: {} # {part}", layer.reference());
        }
    }
    text
}

async fn yaml(
    registry: &dyn Registry,
    pinned: &PinnedReference,
    layer: &Descriptor,
) -> Result<String, Failure> {
    let pieces: Vec<bytes::Bytes> = registry.blob(pinned, layer, 0).await?.try_collect().await?;
    let bytes = pieces.concat();
    if !layer.digest().matches(&bytes) {
        let words = format!("the blob {} has other bytes than its digest says", layer.digest());
        return Err(Failure::new(Status::Refused, words));
    }
    Ok(artifact::text(bytes).map_err(PatchError::Recipe)?)
}
