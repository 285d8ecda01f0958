//! Denials: why a request is rejected, and what the user has to change.
//!
//! Architecture Invariant: every denial is made by [`Denial::new`], so each names the place of the mistake, the value,
//! the rule, and what to write instead. Only [`crate::review`] turns it into an answer for the API server.

use std::fmt;

use oras_csi_core::display::Shown;
use oras_csi_core::patch::Part;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::RegistryErrorKind;

/// The HTTP status of a denial, with the meaning that Kubernetes gives it (`metav1.StatusReason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The user must change the object.
    BadRequest,
    /// A policy or a registry refuses it.
    Forbidden,
    /// The tag, digest, platform or set does not exist.
    NotFound,
    /// The artifact exists, but nothing in it can be mounted. Or the volume of an object that exists cannot change.
    Unprocessable,
    /// The registry limits the request rate.
    TooManyRequests,
    /// The registry fails or does not answer.
    Unavailable,
}

impl Code {
    /// Returns the number for `status.code`.
    pub fn number(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Unprocessable => 422,
            Self::TooManyRequests => 429,
            Self::Unavailable => 503,
        }
    }

    /// Returns the reason for `status.reason` (apimachinery, `meta/v1/types.go`, `StatusReason`).
    pub fn reason(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::Unprocessable => "Invalid",
            Self::TooManyRequests => "TooManyRequests",
            Self::Unavailable => "ServiceUnavailable",
        }
    }
}

/// The place of a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At<'a> {
    /// An annotation, by its whole key.
    Annotation(&'a str),
    /// A volume attribute, by its whole key.
    Attribute {
        /// The volume's name.
        volume: &'a str,
        /// The attribute's key.
        key: &'a str,
    },
    /// A step of a recipe, or a part of a patch.
    Step {
        /// The annotation or attribute that has the recipe, or names it.
        recipe: RecipeAt<'a>,
        /// The step.
        step: StepAt,
    },
    /// A namespace as a whole.
    Namespace(&'a str),
    /// A reference on a command line.
    Reference,
    /// A volume as a whole.
    Volume(&'a str),
    /// A field of the pod, by its path as `kubectl explain` takes it.
    Field(&'a str),
}

/// One of several artifacts that are named in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepAt {
    /// A step of a recipe, counted from 1.
    Number(usize),
    /// The base or a level of a patch.
    Part(Part),
}

impl fmt::Display for StepAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "step {number}"),
            Self::Part(part) => write!(f, "{part} of the patch"),
        }
    }
}

/// Where a recipe is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecipeAt<'a> {
    /// In the annotation of that key.
    Annotation(&'a str),
    /// In an attribute of a volume.
    Attribute {
        /// The volume's name.
        volume: &'a str,
        /// The attribute's key.
        key: &'a str,
    },
}

impl<'a> RecipeAt<'a> {
    fn at(self) -> At<'a> {
        match self {
            Self::Annotation(key) => At::Annotation(key),
            Self::Attribute { volume, key } => At::Attribute { volume, key },
        }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Annotation(key) => write!(f, "annotation {}", Shown::new(key)),
            Self::Attribute { volume, key } => {
                write!(f, "volume {}, attribute {}", Shown::new(volume), Shown::new(key))
            }
            Self::Step { recipe, step } => write!(f, "{}, {step}", recipe.at()),
            Self::Reference => f.write_str("reference"),
            Self::Namespace(name) => write!(f, "namespace {}", Shown::new(name)),
            Self::Volume(name) => write!(f, "volume {}", Shown::new(name)),
            Self::Field(path) => write!(f, "{}", Shown::new(path)),
        }
    }
}

/// A refusal: a status code, and a message for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denial {
    code: Code,
    message: String,
    retry_after: Option<u32>,
    registry: Option<RegistryErrorKind>,
    /// The reference that a registry was asked for.
    reference: Option<String>,
    is_wrong_request: bool,
}

/// The maximum length of a message, in characters. Kubernetes cuts messages of events after 1,024.
const MAX_MESSAGE: usize = 2_000;

impl Denial {
    /// Makes a denial with the message `AT: "VALUE" RULE: INSTEAD`.
    ///
    /// `rule` says what is wrong, and `instead` what to write. `instead` is empty where `rule` is an error of
    /// [`oras_csi_core`]: those end with what to write.
    pub(crate) fn new(
        code: Code,
        at: At<'_>,
        value: Option<&str>,
        rule: impl fmt::Display,
        instead: impl fmt::Display,
    ) -> Self {
        let rule = rule.to_string();
        let mut message = format!("{at}: ");
        if let Some(value) = value {
            let value = format!("\"{}\"", Shown::new(value));
            // Many errors of core begin with the value.
            if !rule.starts_with(&value) {
                message.push_str(&value);
                message.push(' ');
            }
        }
        message.push_str(&rule);
        let instead = instead.to_string();
        if !instead.is_empty() {
            message.push_str(": ");
            message.push_str(&instead);
        }
        let message = cut(message, MAX_MESSAGE);
        let is_wrong_request = code == Code::BadRequest;
        Self { code, message, retry_after: None, registry: None, reference: None, is_wrong_request }
    }

