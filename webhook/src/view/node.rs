//! Reads the fields of an object with the types that Kubernetes gives them.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::json::Json;
use crate::denial::{At, Denial};
use crate::manifest::what;

/// A field of the object.
pub(super) struct Node<'p, 'a, J> {
    /// The value, or `None` for an absent field and for `null`.
    pub(super) value: Option<&'a J>,
    place: Place<'p>,
}

/// Where a field is in the object. Only a denial needs the text, so it is not made before.
#[derive(Clone, Copy)]
enum Place<'p> {
    Root(&'static str),
    Member(&'p Place<'p>, &'p str),
    Item(&'p Place<'p>, usize),
}

/// Prints the path as `kubectl explain` takes it.
impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(name) => f.write_str(name),
            Self::Member(parent, key) => write!(f, "{parent}.{key}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl<'a, J: Json> Node<'static, 'a, J> {
    /// Begins with a whole object.
    pub(super) fn root(name: &'static str, object: &'a J) -> Self {
        Self { value: Some(object), place: Place::Root(name) }
    }
}

impl<'p, 'a, J: Json> Node<'p, 'a, J> {
    fn wrong_type(&self, expected: &str) -> Denial {
        let found = self.value.map_or_else(|| what(&Value::Null), Json::what);
        let rule = format!("is {found}, but Kubernetes requires {expected}");
        Denial::bad_request(At::Field(&self.place.to_string()), None, rule, format!("write {expected}"))
    }

    /// Denies a value that is not an object.
    pub(super) fn check_object(&self) -> Result<(), Denial> {
        let is_object = self.value.is_none_or(|value| value.members().is_some());
        if is_object { Ok(()) } else { Err(self.wrong_type("an object")) }
    }

    /// Returns a member of an object.
    pub(super) fn child<'c>(&'c self, key: &'c str) -> Result<Node<'c, 'a, J>, Denial>
    where
        'p: 'c,
    {
        self.check_object()?;
        let value = self.value.and_then(|value| value.member(key)).filter(|value| !value.is_null());
        Ok(Node { value, place: Place::Member(&self.place, key) })
    }

    /// Returns the items of a list, with their positions.
    pub(super) fn items(&self) -> Result<impl Iterator<Item = (usize, Node<'_, 'a, J>)>, Denial> {
        let items = self.value.map(|value| value.items().ok_or_else(|| self.wrong_type("a list")));
        let items = items.transpose()?.unwrap_or_default();
        let present = items.iter().enumerate().filter(|(_, value)| !value.is_null());
        Ok(present.map(|(index, value)| {
            (index, Node { value: Some(value), place: Place::Item(&self.place, index) })
        }))
    }

    /// Returns the string.
    pub(super) fn text(&self) -> Result<Option<&'a str>, Denial> {
        self.value.map(|value| value.text().ok_or_else(|| self.wrong_type("a string"))).transpose()
    }

    /// Returns the boolean, which is false where absent.
    pub(super) fn flag(&self) -> Result<bool, Denial> {
        let flag = self.value.map(|value| value.flag().ok_or_else(|| self.wrong_type("true or false")));
        Ok(flag.transpose()?.unwrap_or_default())
    }

    /// Returns a map of strings. A `null` in it is an empty string, as in Go's decoder.
    pub(super) fn texts(&self) -> Result<Option<BTreeMap<&'a str, &'a str>>, Denial> {
        self.check_object()?;
        let Some(members) = self.value.and_then(Json::members) else { return Ok(None) };
        let mut texts = BTreeMap::new();
        for (key, value) in members {
            let value = Some(value).filter(|value| !value.is_null());
            let node = Node { value, place: Place::Member(&self.place, key) };
            texts.insert(key, node.text()?.unwrap_or_default());
        }
        Ok(Some(texts))
    }
}
