//! A credential, as registries take them, and secrets that do not get out by accident.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Longer ones do not fit what servers take as a header.
const LONGEST: usize = 16 << 10;

/// Text that nobody sees: `Debug` hides it, there is no `Display`, and it is overwritten when the last copy
/// is dropped. It holds no control characters, so that none can add a line to a request.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Arc<Zeroizing<String>>);

impl SecretText {
    fn new(field: &'static str, text: Zeroizing<String>) -> Result<Self, CredentialError> {
        if text.len() > LONGEST {
            return Err(CredentialError::TooLong { field, bytes: text.len() });
        }
        if text.chars().any(char::is_control) {
            return Err(CredentialError::Control { field });
        }
        Ok(Self(Arc::new(text)))
    }

    /// The text itself, for the request that carries it and nothing else.
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

/// Who asks a registry. Cheap to clone; `Debug` shows the kind alone.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub enum Credential {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// RFC 7617, and what a token service exchanges for a token.
    #[non_exhaustive]
    Basic {
        /// Has no colon. Hidden as well: some registries take a token for it.
        username: SecretText,
        /// May be empty.
        password: SecretText,
    },
    /// Docker's `identitytoken`: a refresh token, for a POST to the token service (distribution, "OAuth2 Token
    /// Authentication").
    #[non_exhaustive]
    RefreshToken(SecretText),
    /// Docker's `registrytoken`: sent to the registry as `Bearer`, as it is.
    #[non_exhaustive]
    RegistryToken(SecretText),
}

/// Why something is no credential. Says which field, never what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// A control character.
    #[error("the {field} has a control character (a line break at its end?): write it without")]
    Control {
        /// Which part.
        field: &'static str,
    },
    /// More than 16 KiB.
    #[error("the {field} has {bytes} bytes, and at most {LONGEST} fit into a request")]
    TooLong {
        /// Which part.
        field: &'static str,
        /// How long it is.
        bytes: usize,
    },
    /// Nothing in it.
    #[error("the {field} is empty")]
    Empty {
        /// Which part.
        field: &'static str,
    },
    /// RFC 7617, section 2: the colon ends the user name.
    #[error("the user name has a colon, which Basic authentication cannot carry (RFC 7617)")]
    Colon,
    /// RFC 6750, section 2.1.
    #[error("the registry token has characters that no bearer token may have (RFC 6750, 2.1)")]
    Token,
}

impl Credential {
    /// A user name and a password; one of the two may be empty, as kubelet's providers may answer.
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

    /// A refresh token.
    pub fn refresh_token(token: impl Into<Zeroizing<String>>) -> Result<Self, CredentialError> {
        let token = SecretText::new("identity token", token.into())?;
        if token.expose().is_empty() {
            return Err(CredentialError::Empty { field: "identity token" });
        }
        Ok(Self::RefreshToken(token))
    }

    /// A bearer token.
    pub fn registry_token(token: impl Into<Zeroizing<String>>) -> Result<Self, CredentialError> {
        let token = SecretText::new("registry token", token.into())?;
        let of_a_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if token.expose().is_empty() {
            return Err(CredentialError::Empty { field: "registry token" });
        }
        if !token.expose().bytes().all(of_a_token) {
            return Err(CredentialError::Token);
        }
        Ok(Self::RegistryToken(token))
    }

    /// What kind it is, in words for a message.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Basic { .. } => "user name and password",
            Self::RefreshToken(_) => "identity token",
            Self::RegistryToken(_) => "registry token",
        }
    }

    /// Tells one credential from another: what a cache may share answers by.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = Sha256::new();
        hasher.update(b"csi.oras.land/credential/v1\0");
        // Every field with its length, so that no two credentials are the same bytes.
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

/// Equal for equal credentials, and for no others (SHA-256). Opaque: a password that can be guessed could be
/// found out from it, so it is never shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_anonymous = *self == Credential::Anonymous.fingerprint();
        f.write_str(if is_anonymous { "anonymous" } else { "…" })
    }
}
