//! Decodes those fields of an object that the webhook reads, and skips all others.
//!
//! An object has up to 3 MiB of JSON, which becomes fifty times as large where it is a list of many small items. So the
//! text is read once, a field that is not in the tables below is skipped without being stored, and what is stored is
//! counted. Items of a list keep their positions, because patches name them by position.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How much memory the fields of one object may take, estimated. A pod that a node can run takes a hundredth of it.
pub(crate) const MAX_BYTES: usize = 4 << 20;
/// How many bytes the keys and values of the annotations may have: `TotalAnnotationSizeLimitB` of the API server, which
/// refuses more, but only after admission.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;
/// The estimated memory of a value or of a member of an object, besides its text.
const NODE_BYTES: usize = 112;

/// Which parts of a value are stored. What has another JSON type than expected is stored without its content, so that it
/// can be reported.
pub(crate) enum Fields {
    /// All of it.
    All,
    /// These members of an object.
    Members(&'static [(&'static str, Fields)]),
    /// All items of a list, and of each of them these parts.
    Items(&'static Fields),
}

use Fields::{All, Items, Members};

const METADATA: Fields = Members(&[
    ("name", All),
    ("generateName", All),
    ("annotations", All),
    ("labels", Members(&[("controller-revision-hash", All), ("pod-template-hash", All)])),
    ("ownerReferences", Items(&OWNER)),
]);
static OWNER: Fields =
    Members(&[("apiVersion", All), ("kind", All), ("name", All), ("uid", All), ("controller", All)]);
const CSI: Fields = Members(&[
    ("driver", All),
    ("readOnly", All),
    ("volumeHandle", All),
    ("volumeAttributes", All),
    ("nodePublishSecretRef", Members(&[("name", All), ("namespace", All)])),
]);
static CONTAINER: Fields =
    Members(&[("name", All), ("volumeMounts", Items(&MOUNT)), ("volumeDevices", Items(&DEVICE))]);
static MOUNT: Fields =
    Members(&[("name", All), ("mountPath", All), ("subPath", All), ("subPathExpr", All), ("readOnly", All)]);
static DEVICE: Fields = Members(&[("devicePath", All), ("name", All)]);
const PRESENT: Fields = Members(&[]);
static VOLUME: Fields = Members(&[
    ("name", All),
    ("csi", CSI),
    ("persistentVolumeClaim", Members(&[("readOnly", All)])),
    ("configMap", PRESENT),
    ("downwardAPI", PRESENT),
    ("image", PRESENT),
    ("projected", PRESENT),
    ("secret", PRESENT),
]);
static SECRET: Fields = Members(&[("name", All)]);
const POD_SPEC: Fields = Members(&[
    ("os", Members(&[("name", All)])),
    ("nodeSelector", Members(&[("kubernetes.io/os", All)])),
    ("initContainers", Items(&CONTAINER)),
    ("containers", Items(&CONTAINER)),
    ("ephemeralContainers", Items(&CONTAINER)),
    ("imagePullSecrets", Items(&SECRET)),
    ("serviceAccountName", All),
    ("volumes", Items(&VOLUME)),
]);
const TEMPLATE: Fields = Members(&[("metadata", METADATA), ("spec", POD_SPEC)]);

/// A pod.
pub(crate) static POD: Fields = TEMPLATE;
/// A `PersistentVolume`.
pub(crate) static PERSISTENT_VOLUME: Fields = Members(&[
    ("metadata", METADATA),
    ("spec", Members(&[("csi", CSI), ("claimRef", Members(&[("namespace", All)])), ("volumeMode", All)])),
]);
static CHANGED_MOUNTS: Fields = Members(&[("name", All), ("volumeMounts", All)]);
/// The annotations alone.
const ANNOTATIONS: Fields = Members(&[("annotations", All)]);
/// A pod before or after an update: what the webhook puts back, whole.
pub(crate) static CHANGED_POD: Fields = Members(&[
    ("metadata", ANNOTATIONS),
    (
        "spec",
        Members(&[
            ("volumes", All),
            ("initContainers", Items(&CHANGED_MOUNTS)),
            ("containers", Items(&CHANGED_MOUNTS)),
        ]),
    ),
]);
/// A `PersistentVolume` before or after an update.
pub(crate) static CHANGED_PERSISTENT_VOLUME: Fields =
    Members(&[("metadata", ANNOTATIONS), ("spec", Members(&[("csi", All)]))]);

