//! Why a pod is turned away, in words that somebody can act on.
//!
//! Architecture Invariant: every denial is made by [`Denial::new`], so each names where the mistake
//! stands, the value, the rule, and what to write instead. The answer to the API server is made from it
//! in [`crate::review`] and nowhere else.

use std::fmt;

use oras_csi_core::display::Shown;
use oras_csi_core::patch::Part;
use oras_csi_core::registry::RegistryErrorKind;

/// The HTTP status a denial carries, with the meaning Kubernetes gives it (`metav1.StatusReason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The user must rewrite something.
    BadRequest,
    /// A policy, or a registry's own refusal.
    Forbidden,
    /// The tag, digest or platform is not there.
    NotFound,
    /// The artifact is there, and nothing in it can be mounted.
    Unprocessable,
    /// The registry asks to wait.
    TooManyRequests,
    /// The registry fails or stalls.
    Unavailable,
}

impl Code {
    /// The number for `status.code`.
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

    /// The word for `status.reason` (apimachinery, `meta/v1/types.go`, `StatusReason`).
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

/// Where a mistake stands in the pod.
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
        /// The annotation, or the volume with its attribute, that holds the recipe or names it.
        recipe: RecipeAt<'a>,
        /// Which step.
        step: StepAt,
    },
    /// A namespace as a whole.
    Namespace(&'a str),
    /// A reference that stands in no pod.
    Reference,
    /// A volume as a whole.
    Volume(&'a str),
    /// A field of the pod, by its path as `kubectl explain` takes it.
    Field(&'a str),
}

/// Which of the artifacts that are named together.
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

/// A refusal: a code, and one sentence for the person who wrote the pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denial {
    code: Code,
    message: String,
    retry_after: Option<u32>,
    registry: Option<RegistryErrorKind>,
}

/// Kubernetes puts the message into events, which hold 1,024 characters; the longest of ours that is
/// worth reading fits twice.
const LONGEST_MESSAGE: usize = 2_000;

impl Denial {
    /// The one way to make a denial: `AT: "VALUE": RULE: INSTEAD`.
    ///
    /// `rule` says what is wrong. `instead` says what to write; it is empty where `rule` is an error of
    /// [`oras_csi_core`], all of which end with what to write.
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
            // Many errors of the core begin with the value themselves.
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
        Self { code, message: cut(message, LONGEST_MESSAGE), retry_after: None, registry: None }
    }

    /// A denial of something that must be rewritten (400).
    pub(crate) fn rewrite(
        at: At<'_>,
        value: Option<&str>,
        rule: impl fmt::Display,
        instead: impl fmt::Display,
    ) -> Self {
        Self::new(Code::BadRequest, at, value, rule, instead)
    }

    /// The same with the seconds after which trying again makes sense.
    pub(crate) fn with_retry_after(mut self, seconds: Option<u32>) -> Self {
        self.retry_after = seconds;
        self
    }

    /// The same as the word of a registry, and not of anything that the pod or a rule says.
    pub(crate) fn of_registry(mut self, kind: RegistryErrorKind) -> Self {
        self.registry = Some(kind);
        self
    }

    /// Whether a registry does not let in, or hides, whoever asked.
    pub(crate) fn is_of_rights(&self) -> bool {
        matches!(self.registry, Some(RegistryErrorKind::Refused | RegistryErrorKind::NotFound))
    }

    /// The same with one reason more.
    pub(crate) fn because(mut self, reason: &str) -> Self {
        self.message = cut(format!("{}; {reason}", self.message), LONGEST_MESSAGE);
        self
    }

    /// The status it carries.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the registry did, where it is the one to refuse.
    pub fn registry(&self) -> Option<RegistryErrorKind> {
        self.registry
    }

    /// Seconds to wait, where a registry named them.
    pub fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }
}

/// `text`, with an ellipsis where it is longer than `longest` characters.
pub(crate) fn cut(mut text: String, longest: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(longest) {
        let end = text[..end].char_indices().next_back().map_or(0, |(last, _)| last);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// `a, b, c` of names that may be many or hostile: at most twelve, and how many more there are.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const MOST: usize = 12;
    let mut names = names.into_iter();
    let mut shown: Vec<String> = names.by_ref().take(MOST).map(|name| Shown::new(name).to_string()).collect();
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
    fn says_where_what_why_and_what_instead() {
        let at = At::Annotation("oras.land/mount-path");
        let denial = Denial::rewrite(at, Some("mnt"), "is not an absolute path", "write /mnt");
        assert_eq!(
            denial.message(),
            "annotation oras.land/mount-path: \"mnt\" is not an absolute path: write /mnt"
        );
        assert_eq!((denial.code().number(), denial.code().reason()), (400, "BadRequest"));
    }

    #[test]
    fn names_the_value_once() {
        let denial = Denial::rewrite(At::Volume("v"), Some("x y"), "\"x y\" is not a reference", "");
        assert_eq!(denial.message(), "volume v: \"x y\" is not a reference");
    }

    #[test]
    fn prints_nothing_that_moves_a_cursor_and_nothing_endless() {
        let denial = Denial::rewrite(At::Volume("\u{1b}[2J\n"), Some(&"ü\r".repeat(10_000)), "no", "yes");
        assert!(!denial.message().contains(char::is_control));
        assert!(denial.message().chars().count() <= LONGEST_MESSAGE);
        assert_eq!(cut("üüüü".into(), 3), "üü…");
        assert_eq!(cut("üüü".into(), 3), "üüü");
        assert_eq!(cut("ü".into(), 0), "…");
    }

    #[test]
    fn lists_a_dozen() {
        let names: Vec<String> = (0..200).map(|n| format!("c{n}")).collect();
        let text = listed(names.iter().map(String::as_str));
        assert!(text.ends_with("c11, and 188 more"), "{text}");
        assert_eq!(listed(["a", "b"]), "a, b");
    }
}
