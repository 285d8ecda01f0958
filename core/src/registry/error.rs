//! What can go wrong between us and a registry, in words that are safe to print.

use std::time::Duration;

use crate::display::Printable;

/// `: WORDS` where there are any.
fn said(words: &Printable) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

fn wait(after: Option<&Duration>) -> String {
    after.map_or_else(String::new, |after| format!(", it asks to wait {} s", after.as_secs()))
}

/// Why a registry did not give what was asked for.
///
/// `at` says what was asked, as `GET https://host/v2/…`, always without the query (a presigned address
/// carries its secret there); `words` are the registry's own, or the cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// 404: no such tag, digest or repository, or one that the registry hides.
    #[error("{at}: not found{}", said(.words))]
    NotFound {
        /// What was asked.
        at: Printable,
        /// What the registry said.
        words: Printable,
    },
    /// 401, 403 and other refusals of a client (RFC 9110, 15.5).
    #[error("{at}: refused with {status}{}", said(.words))]
    Refused {
        /// What was asked.
        at: Printable,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        words: Printable,
    },
    /// 429: too many requests, also after waiting as long as the deadline allows.
    #[error("{at}: too many requests{}{}", wait(.retry_after.as_ref()), said(.words))]
    RateLimited {
        /// What was asked.
        at: Printable,
        /// How long the registry asks to wait.
        retry_after: Option<Duration>,
        /// What the registry said.
        words: Printable,
    },
    /// 5xx, also after retries.
    #[error("{at}: the registry failed with {status}{}", said(.words))]
    Unavailable {
        /// What was asked.
        at: Printable,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        words: Printable,
    },
    /// No connection: name, network, TLS, or a connection that broke.
    #[error("{at}: {words}")]
    Unreachable {
        /// What was asked.
        at: Printable,
        /// The cause.
        words: Printable,
    },
    /// Connected, and then nothing for too long.
    #[error("{at}: no {what} within {} s", .after.as_secs_f32())]
    Stalled {
        /// What was asked.
        at: Printable,
        /// What did not come: an answer, more bytes, the end.
        what: Printable,
        /// How long we waited.
        after: Duration,
    },
    /// What came is not what was asked for, or not what was announced.
    #[error("{at}: the registry's answer is not what it says it is: {words}")]
    Untruthful {
        /// What was asked.
        at: Printable,
        /// What differs.
        words: Printable,
    },
    /// More than a registry may send.
    #[error("{at}: the answer is longer than {limit} bytes, the limit for {what}")]
    TooLarge {
        /// What was asked.
        at: Printable,
        /// What it would have been.
        what: &'static str,
        /// The limit in bytes.
        limit: u64,
    },
    /// A manifest, token or header that cannot be read.
    #[error("{at}: {words}")]
    Invalid {
        /// What was asked.
        at: Printable,
        /// What is wrong with it.
        words: Printable,
    },
    /// What an administrator wrote cannot be used: a `hosts.toml`, a file that it names, a proxy's address.
    #[error("{at}: {words}")]
    Misconfigured {
        /// What was to be asked.
        at: Printable,
        /// What is wrong, and where.
        words: Printable,
    },
    /// Something that we do not do: an address, a redirect, a scheme.
    #[error("{at}: {words}")]
    NotAllowed {
        /// What was asked.
        at: Printable,
        /// What is not allowed, and where an administrator can allow it.
        words: Printable,
    },
}

/// The kinds of [`RegistryError`], for a status code or a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegistryErrorKind {
    /// [`RegistryError::NotFound`]
    NotFound,
    /// [`RegistryError::Refused`]
    Refused,
    /// [`RegistryError::RateLimited`]
    RateLimited,
    /// [`RegistryError::Unavailable`]
    Unavailable,
    /// [`RegistryError::Unreachable`]
    Unreachable,
    /// [`RegistryError::Stalled`]
    Stalled,
    /// [`RegistryError::Untruthful`]
    Untruthful,
    /// [`RegistryError::TooLarge`]
    TooLarge,
    /// [`RegistryError::Invalid`]
    Invalid,
    /// [`RegistryError::Misconfigured`]
    Misconfigured,
    /// [`RegistryError::NotAllowed`]
    NotAllowed,
}

