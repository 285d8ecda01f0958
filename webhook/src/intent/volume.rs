//! The volumes that an object requests, as far as they are known from the object itself. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use oras_csi_core::digest::Digest;
use oras_csi_core::dns_name::ObjectName;
use oras_csi_core::keys::{annotation, canonical};
use oras_csi_core::path::MountPath;
use oras_csi_core::policy::Source;
use oras_csi_core::recipe::WrittenRecipe;
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::CanonicalVolume;

use super::origin::{Named, Origin};
use super::patched::{PatchRequest, RecipeSource};
use crate::denial::{At, Denial};

/// The highest number of different references in one pod; each costs a registry a request.
pub(crate) const MAX_REFERENCES: usize = 128;

/// The volume of the pod, or the `PersistentVolume`, that gets the content.
#[derive(Debug)]
pub(crate) struct VolumeTarget {
    /// The volume's name in the pod.
    pub(crate) name: String,
    /// Its position in `spec.volumes`, or `None` where it has to be added.
    pub(crate) index: Option<usize>,
    /// Whether the pod's annotations request it, and not a volume that the user wrote.
    pub(crate) is_from_annotations: bool,
    /// The pull secret that is named for it.
    pub(crate) secret: Option<String>,
    /// The mounts to add to containers.
    pub(crate) mounts: Vec<NewMount>,
}

impl VolumeTarget {
    /// Returns where the pull secret is named.
    pub(crate) fn secret_at(&self) -> At<'_> {
        if self.is_from_annotations && self.secret.is_some() {
            At::Annotation(annotation::PULL_SECRET)
        } else {
            At::Volume(&self.name)
        }
    }
}

/// A mount to add to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewMount {
    /// The container, as an index into [`crate::view::Pod::containers`].
    pub(crate) container: usize,
    /// The mount path.
    pub(crate) path: MountPath,
    /// The directory of the volume to mount, or `None` for all of it.
    pub(crate) sub_path: Option<String>,
}

/// One volume that an object requests.
#[derive(Clone, Debug)]
pub(crate) struct RequestedVolume {
    /// The volume that gets the content.
    pub(crate) target: Arc<VolumeTarget>,
    /// What is requested.
    pub(crate) content: Requested,
}

/// What a volume requests.
#[derive(Clone, Debug)]
pub(crate) enum Requested {
    /// Artifacts by their references, a recipe, or a patch.
    Artifacts(ArtifactRequest),
    /// A canonical volume that came with the request. It is untrusted input: it has been parsed, and
    /// its seal has not been verified.
    Canonical(CanonicalVolume),
    /// A set by its name.
    Set(SetRequest),
}

/// References to pin, with what is known of earlier admissions.
#[derive(Clone, Debug)]
pub(crate) struct ArtifactRequest {
    /// The references.
    pub(crate) source: ArtifactSource,
    /// The canonical volume that the object already has for its annotations: from an earlier admission, from
    /// `oras-csi render`, or copied from another pod. It is untrusted input.
    pub(crate) earlier: Option<CanonicalVolume>,
    /// The set to create with these artifacts, unless the namespace has one of that name.
    pub(crate) new_set: Option<NewSet>,
}

/// Where the references of a volume are written.
#[derive(Clone, Debug)]
pub(crate) enum ArtifactSource {
    /// In the object itself.
    Recipe(RecipeSource),
    /// In a patch, or in a recipe artifact, that the object names. It has to be read first.
    Patch(Box<PatchRequest>),
}

/// A set that is requested by name.
#[derive(Clone, Debug)]
pub(crate) struct SetRequest {
    /// The set's name.
    pub(crate) name: ObjectName,
    /// Where the name is written.
    pub(crate) origin: Origin,
    /// The canonical volume that the object already has; see [`ArtifactRequest::earlier`].
    pub(crate) earlier: Option<CanonicalVolume>,
}

