//! Errors of requests to a registry, with text that is safe to print.

use std::time::Duration;

use crate::display::Printable;

/// Returns `: WORDS`, or nothing if there are no words.
fn suffix(words: &Printable) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

fn wait_suffix(after: Option<&Duration>) -> String {
    after.map_or_else(String::new, |after| format!("; the registry asks to wait {} s", after.as_secs()))
}

/// Why a request to a registry failed.
///
/// `at` is the request, as `GET https://host/v2/…`, without the query: a presigned address carries its secret there.
/// `words` is the text that the registry sent, or the cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Status 404: the tag, digest or repository does not exist, or the registry hides it.
    #[error("{at}: not found{}", suffix(.words))]
    NotFound {
        /// The request.
        at: Printable,
        /// The registry's message.
        words: Printable,
    },
    /// Status 401, 403 or another refusal (RFC 9110, 15.5).
    #[error("{at}: refused with {status}{}", suffix(.words))]
    Refused {
        /// The request.
        at: Printable,
        /// The HTTP status.
        status: u16,
        /// The registry's message.
        words: Printable,
    },
    /// The registry redirected to another host, usually a storage service, which refused. The client sends no credentials
    /// there, so others would not help.
    #[error("{at}: the registry redirected to this host, which answered {status}{}", suffix(.words))]
    Redirected {
        /// The request to the other host.
        at: Printable,
        /// The HTTP status.
        status: u16,
        /// The message of the other host.
        words: Printable,
    },
    /// Status 429, also after waiting as long as the deadline allows.
    #[error("{at}: too many requests{}{}", wait_suffix(.retry_after.as_ref()), suffix(.words))]
    RateLimited {
        /// The request.
        at: Printable,
        /// How long the registry asks to wait.
        retry_after: Option<Duration>,
        /// The registry's message.
        words: Printable,
    },
    /// Status 5xx, also after retries.
    #[error("{at}: the registry failed with {status}{}", suffix(.words))]
    Unavailable {
        /// The request.
        at: Printable,
        /// The HTTP status.
        status: u16,
        /// The registry's message.
        words: Printable,
    },
    /// No connection: DNS, the network or the TLS handshake failed, or the connection broke.
    #[error("{at}: {words}")]
    Unreachable {
        /// The request.
        at: Printable,
        /// The cause.
        words: Printable,
    },
    /// The client does not accept the server's TLS certificate, the server wants another certificate of the client, or it
    /// does not speak a version of TLS that the client accepts.
    #[error("{at}: {words}")]
    Certificate {
        /// The request.
        at: Printable,
        /// What is wrong, and what to do.
        words: Printable,
    },
    /// The connection was open, but nothing arrived in time.
    #[error("{at}: no {what} within {} s", .after.as_secs_f32())]
    Stalled {
        /// The request.
        at: Printable,
        /// What did not arrive: an answer, more bytes, the end.
        what: Printable,
        /// How long the client waited.
        after: Duration,
    },
    /// The response contradicts the request or its own headers.
    #[error("{at}: the registry's response does not match the request: {words}")]
    Untruthful {
        /// The request.
        at: Printable,
        /// The contradiction.
        words: Printable,
    },
    /// The response exceeds a limit.
    #[error("{at}: the response is longer than {limit} bytes, the limit for {what}")]
    TooLarge {
        /// The request.
        at: Printable,
        /// What was being read.
        what: &'static str,
        /// The limit in bytes.
        limit: u64,
    },
    /// The registry's challenge or the token service's response cannot be used.
    #[error("{at}: {words}")]
    Authentication {
        /// The request.
        at: Printable,
        /// What is wrong with the challenge or the response.
        words: Printable,
    },
    /// A manifest or a list cannot be parsed.
    #[error("{at}: {words}")]
    Invalid {
        /// The request.
        at: Printable,
        /// What is wrong with it.
        words: Printable,
    },
    /// The administrator's configuration cannot be used: a `hosts.toml`, a file that it names, a proxy address.
    #[error("{at}: {words}")]
    Misconfigured {
        /// The request.
        at: Printable,
        /// What is wrong, and in which file.
        words: Printable,
    },
    /// An address, redirect or scheme that this client does not allow.
    #[error("{at}: {words}")]
    NotAllowed {
        /// The request.
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
    /// [`RegistryError::Certificate`]
    Certificate,
    /// [`RegistryError::Stalled`]
    Stalled,
    /// [`RegistryError::Untruthful`]
    Untruthful,
    /// [`RegistryError::TooLarge`]
    TooLarge,
    /// [`RegistryError::Authentication`]
    Authentication,
    /// [`RegistryError::Invalid`]
    Invalid,
    /// [`RegistryError::Misconfigured`]
    Misconfigured,
    /// [`RegistryError::NotAllowed`]
    NotAllowed,
}

