//! `oras-csi patch`: creates patches of an artifact, and lists them.

mod arguments;
mod list;
mod set;

use std::sync::Arc;

use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::{Descriptor, Manifest};
use oras_csi_core::patch::{Instructions, Level, Part, Patch, PatchError};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::registry::{HttpRegistry, Publication, Registry};

pub(crate) use self::arguments::Arguments;
use crate::exit_status::Failure;
use crate::parsing::parse_reference;
use crate::registry_client::{publisher, transfer_client, with_credentials};
use crate::standard_output::write_stdout;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let hosts = arguments.registries.hosts()?;
    let base = parse_reference(&arguments.base, &hosts)?;
    let target = Target::parse(arguments.push.as_deref(), &base, &hosts)?;
    let mut levels = Vec::new();
    for (level, text) in [
        (Level::Minor, &arguments.minor),
        (Level::Major, &arguments.major),
        (Level::Critical, &arguments.critical),
    ] {
        let Some(text) = text else { continue };
        // As a reference, a bare digest would be a tag of docker.io/library/sha256.
        let reference = match text.parse::<Digest>() {
            Ok(digest) => base.pin(digest).into(),
            Err(_) => {
                parse_reference(text, &hosts).map_err(|failure| failure.at(format_args!("--{level}")))?
            }
        };
        levels.push((level, reference));
    }
    if levels.is_empty() && !arguments.list {
        return Err(Failure::bad_input(
            "a patch needs at least one level: --minor REF, --major REF or --critical REF. To list the patches of BASE, \
             use --list.",
        ));
    }
    let named = levels.iter().map(|(_, reference)| reference).chain([&base, &target.reference]);
    let hosts = arguments.plain_http.apply(hosts, named);
    let registry = transfer_client(&hosts);
    if arguments.list {
        return list::list_patches(registry, &base, &arguments).await;
    }
    create_patch(registry, &base, levels, &target, &arguments).await
}

/// Where a patch is pushed to.
struct Target {
    /// The repository. Its implied tag `latest` does not count.
    reference: Reference,
    /// The tag, if `--push` has one.
    tag: Option<String>,
}

impl Target {
    /// Parses `--push`. Without it the target is the repository of the base, since only that lists the patch as a
    /// referrer.
    fn parse(text: Option<&str>, base: &Reference, hosts: &HostsConfig) -> Result<Self, Failure> {
        let Some(text) = text else {
            let reference = base.name().parse().map_err(Failure::bad_input)?;
            return Ok(Self { reference, tag: None });
        };
        let reference = parse_reference(text, hosts)?;
        if reference.digest().is_some() {
            return Err(Failure::bad_input(format!(
                "--push {reference}: the digest is known only after the push. Write HOST/REPOSITORY or \
                 HOST/REPOSITORY:TAG."
            )));
        }
        let tag = reference.tag().filter(|tag| text.ends_with(&format!(":{tag}"))).map(str::to_owned);
        Ok(Self { reference, tag })
    }

    /// Returns the repository, with the tag if there is one.
    fn name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{}:{tag}", self.reference.name()),
            None => self.reference.name(),
        }
    }
}

/// Resolves the base and the levels, pushes the patch, and updates the set.
async fn create_patch(
    client: Arc<HttpRegistry>,
    base: &Reference,
    levels: Vec<(Level, Reference)>,
    target: &Target,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let credentials = arguments.registries.user_credentials()?;
    let registry = with_credentials(Arc::clone(&client) as Arc<dyn Registry>, credentials.clone());
    let (base, subject) = resolve_content(registry.as_ref(), Part::Base, base).await?;
    let mut resolved = Vec::new();
    for (level, reference) in levels {
        let (reference, _) = resolve_content(registry.as_ref(), Part::Level(level), &reference).await?;
        resolved.push((level, reference));
    }
    let patch = Patch::new(base, resolved)?;
    let manifest = patch.to_manifest(&subject, &target.name())?;
    if arguments.dry_run {
        return write_stdout(&format!("{}\n", String::from_utf8_lossy(&manifest)));
    }
    let set = arguments.set.find().await?;
    eprintln!("{:<9} {}", "base", patch.base());
    for (level, reference) in patch.levels() {
        eprintln!("{level:<9} {reference}");
    }
    let publication = Publication::of_patch(&patch, manifest);
    let push = publisher(client, credentials);
    let published = push.publish(&target.reference, target.tag.as_deref(), &publication).await?;
    // Whatever fails now, the patch is in the registry, and the user needs its digest.
    write_stdout(&format!("{}@{}\n", target.name(), published.reference().digest()))?;
    let pushed = published.into_listed()?;
    if pushed.name() != patch.base().name() {
        eprintln!(
            "oras-csi: the referrers of {} do not list this patch, because it is in {}. Refer to the patch by its own \
             name.",
            patch.base().name(),
            pushed.name()
        );
    }
    if let Some(set) = set {
        set.update(&pushed, target.tag.as_deref()).await?;
    }
    Ok(())
}

/// Resolves a reference and reads its manifest, which must be content: a patch or a recipe artifact cannot be a part of
/// a patch.
async fn resolve_content(
    registry: &dyn Registry,
    part: Part,
    reference: &Reference,
) -> Result<(Reference, Descriptor), Failure> {
    let at = |failure: Failure| failure.at(format_args!("{part} {reference}"));
    let found = registry.resolve(reference).await.map_err(|error| at(error.into()))?;
    let pinned = reference.pin(found.digest().clone());
    let document = registry.manifest(&pinned).await.map_err(|error| at(error.into()))?;
    let descriptor = document.descriptor().clone();
    match document.into_manifest() {
        Manifest::Image(image) if Instructions::is_kind(image.kind()) => {
            Err(at(PatchError::Nested { part }.into()))
        }
        _ => Ok((reference.with_digest(found.digest().clone()), descriptor)),
    }
}
