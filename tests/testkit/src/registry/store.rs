//! The content of the registry.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;
use bytes::{Bytes, BytesMut};

/// A manifest with the media type of its push, and its subject.
#[derive(Clone)]
pub(super) struct Manifest {
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
    pub(super) subject: Option<Digest>,
    pub(super) artifact_type: Option<String>,
    pub(super) annotations: serde_json::Value,
}

#[derive(Default)]
pub(super) struct Repository {
    /// The blobs that were pushed or mounted here; the bytes are shared.
    pub(super) blobs: HashSet<Digest>,
    pub(super) manifests: HashMap<Digest, Manifest>,
    pub(super) tags: BTreeMap<String, Digest>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) blobs: HashMap<Digest, Bytes>,
    pub(super) repositories: HashMap<String, Repository>,
    /// Uploads by their id, each of one repository.
    pub(super) uploads: HashMap<String, (String, BytesMut)>,
    last_upload: u64,
}

#[derive(Default)]
pub(super) struct Store(Mutex<State>);

impl Store {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub(super) fn blob(&self, name: &str, digest: &Digest) -> Option<Bytes> {
        let repository = self.repositories.get(name)?;
        repository.blobs.contains(digest).then(|| self.blobs.get(digest).cloned())?
    }

    pub(super) fn add_blob(&mut self, name: &str, digest: Digest, bytes: Bytes) {
        self.repository(name).blobs.insert(digest.clone());
        self.blobs.insert(digest, bytes);
    }

    pub(super) fn start_upload(&mut self, name: &str) -> String {
        self.last_upload += 1;
        let id = format!("{:08}", self.last_upload);
        self.uploads.insert(id.clone(), (name.to_owned(), BytesMut::new()));
        id
    }

    /// The bytes of an upload so far, if it is one of this repository.
    pub(super) fn upload(&mut self, name: &str, id: &str) -> Option<&mut BytesMut> {
        self.uploads.get_mut(id).filter(|(owner, _)| owner == name).map(|(_, bytes)| bytes)
    }
}