impl SetRequest {
    /// Checks the name of a set.
    pub(super) fn new(name: &str, origin: Origin) -> Result<Self, Denial> {
        if let Ok(name) = name.parse() {
            return Ok(Self { name, origin, earlier: None });
        }
        let lower = name.to_ascii_lowercase();
        let instead = if lower.parse::<ObjectName>().is_ok() {
            format!("upper-case letters are not allowed, did you mean {lower}?")
        } else if name.contains(['/', ':', '@']) {
            "write the name of an ArtifactSet or a ClusterArtifactSet; an artifact is named with oras.land/artifact".to_owned()
        } else {
            "write the name of an ArtifactSet of the namespace, or of a ClusterArtifactSet".to_owned()
        };
        Err(Denial::bad_request(origin.at(), Some(name), "is not the name of a set", instead))
    }
}

/// A set to create with the volume that names it.
#[derive(Clone, Debug)]
pub(crate) struct NewSet {
    /// The set's name.
    pub(crate) name: String,
    /// The set's recipe.
    pub(crate) recipe: WrittenRecipe,
    /// Where the name is written.
    pub(crate) origin: Origin,
}

impl NewSet {
    /// Returns where the name is written.
    pub(crate) fn at(&self) -> At<'_> {
        self.origin.at()
    }
}

impl RequestedVolume {
    /// Returns every reference that the object itself names for the volume.
    pub(crate) fn names(&self) -> Vec<Named> {
        match &self.content {
            Requested::Artifacts(request) => request.source.names(),
            Requested::Canonical(volume) => canonical_references(&self.target.name, volume),
            Requested::Set(_) => Vec::new(),
        }
    }
}

impl ArtifactSource {
    /// Returns the patches and recipe artifacts that are named, each with its digest where that is known.
    pub(crate) fn patches(&self) -> Vec<(Named, Option<Digest>)> {
        match self {
            Self::Recipe(source) => source.patches(),
            Self::Patch(request) => vec![request.named()],
        }
    }

    /// Returns the references whose files are mounted, as far as they are known before a patch is read.
    pub(crate) fn references(&self) -> Vec<Named> {
        match self {
            Self::Recipe(source) => source.references(),
            Self::Patch(request) => request.named_base().into_iter().collect(),
        }
    }

    /// Returns all of both.
    pub(crate) fn names(&self) -> Vec<Named> {
        let patches = self.patches().into_iter().map(|(named, _)| named);
        patches.chain(self.references()).collect()
    }

    /// Returns the canonical volume, where every step is written with its digest.
    pub(crate) fn pinned(&self) -> Option<CanonicalVolume> {
        match self {
            Self::Recipe(RecipeSource::Plain(recipe)) => recipe.pinned(),
            Self::Recipe(RecipeSource::WithPatches(_)) | Self::Patch(_) => None,
        }
    }

    /// Reports whether tags are resolved past the cache.
    pub(crate) fn bypasses_cache(&self) -> bool {
        match self {
            Self::Recipe(source) => source.options().bypass_cache,
            Self::Patch(request) => request.options.bypass_cache,
        }
    }
}

/// Returns the references of a canonical volume that came with a request.
pub(crate) fn canonical_references(name: &str, volume: &CanonicalVolume) -> Vec<Named> {
    let named = |reference: &oras_csi_core::reference::PinnedReference| Named {
        origin: Origin::Attribute { volume: name.to_owned(), key: canonical::RECIPE, step: None },
        reference: reference.clone().into(),
        is_patch: false,
        source: if volume.set().is_some() { Source::ClusterSet } else { Source::Direct },
    };
    volume.recipe().references().map(named).collect()
}

/// Refuses more different references than one pod may name.
pub(crate) fn check_count(names: impl Iterator<Item = Named>) -> Result<(), Denial> {
    let references: BTreeSet<Reference> = names.map(|named| named.reference).collect();
    if references.len() > MAX_REFERENCES {
        return Err(Denial::bad_request(
            At::Field("spec.volumes"),
            None,
            format_args!("reference {} different artifacts", references.len()),
            format_args!("use at most {MAX_REFERENCES} in one pod"),
        ));
    }
    Ok(())
}
