//! What the webhook reads of a `PersistentVolume`.

use oras_csi_core::keys::DRIVER;
use serde_json::Value;

use super::csi::Csi;
use super::node::Node;
use crate::denial::Denial;

/// The fields of a `PersistentVolume` of this driver that the webhook reads.
#[derive(Debug)]
pub(crate) struct PersistentVolume<'a> {
    /// `metadata.name`, or `generateName` where it has no name yet.
    pub(crate) name: &'a str,
    /// The keys of the annotations.
    pub(crate) annotations: Vec<&'a str>,
    /// `spec.csi`.
    pub(crate) csi: Csi<'a>,
    /// `spec.csi.volumeHandle`.
    pub(crate) handle: &'a str,
    /// `spec.csi.nodePublishSecretRef.namespace`, if present.
    pub(crate) secret_namespace: Option<&'a str>,
    /// `spec.claimRef.namespace`, if present.
    pub(crate) claim_namespace: Option<&'a str>,
    /// `spec.volumeMode`, if present.
    pub(crate) mode: Option<&'a str>,
}

impl<'a> PersistentVolume<'a> {
    /// Reads the fields; `None` for a volume of another driver.
    pub(crate) fn read(object: &'a Value) -> Result<Option<Self>, Denial> {
        let root = Node::root("persistentvolume", object);
        root.check_object()?;
        let (metadata, spec) = (root.child("metadata")?, root.child("spec")?);
        let source = spec.child("csi")?;
        let Some(csi) = Csi::read(&source)?.filter(|csi| csi.driver == DRIVER) else { return Ok(None) };
        let text = |node: &Node<'_, 'a, Value>, key| {
            Ok::<_, Denial>(node.child(key)?.text()?.filter(|it| !it.is_empty()))
        };
        let name = text(&metadata, "name")?.or(text(&metadata, "generateName")?);
        let annotations = metadata.child("annotations")?.texts()?.unwrap_or_default();
        Ok(Some(Self {
            name: name.unwrap_or_default(),
            annotations: annotations.into_keys().collect(),
            csi,
            handle: text(&source, "volumeHandle")?.unwrap_or_default(),
            secret_namespace: text(&source.child("nodePublishSecretRef")?, "namespace")?,
            claim_namespace: text(&spec.child("claimRef")?, "namespace")?,
            mode: text(&spec, "volumeMode")?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_of_another_driver_is_ignored() {
        for spec in [
            json!(null),
            json!({}),
            json!({"csi": null}),
            json!({"hostPath": {"path": "/"}}),
            json!({"csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "v"}}),
        ] {
            assert!(PersistentVolume::read(&json!({ "spec": spec })).unwrap().is_none(), "{spec}");
        }
    }

    #[test]
    fn null_is_absent_and_a_wrong_type_is_denied() {
        let read = |claim: Value| {
            let object = json!({"metadata": {"name": "pv"}, "spec": {"claimRef": claim, "volumeMode": null,
                "csi": {"driver": "csi.oras.land", "volumeHandle": "h", "nodePublishSecretRef": null}}});
            PersistentVolume::read(&object)
                .map(|volume| volume.unwrap().claim_namespace.map(str::to_owned))
                .map_err(|denial| denial.message().to_owned())
        };
        assert_eq!(read(json!(null)), Ok(None));
        assert_eq!(read(json!({"namespace": ""})), Ok(None));
        assert_eq!(read(json!({"namespace": "team"})), Ok(Some("team".to_owned())));
        assert!(read(json!([])).unwrap_err().contains("persistentvolume.spec.claimRef: is a list"));
    }
}
