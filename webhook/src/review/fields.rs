//! Decodes those fields of an object that the webhook reads, and skips all others.
//!
//! An object has up to 3 MiB of JSON, which becomes fifty times as large where it is a list of many small items. So the
//! text is read once, a field that is not in the tables below is skipped without being stored, and what is stored is
//! counted. Items of a list keep their positions, because patches name them by position.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::view::{Json, Members as TreeMembers, Tree};

/// How much memory the fields of one object may take, estimated. A pod that a node can run takes a hundredth of it.
pub(crate) const MAX_BYTES: usize = 4 << 20;
/// How many bytes the keys and values of the annotations may have: `TotalAnnotationSizeLimitB` of the API server, which
/// refuses more, but only after admission.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;
/// The estimated memory of a value or of a member of an object, besides its text.
pub(super) const NODE_BYTES: usize = 112;

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

impl Fields {
    /// Returns the fields of a member, with its name as the table has it where there is a table; `None` where the member is
    /// skipped.
    pub(super) fn member<'n>(
        &'static self,
        name: &'n str,
    ) -> Option<(Result<&'static str, &'n str>, &'static Self)> {
        match self {
            All => Some((Err(name), self)),
            Members(members) => {
                let found = members.iter().find(|(member, _)| *member == name);
                found.map(|(member, fields)| (Ok(*member), fields))
            }
            Items(_) => None,
        }
    }

    /// Returns the fields of an item, or `None` where items are skipped.
    pub(super) fn item(&'static self) -> Option<&'static Self> {
        match self {
            All => Some(self),
            Items(fields) => Some(fields),
            Members(_) => None,
        }
    }
}

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
pub(crate) struct Object<J> {
    pub(crate) value: J,
    pub(crate) bytes: usize,
}

/// What the fields become.
pub(crate) trait Build: Json {
    /// The members of an object that is being read.
    type Members: Default;

    fn new_null() -> Self;
    fn new_flag(flag: bool) -> Self;
    fn new_number(number: Number) -> Self;
    fn new_text(text: &str) -> Self;
    fn new_list(items: Vec<Self>) -> Self;
    /// Adds a member. As in Go's decoder, the last of several members with the same name counts.
    fn add_member(members: &mut Self::Members, name: Cow<'static, str>, value: Self);
    fn new_object(members: Self::Members) -> Self;
}

impl Build for Value {
    type Members = Map<String, Value>;

    fn new_null() -> Self {
        Self::Null
    }

    fn new_flag(flag: bool) -> Self {
        Self::Bool(flag)
    }

    fn new_number(number: Number) -> Self {
        Self::Number(number)
    }

    fn new_text(text: &str) -> Self {
        Self::String(text.to_owned())
    }

    fn new_list(items: Vec<Self>) -> Self {
        Self::Array(items)
    }

    fn add_member(members: &mut Self::Members, name: Cow<'static, str>, value: Self) {
        members.insert(name.into_owned(), value);
    }

