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

/// The longest part of a path that a label of a redirect shows. A UUID has 36 characters.
const MAX_PART: usize = 40;

/// Reports whether a part of a path is long enough for a token, and no digest.
fn may_be_token(part: &str) -> bool {
    let hexadecimal = part.rsplit([':', '-']).next().unwrap_or(part);
    let is_digest =
        matches!(hexadecimal.len(), 64 | 128) && hexadecimal.bytes().all(|byte| byte.is_ascii_hexdigit());
    part.len() > MAX_PART && !is_digest
}

impl RequestLabel {
    pub(super) fn new(method: &Method, url: &Url) -> Self {
        Self::shown(method, url.clone())
    }

    /// Labels a request that follows a redirect. Some registries redirect to an address with a token in its path, so long
    /// parts of the path are left out, except for digests.
    pub(super) fn of_redirect(method: &Method, url: &Url) -> Self {
        let mut shown = url.clone();
        let path: Vec<&str> =
            url.path().split('/').map(|part| if may_be_token(part) { "-" } else { part }).collect();
        shown.set_path(&path.join("/"));
        Self::shown(method, shown)
    }

    fn shown(method: &Method, mut shown: Url) -> Self {
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::bucket("https://s.example/bucket/abc?X-Signature=s", "GET https://s.example/bucket/abc")]
    #[case::token(
        "https://s.example/downloads/AF9mZ2hqa2xxd2VydHl1aW9wYXNkZmdoamtsenhjdmJubQ/x",
        "GET https://s.example/downloads/-/x"
    )]
    #[case::user("https://u:p@s.example/a#f", "GET https://s.example/a")]
    fn a_label_of_a_redirect_has_no_secret(#[case] url: &str, #[case] shown: &str) {
        let label = RequestLabel::of_redirect(&Method::GET, &url.parse().unwrap());
        assert_eq!(label.text().to_string(), shown);
    }

    #[test]
    fn digests_in_the_path_of_a_redirect_are_shown() {
        let (short, long) = ("0a".repeat(32), "0b".repeat(64));
        for part in [short.clone(), long.clone(), format!("sha256:{short}"), format!("sha512:{long}")] {
            let url = format!("https://s.example/blobs/{part}/data");
            let label = RequestLabel::of_redirect(&Method::GET, &url.parse().unwrap());
            assert_eq!(label.text().to_string(), format!("GET {url}"));
        }
    }
}
