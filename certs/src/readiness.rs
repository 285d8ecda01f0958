//! Whether the webhook can be called, and why not.

use std::fmt;
use std::time::SystemTime;

/// The answer to one question of readiness, with a reason that a person can act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    ok: bool,
    reason: String,
}

impl Check {
    /// Passed, and why.
    pub(crate) fn passed(reason: impl Into<String>) -> Self {
        Self { ok: true, reason: reason.into() }
    }

    /// Failed, and why.
    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self { ok: false, reason: reason.into() }
    }

    /// Whether it passed.
    pub fn is_ok(&self) -> bool {
        self.ok
    }

    /// Why it passed, or what is awaited; one line, no secrets.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// Whether clients can reach the server over TLS, as of the moment it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    pub(crate) certificate: Check,
    pub(crate) trust: Check,
    pub(crate) not_after: Option<SystemTime>,
}

impl Readiness {
    /// Whether both checks pass.
    pub fn is_ready(&self) -> bool {
        self.certificate.ok && self.trust.ok
    }

    /// A serving certificate is loaded and has not expired.
    pub fn certificate(&self) -> &Check {
        &self.certificate
    }

    /// The live MutatingWebhookConfiguration trusts the serving certificate, or none was named.
    pub fn trust(&self) -> &Check {
        &self.trust
    }

    /// When the serving certificate runs out, where one is loaded.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.not_after
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = |check: &Check| if check.ok { "ok" } else { "not ready" };
        writeln!(f, "certificate: {}: {}", mark(&self.certificate), self.certificate.reason)?;
        write!(f, "trust: {}: {}", mark(&self.trust), self.trust.reason)
    }
}

/// When certificates run out, for a gauge such as `cert_not_after_seconds{kind}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// The serving certificate's last moment, in seconds since 1970; none while none is loaded.
    pub leaf: Option<i64>,
    /// The CA's last moment, in seconds since 1970; none where the CA is not known.
    pub authority: Option<i64>,
}
