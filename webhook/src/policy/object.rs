//! `ArtifactPolicy`: the object that an administrator writes, and the rules that it stands for.
//!
//! The custom resource definition is generated from these types (`deploy/chart/files/crds/`; a test compares them). Files
//! for `--policy` hold the same objects.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the doc comments are descriptions of the CRD, which has no links"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use kube::core::{Rule, Selector};
use oras_csi_core::display::Shown;
use oras_csi_core::policy::{ByteSize, Mode, Rules};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::selector;
use super::spec_error::SpecError;
use crate::manifest::what;

/// Restricts the artifacts that the pods of the selected namespaces can mount. An artifact must pass all policies that
/// select the namespace. A rule that is left out does not restrict anything.
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
    doc = "Restricts the OCI artifacts that the pods of the selected namespaces can mount. The webhook of oras-csi \
           checks it when a pod is created: rules on names before it contacts a registry, rules on contents afterwards."
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
    /// Selects namespaces by their labels. Every namespace has the label kubernetes.io/metadata.name. If left out or
    /// empty, the policy selects all namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "selector::schema")]
    pub namespace_selector: Option<LabelSelector>,
    /// What happens when a pod breaks a rule. Enforce: the pod is denied. Warn: the pod is admitted and the client gets a
    /// warning. Audit: the pod is admitted and the violation is recorded in the audit log of the API server, in
    /// annotations with keys that begin with pods.csi.oras.land/.
    #[serde(default)]
    #[schemars(schema_with = "mode_schema")]
    pub mode: ModeSpec,
    /// The registries and repositories that can be used, as patterns HOST[:PORT][/PATH] that are compared segment by
    /// segment. The wildcard * matches one whole segment: a label of the host or a segment of the path. ** matches one or
    /// more segments at the start and at the end of a pattern, and any number in the middle. Ports must be equal; a
    /// pattern without a port means port 443, so ** alone does not match a registry on another port. HOST alone matches
    /// all repositories of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registries: Option<RegistriesSpec>,
    /// Requires a digest in every reference.
    #[serde(default, skip_serializing_if = "is_false")]
    pub require_digest: bool,
    /// Tags that must not be used, even together with a digest. * matches any text. A reference with neither a tag nor a
    /// digest has the tag latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "tags_schema")]
    pub denied_tags: Option<Vec<String>>,
    /// The artifact types that can be used, such as application/vnd.acme.*. * matches any text. The type of an artifact is
    /// its artifactType, or the media type of its config if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "types_schema")]
    pub allowed_artifact_types: Option<Vec<String>>,
    /// The media types of layers that can be used. * matches any text. Every layer that a pod requests must have one of
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "types_schema")]
    pub allowed_media_types: Option<Vec<String>>,
    /// The maximum size of one artifact, such as 500Mi or 10Gi: the sum of the sizes that the manifest states for the
    /// layers that a pod requests (compressed, not unpacked).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "number_or_text")]
    #[schemars(schema_with = "size_schema")]
    pub max_size: Option<String>,
    /// Allows only ClusterArtifactSets, and no reference in a pod or a volume.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sets_only: bool,
}

/// The registries and repositories that can be used.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistriesSpec {
    /// The only registries and repositories that can be used, such as ghcr.io/acme/**.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "patterns_schema")]
    pub allow: Option<Vec<String>>,
    /// The registries and repositories that must not be used, even if allow matches them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "patterns_schema")]
    pub deny: Option<Vec<String>>,
}

/// What happens when a pod breaks a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModeSpec {
    /// The pod is denied.
    #[default]
    Enforce,
    /// The pod is admitted, and the client gets a warning.
    Warn,
    /// The pod is admitted, and the violation is recorded in the audit log.
    Audit,
}

/// The state of the policy, written by the webhook.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactPolicyStatus {
    /// The last generation that the webhook has read.
    pub observed_generation: i64,
    /// Which generation is in force, and what is wrong with a later one.
    pub message: String,
    /// Accepted: whether the last generation is valid.
    #[serde(default)]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// The last valid generation. It stays in force while a later one is invalid, even after a restart of the webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<InForce>,
}

