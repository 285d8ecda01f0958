//! Where the CA is stored: a folder or a Secret. The first writer wins, and all other processes use its CA.

mod folder;
mod secret;

use std::sync::Arc;
use std::time::SystemTime;

use crate::authority::Authority;
use crate::entries::Entries;
use crate::error::Error;

pub(crate) use folder::CaFolder;
pub(crate) use secret::CaSecret;

/// A folder or Secret that holds the CA, or an external certificate.
#[derive(Clone, Debug)]
pub(crate) enum CaStorage {
    /// A folder: the serving certificate is stored beside the CA, and other processes share it.
    Folder(CaFolder),
    /// A Secret: the serving certificate stays in memory, and each replica has its own.
    Secret(Box<CaSecret>),
}

impl CaStorage {
    /// Returns the folder or Secret as messages name it.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::Folder(folder) => folder.place(),
            Self::Secret(secret) => secret.place(),
        }
    }

    /// Reads the entries. There are none if the folder or Secret does not exist.
    pub(crate) async fn read(&self) -> Result<Entries, Error> {
        match self {
            Self::Folder(folder) => {
                let folder = folder.clone();
                tokio::task::spawn_blocking(move || folder.read()).await?
            }
            Self::Secret(secret) => secret.read().await,
        }
    }

    /// Stores `proposed`, unless another process was first. The caller then reads the CA that is stored.
    pub(crate) async fn store_ca(&self, proposed: &Arc<Authority>, now: SystemTime) -> Result<(), Error> {
        match self {
            Self::Folder(folder) => {
                let (folder, proposed) = (folder.clone(), Arc::clone(proposed));
                tokio::task::spawn_blocking(move || folder.store_ca(&proposed, now)).await?
            }
            Self::Secret(secret) => secret.store_ca(proposed, now).await,
        }
    }
}
