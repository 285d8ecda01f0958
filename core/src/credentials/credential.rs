//! A credential for a registry, and a type for secrets that keeps them out of logs and errors.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// The maximum length of a secret in bytes. Servers do not accept longer headers.
const MAX_LEN: usize = 16 << 10;

/// A secret text. `Debug` hides it, there is no `Display`, and its memory is overwritten when the last copy is dropped. It
/// has no control characters, which are mistakes such as a line break at the end of a password.
///
/// A JSON object is an exception: the password of the user name `_json_key` is the key file of a Google service account, in
/// many lines. It is sent in base64, so it cannot add a line to a request.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Arc<Zeroizing<String>>);

impl SecretText {
    fn new(field: &'static str, text: Zeroizing<String>) -> Result<Self, CredentialError> {
        if text.len() > MAX_LEN {
            return Err(CredentialError::TooLong { field, bytes: text.len() });
        }
        let is_json = text.trim_start().starts_with('{') && text.trim_end().ends_with('}');
        let is_allowed = |c: char| !c.is_control() || (is_json && matches!(c, '\n' | '\r' | '\t'));
        if !text.chars().all(is_allowed) {
            return Err(CredentialError::Control { field });
        }
        Ok(Self(Arc::new(text)))
    }

    /// Returns the text itself. Use it only for the request that sends it.
    pub fn expose(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Hash for SecretText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.expose().hash(state);
    }
}

/// A credential for a registry. Cheap to clone. `Debug` shows only the kind.
///
/// ```
/// use oras_csi_core::credentials::Credential;
///
/// let credential = Credential::basic("robot".to_owned(), "hunter2".to_owned())?;
/// assert_eq!(credential.kind(), "user name and password");
/// assert_eq!(format!("{credential:?}"), "Basic(…)");
/// # Ok::<(), oras_csi_core::credentials::CredentialError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub enum Credential {
    /// No credential.
    #[default]
    Anonymous,
    /// A user name and a password: for Basic authentication (RFC 7617), or for a token service.
    #[non_exhaustive]
    Basic {
        /// The user name, without a colon. It is hidden as well, because some registries take a token as user name.
        username: SecretText,
        /// The password, which may be empty.
        password: SecretText,
    },
    /// Docker's `identitytoken`: a refresh token, which is sent to the token service with POST (distribution, "OAuth2
    /// Token Authentication").
    #[non_exhaustive]
    RefreshToken(SecretText),
    /// Docker's `registrytoken`, which is sent to the registry unchanged as `Bearer`.
    #[non_exhaustive]
    RegistryToken(SecretText),
}

/// Why a credential is invalid. The message names the field and never contains its value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// A field has a control character.
    #[error("the {field} has a control character (perhaps a line break at its end): remove it")]
    Control {
        /// The field.
        field: &'static str,
    },
    /// A field is longer than 16 KiB.
    #[error("the {field} has {bytes} bytes; the maximum is {MAX_LEN}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A field is empty.
    #[error("the {field} is empty")]
    Empty {
        /// The field.
        field: &'static str,
    },
    /// The user name has a colon, which ends the user name in RFC 7617, section 2.
    #[error("the user name has a colon, which Basic authentication does not allow (RFC 7617)")]
    Colon,
    /// The registry token is not a `b64token` of RFC 6750, section 2.1.
    #[error("the registry token has characters that a bearer token must not have (RFC 6750, 2.1)")]
    Token,
}

impl Credential {
    /// Creates a credential with a user name and a password. One of them may be empty, because kubelet's credential
    /// providers may return that.
    pub fn basic(
        username: impl Into<Zeroizing<String>>,
        password: impl Into<Zeroizing<String>>,
    ) -> Result<Self, CredentialError> {
        let username = SecretText::new("user name", username.into())?;
        let password = SecretText::new("password", password.into())?;
        if username.expose().is_empty() && password.expose().is_empty() {
            return Err(CredentialError::Empty { field: "user name" });
        }
        if username.expose().contains(':') {
            return Err(CredentialError::Colon);
        }
        Ok(Self::Basic { username, password })
    }

    /// Creates a credential with a refresh token.
    pub fn refresh_token(token: impl Into<Zeroizing<String>>) -> Result<Self, CredentialError> {
        let token = SecretText::new("identity token", token.into())?;
        if token.expose().is_empty() {
            return Err(CredentialError::Empty { field: "identity token" });
        }
        Ok(Self::RefreshToken(token))
    }

    /// Creates a credential with a bearer token.
    pub fn registry_token(token: impl Into<Zeroizing<String>>) -> Result<Self, CredentialError> {
        let token = SecretText::new("registry token", token.into())?;
        let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if token.expose().is_empty() {
            return Err(CredentialError::Empty { field: "registry token" });
        }
        if !token.expose().bytes().all(is_token_byte) {
            return Err(CredentialError::Token);
        }
        Ok(Self::RegistryToken(token))
    }

    /// Returns the kind of the credential, for a message.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Basic { .. } => "user name and password",
            Self::RefreshToken(_) => "identity token",
            Self::RegistryToken(_) => "registry token",
        }
    }

    /// Returns a value that is equal only for equal credentials, as part of a cache key.
    pub fn fingerprint(&self) -> Fingerprint {
        static ANONYMOUS: LazyLock<Fingerprint> =
            LazyLock::new(|| Credential::Anonymous.compute_fingerprint());
        if matches!(self, Self::Anonymous) { *ANONYMOUS } else { self.compute_fingerprint() }
    }

    fn compute_fingerprint(&self) -> Fingerprint {
        let mut hasher = Sha256::new();
        hasher.update(b"csi.oras.land/credential/v1\0");
        // Each field is hashed with its length, so that different credentials never hash the same bytes.
        let mut field = |text: &str| {
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text.as_bytes());
        };
        field(self.kind());
        match self {
            Self::Anonymous => {}
            Self::Basic { username, password } => {
                field(username.expose());
                field(password.expose());
            }
            Self::RefreshToken(token) | Self::RegistryToken(token) => field(token.expose()),
        }
        Fingerprint(hasher.finalize().into())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(…)",
            Self::RefreshToken(_) => "RefreshToken(…)",
            Self::RegistryToken(_) => "RegistryToken(…)",
        })
    }
}

/// A SHA-256 hash that identifies a credential. It is never shown, because a weak password could be guessed from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_anonymous = *self == Credential::Anonymous.fingerprint();
        f.write_str(if is_anonymous { "anonymous" } else { "…" })
    }
}
