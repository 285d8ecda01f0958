//! What is attached to a manifest (OCI distribution-spec 1.1, "Listing Referrers" and "Referrers Tag Schema").
//!
//! A registry that has the referrers API answers with an index, page by page; one that has not says 404, and then a
//! tag that is made of the digest names such an index, which clients keep up to date. Anybody may attach anything, so
//! pages and entries are bounded.

use http::{HeaderMap, HeaderValue, Method, header};
use url::Url;

use super::Inner;
use super::answer::{content_type, expect_ok};
use super::request::Turn;
use crate::digest::Digest;
use crate::manifest::media;
use crate::manifest::{IndexEntry, MAX_ENTRIES, Manifest};
use crate::registry::transport::{Answer, Place};
use crate::registry::{RegistryError, RegistryErrorKind, body};

/// More pages of one list are not read.
const MOST_PAGES: usize = 64;

/// The tag that stands for the referrers of a manifest where there is no API for them.
pub(in crate::registry) fn referrers_tag(subject: &Digest) -> String {
    subject.to_string().replacen(':', "-", 1)
}

/// Entries, and where more are.
struct Page {
    entries: Vec<IndexEntry>,
    next: Option<String>,
}

impl Inner {
    /// What is attached to a manifest, by API or by tag.
    pub(super) async fn referrers(
        &self,
        turn: &Turn<'_>,
        subject: &Digest,
    ) -> Result<Vec<IndexEntry>, RegistryError> {
        match self.referrers_of_api(turn, subject).await? {
            Some(entries) => Ok(entries),
            None => self.referrers_of_tag(turn, subject).await,
        }
    }

    /// The same where there is an API for it, else nothing.
    pub(super) async fn referrers_of_api(
        &self,
        turn: &Turn<'_>,
        subject: &Digest,
    ) -> Result<Option<Vec<IndexEntry>>, RegistryError> {
        let below = format!("referrers/{subject}");
        let mut path = below.clone();
        let mut entries: Vec<IndexEntry> = Vec::new();
        for page in 0..MOST_PAGES {
            let answer = match self.ask(turn, &Method::GET, &path, &accept_index()).await {
                Ok(answer) => answer,
                Err(error) if page == 0 && error.kind() == RegistryErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let place = answer.place.clone();
            let read = self.page(turn, answer, &below).await?;
            entries.extend(read.entries);
            if entries.len() > MAX_ENTRIES {
                let words = format!("more than {MAX_ENTRIES} manifests are attached to {subject}");
                return Err(place.invalid(words));
            }
            match read.next {
                Some(next) => path = next,
                None => return Ok(Some(entries)),
            }
        }
        let words = format!("its list of what is attached to {subject} has more than {MOST_PAGES} pages");
        Err(Place::named(&below).invalid(words))
    }

    async fn page(&self, turn: &Turn<'_>, answer: Answer, below: &str) -> Result<Page, RegistryError> {
        let Answer { response, place, permit: _permit, .. } = answer;
        expect_ok(&response, &place)?;
        let media_type = content_type(&response);
        let next = next_page(response.headers(), turn, below);
        let next = next.map_err(|words| place.untruthful(words))?;
        let (limit, patience) = (self.settings.limits.manifest(), self.patience(turn.deadline));
        let bytes = body::read(response, &place, "a page of referrers", limit, patience).await?;
        let document = Manifest::parse(media_type.as_deref(), &bytes);
        match document.map_err(|error| place.invalid(error.to_string()))? {
            Manifest::Index(index) => Ok(Page { entries: index.entries().to_vec(), next }),
            Manifest::Image(_) => Err(place.invalid("its list of referrers is not an image index")),
        }
    }

    /// The same from the tag; nothing, where there is no such tag.
    pub(super) async fn referrers_of_tag(
        &self,
        turn: &Turn<'_>,
        subject: &Digest,
    ) -> Result<Vec<IndexEntry>, RegistryError> {
        let path = format!("manifests/{}", referrers_tag(subject));
        match self.manifest(turn, &path, None).await {
            Ok(document) => match document.into_manifest() {
                Manifest::Index(index) => Ok(index.entries().to_vec()),
                Manifest::Image(_) => {
                    Err(Place::named(&path).invalid("the tag for referrers names no image index"))
                }
            },
            Err(error) if error.kind() == RegistryErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn accept_index() -> HeaderMap {
    HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(media::OCI_INDEX))])
}

/// `Link: <…>; rel="next"` (RFC 8288), as the same list with another query: a registry says where its next page begins,
/// and not whom we ask.
fn next_page(headers: &HeaderMap, turn: &Turn<'_>, below: &str) -> Result<Option<String>, &'static str> {
    let Some(link) = headers.get(header::LINK) else { return Ok(None) };
    let text = link.to_str().map_err(|_| "a Link header with odd characters")?;
    let Some((target, parameters)) =
        text.trim_start().strip_prefix('<').and_then(|rest| rest.split_once('>'))
    else {
        return Err("a Link header that cannot be read");
    };
    let is_next = |parameter: &str| matches!(parameter.trim(), "rel=\"next\"" | "rel=next");
    if !parameters.split(';').any(is_next) {
        return Ok(None);
    }
    let asked: Url = turn.address(below);
    match turn.own_address(&asked, target) {
        Some(next) if next.path() == asked.path() => {
            Ok(next.query().filter(|query| !query.is_empty()).map(|query| format!("{below}?{query}")))
        }
        _ => Err("a Link to something else than more of the same list"),
    }
}
