//! Whether the API server can call the webhook, and why not.

use std::fmt;
use std::time::SystemTime;

/// The result of one readiness check, with a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    ok: bool,
    reason: String,
}

impl Check {
    /// The check passed for this reason.
    pub(crate) fn passed(reason: impl Into<String>) -> Self {
        Self { ok: true, reason: reason.into() }
    }

    /// The check failed for this reason.
    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self { ok: false, reason: reason.into() }
    }

    /// Reports whether the check passed.
    pub fn is_ok(&self) -> bool {
        self.ok
    }

    /// Returns why the check passed or failed, in one line without secrets.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// Whether clients can reach the server over TLS, at the moment of the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    pub(crate) certificate: Check,
    pub(crate) trust: Check,
    pub(crate) not_after: Option<SystemTime>,
}

impl Readiness {
    /// Reports whether both checks pass.
    pub fn is_ready(&self) -> bool {
        self.certificate.ok && self.trust.ok
    }

    /// Returns the check that a serving certificate is loaded and has not expired.
    pub fn certificate(&self) -> &Check {
        &self.certificate
    }

    /// Returns the check that the MutatingWebhookConfiguration in the cluster trusts the serving certificate. It passes if no
    /// configuration is named.
    pub fn trust(&self) -> &Check {
        &self.trust
    }

    /// Returns when the serving certificate expires, if one is loaded.
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

/// When certificates expire, for a gauge such as `cert_not_after_seconds{kind}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// The expiry of the serving certificate, in seconds since 1970, if one is loaded.
    pub leaf: Option<i64>,
    /// The expiry of the CA, in seconds since 1970, if the CA is known.
    pub authority: Option<i64>,
}