    fn new_object(members: Self::Members) -> Self {
        Self::Object(members)
    }
}

impl Build for Tree {
    type Members = Vec<(Cow<'static, str>, Tree)>;

    fn new_null() -> Self {
        Self::Null
    }

    fn new_flag(flag: bool) -> Self {
        Self::Flag(flag)
    }

    fn new_number(number: Number) -> Self {
        Self::Number(number)
    }

    fn new_text(text: &str) -> Self {
        Self::Text(text.into())
    }

    fn new_list(items: Vec<Self>) -> Self {
        Self::List(items)
    }

    fn add_member(members: &mut Self::Members, name: Cow<'static, str>, value: Self) {
        members.push((name, value));
    }

    fn new_object(members: Self::Members) -> Self {
        Self::Object(TreeMembers::new(members))
    }
}

/// Reads the fields of an object from its JSON.
pub(crate) fn read<J: Build>(json: &str, fields: &'static Fields) -> Result<Object<J>, FieldsError> {
    let budget = Budget { left: Cell::new(MAX_BYTES), is_exceeded: Cell::new(false) };
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = Reader::<J> { fields, budget: &budget, built: PhantomData }.deserialize(&mut deserializer);
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

/// Reports whether the annotations are within the limit of Kubernetes.
pub(super) fn has_allowed_annotations(object: &impl Json) -> bool {
    annotation_bytes(object) <= MAX_ANNOTATION_BYTES
}

/// Adds up the keys and values of the annotations.
fn annotation_bytes(object: &impl Json) -> usize {
    let annotations = object.member("metadata").and_then(|metadata| metadata.member("annotations"));
    let members = annotations.and_then(Json::members).into_iter().flatten();
    members.map(|(key, value)| key.len() + value.text().map_or(0, str::len)).sum()
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

struct Reader<'a, J> {
    fields: &'static Fields,
    budget: &'a Budget,
    built: PhantomData<J>,
}

impl<J> Reader<'_, J> {
    /// Reads a part of the value.
    fn part(&self, fields: &'static Fields) -> Self {
        Self { fields, budget: self.budget, built: PhantomData }
    }
}

impl<'de, J: Build> DeserializeSeed<'de> for Reader<'_, J> {
    type Value = J;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<J, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, J: Build> Visitor<'de> for Reader<'_, J> {
    type Value = J;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<J, E> {
        self.budget.charge(0)?;
        Ok(J::new_flag(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<J, E> {
        self.budget.charge(0)?;
        Ok(J::new_number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<J, E> {
        self.budget.charge(0)?;
        Ok(J::new_number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<J, E> {
        self.budget.charge(0)?;
        Ok(Number::from_f64(value).map_or_else(J::new_null, J::new_number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<J, E> {
        self.budget.charge(value.len())?;
        Ok(J::new_text(value))
    }

    fn visit_unit<E: Error>(self) -> Result<J, E> {
        self.budget.charge(0)?;
        Ok(J::new_null())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<J, A::Error> {
        self.budget.charge(0)?;
        let Some(fields) = self.fields.item() else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(J::new_list(Vec::new()));
        };
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self.part(fields))? {
            items.push(item);
        }
        Ok(J::new_list(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<J, A::Error> {
        self.budget.charge(0)?;
        let mut members = J::Members::default();
        while let Some(name) = map.next_key_seed(Name { fields: self.fields, budget: self.budget })? {
            match name {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some((name, fields)) => {
                    J::add_member(&mut members, name, map.next_value_seed(self.part(fields))?);
                }
            }
        }
        Ok(J::new_object(members))
    }
}

/// Reads the name of a member; `None` where the member is skipped.
struct Name<'a> {
    fields: &'static Fields,
    budget: &'a Budget,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<(Cow<'static, str>, &'static Fields)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<(Cow<'static, str>, &'static Fields)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a member")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        let Some((name, fields)) = self.fields.member(name) else { return Ok(None) };
        self.budget.charge(name.map_or_else(str::len, str::len))?;
        Ok(Some((name.map_or_else(|name| Cow::Owned(name.to_owned()), Cow::Borrowed), fields)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn pod(value: &Value) -> Value {
        let text = value.to_string();
        let (tree, value): (Object<Tree>, Object<Value>) =
            (read(&text, &POD).unwrap(), read(&text, &POD).unwrap());
        assert_eq!((tree.value.to_value().as_ref(), tree.bytes), (&value.value, value.bytes));
        value.value
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
        assert!(read::<Tree>(&object.to_string(), &POD).unwrap().bytes < 2_000);
    }

    #[rstest]
    #[case(json!({"spec": {"volumes": vec![json!({}); 100_000]}}))]
    #[case(json!({"spec": {"containers": [{"volumeMounts": vec![Value::Null; 100_000]}]}}))]
    #[case(json!({"metadata": {"annotations": {"a": "a".repeat(MAX_BYTES)}}}))]
    #[case(json!({"metadata": {"annotations": (0..100_000).map(|n| (n.to_string(), json!(""))).collect::<Map<_, _>>()}}))]
    #[case(json!({"metadata": {"annotations": {"a": vec![vec![0; 10]; 10_000]}}}))]
    fn fields_that_are_read_are_limited(#[case] object: Value) {
        let error = read::<Tree>(&object.to_string(), &POD).unwrap_err();
        assert!(matches!(error, FieldsError::TooLarge), "{error}");
    }

    #[test]
    fn annotations_have_the_limit_of_kubernetes() {
        let pod =
            |bytes| json!({"metadata": {"annotations": {"a": "", "key": "v".repeat(bytes - 4)}}}).to_string();
        assert!(read::<Tree>(&pod(MAX_ANNOTATION_BYTES), &POD).is_ok());
        let error = read::<Tree>(&pod(MAX_ANNOTATION_BYTES + 1), &POD).unwrap_err();
        assert_eq!(error.to_string(), "has 262145 bytes of annotations: Kubernetes allows 262144");
    }

    #[test]
    fn refuses_text_after_the_object_and_deep_nesting() {
        assert!(matches!(read::<Tree>("{} x", &POD), Err(FieldsError::Syntax(_))));
        let deep = format!("{{\"metadata\":{{\"annotations\":{}", "[".repeat(1_000_000));
        assert!(matches!(read::<Tree>(&deep, &POD), Err(FieldsError::Syntax(_))));
        let skipped = format!("{{\"x\":{}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert!(read::<Tree>(&skipped, &POD).is_ok());
    }
}
