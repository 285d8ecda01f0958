//! Lists the manifests that are attached to a manifest (OCI distribution-spec 1.1, "Listing Referrers" and "Referrers
//! Tag Schema").
//!
//! A registry with the referrers API returns an index, page by page. In a registry without it, a tag that is derived from
//! the digest names an index that clients update. Every user with push permission can attach manifests, so pages and
//! entries are bounded.
//!
//! A registry without the API should return 404. Some return another status, a web page, or the manifest itself, and some
//! return the manifest for the tag as well. Only an index that is not the manifest itself is a list of referrers.

use http::{HeaderMap, HeaderValue, Method, header};
use url::Url;

use super::client::Inner;
use super::links::next_link;
use super::response::{content_type, expect_ok, is_meant_as_index};
use super::route::Attempt;
use crate::digest::Digest;
use crate::manifest::media;
use crate::manifest::{IndexEntry, MAX_ENTRIES, Manifest};
use crate::registry::body;
use crate::registry::error::{RegistryError, RegistryErrorKind};
use crate::registry::request_label::RequestLabel;
use crate::registry::transport::Answer;

/// How many pages of a list are read.
const MAX_PAGES: usize = 64;

/// Returns the tag of the index that lists the referrers of a manifest in a registry without the referrers API.
pub(in crate::registry) fn referrers_tag(subject: &Digest) -> String {
    subject.to_string().replacen(':', "-", 1)
}

/// The entries of one page and the address of the next page.
struct Page {
    entries: Vec<IndexEntry>,
    next: Option<String>,
}

impl Inner {
    /// Lists the manifests that are attached to a manifest, by API or by tag.
    pub(super) async fn referrers(
        &self,
        attempt: &Attempt<'_>,
        subject: &Digest,
    ) -> Result<Vec<IndexEntry>, RegistryError> {
        match self.referrers_of_api(attempt, subject).await? {
            Some(entries) => Ok(entries),
            None => self.referrers_of_tag(attempt, subject).await,
        }
    }

    /// Lists them with the referrers API. Returns `None` if the registry does not have it.
    pub(super) async fn referrers_of_api(
        &self,
        attempt: &Attempt<'_>,
        subject: &Digest,
    ) -> Result<Option<Vec<IndexEntry>>, RegistryError> {
        let first_path = format!("referrers/{subject}");
        let mut path = first_path.clone();
        let mut entries: Vec<IndexEntry> = Vec::new();
        for number in 0..MAX_PAGES {
            let answer = match self.get(attempt, &Method::GET, &path, &accept_index()).await {
                Ok(answer) => answer,
                Err(error) if number == 0 && is_without_api(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            let label = answer.label.clone();
            let page = match self.referrers_page(attempt, answer, subject, &first_path).await? {
                Some(page) => page,
                None if number == 0 => return Ok(None),
                None => return Err(label.invalid("a page of the list of referrers is not an image index")),
            };
            entries.extend(page.entries);
            if entries.len() > MAX_ENTRIES {
                let message = format!("more than {MAX_ENTRIES} manifests are attached to {subject}");
                return Err(label.invalid(message));
            }
            match page.next {
                Some(next) => path = next,
                None => return Ok(Some(entries)),
            }
        }
        let message = format!("the list of referrers of {subject} has more than {MAX_PAGES} pages");
        Err(RequestLabel::from_name(&first_path).invalid(message))
    }

    /// Reads a page. Returns `None` if it is not an index, or the subject itself.
    async fn referrers_page(
        &self,
        attempt: &Attempt<'_>,
        answer: Answer,
        subject: &Digest,
        first_path: &str,
    ) -> Result<Option<Page>, RegistryError> {
        let Answer { response, label, permit: _permit, .. } = answer;
        expect_ok(&response, &label)?;
        let (media_type, note) = (content_type(&response), body::encoding_note(response.headers()));
        let headers = response.headers().clone();
        let (limit, timeouts) = (self.settings.limits.manifest(), self.read_timeouts(attempt.deadline));
        let bytes = body::read(response, &label, "a page of referrers", limit, timeouts).await?;
        let index = match Manifest::parse(media_type.as_deref(), &bytes) {
            Ok(Manifest::Index(index)) if !subject.matches(&bytes) => index,
            Err(error) if is_meant_as_index(media_type.as_deref(), &bytes) => {
                return Err(label.invalid(format!("{error}{note}")));
            }
            Ok(_) | Err(_) => return Ok(None),
        };
        let next = next_page(&headers, attempt, first_path).map_err(|message| label.untruthful(message))?;
        Ok(Some(Page { entries: index.entries().to_vec(), next }))
    }

    /// Lists them from the referrers tag. Returns an empty list if the tag does not exist or does not name such a list.
    pub(super) async fn referrers_of_tag(
        &self,
        attempt: &Attempt<'_>,
        subject: &Digest,
    ) -> Result<Vec<IndexEntry>, RegistryError> {
        let path = format!("manifests/{}", referrers_tag(subject));
        let found = match self.get_unverified_manifest(attempt, &path, None).await {
            Ok(found) => found,
            Err(error) if error.kind() == RegistryErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let is_index = is_meant_as_index(found.media_type.as_deref(), &found.bytes);
        if !is_index || subject.matches(&found.bytes) {
            return Ok(Vec::new());
        }
        match self.verify_manifest(found).await?.into_manifest() {
            Manifest::Index(index) => Ok(index.entries().to_vec()),
            Manifest::Image(_) => Ok(Vec::new()),
        }
    }
}

/// Reports whether a registry answers so because it does not have the referrers API.
fn is_without_api(error: &RegistryError) -> bool {
    error.kind() == RegistryErrorKind::NotFound
        || matches!(error.refusal(), Some(400 | 405))
        || matches!(error, RegistryError::Unavailable { status: 501, .. })
}

fn accept_index() -> HeaderMap {
    HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(media::OCI_INDEX))])
}

/// Returns the path of the same list with the query of the next page, if a `Link` header has one. A link to another path
/// or server is an error.
fn next_page(
    headers: &HeaderMap,
    attempt: &Attempt<'_>,
    first_path: &str,
) -> Result<Option<String>, &'static str> {
    let Some(target) = next_link(headers)? else { return Ok(None) };
    let requested: Url = attempt.repository_url(first_path);
    match attempt.same_origin_url(&requested, target) {
        Some(next) if next.path() == requested.path() => {
            Ok(next.query().filter(|query| !query.is_empty()).map(|query| format!("{first_path}?{query}")))
        }
        _ => Err("a Link that does not lead to the next page of the same list"),
    }
}
