//! `ArtifactPolicy`: the object as an administrator writes it, and what it means.
//!
//! The custom resource definition is made from these types (`deploy/chart/files/crds/`, which a test keeps in
//! step), and files for `--policy` hold the very same objects.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use kube::core::{Rule, Selector};
use oras_csi_core::display::Shown;
use oras_csi_core::policy::{ByteSize, Mode, Rules};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::selector;
use crate::manifest::what;

/// What the pods of some namespaces may mount. All policies that select a namespace must pass; where a rule
/// is left out, it demands nothing.
#[expect(clippy::duplicated_attributes, reason = "each column has a type, which two may share")]
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "oras.land",
    version = "v1alpha1",
    kind = "ArtifactPolicy",
    plural = "artifactpolicies",
    category = "oras",
    status = "ArtifactPolicyStatus",
    derive = "PartialEq",
    doc = "Says which OCI artifacts the pods of some namespaces may mount. The webhook of oras-csi asks it when a \
           pod is created: about names before any registry is asked, about contents afterwards."
)]
#[kube(printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"))]
#[kube(printcolumn(
    name = "Accepted",
    type_ = "string",
    json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
))]
#[kube(printcolumn(name = "Message", type_ = "string", json_path = ".status.message"))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[serde(rename_all = "camelCase")]
pub struct ArtifactPolicySpec {
    /// Selects namespaces by their labels; every namespace has the label kubernetes.io/metadata.name. Left out
    /// or empty, it selects all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "selector::schema")]
    pub namespace_selector: Option<LabelSelector>,
    /// What happens to a pod that breaks a rule. Enforce: it is denied. Warn: whoever creates it is told. Audit:
    /// it is noted in the API server's audit log, under annotations whose keys begin with pods.csi.oras.land/.
    #[serde(default)]
    #[schemars(schema_with = "mode_schema")]
    pub mode: ModeSpec,
    /// Which registries and repositories may be used, as patterns HOST[:PORT][/PATH] that are compared part by
    /// part: the wildcard * is one whole segment (a label of the host, a segment of the path), ** one or more of
    /// them in front and at the end, and any number in between. Ports are exact, 443 where none is written, so that
    /// ** alone leaves out every registry at another port. HOST alone is all of its repositories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registries: Option<RegistriesSpec>,
    /// Whether every reference must be written with a digest.
    #[serde(default, skip_serializing_if = "is_false")]
    pub require_digest: bool,
    /// Tags that may not be written, beside a digest neither; * stands for any text. A reference with neither tag
    /// nor digest has the tag latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "tags_schema")]
    pub denied_tags: Option<Vec<String>>,
    /// Types of artifacts that may be used, as application/vnd.acme.*; * stands for any text. An artifact's type
    /// is its artifactType, or its config's media type where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "types_schema")]
    pub allowed_artifact_types: Option<Vec<String>>,
    /// Media types of layers that may be used; * stands for any text. Every layer that a pod wants must have
    /// one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "types_schema")]
    pub allowed_media_types: Option<Vec<String>>,
    /// The most bytes of one artifact: the layers that a pod wants of it, as its manifest states their sizes
    /// (packed, not unpacked). 500Mi, 10Gi and so on.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "number_or_text")]
    #[schemars(schema_with = "size_schema")]
    pub max_size: Option<String>,
    /// Whether only the cluster's artifact sets may be used, and no reference of a pod's own.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sets_only: bool,
}

/// Which registries and repositories may be used.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistriesSpec {
    /// The only ones that may be used, as ghcr.io/acme/**.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "patterns_schema")]
    pub allow: Option<Vec<String>>,
    /// Those that may not be used, also where allow has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "patterns_schema")]
    pub deny: Option<Vec<String>>,
}

/// What happens to a pod that breaks a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModeSpec {
    /// It is denied.
    #[default]
    Enforce,
    /// Whoever creates it is told.
    Warn,
    /// It is noted in the audit log.
    Audit,
}