/// An object with a pod template, of any of the kinds in [`crate::pod_template`].
pub(crate) static WORKLOAD: Fields = Members(&[
    ("apiVersion", All),
    ("kind", All),
    ("metadata", METADATA),
    ("template", TEMPLATE),
    (
        "spec",
        Members(&[
            ("template", TEMPLATE),
            (
                "jobTemplate",
                Members(&[("metadata", ANNOTATIONS), ("spec", Members(&[("template", TEMPLATE)]))]),
            ),
        ]),
    ),
]);

/// Why an object was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FieldsError {
    /// Not JSON, or nested too deeply.
    #[error("{0}")]
    Syntax(#[from] serde_json::Error),
    /// The fields take more memory than [`MAX_BYTES`].
    #[error("has more than {MAX_BYTES} bytes in annotations, volumes, mounts and attributes")]
    TooLarge,
    /// The annotations are longer than [`MAX_ANNOTATION_BYTES`].
    #[error("has {0} bytes of annotations: Kubernetes allows {MAX_ANNOTATION_BYTES}")]
    Annotations(usize),
}

/// Some fields of an object, and the memory that they take.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) value: Value,
    pub(crate) bytes: usize,
}

/// Reads the fields of an object from its JSON.
pub(crate) fn read(json: &str, fields: &'static Fields) -> Result<Object, FieldsError> {
    let budget = Budget { left: Cell::new(MAX_BYTES), is_exceeded: Cell::new(false) };
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = Reader { fields, budget: &budget }.deserialize(&mut deserializer);
    if budget.is_exceeded.get() {
        return Err(FieldsError::TooLarge);
    }
    let value = value?;
    deserializer.end()?;
    let annotations = annotation_bytes(&value);
    if annotations > MAX_ANNOTATION_BYTES {
        return Err(FieldsError::Annotations(annotations));
    }
    Ok(Object { value, bytes: MAX_BYTES - budget.left.get() })
}

/// Adds up the keys and values of the annotations.
fn annotation_bytes(object: &Value) -> usize {
    let annotations = object["metadata"]["annotations"].as_object();
    let bytes = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
    annotations.into_iter().flatten().map(bytes).sum()
}

/// The memory that may still be used.
struct Budget {
    left: Cell<usize>,
    is_exceeded: Cell<bool>,
}

