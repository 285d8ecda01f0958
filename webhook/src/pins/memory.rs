//! Pins of one process, for tests of whatever uses pins.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use oras_csi_core::digest::Digest;

use super::{PinError, PinKey, Pins};

/// Remembers pins until the process ends; the first writer wins.
#[derive(Debug, Default)]
pub struct MemoryPins(Mutex<BTreeMap<(String, String), Digest>>);

impl MemoryPins {
    /// How many it has.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[async_trait]
impl Pins for MemoryPins {
    async fn find(&self, namespace: &str, key: &PinKey) -> Result<Option<Digest>, PinError> {
        let place = (namespace.to_owned(), key.object_name());
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned())
    }

    async fn keep(&self, namespace: &str, key: &PinKey, digest: &Digest) -> Result<Digest, PinError> {
        let place = (namespace.to_owned(), key.object_name());
        let mut pins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(pins.entry(place).or_insert_with(|| digest.clone()).clone())
    }
}