/// What the webhook made of the policy.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactPolicyStatus {
    /// The generation that was read last.
    pub observed_generation: i64,
    /// What is in force, in words.
    pub message: String,
    /// Accepted: whether that generation could be read.
    #[serde(default)]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// The last generation that could be read. It stays in force while a later one cannot be, also when the
    /// webhook starts anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<InForce>,
}

/// A generation of the policy that could be read.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InForce {
    /// Which generation.
    pub generation: i64,
    /// Its spec.
    #[schemars(schema_with = "anything_schema")]
    pub spec: Value,
}

/// Why a policy cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecError {
    field: String,
    problem: String,
}

impl SpecError {
    pub(super) fn new(field: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self { field: field.into(), problem: problem.to_string() }
    }
}

impl ArtifactPolicySpec {
    /// Reads a `spec`. A field that this version does not know is an error: it may be a rule.
    pub fn read(spec: &Value) -> Result<Self, SpecError> {
        if spec.is_null() {
            return Err(SpecError::new("spec", "is missing: write what the policy demands there"));
        }
        let mut unknown = None;
        let spec = without_nulls(spec);
        check_objects(&spec)?;
        let read = serde_ignored::deserialize(&spec, |path| {
            // An optional field shows as a "?" of its own.
            unknown.get_or_insert_with(|| path.to_string().replace(".?", ""));
        });
        let read =
            read.map_err(|error: serde_json::Error| SpecError::new("spec", Shown::new(&error.to_string())))?;
        match unknown {
            None => Ok(read),
            Some(path) => {
                let problem = "is not a field of an ArtifactPolicy that this version of oras-csi knows";
                Err(SpecError::new(format!("spec.{}", Shown::new(&path)), problem))
            }
        }
    }

    /// Which namespaces it selects.
    pub fn selector(&self) -> Result<Selector, SpecError> {
        selector::read(self.namespace_selector.clone().unwrap_or_default())
    }

    /// What happens to a pod that breaks a rule.
    pub fn mode(&self) -> Mode {
        match self.mode {
            ModeSpec::Enforce => Mode::Enforce,
            ModeSpec::Warn => Mode::Warn,
            ModeSpec::Audit => Mode::Audit,
        }
    }

    /// What it demands.
    pub fn rules(&self) -> Result<Rules, SpecError> {
        let registries = self.registries.clone().unwrap_or_default();
        let size =
            |text: &String| text.parse::<ByteSize>().map_err(|error| SpecError::new("spec.maxSize", error));
        Ok(Rules {
            sets_only: self.sets_only,
            allow: parse_list("registries.allow", registries.allow.as_deref())?,
            deny: parse_list("registries.deny", registries.deny.as_deref())?.unwrap_or_default(),
            require_digest: self.require_digest,
            denied_tags: parse_list("deniedTags", self.denied_tags.as_deref())?.unwrap_or_default(),
            artifact_types: parse_list("allowedArtifactTypes", self.allowed_artifact_types.as_deref())?,
            media_types: parse_list("allowedMediaTypes", self.allowed_media_types.as_deref())?,
            max_size: self.max_size.as_ref().map(size).transpose()?,
        })
    }
}

/// The entries of a list. An empty one may mean all or nothing: it means an error.
fn parse_list<T>(field: &str, list: Option<&[String]>) -> Result<Option<Vec<T>>, SpecError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let Some(list) = list else { return Ok(None) };
    if list.is_empty() {
        let problem = "is an empty list: leave it out, or write what it shall hold";
        return Err(SpecError::new(format!("spec.{field}"), problem));
    }
    let parse = |(index, text): (usize, &String)| {
        text.parse().map_err(|error| SpecError::new(format!("spec.{field}[{index}]"), error))
    };
    list.iter().enumerate().map(parse).collect::<Result<_, _>>().map(Some)
}

