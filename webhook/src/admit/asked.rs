//! What a pod asks for, as far as it is known without asking anybody.

use oras_csi_core::digest::Digest;
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::CanonicalVolume;

use crate::denial::Denial;
use crate::intent::{Named, VolumeIntent};
use crate::metrics::Metrics;
use crate::policy::ApplicablePolicies;
use crate::policy::evaluate::{Evaluation, Findings, evaluate_reference};

/// A volume that is asked for, as far as it is known without asking anybody.
#[derive(Clone, Debug)]
pub struct AskedVolume {
    name: String,
    patches: Vec<Asked>,
    references: Vec<Asked>,
    pinned: Option<CanonicalVolume>,
}

impl AskedVolume {
    /// With what policies say of it.
    pub(super) fn new(volume: &VolumeIntent, book: &ApplicablePolicies, metrics: &Metrics) -> Self {
        let ask = |named: Named, digest: Option<Digest>| {
            let denial = Findings::default().check_name(book, &named, metrics).err();
            Asked {
                denial,
                opinions: evaluate_reference(book, &named.reference, named.source),
                named,
                digest,
            }
        };
        let references = volume.references().into_iter();
        let references = references.map(|named| {
            let digest = named.reference.digest().cloned();
            ask(named, digest)
        });
        let references = references.collect();
        let patches = volume.patches().into_iter().map(|(named, digest)| ask(named, digest)).collect();
        Self { patches, references, pinned: volume.pinned(), name: volume.name.clone() }
    }

    /// Its name in the pod, or that of the `PersistentVolume`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The patches, and artifacts of recipes, that say what is in it.
    pub fn patches(&self) -> &[Asked] {
        &self.patches
    }

    /// All that is named for it.
    pub fn names(&self) -> impl Iterator<Item = &Asked> {
        self.patches.iter().chain(&self.references)
    }

    /// Its references, in the order of their steps; of a patch that nobody has read yet, at most its base.
    pub fn references(&self) -> &[Asked] {
        &self.references
    }

    /// The canonical volume, where every reference is written with its digest.
    pub fn pinned(&self) -> Option<&CanonicalVolume> {
        self.pinned.as_ref()
    }
}

/// One reference that is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    named: Named,
    digest: Option<Digest>,
    denial: Option<Denial>,
    opinions: Vec<Evaluation>,
}

impl Asked {
    /// The annotation or attribute it is written in, as a denial names it.
    pub fn place(&self) -> String {
        self.named.origin.at().to_string()
    }

    /// The reference.
    pub fn reference(&self) -> &Reference {
        &self.named.reference
    }

    /// Its digest, where it is known without asking again.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The refusal of the policies, where they have one.
    pub fn denial(&self) -> Option<&Denial> {
        self.denial.as_ref()
    }

    /// What each policy says of its name.
    pub fn opinions(&self) -> &[Evaluation] {
        &self.opinions
    }
}
