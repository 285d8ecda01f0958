//! In whose name the bytes of a volume are fetched, and the wait for them.

use std::sync::Arc;
use std::time::Duration;

use oras_csi_core::registry::{Keyring, Source};
use oras_csi_store::TreeKey;
use oras_csi_store::pull::{Fetcher, PullStatus};

use super::{PublishError, PublishRequest, Publisher};
use crate::preload::SetSecretError;

impl Publisher {
    /// The pod's secret, then what the administrator gave, then nobody's.
    pub(super) fn keyring_of(&self, request: &PublishRequest) -> Keyring {
        match request.secret() {
            Some(secret) => self.keyring.clone().with_secret(Source::VolumeSecret, secret.clone()),
            None => self.keyring.clone(),
        }
    }

    /// With the pull secret of the volume's cluster set, where the seal says that it is one of a set; and why not.
    pub(super) async fn with_credentials_of_its_set(
        &self,
        request: &PublishRequest,
        fetcher: Arc<Fetcher>,
    ) -> (Arc<Fetcher>, Option<Box<SetSecretError>>) {
        // A name without a checked seal could be anybody's wish.
        let set = request.canonical().set().filter(|_| self.disk.seals.vouch_for(request));
        let (Some(secrets), Some(set)) = (&self.set_secrets, set) else { return (fetcher, None) };
        let (keyring, without) = secrets.add_to(&self.keyring_of(request), set).await;
        let fetcher = Arc::new(self.pulls.fetcher().with_credentials(Arc::new(keyring)));
        (fetcher, without.map(Box::new))
    }

    /// Pulls until the tree is there. A pull that another call began may have ended just before this one leased the
    /// tree, and what it brought may be collected already: then it is pulled once more.
    pub(super) async fn pulled(
        &self,
        request: &PublishRequest,
        key: &TreeKey,
        fetcher: &Arc<Fetcher>,
        wait: Duration,
    ) -> Result<PullStatus, PublishError> {
        let waited = self.pulls.wait_for(request.recipe(), fetcher, wait).await;
        if matches!(waited, PullStatus::Ready(_)) {
            let key = key.clone();
            if !self.disk(move |disk| Ok(disk.store.tree(&key)?.is_some())).await? {
                return Ok(self.pulls.wait_for(request.recipe(), fetcher, wait).await);
            }
        }
        Ok(waited)
    }
}
