//! The name of a request in errors.

use std::time::Duration;

use http::Method;
use url::Url;

use super::error::RegistryError;
use crate::display::Printable;

/// Names a request in errors: the method and the URL without its query, where presigned addresses carry their
/// secret. Its methods build the [`RegistryError`]s of this request.
#[derive(Clone, Debug)]
pub(super) struct RequestLabel(Printable);

impl RequestLabel {
    pub(super) fn new(method: &Method, url: &Url) -> Self {
        let mut shown = url.clone();
        shown.set_query(None);
        shown.set_fragment(None);
        // These fail only for addresses that cannot have a user.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        Self(format!("{method} {shown}").into())
    }

    /// Labels something that is not a URL: a registry before the first request.
    pub(super) fn from_name(name: &str) -> Self {
        Self(name.into())
    }

    pub(super) fn text(&self) -> Printable {
        self.0.clone()
    }

    pub(super) fn untruthful(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::Untruthful { at: self.text(), words: words.into() }
    }

    pub(super) fn invalid(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::Invalid { at: self.text(), words: words.into() }
    }

    pub(super) fn authentication(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::Authentication { at: self.text(), words: words.into() }
    }

    pub(super) fn not_allowed(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::NotAllowed { at: self.text(), words: words.into() }
    }

    pub(super) fn misconfigured(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::Misconfigured { at: self.text(), words: words.into() }
    }

    pub(super) fn unreachable(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::Unreachable { at: self.text(), words: words.into() }
    }

    pub(super) fn certificate(&self, words: impl Into<Printable>) -> RegistryError {
        RegistryError::Certificate { at: self.text(), words: words.into() }
    }

    pub(super) fn stalled(&self, what: impl Into<Printable>, after: Duration) -> RegistryError {
        RegistryError::Stalled { at: self.text(), what: what.into(), after }
    }
}
