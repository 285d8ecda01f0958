//! Where a CA is kept: a folder or a Secret. Whoever writes first wins, and all others use what the
//! first one wrote.

mod folder;
mod secret;

use std::sync::Arc;
use std::time::SystemTime;

use crate::contents::Contents;
use crate::error::Error;
use crate::issue::Authority;

pub(crate) use folder::Folder;
pub(crate) use secret::SecretKeeper;

/// A place that keeps a CA, or holds somebody else's certificate.
#[derive(Clone, Debug)]
pub(crate) enum Keeper {
    /// A folder: the serving certificate is kept beside the CA, for other processes to share.
    Folder(Folder),
    /// A Secret: the serving certificate stays in memory, each replica has its own.
    Secret(Box<SecretKeeper>),
}

impl Keeper {
    /// The place as people know it.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::Folder(folder) => folder.place(),
            Self::Secret(secret) => secret.place(),
        }
    }

    /// What is there now. Nothing, where the folder or Secret does not exist.
    pub(crate) async fn read(&self) -> Result<Contents, Error> {
        match self {
            Self::Folder(folder) => {
                let folder = folder.clone();
                tokio::task::spawn_blocking(move || folder.read()).await?
            }
            Self::Secret(secret) => secret.read().await,
        }
    }

    /// Sees to it that a CA is kept there: `proposed`, unless somebody else was first. What is kept in the
    /// end is to be read back.
    pub(crate) async fn establish(&self, proposed: &Arc<Authority>, now: SystemTime) -> Result<(), Error> {
        match self {
            Self::Folder(folder) => {
                let (folder, proposed) = (folder.clone(), Arc::clone(proposed));
                tokio::task::spawn_blocking(move || folder.establish(&proposed, now)).await?
            }
            Self::Secret(secret) => secret.establish(proposed, now).await,
        }
    }
}
