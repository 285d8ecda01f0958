//! The `csi` source of a volume.

use std::collections::BTreeMap;

use super::json::Json;
use super::node::Node;
use crate::denial::Denial;

/// The `csi` source of a volume (core/v1 `CSIVolumeSource`, `CSIPersistentVolumeSource`).
#[derive(Debug)]
pub(crate) struct Csi<'a> {
    /// The driver's name.
    pub(crate) driver: &'a str,
    /// `readOnly`, false where absent.
    pub(crate) read_only: bool,
    /// `nodePublishSecretRef.name`, where it names a Secret.
    pub(crate) secret: Option<&'a str>,
    /// `volumeAttributes`.
    pub(crate) attributes: BTreeMap<&'a str, &'a str>,
}

impl<'a> Csi<'a> {
    pub(super) fn read(source: &Node<'_, 'a, impl Json>) -> Result<Option<Self>, Denial> {
        if source.value.is_none() {
            return Ok(None);
        }
        let secret = source.child("nodePublishSecretRef")?.child("name")?.text()?;
        Ok(Some(Self {
            driver: source.child("driver")?.text()?.unwrap_or_default(),
            read_only: source.child("readOnly")?.flag()?,
            secret: secret.filter(|name| !name.is_empty()),
            attributes: source.child("volumeAttributes")?.texts()?.unwrap_or_default(),
        }))
    }
}