/// A valid generation of the policy.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InForce {
    /// The number of the generation.
    pub generation: i64,
    /// The spec of that generation.
    #[schemars(schema_with = "anything_schema")]
    pub spec: Value,
}

impl ArtifactPolicySpec {
    /// Reads a `spec`. An unknown field is an error, because it may be a rule of a later version.
    pub fn read(spec: &Value) -> Result<Self, SpecError> {
        if spec.is_null() {
            return Err(SpecError::new("spec", "is missing: write the rules of the policy there"));
        }
        let mut unknown = None;
        let spec = without_nulls(spec);
        check_objects(&spec)?;
        let read = serde_ignored::deserialize(&spec, |path| {
            // serde_ignored prints an optional field as a segment "?".
            unknown.get_or_insert_with(|| path.to_string().replace(".?", ""));
        });
        let read =
            read.map_err(|error: serde_json::Error| SpecError::new("spec", Shown::new(&error.to_string())))?;
        match unknown {
            None => Ok(read),
            Some(path) => {
                let problem = "is not a field of an ArtifactPolicy that this version of oras-csi knows: remove it, or correct its name";
                Err(SpecError::new(format!("spec.{}", Shown::new(&path)), problem))
            }
        }
    }

    /// Parses the namespace selector.
    pub fn selector(&self) -> Result<Selector, SpecError> {
        selector::read(self.namespace_selector.clone().unwrap_or_default())
    }

    /// Returns the mode.
    pub fn mode(&self) -> Mode {
        match self.mode {
            ModeSpec::Enforce => Mode::Enforce,
            ModeSpec::Warn => Mode::Warn,
            ModeSpec::Audit => Mode::Audit,
        }
    }

    /// Parses the rules.
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

/// Parses the entries of a list. An empty list is an error, because it could mean all or nothing.
fn parse_list<T>(field: &str, list: Option<&[String]>) -> Result<Option<Vec<T>>, SpecError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let Some(list) = list else { return Ok(None) };
    if list.is_empty() {
        let problem = "is an empty list: leave it out, or write at least one entry";
        return Err(SpecError::new(format!("spec.{field}"), problem));
    }
    let parse = |(index, text): (usize, &String)| {
        text.parse().map_err(|error| SpecError::new(format!("spec.{field}[{index}]"), error))
    };
    list.iter().enumerate().map(parse).collect::<Result<_, _>>().map(Some)
}

/// Fails if a field that must be an object has another type. Serde reads a list as a struct, by the order of the fields.
fn check_objects(spec: &Value) -> Result<(), SpecError> {
    let check = |field: &str, value: &Value| match value {
        Value::Object(_) => Ok(()),
        other => {
            let problem = format_args!("is {}, and must be an object", what(other));
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

/// Removes fields that are `null`: the API server treats them as absent.
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

/// Returns the schema of a list of unique strings. `item` is the schema of one string.
fn set_schema(item: &Schema) -> Schema {
    json_schema!({"type": "array", "minItems": 1, "maxItems": 256, "x-kubernetes-list-type": "set", "items": item})
}

/// Returns the schema of registry patterns, with the rules that CEL can check. The parser of the webhook checks all of
/// them, and reports the result in the status.
fn patterns_schema(_: &mut SchemaGenerator) -> Schema {
    let rules = [
        Rule::new("!self.contains('://')")
            .message("a registry pattern has no scheme: write HOST or HOST/PATH"),
        Rule::new("!self.contains('@')")
            .message("a registry pattern has no digest and no user: write HOST/PATH"),
        Rule::new("!self.matches('/.*:')").message("a registry pattern has no tag: write HOST[:PORT]/PATH"),
        Rule::new("!self.matches('[^./*:]\\\\*|\\\\*[^./*:]|\\\\*\\\\*\\\\*')")
            .message("* and ** match whole segments only"),
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

/// Returns the rule for wildcards in a text.
fn stars() -> [Rule; 1] {
    [Rule::new("!self.contains('**') && self.split('*').size() <= 9")
        .message("* matches any text: write it at most eight times, and never twice in a row")]
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
