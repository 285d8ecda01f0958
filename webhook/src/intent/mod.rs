//! What a pod asks for. Pure: nothing is looked up but the pod and the administrator's registries, which
//! are given as [`Registries`].
//!
//! Annotations give one volume ([`annotations`]), each inline volume with our driver gives one more
//! ([`inline`]); [`mounts`] says where the first appears. A `PersistentVolume` ([`persistent`]) asks for one. What a
//! patch or the artifact of a recipe comes to, once somebody has read it, is [`patched`]'s.

mod annotations;
mod inline;
mod mounts;
mod patched;
mod persistent;
mod sets;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use oras_csi_core::digest::Digest;
use oras_csi_core::dns_name::is_subdomain;
use oras_csi_core::keys::{DRIVER, annotation, canonical};
use oras_csi_core::patch::{Part, Patch};
use oras_csi_core::path::MountPath;
use oras_csi_core::policy::Source;
use oras_csi_core::recipe::{Recipe, WrittenRecipe};
use oras_csi_core::reference::{Reference, RegistryHost};
use oras_csi_core::registry::HostsConfig;
use oras_csi_core::volume::CanonicalVolume;

use crate::denial::{At, Denial, RecipeAt, StepAt};
use crate::view::Pod;

pub(crate) use patched::{Patched, Read, Steps};
pub(crate) use persistent::read as read_persistent;
pub(crate) use sets::{Kept, NewSet, OfSet, SetName};

/// What the administrator says of registries: the part of `certs.d` that has to be known before any
/// network.
pub trait Registries: Send + Sync + 'static {
    /// Whether a first segment without dot and port is one of the administrator's hosts.
    fn names(&self, segment: &str) -> bool;
    /// Whether plain http is allowed for that host.
    fn allows_plain_http(&self, host: &RegistryHost) -> bool;
    /// Whether a certificate that cannot be verified is allowed for that host.
    fn allows_insecure(&self, host: &RegistryHost) -> bool;
}

impl Registries for HostsConfig {
    fn names(&self, segment: &str) -> bool {
        Self::names(self, segment)
    }

    fn allows_plain_http(&self, host: &RegistryHost) -> bool {
        Self::allows_plain_http(self, host)
    }

    fn allows_insecure(&self, host: &RegistryHost) -> bool {
        Self::allows_insecure(self, host)
    }
}

/// All that a pod asks for.
#[derive(Debug, Default)]
pub(crate) struct Intent {
    /// The volumes, the annotations' first.
    pub(crate) volumes: Vec<VolumeIntent>,
    /// What the user should hear, whatever becomes of it.
    pub(crate) warnings: Vec<String>,
}

/// One volume that is to be canonical.
#[derive(Clone, Debug)]
pub(crate) struct VolumeIntent {
    /// Its name in the pod.
    pub(crate) name: String,
    /// Its place in `spec.volumes`, or `None` where it is to be added.
    pub(crate) index: Option<usize>,
    /// The canonical volume that an earlier round, a rendered manifest or the original of a copied pod has in the
    /// place of what the annotations ask for. It is untrusted.
    pub(crate) earlier: Option<CanonicalVolume>,
    /// What shall be in it.
    pub(crate) content: Content,
    /// Whether the pod's annotations ask for it, and no volume of the pod's own does.
    pub(crate) of_annotations: bool,
    /// The pull secret that is named for it.
    pub(crate) secret: Option<String>,
    /// Mounts to add.
    pub(crate) mounts: Vec<NewMount>,
    /// The set that comes to be with it, where there is none of that name.
    pub(crate) makes: Option<NewSet>,
}

/// What a volume shall hold.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Something to pin.
    Wanted(Wanted),
    /// What a patch or the artifact of a recipe says, which has to be read before anything can be pinned.
    Patched(Box<Patched>),
    /// A recipe with patches in it, which have to be read as well.
    Steps(Steps),
    /// Something pinned, from a canonical volume that came with the request. It is untrusted: it has
    /// been parsed, and policy looks at it like at anything else.
    Canonical(CanonicalVolume),
    /// A set, which has to be looked up before anything is known of it.
    Set(SetName),
    /// A set that was looked up.
    OfSet(Box<OfSet>),
}

