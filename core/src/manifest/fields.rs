//! Reads the fields of a manifest's JSON objects. Errors name the path of the field, for example `layers[3].digest`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Descriptor, MAX_ENTRIES, ManifestError};
use crate::digest::Digest;
use crate::display::Printable;

/// The maximum of `size`, which is a signed 64-bit integer (image-spec, descriptor.md, `size`: int64).
const MAX_SIZE: u64 = i64::MAX.unsigned_abs();
/// The maximum length of a media type: type and subtype have at most 127 characters each (RFC 6838, section 4.2).
const MAX_MEDIA_TYPE_LEN: usize = 255;
/// The field names that have a meaning in a manifest. The same name in another case is an error.
const NAMES: [&str; 18] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "subject",
    "refers",
    "annotations",
    "digest",
    "size",
    "urls",
    "platform",
    "os",
    "architecture",
    "variant",
    "blobs",
    "fsLayers",
];

/// A JSON object and its path in the manifest.
pub(super) struct Object<'a> {
    path: String,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// Wraps an object, unless it has a known name in another case. Go's `encoding/json` reads `Layers` as `layers`
    /// and this parser does not, so the two would see different manifests.
    pub(super) fn new(path: String, map: &'a Map<String, Value>) -> Result<Self, ManifestError> {
        let object = Self { path, map };
        for name in map.keys() {
            if let Some(known) = NAMES.iter().find(|known| known.eq_ignore_ascii_case(name))
                && known != name
            {
                return Err(object.problem(name, format!("is spelled in another case: write \"{known}\"")));
            }
        }
        Ok(object)
    }

    /// Returns the path of a field, for example `layers[3].digest`.
    pub(super) fn path_of(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// Returns the error about a field.
    pub(super) fn problem(&self, field: &str, problem: impl Into<String>) -> ManifestError {
        ManifestError::Field { field: self.path_of(field).into(), problem: Printable::from(problem.into()) }
    }

    /// Reads an optional string.
    pub(super) fn text(&self, field: &str) -> Result<Option<String>, ManifestError> {
        match self.map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.problem(field, "is not a string")),
        }
    }

    /// Reads a string that must be present and not empty.
    pub(super) fn required(&self, field: &str) -> Result<String, ManifestError> {
        self.text(field)?.filter(|text| !text.is_empty()).ok_or_else(|| self.problem(field, "is missing"))
    }

    /// Reads an optional media type: at most 255 characters of printable ASCII.
    pub(super) fn media_type(&self, field: &str) -> Result<Option<String>, ManifestError> {
        let Some(text) = self.text(field)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        if text.len() > MAX_MEDIA_TYPE_LEN || !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(self.problem(field, format!("is not a media type: \"{}\"", Printable::new(&text))));
        }
        Ok(Some(text))
    }

    /// Reads this object as a descriptor.
    pub(super) fn descriptor(&self) -> Result<Descriptor, ManifestError> {
        let media_type = self.media_type("mediaType")?;
        let media_type = media_type.ok_or_else(|| self.problem("mediaType", "is missing"))?;
        let digest = self.required("digest")?;
        let digest = digest.parse::<Digest>().map_err(|error| self.problem("digest", error.to_string()))?;
        let size = match self.map.get("size") {
            Some(Value::Number(size)) => size.as_u64().filter(|size| *size <= MAX_SIZE),
            _ => None,
        };
        let size =
            size.ok_or_else(|| self.problem("size", format!("is not a number from 0 to {MAX_SIZE}")))?;
        Ok(Descriptor::new(media_type, digest, size))
    }

    /// Reads an optional descriptor in a field.
    pub(super) fn descriptor_at(&self, field: &str) -> Result<Option<Descriptor>, ManifestError> {
        match self.map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Object::new(self.path_of(field), map)?.descriptor().map(Some),
            Some(_) => Err(self.problem(field, "is not an object")),
        }
    }

    /// Reads a list of objects. A missing list and `null` are empty (Docker writes `"layers": null`).
    pub(super) fn list<T>(
        &self,
        field: &'static str,
        parse: impl Fn(&Object<'_>) -> Result<T, ManifestError>,
    ) -> Result<Vec<T>, ManifestError> {
        let items = match self.map.get(field) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(self.problem(field, "is not a list")),
        };
        if items.len() > MAX_ENTRIES {
            return Err(ManifestError::TooMany { what: field, count: items.len() });
        }
        let entry = |(position, item): (usize, &Value)| {
            let path = format!("{field}[{position}]");
            match item {
                Value::Object(map) => parse(&Object::new(path, map)?),
                _ => Err(self.problem(&path, "is not an object")),
            }
        };
        items.iter().enumerate().map(entry).collect()
    }

    /// Reads `annotations`, a map of strings to strings.
    pub(super) fn annotations(&self) -> Result<BTreeMap<String, String>, ManifestError> {
        let map = match self.map.get("annotations") {
            None | Some(Value::Null) => return Ok(BTreeMap::new()),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(self.problem("annotations", "is not an object")),
        };
        let strings = map.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        strings
            .collect::<Option<_>>()
            .ok_or_else(|| self.problem("annotations", "has a value that is not a string"))
    }
}