impl RegistryErrorKind {
    /// All kinds.
    pub const ALL: [Self; 13] = [
        Self::NotFound,
        Self::Refused,
        Self::RateLimited,
        Self::Unavailable,
        Self::Unreachable,
        Self::Certificate,
        Self::Stalled,
        Self::Untruthful,
        Self::TooLarge,
        Self::Authentication,
        Self::Invalid,
        Self::Misconfigured,
        Self::NotAllowed,
    ];

    /// Returns a short, stable name for a metric's label.
    ///
    /// ```
    /// use oras_csi_core::registry::RegistryErrorKind;
    ///
    /// assert_eq!(RegistryErrorKind::RateLimited.as_str(), "rate_limited");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Unreachable => "unreachable",
            Self::Certificate => "certificate",
            Self::Stalled => "stalled",
            Self::Untruthful => "untruthful",
            Self::TooLarge => "too_large",
            Self::Authentication => "authentication",
            Self::Invalid => "invalid",
            Self::Misconfigured => "misconfigured",
            Self::NotAllowed => "not_allowed",
        }
    }
}

impl RegistryError {
    /// Returns the kind of the error.
    pub fn kind(&self) -> RegistryErrorKind {
        match self {
            Self::NotFound { .. } | Self::Redirected { status: 404, .. } => RegistryErrorKind::NotFound,
            Self::Refused { .. } | Self::Redirected { .. } => RegistryErrorKind::Refused,
            Self::RateLimited { .. } => RegistryErrorKind::RateLimited,
            Self::Unavailable { .. } => RegistryErrorKind::Unavailable,
            Self::Unreachable { .. } => RegistryErrorKind::Unreachable,
            Self::Certificate { .. } => RegistryErrorKind::Certificate,
            Self::Stalled { .. } => RegistryErrorKind::Stalled,
            Self::Untruthful { .. } => RegistryErrorKind::Untruthful,
            Self::TooLarge { .. } => RegistryErrorKind::TooLarge,
            Self::Authentication { .. } => RegistryErrorKind::Authentication,
            Self::Invalid { .. } => RegistryErrorKind::Invalid,
            Self::Misconfigured { .. } => RegistryErrorKind::Misconfigured,
            Self::NotAllowed { .. } => RegistryErrorKind::NotAllowed,
        }
    }

