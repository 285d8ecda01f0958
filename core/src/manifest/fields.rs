//! Reading the fields of a manifest's objects, each with its place in the document for the error.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Descriptor, MOST_ENTRIES, ManifestError};
use crate::digest::Digest;
use crate::display::Printable;

/// Sizes are signed 64-bit integers everywhere else (image-spec, descriptor.md, `size`: int64).
const LARGEST: u64 = i64::MAX.unsigned_abs();
/// RFC 6838, 4.2: type and subtype have at most 127 characters each.
const LONGEST_MEDIA_TYPE: usize = 255;
/// The names that mean something, so that one in another case is noticed.
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

/// A JSON object and where it is in the document.
pub(super) struct Object<'a> {
    place: String,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// Takes an object, unless it has a known name in another case: Go's `encoding/json` reads `Layers`
    /// as `layers`, we do not, and the two would see two manifests.
    pub(super) fn new(place: String, map: &'a Map<String, Value>) -> Result<Self, ManifestError> {
        let object = Self { place, map };
        for name in map.keys() {
            if let Some(known) = NAMES.iter().find(|known| known.eq_ignore_ascii_case(name))
                && known != name
            {
                return Err(object.problem(name, format!("is spelled \"{known}\"")));
            }
        }
        Ok(object)
    }

    /// The place of a field: `layers[3].digest`.
    pub(super) fn path(&self, field: &str) -> String {
        if self.place.is_empty() { field.to_owned() } else { format!("{}.{field}", self.place) }
    }

    pub(super) fn problem(&self, field: &str, problem: impl Into<String>) -> ManifestError {
        ManifestError::Field { field: self.path(field).into(), problem: Printable::from(problem.into()) }
    }

    /// An optional string.
    pub(super) fn text(&self, field: &str) -> Result<Option<String>, ManifestError> {
        match self.map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.problem(field, "is not a string")),
        }
    }

    /// A string that must be there.
    pub(super) fn required(&self, field: &str) -> Result<String, ManifestError> {
        self.text(field)?.filter(|text| !text.is_empty()).ok_or_else(|| self.problem(field, "is missing"))
    }

    /// A media type, if there is one: printable ASCII and not endless.
    pub(super) fn media_type(&self, field: &str) -> Result<Option<String>, ManifestError> {
        let Some(text) = self.text(field)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        if text.len() > LONGEST_MEDIA_TYPE || !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(self.problem(field, format!("is not a media type: \"{}\"", Printable::new(&text))));
        }
        Ok(Some(text))
    }

    /// This object as a descriptor.
    pub(super) fn descriptor(&self) -> Result<Descriptor, ManifestError> {
        let media_type = self.media_type("mediaType")?;
        let media_type = media_type.ok_or_else(|| self.problem("mediaType", "is missing"))?;
        let digest = self.required("digest")?;
        let digest = digest.parse::<Digest>().map_err(|error| self.problem("digest", error.to_string()))?;
        let size = match self.map.get("size") {
            Some(Value::Number(size)) => size.as_u64().filter(|size| *size <= LARGEST),
            _ => None,
        };
        let size =
            size.ok_or_else(|| self.problem("size", format!("is not a number from 0 to {LARGEST}")))?;
        Ok(Descriptor::new(media_type, digest, size))
    }

    /// A descriptor in a field.
    pub(super) fn descriptor_at(&self, field: &str) -> Result<Option<Descriptor>, ManifestError> {
        match self.map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Object::new(self.path(field), map)?.descriptor().map(Some),
            Some(_) => Err(self.problem(field, "is not an object")),
        }
    }

    /// A list of objects; absent and null are empty (Docker writes `"layers": null`).
    pub(super) fn list<T>(
        &self,
        field: &'static str,
        read: impl Fn(&Object<'_>) -> Result<T, ManifestError>,
    ) -> Result<Vec<T>, ManifestError> {
        let items = match self.map.get(field) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(self.problem(field, "is not a list")),
        };
        if items.len() > MOST_ENTRIES {
            return Err(ManifestError::TooMany { what: field, found: items.len() });
        }
        let entry = |(position, item): (usize, &Value)| {
            let place = format!("{field}[{position}]");
            match item {
                Value::Object(map) => read(&Object::new(place, map)?),
                _ => Err(self.problem(&place, "is not an object")),
            }
        };
        items.iter().enumerate().map(entry).collect()
    }

    /// `annotations`: strings to strings.
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