    /// Makes a denial with [`Code::BadRequest`]: the user must change the object.
    pub(crate) fn bad_request(
        at: At<'_>,
        value: Option<&str>,
        rule: impl fmt::Display,
        instead: impl fmt::Display,
    ) -> Self {
        Self::new(Code::BadRequest, at, value, rule, instead)
    }

    /// Adds the seconds after which the client should try again.
    pub(crate) fn with_retry_after(mut self, seconds: Option<u32>) -> Self {
        self.retry_after = seconds;
        self
    }

    /// Marks the denial as caused by a registry's error about a reference.
    pub(crate) fn with_registry_error(mut self, kind: RegistryErrorKind, reference: &str) -> Self {
        self.registry = Some(kind);
        self.reference = Some(reference.to_owned());
        self
    }

    /// Marks the denial as caused by the request, whatever its code is.
    pub(crate) fn with_wrong_request(mut self) -> Self {
        self.is_wrong_request = true;
        self
    }

    /// Reports whether only a changed request can succeed.
    pub fn is_wrong_request(&self) -> bool {
        self.is_wrong_request
    }

    /// Reports whether a registry denied access, or hides what the client may not see.
    pub(crate) fn is_access_denied(&self) -> bool {
        matches!(self.registry, Some(RegistryErrorKind::Refused | RegistryErrorKind::NotFound))
    }

    /// Reports whether a registry's error about this reference caused the denial, whatever its tag and digest are.
    pub(crate) fn is_about(&self, reference: &Reference) -> bool {
        let rest = self.reference.as_deref().and_then(|text| text.strip_prefix(&reference.name()));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']))
    }

    /// Adds a detail at the end of the message.
    pub(crate) fn with_detail(mut self, detail: &str) -> Self {
        self.message = cut(format!("{}; {detail}", self.message), MAX_MESSAGE);
        self
    }

    /// Returns the status code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Returns the message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the kind of the registry's error, where one caused the denial.
    pub fn registry(&self) -> Option<RegistryErrorKind> {
        self.registry
    }

    /// Returns the seconds to wait, where a registry named them.
    pub fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }
}

/// Cuts `text` after `max` characters, with an ellipsis.
pub(crate) fn cut(mut text: String, max: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(max) {
        let end = text[..end].char_indices().next_back().map_or(0, |(last, _)| last);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Lists names as `a, b, c`: at most twelve, escaped, and how many more there are.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const MAX_NAMES: usize = 12;
    let mut names = names.into_iter();
    let mut shown: Vec<String> =
        names.by_ref().take(MAX_NAMES).map(|name| Shown::new(name).to_string()).collect();
    let more = names.count();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_place_value_rule_and_correction() {
        let at = At::Annotation("oras.land/mount-path");
        let denial = Denial::bad_request(at, Some("mnt"), "is not an absolute path", "write /mnt");
        assert_eq!(
            denial.message(),
            "annotation oras.land/mount-path: \"mnt\" is not an absolute path: write /mnt"
        );
        assert_eq!((denial.code().number(), denial.code().reason()), (400, "BadRequest"));
    }

    #[test]
    fn a_message_has_the_value_once() {
        let denial = Denial::bad_request(At::Volume("v"), Some("x y"), "\"x y\" is not a reference", "");
        assert_eq!(denial.message(), "volume v: \"x y\" is not a reference");
    }

    #[test]
    fn a_message_has_no_control_characters_and_a_maximum_length() {
        let denial = Denial::bad_request(At::Volume("\u{1b}[2J\n"), Some(&"ü\r".repeat(10_000)), "no", "yes");
        assert!(!denial.message().contains(char::is_control));
        assert!(denial.message().chars().count() <= MAX_MESSAGE);
        assert_eq!(cut("üüüü".into(), 3), "üü…");
        assert_eq!(cut("üüü".into(), 3), "üüü");
        assert_eq!(cut("ü".into(), 0), "…");
    }

    #[test]
    fn a_list_has_at_most_twelve_names() {
        let names: Vec<String> = (0..200).map(|n| format!("c{n}")).collect();
        let text = listed(names.iter().map(String::as_str));
        assert!(text.ends_with("c11, and 188 more"), "{text}");
        assert_eq!(listed(["a", "b"]), "a, b");
    }
}
