//! JSON values that can be read as a Kubernetes object: [`serde_json::Value`], and the [`Tree`] of a review.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

use crate::manifest::what;

/// A JSON value.
pub(crate) trait Json: Sized + Sync {
    /// Returns the member of an object, or `None` for any other value.
    fn member(&self, key: &str) -> Option<&Self>;
    /// Returns the members of an object.
    fn members(&self) -> Option<impl Iterator<Item = (&str, &Self)>>;
    /// Returns the items of a list.
    fn items(&self) -> Option<&[Self]>;
    /// Returns a string.
    fn text(&self) -> Option<&str>;
    /// Returns a boolean.
    fn flag(&self) -> Option<bool>;
    /// Reports whether the value is `null`.
    fn is_null(&self) -> bool;
    /// Returns a `Value` with the same content.
    fn to_value(&self) -> Cow<'_, Value>;

    /// Names the type for a message.
    fn what(&self) -> &'static str {
        what(&self.to_value())
    }
}

impl Json for Value {
    fn member(&self, key: &str) -> Option<&Self> {
        self.as_object()?.get(key)
    }

    fn members(&self) -> Option<impl Iterator<Item = (&str, &Self)>> {
        Some(self.as_object()?.iter().map(|(key, value)| (key.as_str(), value)))
    }

    fn items(&self) -> Option<&[Self]> {
        self.as_array().map(Vec::as_slice)
    }

    fn text(&self) -> Option<&str> {
        self.as_str()
    }

    fn flag(&self) -> Option<bool> {
        self.as_bool()
    }

    fn is_null(&self) -> bool {
        Value::is_null(self)
    }

    fn to_value(&self) -> Cow<'_, Value> {
        Cow::Borrowed(self)
    }
}

/// The fields of an object that the webhook reads once. A `Value` would hash each name and copy it; here most names are
/// those of the table of fields, and objects are short lists.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tree {
    Null,
    Flag(bool),
    Number(Number),
    Text(Box<str>),
    List(Vec<Tree>),
    Object(Members),
}

/// The members of an object, in their order. Each name occurs once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Members(Vec<(Cow<'static, str>, Tree)>);

/// Up to this length, looking through a list of names is faster than sorting it.
const SHORT: usize = 16;

impl Members {
    /// Makes members of a list in which a name can occur several times: the last value counts, at the place of the first.
    pub(crate) fn new(list: Vec<(Cow<'static, str>, Tree)>) -> Self {
        if has_unique_names(&list) {
            return Self(list);
        }
        // An index map keeps the place of the first.
        let mut unique = Map::new();
        for (position, (name, _)) in list.iter().enumerate() {
            unique.insert(name.to_string(), Value::from(position));
        }
        let mut values: Vec<Option<_>> = list.into_iter().map(Some).collect();
        let positions = unique.values().filter_map(Value::as_u64);
        let take = |position: u64| values.get_mut(usize::try_from(position).ok()?)?.take();
        Self(positions.filter_map(take).collect())
    }
}

fn has_unique_names(list: &[(Cow<'static, str>, Tree)]) -> bool {
    if list.len() <= SHORT {
        return list
            .iter()
            .enumerate()
            .all(|(index, (name, _))| list[..index].iter().all(|(other, _)| other != name));
    }
    let mut names: Vec<&str> = list.iter().map(|(name, _)| name.as_ref()).collect();
    names.sort_unstable();
    names.windows(2).all(|pair| pair[0] != pair[1])
}

impl Json for Tree {
    fn member(&self, key: &str) -> Option<&Self> {
        let Self::Object(Members(members)) = self else { return None };
        members.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn members(&self) -> Option<impl Iterator<Item = (&str, &Self)>> {
        let Self::Object(Members(members)) = self else { return None };
        Some(members.iter().map(|(name, value)| (name.as_ref(), value)))
    }

    fn items(&self) -> Option<&[Self]> {
        if let Self::List(items) = self { Some(items) } else { None }
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn flag(&self) -> Option<bool> {
        if let Self::Flag(flag) = self { Some(*flag) } else { None }
    }

    fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    fn to_value(&self) -> Cow<'_, Value> {
        Cow::Owned(match self {
            Self::Null => Value::Null,
            Self::Flag(flag) => Value::Bool(*flag),
            Self::Number(number) => Value::Number(number.clone()),
            Self::Text(text) => Value::String(text.to_string()),
            Self::List(items) => items.iter().map(|item| item.to_value().into_owned()).collect(),
            Self::Object(Members(members)) => members
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_value().into_owned()))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(members: &[(&'static str, u64)]) -> Value {
        let member = |(name, value): &(&'static str, u64)| (Cow::from(*name), Tree::Number((*value).into()));
        Tree::Object(Members::new(members.iter().map(member).collect())).to_value().into_owned()
    }

    #[test]
    fn the_last_of_several_members_with_one_name_counts() {
        let found = object(&[("b", 1), ("a", 2), ("b", 3), ("c", 4)]);
        assert_eq!(found, json!({"b": 3, "a": 2, "c": 4}));
        assert_eq!(found.to_string(), r#"{"b":3,"a":2,"c":4}"#);
        assert_eq!(object(&[("b", 1), ("a", 2)]).to_string(), r#"{"b":1,"a":2}"#);
        let names: Vec<String> = (0..100).map(|number| format!("n{}", number % 60)).collect();
        let list = names
            .iter()
            .enumerate()
            .map(|(value, name)| (Cow::from(name.clone()), Tree::Number(value.into())));
        let tree = Tree::Object(Members::new(list.collect()));
        assert_eq!(tree.members().unwrap().count(), 60);
        assert_eq!(tree.member("n1"), Some(&Tree::Number(61.into())));
        assert_eq!(tree.member("n59"), Some(&Tree::Number(59.into())));
    }
}