impl RegistryErrorKind {
    /// A short name, stable, for a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Unreachable => "unreachable",
            Self::Stalled => "stalled",
            Self::Untruthful => "untruthful",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
            Self::Misconfigured => "misconfigured",
            Self::NotAllowed => "not_allowed",
        }
    }
}

impl RegistryError {
    /// Which kind it is.
    pub fn kind(&self) -> RegistryErrorKind {
        match self {
            Self::NotFound { .. } => RegistryErrorKind::NotFound,
            Self::Refused { .. } => RegistryErrorKind::Refused,
            Self::RateLimited { .. } => RegistryErrorKind::RateLimited,
            Self::Unavailable { .. } => RegistryErrorKind::Unavailable,
            Self::Unreachable { .. } => RegistryErrorKind::Unreachable,
            Self::Stalled { .. } => RegistryErrorKind::Stalled,
            Self::Untruthful { .. } => RegistryErrorKind::Untruthful,
            Self::TooLarge { .. } => RegistryErrorKind::TooLarge,
            Self::Invalid { .. } => RegistryErrorKind::Invalid,
            Self::Misconfigured { .. } => RegistryErrorKind::Misconfigured,
            Self::NotAllowed { .. } => RegistryErrorKind::NotAllowed,
        }
    }

    /// The same, with a reason that its own words do not have, where it is a refusal.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        if let Self::Refused { words, .. } | Self::NotFound { words, .. } = &mut self {
            *words = if words.is_empty() { reason.to_owned() } else { format!("{words}; {reason}") }.into();
        }
        self
    }

    /// The same, with those in whose name was asked, where that may be the reason.
    #[must_use]
    pub fn asked_as(self, sources: &str) -> Self {
        self.because(&format!("asked with {sources}"))
    }

    /// The same with other words, and another name of what was asked.
    pub(super) fn reworded(
        mut self,
        asked: impl FnOnce(&str) -> String,
        said: impl FnOnce(&str) -> String,
    ) -> Self {
        match &mut self {
            Self::NotFound { at, words }
            | Self::Refused { at, words, .. }
            | Self::RateLimited { at, words, .. }
            | Self::Unavailable { at, words, .. }
            | Self::Unreachable { at, words }
            | Self::Untruthful { at, words }
            | Self::Invalid { at, words }
            | Self::Misconfigured { at, words }
            | Self::NotAllowed { at, words } => {
                *at = asked(at.as_str()).into();
                *words = said(words.as_str()).into();
            }
            Self::Stalled { at, .. } | Self::TooLarge { at, .. } => *at = asked(at.as_str()).into(),
        }
        self
    }

    /// Whether the same question may well be answered later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind(),
            RegistryErrorKind::RateLimited
                | RegistryErrorKind::Unavailable
                | RegistryErrorKind::Unreachable
                | RegistryErrorKind::Stalled
        )
    }

    /// How long the registry asks to wait, where it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_a_cursor_or_turns_text_is_printed() {
        for (given, wanted) in [
            ("plain", "plain"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{9b}2Jgone", "gone"),
            ("\u{1b}]0;title\u{7}text", "text"),
            ("\u{1b}]8;;http://evil\u{1b}\\link", "link"),
            ("a\r\n\tb  c\u{0}\u{8}", "a b c"),
            ("safe\u{202e}exe.txt\u{2066}", "safeexe.txt"),
            ("\u{feff}\u{200b}x\u{e0041}", "x"),
            ("  ", ""),
            ("\u{1b}", ""),
            ("\u{1b}[", ""),
        ] {
            assert_eq!(Printable::new(given).as_str(), wanted, "{given:?}");
        }
    }

    #[test]
    fn long_text_is_cut() {
        let cut = Printable::new(&"ü".repeat(5_000));
        assert_eq!(cut.as_str().chars().count(), Printable::MAX_CHARS);
        assert!(cut.as_str().ends_with('…'));
        assert_eq!(Printable::new(&"x".repeat(300)).as_str(), "x".repeat(300));
    }
}