impl Budget {
    fn charge<E: Error>(&self, text: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(NODE_BYTES + text);
        self.is_exceeded.set(left.is_none());
        self.left.set(left.unwrap_or_default());
        left.map(|_| ()).ok_or_else(|| E::custom("too large"))
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    fields: &'static Fields,
    budget: &'a Budget,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.budget.charge(0)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.budget.charge(0)?;
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.budget.charge(0)?;
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.budget.charge(0)?;
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.budget.charge(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.budget.charge(0)?;
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        self.budget.charge(0)?;
        let fields = match self.fields {
            All => self.fields,
            Items(fields) => fields,
            Members(_) => {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(Value::Array(Vec::new()));
            }
        };
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(Reader { fields, ..self })? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.budget.charge(0)?;
        let mut members = Map::new();
        while let Some(key) = map.next_key_seed(Key(self))? {
            match key {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some((key, fields)) => {
                    // As in Go's decoder, the last of several members with the same name counts.
                    members.insert(key, map.next_value_seed(Reader { fields, ..self })?);
                }
            }
        }
        Ok(Value::Object(members))
    }
}

/// Reads the name of a member; `None` where the member is skipped.
struct Key<'a>(Reader<'a>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<(String, &'static Fields)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<(String, &'static Fields)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a member")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        let fields = match self.0.fields {
            All => Some(self.0.fields),
            Members(members) => members.iter().find(|(member, _)| *member == name).map(|(_, fields)| fields),
            Items(_) => None,
        };
        let Some(fields) = fields else { return Ok(None) };
        self.0.budget.charge(name.len())?;
        Ok(Some((name.to_owned(), fields)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn pod(value: &Value) -> Value {
        read(&value.to_string(), &POD).unwrap().value
    }

    #[test]
    fn keeps_what_the_webhook_reads_and_skips_the_rest() {
        let kept = json!({
            "metadata": {"annotations": {"a": "b"}, "labels": {"pod-template-hash": "1"}},
            "spec": {"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/m"}]}, {}],
                "volumes": [{"name": "v", "csi": {"driver": "d", "volumeAttributes": {"x": "y"}}}, null]},
        });
        let mut whole = kept.clone();
        whole["metadata"]["labels"]["team"] = json!("ml");
        whole["metadata"]["managedFields"] = json!([{"manager": "kubectl"}]);
        whole["spec"]["tolerations"] = json!([{}, {}]);
        whole["spec"]["containers"][1] = json!({"image": "i", "env": [{"name": "n"}]});
        whole["spec"]["volumes"][0]["emptyDir"] = json!({});
        assert_eq!(pod(&whole), kept);
        assert_eq!(pod(&kept), kept);
    }

    #[rstest]
    #[case(json!([1, 2]), json!([]))]
    #[case(json!({"spec": [{"volumes": 1}]}), json!({"spec": []}))]
    #[case(json!({"spec": {"volumes": {"0": {}}}}), json!({"spec": {"volumes": {}}}))]
    #[case(json!({"spec": {"volumes": [[1], "v", 7, 1.5, true]}}), json!({"spec": {"volumes": [[], "v", 7, 1.5, true]}}))]
    fn keeps_the_type_of_a_field_of_the_wrong_type(#[case] object: Value, #[case] kept: Value) {
        assert_eq!(pod(&object), kept);
    }

    /// 260,000 tolerations in 3.06 MB took 140 MB.
    #[test]
    fn skipped_fields_take_no_memory() {
        let object = json!({"spec": {"tolerations": vec![json!({"key": "k"}); 260_000]}});
        assert!(read(&object.to_string(), &POD).unwrap().bytes < 2_000);
    }

    #[rstest]
    #[case(json!({"spec": {"volumes": vec![json!({}); 100_000]}}))]
    #[case(json!({"spec": {"containers": [{"volumeMounts": vec![Value::Null; 100_000]}]}}))]
    #[case(json!({"metadata": {"annotations": {"a": "a".repeat(MAX_BYTES)}}}))]
    #[case(json!({"metadata": {"annotations": (0..100_000).map(|n| (n.to_string(), json!(""))).collect::<Map<_, _>>()}}))]
    #[case(json!({"metadata": {"annotations": {"a": vec![vec![0; 10]; 10_000]}}}))]
    fn fields_that_are_read_are_limited(#[case] object: Value) {
        let error = read(&object.to_string(), &POD).unwrap_err();
        assert!(matches!(error, FieldsError::TooLarge), "{error}");
    }

    #[test]
    fn annotations_have_the_limit_of_kubernetes() {
        let pod =
            |bytes| json!({"metadata": {"annotations": {"a": "", "key": "v".repeat(bytes - 4)}}}).to_string();
        assert!(read(&pod(MAX_ANNOTATION_BYTES), &POD).is_ok());
        let error = read(&pod(MAX_ANNOTATION_BYTES + 1), &POD).unwrap_err();
        assert_eq!(error.to_string(), "has 262145 bytes of annotations: Kubernetes allows 262144");
    }

    #[test]
    fn refuses_text_after_the_object_and_deep_nesting() {
        assert!(matches!(read("{} x", &POD), Err(FieldsError::Syntax(_))));
        let deep = format!("{{\"metadata\":{{\"annotations\":{}", "[".repeat(1_000_000));
        assert!(matches!(read(&deep, &POD), Err(FieldsError::Syntax(_))));
        let skipped = format!("{{\"x\":{}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert!(read(&skipped, &POD).is_ok());
    }
}
