//! Names of Kubernetes objects.
//!
//! The client of the API server puts names into the paths of its requests as they are. A name such as
//! `../../kube-system/secrets/x` would address another object, with the permissions of the webhook or the driver. So a
//! name that comes from an object of a user is checked before it becomes part of a request.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

/// The longest DNS subdomain (RFC 1123).
const MAX_LEN: usize = 253;
/// The longest DNS label (RFC 1123).
const MAX_LABEL_LEN: usize = 63;

/// The name of a Kubernetes object: a DNS subdomain, and so one segment of a path of the API server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

/// The error for a text that is not the name of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is not the name of an object: a name has at most {MAX_LEN} characters of a-z, 0-9, \"-\" and \".\", and begins \
     and ends with a letter or a digit"
)]
pub struct InvalidName;

impl FromStr for ObjectName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if is_subdomain(text) { Ok(Self(text.to_owned())) } else { Err(InvalidName) }
    }
}

impl ObjectName {
    /// Returns the name as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for ObjectName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reports whether a name is a DNS subdomain (RFC 1123), as the names of most Kubernetes objects are.
pub fn is_subdomain(name: &str) -> bool {
    name.len() <= MAX_LEN && name.split('.').all(has_label_characters)
}

/// Reports whether a name is a DNS label (RFC 1123), as the names of namespaces are.
pub fn is_label(name: &str) -> bool {
    name.len() <= MAX_LABEL_LEN && has_label_characters(name)
}

/// Kubernetes does not limit the length of one label of a subdomain.
fn has_label_characters(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_subdomains_are_names() {
        let long = "a".repeat(253);
        for name in ["a", "a-b", "a.b-c.1", long.as_str()] {
            assert_eq!(name.parse::<ObjectName>().as_deref(), Ok(name));
        }
        let longer = "a".repeat(254);
        let paths =
            ["a/b", "..", ".", "../../kube-system/secrets/x", "a%2fb", "a?watch=true", "a#", "a b", "a\n"];
        for name in
            ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "é", longer.as_str()].iter().chain(&paths)
        {
            assert_eq!(name.parse::<ObjectName>(), Err(InvalidName), "{name}");
        }
    }

    #[test]
    fn only_labels_are_names_of_namespaces() {
        let (long, longer) = ("a".repeat(63), "a".repeat(64));
        assert!(is_label("kube-system") && is_label(&long));
        for name in ["", "a.b", "..", "a/b", "A", longer.as_str()] {
            assert!(!is_label(name), "{name}");
        }
    }
}