/// A recipe, where it was written, and how to treat it.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// What to pin.
    pub(crate) recipe: Recipe,
    /// Where each step was written, in the order of the steps.
    pub(crate) origins: Vec<Origin>,
    /// The name for people in the volume's id.
    pub(crate) label: Option<String>,
    /// Resolve past the cache.
    pub(crate) past_cache: bool,
    /// The patches and recipes that it was read from, in the order in which they were.
    pub(crate) read_from: Vec<ReadFrom>,
}

/// The patch or recipe that says what is wanted.
#[derive(Clone, Debug)]
pub(crate) struct ReadFrom {
    /// As it is written.
    pub(crate) reference: Reference,
    /// What was read.
    pub(crate) digest: Digest,
    /// Where it is written.
    pub(crate) origin: Origin,
    /// Whether its tag was looked up for this very request.
    pub(crate) is_fresh: bool,
    /// The patch, where what is patched is written beside it and has yet to turn out to be its base.
    pub(crate) unchecked: Option<Box<Patch>>,
    /// Whether the level that is wanted leaves the base as it is.
    pub(crate) is_bare: bool,
}

/// Where a reference was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In an annotation.
    Annotation {
        /// Which.
        key: String,
        /// Which step of the recipe or part of the patch in it, where it holds one.
        step: Option<StepAt>,
    },
    /// In an attribute of a volume.
    Attribute {
        /// The volume.
        volume: String,
        /// The attribute.
        key: &'static str,
        /// Which step of the recipe or part of the patch in it, where it holds one.
        step: Option<StepAt>,
    },
    /// In a field of an object of its own.
    Field(String),
}

impl Origin {
    /// For a denial.
    pub(crate) fn at(&self) -> At<'_> {
        match self {
            Self::Field(path) => At::Field(path),
            Self::Annotation { key, step: None } => At::Annotation(key),
            Self::Annotation { key, step: Some(step) } => {
                At::Step { recipe: RecipeAt::Annotation(key), step: *step }
            }
            Self::Attribute { volume, key, step: None } => At::Attribute { volume, key },
            Self::Attribute { volume, key, step: Some(step) } => {
                At::Step { recipe: RecipeAt::Attribute { volume, key }, step: *step }
            }
        }
    }

    /// The same, for a step of the recipe that is written there.
    fn step(&self, number: usize) -> Self {
        self.within(StepAt::Number(number))
    }

    /// The same, for a part of the patch that is named there.
    fn part(&self, part: Part) -> Self {
        self.within(StepAt::Part(part))
    }

    fn within(&self, inner: StepAt) -> Self {
        let mut origin = self.clone();
        match &mut origin {
            Self::Annotation { step, .. } | Self::Attribute { step, .. } => *step = Some(inner),
            Self::Field(_) => {}
        }
        origin
    }
}

/// A recipe in YAML.
fn read_recipe(yaml: &str, origin: &Origin, registries: &dyn Registries) -> Result<WrittenRecipe, Denial> {
    let recipe = WrittenRecipe::from_yaml(yaml, &|host| registries.names(host));
    recipe.map_err(|error| Denial::rewrite(origin.at(), None, error, ""))
}

/// The name of a Secret.
fn check_secret(at: At<'_>, name: &str) -> Result<String, Denial> {
    if is_subdomain(name) {
        return Ok(name.to_owned());
    }
    let rule = "is not the name of a Secret";
    Err(Denial::rewrite(
        at,
        Some(name),
        rule,
        "write the name of a dockerconfigjson Secret of the pod's namespace",
    ))
}

/// A mount that a container is to gain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewMount {
    /// Which container, as an index into [`Pod::containers`].
    pub(crate) container: usize,
    /// Where.
    pub(crate) path: MountPath,
    /// Which directory of the volume, or all of it.
    pub(crate) sub_path: Option<String>,
}

