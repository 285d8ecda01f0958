//! The credentials with which a volume is pulled, and the wait for the pull.

use std::sync::Arc;
use std::time::Duration;

use oras_csi_core::registry::{Keyring, Source};
use oras_csi_store::TreeKey;
use oras_csi_store::pull::{Fetcher, ProgressSnapshot, PullStatus, Tenant, Waiter};

use super::{PublishError, PublishRequest, Publisher};
use crate::preload::SetSecretError;

impl Publisher {
    /// Returns the credentials to try, in this order: the pod's Secret, the administrator's credentials, anonymous.
    pub(super) fn keyring_of(&self, request: &PublishRequest) -> Keyring {
        match request.secret() {
            Some(secret) => self.keyring.clone().with_secret(Source::VolumeSecret, secret.clone()),
            None => self.keyring.clone(),
        }
    }

    /// Adds the pull secret of the volume's cluster set, if the seal names one. Also returns why the pull secret could
    /// not be added.
    pub(super) async fn with_credentials_of_its_set(
        &self,
        request: &PublishRequest,
        fetcher: Arc<Fetcher>,
    ) -> (Arc<Fetcher>, Option<Box<SetSecretError>>) {
        // Without a verified seal, any user could have written the name of the set.
        let set = request.canonical().set().filter(|_| self.disk.seals.authorizes_pull(request));
        let (Some(secrets), Some(set)) = (&self.set_secrets, set) else { return (fetcher, None) };
        let (keyring, secret_error) = secrets.add_to(&self.keyring_of(request), set).await;
        let fetcher = Arc::new(self.pulls.fetcher().with_credentials(Arc::new(keyring)));
        (fetcher, secret_error.map(Box::new))
    }

    /// Pulls until the tree is in the store. A pull that another call started can end just before this call leases the
    /// tree, and garbage collection can then remove the tree. In that case it is pulled once more.
    pub(super) async fn pull_into_store(
        &self,
        request: &PublishRequest,
        key: &TreeKey,
        fetcher: &Arc<Fetcher>,
        wait: Duration,
    ) -> Result<(PullStatus, ProgressSnapshot), PublishError> {
        let tenant = Tenant::of_namespace(request.namespace());
        let waiter =
            Waiter::new(tenant, request.target().path().to_string_lossy()).with_id(request.id().to_owned());
        let result = self.pulls.wait_with_progress(request.recipe(), fetcher, &waiter, wait).await;
        if matches!(result.0, PullStatus::Ready(_)) {
            let key = key.clone();
            if !self.run_on_disk(move |disk| Ok(disk.store.tree(&key)?.is_some())).await? {
                return Ok(self.pulls.wait_with_progress(request.recipe(), fetcher, &waiter, wait).await);
            }
        }
        Ok(result)
    }
}
