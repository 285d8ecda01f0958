//! `--check-tags`: resolves the tags of volumes again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::Registry;

use super::model::Status;
use crate::cluster::artifact::{Artifact, TagState};
use crate::cluster::format::shown;
use crate::exit_status::Failure;
use crate::options::registry::RegistryOptions;
use crate::registry_client::{interactive_client, with_credentials};

/// How many tags are resolved at the same time.
const CONCURRENT: usize = 8;
/// How long one tag may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Resolves tags with the credentials of the current user.
pub(super) struct TagChecker {
    registry: Arc<dyn Registry>,
}

impl TagChecker {
    /// Uses the registries and the credentials of these options.
    pub(super) fn new(options: &RegistryOptions) -> Result<Self, Failure> {
        let client = interactive_client(&options.hosts()?);
        Ok(Self::with(with_credentials(client, options.user_credentials()?)))
    }

    pub(super) fn with(registry: Arc<dyn Registry>) -> Self {
        Self { registry }
    }

    /// Adds to each artifact of a volume what its tag names now. Each tag is resolved once.
    pub(super) async fn check(&self, status: &mut Status) {
        let artifacts = || status.volumes.iter().flat_map(|row| &row.artifacts);
        let tags: BTreeSet<String> = artifacts()
            .filter(|artifact| artifact.tagged().is_some())
            .map(|one| one.reference.clone())
            .collect();
        let found: BTreeMap<String, Result<String, String>> = stream::iter(tags)
            .filter_map(async |text| text.parse::<Reference>().ok().map(|reference| (text, reference)))
            .map(|(text, reference)| async move { (text, self.resolve(&reference).await) })
            .buffer_unordered(CONCURRENT)
            .collect()
            .await;
        for artifact in status.volumes.iter_mut().flat_map(|row| &mut row.artifacts) {
            artifact.tag = found.get(&artifact.reference).map(|found| state(artifact, found));
        }
    }

    async fn resolve(&self, reference: &Reference) -> Result<String, String> {
        match tokio::time::timeout(TIMEOUT, self.registry.resolve(reference)).await {
            Ok(Ok(found)) => Ok(found.digest().to_string()),
            Ok(Err(error)) => Err(shown(&error.to_string())),
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        }
    }
}

fn state(artifact: &Artifact, found: &Result<String, String>) -> TagState {
    match found {
        Ok(digest) if *digest == artifact.digest => TagState::Same,
        Ok(digest) => TagState::Moved { digest: digest.clone() },
        Err(message) => TagState::Unknown { message: message.clone() },
    }
}
