//! Pins in memory, for tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use oras_csi_core::digest::Digest;

use super::{PinError, PinKey, Pins};

/// Stores pins until the process ends. The first writer wins.
#[derive(Debug, Default)]
pub struct MemoryPins(Mutex<BTreeMap<(String, String), Digest>>);

impl MemoryPins {
    /// Returns the number of pins.
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

    async fn get_or_create(
        &self,
        namespace: &str,
        key: &PinKey,
        digest: &Digest,
    ) -> Result<Digest, PinError> {
        let place = (namespace.to_owned(), key.object_name());
        let mut pins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(pins.entry(place).or_insert_with(|| digest.clone()).clone())
    }
}
