//! `oras-csi recipe`: pushes, shows and pins recipes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use oras_csi_core::patch::{Instructions, Patch};
use oras_csi_core::recipe::{Step, WrittenRecipe};
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::registry::{Publication, Registry};

use crate::exit_status::Failure;
use crate::options::plain_http::PlainHttpOption;
use crate::options::registry::RegistryOptions;
use crate::parsing::{parse_recipe, parse_reference};
use crate::patch_expansion::{expand_patches, read_instructions, read_recipe_yaml};
use crate::registry_client::{pin_recipe, publisher, transfer_client, with_credentials};
use crate::standard_output::write_stdout;
use crate::yaml_documents::read_file_or_stdin;

/// Push recipes as artifacts, show them, and resolve their tags.
///
/// A recipe artifact can be named wherever a patch can: in the annotation oras.land/patch of a pod, and in the volume
/// attribute oras.artifact.patch. The webhook then uses its steps as if the pod had them.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Validate a recipe, push it, and write its pinned reference to standard output.
    Push {
        /// File with the recipe in YAML; - is standard input.
        #[arg(short, long = "filename", value_name = "FILE")]
        file: PathBuf,
        /// Repository and tag to push to.
        #[arg(value_name = "REPO:TAG")]
        to: String,
        #[command(flatten)]
        options: Options,
    },
    /// Write the recipe of a recipe artifact, or the recipe that a patch expands to.
    Show {
        /// Reference of the recipe artifact or the patch.
        #[arg(value_name = "REF")]
        reference: String,
        #[command(flatten)]
        options: Options,
    },
    /// Write the canonical JSON of a recipe, with patches expanded and tags resolved.
    Pin {
        /// File with the recipe in YAML; - is standard input.
        #[arg(short, long = "filename", value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Debug, Args)]
struct Options {
    #[command(flatten)]
    plain_http: PlainHttpOption,
    #[command(flatten)]
    registries: RegistryOptions,
}

const EXAMPLES: &str = "\
Examples:
  # Push a recipe, and request it in a pod with the annotation oras.land/patch: ghcr.io/acme/recipes:app-1
  oras-csi recipe push -f recipe.yaml ghcr.io/acme/recipes:app-1

  # Show the recipe in an artifact
  oras-csi recipe show ghcr.io/acme/recipes:app-1

  # Resolve the tags of a recipe
  oras-csi recipe pin -f recipe.yaml";

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.action {
        Action::Push { file, to, options } => push(&file, &to, &options).await,
        Action::Show { reference, options } => show(&reference, &options).await,
        Action::Pin { file, options } => {
            let (hosts, _, recipe) = read(&file, &options)?;
            let hosts = options.plain_http.apply(hosts, recipe.references().map(|(_, reference)| reference));
            let registry = with_credentials(transfer_client(&hosts), options.registries.user_credentials()?);
            let recipe = expand_patches(registry.as_ref(), &recipe, &hosts).await?;
            let pinned = pin_recipe(registry.as_ref(), &recipe).await?;
            write_stdout(&format!("{}\n", pinned.to_json()))
        }
    }
}

/// Reads and parses the recipe of a file. Returns its text too, which is pushed byte for byte.
fn read(file: &Path, options: &Options) -> Result<(HostsConfig, String, WrittenRecipe), Failure> {
    let hosts = options.registries.hosts()?;
    let text = read_file_or_stdin(file)?;
    let recipe = parse_recipe(&text, &hosts).map_err(|failure| failure.at(file.display()))?;
    Ok((hosts, text, recipe))
}

async fn push(file: &Path, to: &str, options: &Options) -> Result<(), Failure> {
    let (hosts, text, _) = read(file, options)?;
    let to = parse_reference(to, &hosts)?;
    let hosts = options.plain_http.apply(hosts, [&to]);
    let publisher = publisher(transfer_client(&hosts), options.registries.user_credentials()?);
    let pushed = publisher.publish(&to, to.tag(), &Publication::of_recipe(&text)).await?.into_listed()?;
    let tag = to.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
    write_stdout(&format!("{}{tag}@{}\n", to.name(), pushed.digest()))
}

async fn show(text: &str, options: &Options) -> Result<(), Failure> {
    let hosts = options.registries.hosts()?;
    let reference = parse_reference(text, &hosts)?;
    let hosts = options.plain_http.apply(hosts, [&reference]);
    let registry: Arc<dyn Registry> =
        with_credentials(transfer_client(&hosts), options.registries.user_credentials()?);
    let at = |failure: Failure| failure.at(&reference);
    let (pinned, instructions) = read_instructions(registry.as_ref(), &reference).await.map_err(at)?;
    write_stdout(&match instructions {
        Instructions::Patch(patch) => patch_as_recipe(&patch),
        Instructions::Recipe(layer) => {
            let yaml = read_recipe_yaml(registry.as_ref(), &pinned, &layer).await.map_err(at)?;
            if yaml.ends_with('\n') { yaml } else { format!("{yaml}\n") }
        }
    })
}

/// Writes the recipe that a patch expands to.
fn patch_as_recipe(patch: &Patch) -> String {
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
