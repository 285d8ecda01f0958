//! Reads patches and recipe artifacts: the manifest, and the blob with a recipe's YAML.

use std::sync::Arc;

use futures_util::TryStreamExt as _;
use oras_csi_core::digest::Digest;
use oras_csi_core::display::Printable;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::patch::{Instructions, PatchError};
use oras_csi_core::recipe::artifact;
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{Keyring, Registry, RegistryError};
use tokio::time::Instant as Deadline;

use super::failure::Failure;
use super::resolver::{CredentialView, Resolver, Shared, detached};
use crate::contents::PatchDocument;

impl Resolver {
    /// Reads the patch or recipe artifact that `reference` names. A digest takes precedence over a tag beside it.
    pub(crate) async fn read_patch(
        &self,
        reference: &Reference,
        keyring: &Keyring,
        bypass_cache: bool,
        deadline: Deadline,
    ) -> Result<(Digest, PatchDocument), Failure> {
        let read = |view: CredentialView| async move {
            let digest = match reference.digest() {
                Some(digest) => digest.clone(),
                None => view.digest_of_tag(reference, bypass_cache, deadline).await?,
            };
            let document = view.patch_document(&reference.pin(digest.clone()), deadline).await?;
            Ok((digest, document))
        };
        self.try_each_credential(reference, keyring, deadline, read).await.map(|(read, _)| read)
    }
}

impl CredentialView {
    async fn patch_document(
        &self,
        pinned: &PinnedReference,
        deadline: Deadline,
    ) -> Result<PatchDocument, Failure> {
        match self.contents(pinned, deadline).await?.instructions(pinned)? {
            Instructions::Patch(patch) => Ok(PatchDocument::Patch(Box::new(patch))),
            Instructions::Recipe(layer) => {
                self.recipe(pinned, layer, deadline).await.map(PatchDocument::Recipe)
            }
        }
    }

    async fn recipe(
        &self,
        pinned: &PinnedReference,
        layer: Descriptor,
        deadline: Deadline,
    ) -> Result<Arc<str>, Failure> {
        let key = self.manifest_key(pinned);
        if let Some(yaml) = self.shared.recipes.get(&key).await {
            return Ok(yaml);
        }
        let (shared, registry, from) = (Arc::clone(&self.shared), self.registry(), pinned.clone());
        let _waiter = self.shared.backpressure.enter(pinned.registry())?;
        let bytes = detached(deadline, async move {
            let read = shared.request_blob(registry.as_ref(), &from, &layer);
            read.await.map_err(Arc::new)
        });
        let yaml: Arc<str> = artifact::text(bytes.await?).map_err(PatchError::Recipe)?.into();
        self.shared.recipes.insert(key, Arc::clone(&yaml)).await;
        Ok(yaml)
    }
}

impl Shared {
    /// Downloads a blob and verifies its digest. The descriptor was checked against the maximum length of a recipe.
    async fn request_blob(
        &self,
        registry: &dyn Registry,
        pinned: &PinnedReference,
        blob: &Descriptor,
    ) -> Result<Vec<u8>, RegistryError> {
        let read = async {
            let mut stream = registry.blob(pinned, blob, 0).await?;
            let mut bytes = Vec::new();
            while let Some(piece) = stream.try_next().await? {
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes)
        };
        let bytes = self.bounded(pinned.registry(), &pinned.name(), read).await?;
        if blob.digest().matches(&bytes) {
            return Ok(bytes);
        }
        Err(RegistryError::Untruthful {
            at: Printable::new(&pinned.name()),
            words: format!("the content of blob {} does not match its digest", blob.digest()).into(),
        })
    }
}
