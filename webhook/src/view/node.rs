//! Reads the fields of an object with the types that Kubernetes gives them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::denial::{At, Denial};
use crate::manifest::what;

/// A field of the object.
pub(super) struct Node<'a> {
    /// The value, or `None` for an absent field and for `null`.
    pub(super) value: Option<&'a Value>,
    /// The field's path, as `kubectl explain` takes it.
    pub(super) path: String,
}

impl<'a> Node<'a> {
    fn wrong_type(&self, expected: &str) -> Denial {
        let found = what(self.value.unwrap_or(&Value::Null));
        let rule = format!("is {found}, but Kubernetes requires {expected}");
        Denial::bad_request(At::Field(&self.path), None, rule, format!("write {expected}"))
    }

    /// Returns the members of an object.
    pub(super) fn object(&self) -> Result<Option<&'a Map<String, Value>>, Denial> {
        match self.value {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(self.wrong_type("an object")),
        }
    }

    /// Returns a member of an object.
    pub(super) fn child(&self, key: &str) -> Result<Self, Denial> {
        let value = self.object()?.and_then(|map| map.get(key)).filter(|value| !value.is_null());
        let path = if value.is_some() { format!("{}.{key}", self.path) } else { String::new() };
        Ok(Self { value, path })
    }

    /// Returns the items of a list, with their positions.
    pub(super) fn items(&self) -> Result<impl Iterator<Item = (usize, Node<'a>)> + use<'a, '_>, Denial> {
        let items = match self.value {
            None => &[],
            Some(Value::Array(items)) => items.as_slice(),
            Some(_) => return Err(self.wrong_type("a list")),
        };
        let present = items.iter().enumerate().filter(|(_, value)| !value.is_null());
        Ok(present.map(|(index, value)| {
            (index, Node { value: Some(value), path: format!("{}[{index}]", self.path) })
        }))
    }

    /// Returns the string.
    pub(super) fn text(&self) -> Result<Option<&'a str>, Denial> {
        match self.value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong_type("a string")),
        }
    }

    /// Returns the boolean, which is false where absent.
    pub(super) fn flag(&self) -> Result<bool, Denial> {
        match self.value {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong_type("true or false")),
        }
    }

    /// Returns a map of strings. A `null` in it is an empty string, as in Go's decoder.
    pub(super) fn texts(&self) -> Result<Option<BTreeMap<&'a str, &'a str>>, Denial> {
        let Some(map) = self.object()? else { return Ok(None) };
        let mut texts = BTreeMap::new();
        for (key, value) in map {
            let node = Node { value: Some(value).filter(|value| !value.is_null()), path: String::new() };
            let text = node.text().map_err(|_| {
                Node { value: Some(value), path: format!("{}.{key}", self.path) }.wrong_type("a string")
            })?;
            texts.insert(key.as_str(), text.unwrap_or_default());
        }
        Ok(Some(texts))
    }
}