    /// Returns the status of a refusal, by the registry or by the host that it redirected to.
    pub(super) fn refusal(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } | Self::Redirected { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Adds a possible reason to a refusal, a 404, a 429 or a failed authentication. Other errors stay as they are.
    #[must_use]
    pub fn with_reason(mut self, reason: &str) -> Self {
        if let Self::Refused { words, .. }
        | Self::NotFound { words, .. }
        | Self::RateLimited { words, .. }
        | Self::Authentication { words, .. } = &mut self
        {
            *words = if words.is_empty() { reason.to_owned() } else { format!("{words}; {reason}") }.into();
        }
        self
    }

    /// Returns the request that failed, or what was asked for.
    pub(super) fn request(&self) -> &str {
        match self {
            Self::NotFound { at, .. }
            | Self::Refused { at, .. }
            | Self::Redirected { at, .. }
            | Self::RateLimited { at, .. }
            | Self::Unavailable { at, .. }
            | Self::Unreachable { at, .. }
            | Self::Certificate { at, .. }
            | Self::Stalled { at, .. }
            | Self::Untruthful { at, .. }
            | Self::Authentication { at, .. }
            | Self::TooLarge { at, .. }
            | Self::Invalid { at, .. }
            | Self::Misconfigured { at, .. }
            | Self::NotAllowed { at, .. } => at.as_str(),
        }
    }

    /// Adds a note to the message, and cuts the rest of the message where both together are too long. An error without
    /// words has the note beside its request.
    #[must_use]
    pub(super) fn with_note(self, note: &str) -> Self {
        let room = Printable::MAX_CHARS.saturating_sub(note.chars().count() + "; ".len());
        let joined = |words: &str| match (words.is_empty(), words.chars().count() <= room) {
            (true, _) => note.to_owned(),
            (_, true) => format!("{words}; {note}"),
            _ => {
                let kept: String = words.chars().take(room.saturating_sub(1)).collect();
                format!("{kept}…; {note}")
            }
        };
        match self {
            Self::Stalled { at, what, after } => {
                Self::Stalled { at: format!("{at} ({note})").into(), what, after }
            }
            Self::TooLarge { at, what, limit } => {
                Self::TooLarge { at: format!("{at} ({note})").into(), what, limit }
            }
            other => other.map_text(str::to_owned, joined),
        }
    }

    /// Adds the credentials that were tried, because they may be the reason of the refusal. Registries also have other rate
    /// limits for anonymous clients.
    #[must_use]
    pub fn with_tried_credentials(self, sources: &str) -> Self {
        self.with_reason(&format!("asked with {sources}"))
    }

    /// Rewrites the request and the message of the error.
    pub(super) fn map_text(
        mut self,
        map_request: impl FnOnce(&str) -> String,
        map_message: impl FnOnce(&str) -> String,
    ) -> Self {
        match &mut self {
            Self::NotFound { at, words }
            | Self::Refused { at, words, .. }
            | Self::Redirected { at, words, .. }
            | Self::RateLimited { at, words, .. }
            | Self::Unavailable { at, words, .. }
            | Self::Unreachable { at, words }
            | Self::Certificate { at, words }
            | Self::Untruthful { at, words }
            | Self::Authentication { at, words }
            | Self::Invalid { at, words }
            | Self::Misconfigured { at, words }
            | Self::NotAllowed { at, words } => {
                *at = map_request(at.as_str()).into();
                *words = map_message(words.as_str()).into();
            }
            Self::Stalled { at, .. } | Self::TooLarge { at, .. } => *at = map_request(at.as_str()).into(),
        }
        self
    }

    /// Converts an error of a request to a token service: that a page of it does not exist, or is too long, says nothing
    /// about the artifact.
    pub(super) fn of_token_service(self) -> Self {
        match self {
            Self::NotFound { at, words } => {
                let words = format!("the token service answered 404 (not found){}", suffix(&words)).into();
                Self::Authentication { at, words }
            }
            Self::TooLarge { at, limit, .. } => {
                let words = format!("the token service's response is longer than {limit} bytes").into();
                Self::Authentication { at, words }
            }
            other => other,
        }
    }

    /// Returns what to do, as a sentence without its period. It is empty where a retry can help, and where the message
    /// itself ends with what to do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => {
                "Push the artifact, or correct the reference. If the repository is private, use credentials that can pull it"
            }
            Self::Refused { status: 401 | 403, .. } => "Use credentials that can pull from this repository",
            Self::Refused { .. } => {
                "Check that the host is an OCI registry, and that no proxy answers in its place"
            }
            Self::Redirected { .. } => "Check the storage that the registry redirects to",
            Self::Untruthful { .. } => "Check the registry, and any mirror or proxy in front of it",
            Self::Authentication { .. } => {
                "Check the registry's authentication: the WWW-Authenticate header, and the token service that it names"
            }
            Self::TooLarge { .. } => "Push the artifact again with fewer layers or shorter annotations",
            Self::Invalid { .. } => {
                "Push the artifact again with a valid manifest within the limits, for example with `oras push`"
            }
            Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::Unreachable { .. }
            | Self::Certificate { .. }
            | Self::Stalled { .. }
            | Self::Misconfigured { .. }
            | Self::NotAllowed { .. } => "",
        }
    }

    /// Returns the message, followed by [`Self::advice`].
    pub fn with_advice(&self) -> String {
        match self.advice() {
            "" => self.to_string(),
            advice => format!("{self}. {advice}"),
        }
    }

    /// Reports whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind(),
            RegistryErrorKind::RateLimited
                | RegistryErrorKind::Unavailable
                | RegistryErrorKind::Unreachable
                | RegistryErrorKind::Stalled
        )
    }

    /// Returns how long the registry asks to wait, if it says so.
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
    fn control_sequences_and_invisible_characters_are_removed() {
        for (given, expected) in [
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
            assert_eq!(Printable::new(given).as_str(), expected, "{given:?}");
        }
    }

    /// Where a retry helps, and where the message says what to do, there is no advice.
    #[test]
    fn advice_fits_the_error() {
        let (at, words) = (|| Printable::new("GET x"), || Printable::new("why"));
        for (error, advice) in [
            (
                RegistryError::NotFound { at: at(), words: words() },
                "x: not found: why. Push the artifact, or correct",
            ),
            (
                RegistryError::Refused { at: at(), status: 401, words: words() },
                "with 401: why. Use credentials that",
            ),
            (
                RegistryError::Refused { at: at(), status: 405, words: words() },
                "Check that the host is an OCI registry",
            ),
            (RegistryError::Untruthful { at: at(), words: words() }, "any mirror or proxy in front of it"),
            (
                RegistryError::Authentication { at: at(), words: words() },
                "why. Check the registry's authentication",
            ),
            (RegistryError::TooLarge { at: at(), what: "a manifest", limit: 1 }, "with fewer layers"),
            (
                RegistryError::Invalid { at: at(), words: words() },
                "why. Push the artifact again with a valid manifest",
            ),
        ] {
            assert!(error.with_advice().contains(advice), "{}", error.with_advice());
        }
        for error in [
            RegistryError::Unavailable { at: at(), status: 503, words: words() },
            RegistryError::Certificate { at: at(), words: words() },
            RegistryError::NotAllowed { at: at(), words: words() },
        ] {
            assert_eq!(error.with_advice(), error.to_string());
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