/// Fails where something else stands in the place of an object: serde takes a list for a struct, whose rules would be
/// whatever stands where they are declared.
fn check_objects(spec: &Value) -> Result<(), SpecError> {
    let check = |field: &str, value: &Value| match value {
        Value::Object(_) => Ok(()),
        other => {
            let problem = format_args!("is {} where an object belongs", what(other));
            Err(SpecError::new(field, problem))
        }
    };
    check("spec", spec)?;
    for (field, pointer) in [
        ("spec.registries", "/registries"),
        ("spec.namespaceSelector", "/namespaceSelector"),
        ("spec.namespaceSelector.matchLabels", "/namespaceSelector/matchLabels"),
    ] {
        spec.pointer(pointer).map_or(Ok(()), |value| check(field, value))?;
    }
    let field = "spec.namespaceSelector.matchExpressions";
    let requirements = spec.pointer("/namespaceSelector/matchExpressions").and_then(Value::as_array);
    let mut requirements = requirements.into_iter().flatten().enumerate();
    requirements.try_for_each(|(index, value)| check(&format!("{field}[{index}]"), value))
}

/// `null` is an absent field, as the API server has it.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

fn number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) => Ok(Some(number.to_string())),
        _ => Err(serde::de::Error::custom("maxSize is neither a number nor a string such as 500Mi")),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn mode_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Enforce", "Warn", "Audit"], "default": "Enforce"})
}

/// A list in which nothing stands twice. `item` is the schema of its strings.
fn set_schema(item: &Schema) -> Schema {
    json_schema!({"type": "array", "minItems": 1, "maxItems": 256, "x-kubernetes-list-type": "set", "items": item})
}

/// What a pattern over registries is, as far as an expression can say it; the webhook's parser has the last
/// word, and the status says it.
fn patterns_schema(_: &mut SchemaGenerator) -> Schema {
    let rules = [
        Rule::new("!self.contains('://')")
            .message("a registry pattern has no scheme: write HOST or HOST/PATH"),
        Rule::new("!self.contains('@')")
            .message("a registry pattern has no digest and no user: write HOST/PATH"),
        Rule::new("!self.matches('/.*:')").message("a registry pattern has no tag: write HOST[:PORT]/PATH"),
        Rule::new("!self.matches('[^./*:]\\\\*|\\\\*[^./*:]|\\\\*\\\\*\\\\*')")
            .message("* and ** stand for whole segments only"),
        Rule::new("!self.matches('^/|//|/$')").message("a registry pattern has no empty segment"),
        Rule::new("!self.matches('/.*[A-Z]')").message("a repository has no upper case"),
        Rule::new("!self.matches('^[^/]*[.](:|/|$)')").message("a host has no dot at its end"),
        Rule::new("!self.matches('^[A-Za-z0-9-]+(/|$)') || self.matches('^localhost(/|$)')")
            .message("write HOST:443 for a host without a dot, or docker.io/NAME for Docker Hub's"),
    ];
    set_schema(&json_schema!({
        "type": "string", "minLength": 1, "maxLength": 512, "pattern": r"^[A-Za-z0-9._*:/@\[\]-]+$",
        "x-kubernetes-validations": rules,
    }))
}

/// Wildcards in a text.
fn stars() -> [Rule; 1] {
    [Rule::new("!self.contains('**') && self.split('*').size() <= 9")
        .message("* stands for any text: write it once in a row, and at most eight times")]
}

fn tags_schema(_: &mut SchemaGenerator) -> Schema {
    set_schema(&json_schema!({
        "type": "string", "maxLength": 128, "pattern": "^[A-Za-z0-9._*-]+$", "x-kubernetes-validations": stars(),
    }))
}

fn types_schema(_: &mut SchemaGenerator) -> Schema {
    let pattern = r"^[A-Za-z0-9!#$&^_.+*-]+/[A-Za-z0-9!#$&^_.+*-]+$";
    set_schema(&json_schema!({
        "type": "string", "maxLength": 255, "pattern": pattern, "x-kubernetes-validations": stars(),
    }))
}

fn size_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true, "minimum": 0,
        "pattern": r"^[0-9]{1,18}(\.[0-9]{1,18})?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$",
    })
}

fn conditions_schema(generator: &mut SchemaGenerator) -> Schema {
    let condition = generator.subschema_for::<Condition>();
    json_schema!({
        "type": "array", "items": condition, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    })
}

fn anything_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