/// More than this many distinct references cannot be meant, and each costs a registry a request.
pub(crate) const MOST_REFERENCES: usize = 128;

/// Reads what a pod asks for. An empty intent is a pod that asks for nothing.
pub(crate) fn read(pod: &Pod<'_>, registries: &dyn Registries) -> Result<Intent, Denial> {
    let mut intent = Intent::default();
    annotations::read(pod, registries, &mut intent)?;
    let of_annotations = intent.volumes.first().and_then(|volume| volume.index);
    for volume in pod.volumes() {
        let Some(csi) = volume.csi.as_ref().filter(|csi| csi.driver == DRIVER) else { continue };
        if of_annotations != Some(volume.index) {
            intent.volumes.push(inline::read(volume, csi, registries, &mut intent.warnings)?);
        }
    }
    if intent.volumes.is_empty() {
        return Ok(intent);
    }
    if pod.is_for_windows() {
        return Err(Denial::rewrite(
            At::Field("spec.os.name"),
            Some("windows"),
            "cannot have volumes of csi.oras.land, whose driver runs on Linux nodes only",
            "remove the oras.land/ annotations and csi.oras.land volumes, or write oras.land/inject: \"false\"",
        ));
    }
    check_count(intent.volumes.iter())?;
    mounts::warn_of_mounts_below(pod, &mut intent);
    Ok(intent)
}

/// Refuses more different artifacts than anybody means.
pub(crate) fn check_count<'a>(volumes: impl Iterator<Item = &'a VolumeIntent>) -> Result<(), Denial> {
    let references: BTreeSet<Reference> =
        volumes.flat_map(VolumeIntent::names).map(|named| named.reference).collect();
    if references.len() > MOST_REFERENCES {
        return Err(Denial::rewrite(
            At::Field("spec.volumes"),
            None,
            format_args!("name {} different artifacts", references.len()),
            format_args!("use at most {MOST_REFERENCES} in one pod"),
        ));
    }
    Ok(())
}

/// One reference of a volume as policy sees it.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    /// Where it was written.
    pub(crate) origin: Origin,
    /// What was written.
    pub(crate) reference: Reference,
    /// Whether it is what says what is mounted, and is not mounted itself.
    pub(crate) is_patch: bool,
    /// Who says that it shall be mounted.
    pub(crate) source: Source,
}

impl VolumeIntent {
    /// Whether a cluster set gives it.
    pub(crate) fn is_of_cluster_set(&self) -> bool {
        match &self.content {
            Content::OfSet(of) => of.found.is_cluster_set(),
            Content::Canonical(volume) => volume.set().is_some(),
            _ => false,
        }
    }

