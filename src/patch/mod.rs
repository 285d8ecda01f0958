//! `oras-csi patch`.

mod list;
mod set;

use std::sync::Arc;

use clap::{Args, ValueEnum};
use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::{Descriptor, Document};
use oras_csi_core::patch::{self, Instructions, Level, Part, Patch, PatchError};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::registry::{HttpRegistry, Publication, Registry};

use self::set::SetOptions;
use crate::documents::write_out;
use crate::failure::Failure;
use crate::registries::{RegistryOptions, access, patient_client, publisher};

/// Makes a patch of an artifact: a small artifact that names a base and what is laid over it, each by digest.
///
/// A level is any reference, or a digest alone, which is then one of the base's repository; tags are resolved. The
/// patch is attached to its base, and goes to the base's repository without a tag, where the base's referrers list it;
/// with --push, elsewhere. What it is now is written to standard output: name that with oras.land/patch.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What is patched.
    #[arg(value_name = "BASE")]
    base: String,
    /// What is laid over it first.
    #[arg(long, value_name = "REF")]
    minor: Option<String>,
    /// What is laid over that.
    #[arg(long, value_name = "REF")]
    major: Option<String>,
    /// What is laid over all.
    #[arg(long, visible_alias = "crit", value_name = "REF")]
    critical: Option<String>,
    /// Where it goes, as HOST/REPOSITORY or HOST/REPOSITORY:TAG [default: the base's repository, with no tag].
    #[arg(long, value_name = "REPO[:TAG]")]
    push: Option<String>,
    /// Write the manifest to standard output, and push nothing.
    #[arg(long, conflicts_with_all = ["set", "cluster_set"])]
    dry_run: bool,
    #[command(flatten)]
    set: SetOptions,
    /// List the patches that are attached to the base, and make none.
    #[arg(long, conflicts_with_all = ["minor", "major", "critical", "push", "dry_run", "set", "cluster_set"])]
    list: bool,
    /// How to write the list.
    #[arg(short, long, value_enum, default_value_t = Format::Text, requires = "list")]
    output: Format,
    /// Speak plain http to the registries that are named, whatever their address: for a try at the prompt.
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    registries: RegistryOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Lines for people.
    Text,
    /// One JSON array.
    Json,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut hosts = arguments.registries.hosts()?;
    let read = |text: &str, hosts: &HostsConfig| {
        Reference::parse_knowing(text, &|host| hosts.is_configured(host)).map_err(Failure::bad_input)
    };
    let base = read(&arguments.base, &hosts)?;
    let target = Target::of(arguments.push.as_deref(), &base, &hosts)?;
    let mut levels = Vec::new();
    for (level, text) in [
        (Level::Minor, &arguments.minor),
        (Level::Major, &arguments.major),
        (Level::Critical, &arguments.critical),
    ] {
        let Some(text) = text else { continue };
        // A digest alone is no reference: to docker.io it would be a tag of the repository "sha256".
        let reference = match text.parse::<Digest>() {
            Ok(digest) => base.pin(digest).into(),
            Err(_) => read(text, &hosts).map_err(|failure| failure.at(format_args!("--{level}")))?,
        };
        levels.push((level, reference));
    }
    if levels.is_empty() && !arguments.list {
        return Err(Failure::bad_input(
            "name what is laid over the base: --minor REF, --major REF or --critical REF; or --list what is attached to it",
        ));
    }
    if arguments.plain_http {
        let named = levels.iter().map(|(_, reference)| reference).chain([&base, &target.reference]);
        for reference in named {
            hosts = hosts.with_plain_http(reference.registry().clone());
        }
    }
    let registry = patient_client(&hosts);
    if arguments.list {
        return list::run(registry, &base, &arguments).await;
    }
    make(registry, &base, levels, &target, &arguments).await
}

/// Where a patch goes.
struct Target {
    /// The repository; a tag only where one is written.
    reference: Reference,
    tag: Option<String>,
}

impl Target {
    fn of(text: Option<&str>, base: &Reference, hosts: &HostsConfig) -> Result<Self, Failure> {
        let Some(text) = text else {
            let reference = base.name().parse().map_err(Failure::bad_input)?;
            return Ok(Self { reference, tag: None });
        };
        let reference =
            Reference::parse_knowing(text, &|host| hosts.is_configured(host)).map_err(Failure::bad_input)?;
        if reference.digest().is_some() {
            return Err(Failure::bad_input(format!(
                "--push {reference}: a push makes the digest: write a tag, or nothing behind the repository"
            )));
        }
        let tag = reference.tag().filter(|tag| text.ends_with(&format!(":{tag}"))).map(str::to_owned);
        Ok(Self { reference, tag })
    }

    fn name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{}:{tag}", self.reference.name()),
            None => self.reference.name(),
        }
    }
}

async fn make(
    client: Arc<HttpRegistry>,
    base: &Reference,
    levels: Vec<(Level, Reference)>,
    target: &Target,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let credentials = arguments.registries.own_credentials()?;
    let registry = access(Arc::clone(&client) as Arc<dyn Registry>, credentials.clone());
    let (base, subject) = resolve(registry.as_ref(), Part::Base, base).await?;
    let mut resolved = Vec::new();
    for (level, reference) in levels {
        let (reference, _) = resolve(registry.as_ref(), Part::Level(level), &reference).await?;
        resolved.push((level, reference));
    }
    let patch = Patch::new(base, resolved)?;
    let manifest = patch.to_manifest(&subject, &target.name())?;
    if arguments.dry_run {
        return write_out(&format!("{}\n", String::from_utf8_lossy(&manifest)));
    }
    let set = arguments.set.find().await?;
    eprintln!("{:<9} {}", "base", patch.base());
    for (level, reference) in patch.levels() {
        eprintln!("{level:<9} {reference}");
    }
    let publication = Publication::of_patch(&patch, manifest);
    let publisher = publisher(client, credentials);
    let pushed = publisher.publish(&target.reference, target.tag.as_deref(), &publication).await?;
    if pushed.name() != patch.base().name() {
        eprintln!(
            "oras-csi: {} lists what is attached to its base, and not what is in {}: name the patch itself",
            patch.base().name(),
            pushed.name()
        );
    }
    if let Some(set) = set {
        set.point_at(&pushed, target.tag.as_deref()).await?;
    }
    write_out(&format!("{}@{}\n", target.name(), pushed.digest()))
}

/// A reference with the digest that it has now, once it is clear that it is content.
async fn resolve(
    registry: &dyn Registry,
    part: Part,
    reference: &Reference,
) -> Result<(Reference, Descriptor), Failure> {
    let at = |failure: Failure| failure.at(format_args!("{part} {reference}"));
    let found = registry.resolve(reference).await.map_err(|error| at(error.into()))?;
    let pinned = reference.pin(found.digest().clone());
    let document = registry.manifest(&pinned).await.map_err(|error| at(error.into()))?;
    let descriptor = document.descriptor().clone();
    match document.into_document() {
        Document::Image(image) if Instructions::is_kind(image.kind()) => {
            Err(at(PatchError::Nested { part }.into()))
        }
        _ => Ok((reference.with_digest(found.digest().clone()), descriptor)),
    }
}

/// The artifact type that lists are searched for.
const KIND: &str = patch::ARTIFACT_TYPE;
