//! Places in a pod, read with the types that Kubernetes gives them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::denial::{At, Denial};

/// A place in the pod.
pub(super) struct Node<'a> {
    /// The value that is there, or `None` for an absent one and for `null`.
    pub(super) value: Option<&'a Value>,
    /// Its path, as `kubectl explain` takes it.
    pub(super) path: String,
}

impl<'a> Node<'a> {
    fn wrong(&self, wanted: &str) -> Denial {
        let found = match self.value {
            None | Some(Value::Null) => "nothing",
            Some(Value::Bool(_)) => "a boolean",
            Some(Value::Number(_)) => "a number",
            Some(Value::String(_)) => "a string",
            Some(Value::Array(_)) => "a list",
            Some(Value::Object(_)) => "an object",
        };
        let rule = format!("is {found} where Kubernetes has {wanted}");
        Denial::rewrite(At::Field(&self.path), None, rule, format!("write {wanted}"))
    }

    /// Its members.
    pub(super) fn object(&self) -> Result<Option<&'a Map<String, Value>>, Denial> {
        match self.value {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(self.wrong("an object")),
        }
    }

    /// What it has under a key.
    pub(super) fn child(&self, key: &str) -> Result<Self, Denial> {
        let value = self.object()?.and_then(|map| map.get(key)).filter(|value| !value.is_null());
        let path = if value.is_some() { format!("{}.{key}", self.path) } else { String::new() };
        Ok(Self { value, path })
    }

    /// What stands in it, with the places in the list.
    pub(super) fn items(&self) -> Result<impl Iterator<Item = (usize, Node<'a>)> + use<'a, '_>, Denial> {
        let items = match self.value {
            None => &[],
            Some(Value::Array(items)) => items.as_slice(),
            Some(_) => return Err(self.wrong("a list")),
        };
        let there = items.iter().enumerate().filter(|(_, value)| !value.is_null());
        Ok(there.map(|(index, value)| {
            (index, Node { value: Some(value), path: format!("{}[{index}]", self.path) })
        }))
    }

    /// The string that it is.
    pub(super) fn text(&self) -> Result<Option<&'a str>, Denial> {
        match self.value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong("a string")),
        }
    }

    /// The boolean that it is, false where absent.
    pub(super) fn flag(&self) -> Result<bool, Denial> {
        match self.value {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong("true or false")),
        }
    }

    /// A map of strings. A `null` in it is an empty string, as Go's decoder has it.
    pub(super) fn texts(&self) -> Result<Option<BTreeMap<&'a str, &'a str>>, Denial> {
        let Some(map) = self.object()? else { return Ok(None) };
        let mut texts = BTreeMap::new();
        for (key, value) in map {
            let node = Node { value: Some(value).filter(|value| !value.is_null()), path: String::new() };
            let text = node.text().map_err(|_| {
                Node { value: Some(value), path: format!("{}.{key}", self.path) }.wrong("a string")
            })?;
            texts.insert(key.as_str(), text.unwrap_or_default());
        }
        Ok(Some(texts))
    }
}