    /// Where its pull secret is named.
    pub(crate) fn secret_at(&self) -> At<'_> {
        if self.of_annotations && self.secret.is_some() {
            At::Annotation(annotation::PULL_SECRET)
        } else {
            At::Volume(&self.name)
        }
    }

    /// The patches and recipe artifacts that are named for it, each with its digest where that is written or was read.
    pub(crate) fn patches(&self) -> Vec<(Named, Option<Digest>)> {
        let name = |reference: &Reference, origin: Origin, digest: Option<&Digest>| {
            let digest = digest.or(reference.digest()).cloned();
            let source = Source::Direct;
            (Named { origin, reference: reference.clone(), is_patch: true, source }, digest)
        };
        let read = |from: &ReadFrom| name(&from.reference, from.origin.clone(), Some(&from.digest));
        match &self.content {
            Content::Patched(patched) => vec![name(&patched.reference, patched.origin.clone(), None)],
            Content::Steps(steps) => {
                let written = steps.patches().map(|(origin, step)| name(step.reference(), origin, None));
                steps.read_from.iter().map(read).chain(written).collect()
            }
            Content::Wanted(wanted) => wanted.read_from.iter().map(read).collect(),
            Content::Canonical(_) | Content::Set(_) | Content::OfSet(_) => Vec::new(),
        }
    }

    /// All that is named for it: policy asks about all of them.
    pub(crate) fn names(&self) -> Vec<Named> {
        let of_set = match &self.content {
            Content::OfSet(of) => of.patches(),
            _ => Vec::new(),
        };
        let patches = self.patches().into_iter().map(|(named, _)| named);
        patches.chain(of_set).chain(self.references()).collect()
    }

    /// What is named in what was read just now: policy has seen no more than where that was named.
    pub(crate) fn unseen(&self) -> Vec<Named> {
        let patches = match &self.content {
            Content::Steps(steps) => steps.patches().count(),
            _ => 0,
        };
        let named = self.patches().into_iter().map(|(named, _)| named).rev().take(patches);
        named.chain(self.references()).collect()
    }

    /// Every reference of the volume that is known without reading a patch, pinned or not.
    pub(crate) fn references(&self) -> Vec<Named> {
        match &self.content {
            Content::Wanted(wanted) => wanted
                .steps()
                .map(|(reference, origin)| Named {
                    origin: origin.clone(),
                    reference: reference.clone(),
                    is_patch: false,
                    source: Source::Direct,
                })
                .collect(),
            Content::Patched(patched) => patched.beside().into_iter().collect(),
            Content::Set(_) => Vec::new(),
            Content::OfSet(of) => of.references(),
            Content::Steps(steps) => steps.plain_references(),
            Content::Canonical(volume) => volume
                .recipe()
                .references()
                .map(|reference| Named {
                    origin: Origin::Attribute {
                        volume: self.name.clone(),
                        key: canonical::RECIPE,
                        step: None,
                    },
                    reference: reference.clone().into(),
                    is_patch: false,
                    // Without a seal that says so it is refused, policy or not.
                    source: if volume.set().is_some() { Source::ClusterSet } else { Source::Direct },
                })
                .collect(),
        }
    }

    /// The canonical volume, where every step has its digest without asking anybody.
    pub(crate) fn pinned(&self) -> Option<CanonicalVolume> {
        match &self.content {
            Content::Canonical(volume) => Some(volume.clone()),
            Content::Patched(_) | Content::Steps(_) | Content::Set(_) => None,
            Content::OfSet(of) => of.canonical().ok(),
            Content::Wanted(wanted) => {
                let recipe = wanted.recipe.pin(|reference| reference.digest().cloned().ok_or(())).ok()?;
                CanonicalVolume::new(wanted.label.as_deref(), recipe).ok()
            }
        }
    }
}

impl Wanted {
    /// What a canonical volume has, by its digests, as if somebody had written that.
    pub(crate) fn of_canonical(volume: &CanonicalVolume, name: &str) -> Self {
        let attribute = |_| Origin::Attribute { volume: name.to_owned(), key: canonical::RECIPE, step: None };
        Self {
            recipe: volume.recipe().unpinned(),
            origins: volume.recipe().references().map(attribute).collect(),
            label: Some(volume.id().slug().to_owned()),
            past_cache: false,
            read_from: Vec::new(),
        }
    }

    /// Each reference with the place where it was written.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (&Reference, &Origin)> {
        self.recipe.references().zip(&self.origins)
    }

    /// Refuses, before any network, what would be too long once it is pinned.
    fn check_length(&self, at: At<'_>) -> Result<(), Denial> {
        let stand_in = Digest::sha256_of(b"");
        let digest_of = |reference: &Reference| {
            Ok::<_, std::convert::Infallible>(reference.digest().cloned().unwrap_or_else(|| stand_in.clone()))
        };
        let pinned = match self.recipe.pin(digest_of) {
            Ok(pinned) => pinned,
            Err(never) => match never {},
        };
        match CanonicalVolume::new(self.label.as_deref(), pinned) {
            Ok(_) => Ok(()),
            Err(error) => Err(Denial::rewrite(at, None, error, "")),
        }
    }
}
