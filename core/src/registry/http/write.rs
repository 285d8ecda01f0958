//! Writing small things to a registry: blobs in one piece, and manifests (OCI distribution-spec 1.1, "Push").
//!
//! On the client that reads, so that credentials, certificates, proxies and realms are the same; [`crate::registry::push`]
//! streams what is large. Everything that is written has its digest in its address, so writing it twice is writing it
//! once.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use url::Url;

use super::request::{Capability, Route, Target, Turn, Wish};
use super::{HttpRegistry, Inner};
use crate::digest::Digest;
use crate::manifest::IndexEntry;
use crate::reference::Reference;
use crate::registry::transport::Answer;
use crate::registry::{RegistryError, RegistryErrorKind};

impl HttpRegistry {
    /// Writes a blob of the repository, unless it is there.
    pub(in crate::registry) async fn put_blob(
        &self,
        to: &Reference,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let route = self.inner.route(to.registry(), to.repository(), &self.credential).await?;
        let written = match first(&route) {
            Some(turn) => self.inner.put_blob(&turn, bytes).await,
            None => return Err(route.outcome(Vec::new(), Capability::Push)),
        };
        written.map_err(|error| route.outcome(vec![error], Capability::Push))
    }

    /// Writes a manifest under a tag or a digest.
    pub(in crate::registry) async fn put_manifest(
        &self,
        to: &Reference,
        name: &str,
        media_type: &'static str,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let route = self.inner.route(to.registry(), to.repository(), &self.credential).await?;
        let written = match first(&route) {
            Some(turn) => self.inner.put_manifest(&turn, name, media_type, bytes).await,
            None => return Err(route.outcome(Vec::new(), Capability::Push)),
        };
        written.map_err(|error| route.outcome(vec![error], Capability::Push))
    }

    /// What the referrers API of the registry that is written to says; nothing where it has none.
    pub(in crate::registry) async fn referrers_of_api(
        &self,
        to: &Reference,
        subject: &Digest,
    ) -> Result<Option<Vec<IndexEntry>>, RegistryError> {
        let route = self.inner.route(to.registry(), to.repository(), &self.credential).await?;
        let found = match first(&route) {
            Some(turn) => self.inner.referrers_of_api(&turn, subject).await,
            None => return Err(route.outcome(Vec::new(), Capability::Push)),
        };
        found.map_err(|error| route.outcome(vec![error], Capability::Push))
    }

    /// What its referrers tag says.
    pub(in crate::registry) async fn referrers_of_tag(
        &self,
        to: &Reference,
        subject: &Digest,
    ) -> Result<Vec<IndexEntry>, RegistryError> {
        let route = self.inner.route(to.registry(), to.repository(), &self.credential).await?;
        let found = match first(&route) {
            Some(turn) => self.inner.referrers_of_tag(&turn, subject).await,
            None => return Err(route.outcome(Vec::new(), Capability::Push)),
        };
        found.map_err(|error| route.outcome(vec![error], Capability::Push))
    }
}

/// The endpoint that is written to: the first that takes anything, as containerd's.
fn first(route: &Route) -> Option<Turn<'_>> {
    route.turns(Capability::Push).next()
}

impl Inner {
    async fn put_blob(&self, turn: &Turn<'_>, bytes: &Bytes) -> Result<(), RegistryError> {
        let digest = Digest::sha256_of(bytes);
        match self.ask(turn, &Method::HEAD, &format!("blobs/{digest}"), &HeaderMap::new()).await {
            Ok(_) => return Ok(()),
            Err(error) if may_not_be_there(&error) => {}
            Err(error) => return Err(error),
        }
        let begin = Wish {
            method: Method::POST,
            target: Target::Below("blobs/uploads/".to_owned()),
            headers: HeaderMap::new(),
            body: Some(Bytes::new()),
        };
        let Answer { response, place, permit, .. } = self.grant(turn, &begin).await?;
        let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
        let location = location.ok_or_else(|| place.untruthful("an upload without a Location"))?;
        let at = turn.own_address(&turn.address("blobs/uploads/"), location);
        let mut at: Url = at.ok_or_else(|| {
            place.not_allowed(
                "the upload is to go to another host or from https to http, which is not followed",
            )
        })?;
        at.query_pairs_mut().append_pair("digest", &digest.to_string());
        drop((response, permit));
        let put = Wish {
            method: Method::PUT,
            target: Target::At(at),
            headers: typed("application/octet-stream"),
            body: Some(bytes.clone()),
        };
        self.grant(turn, &put).await.map(|_| ())
    }

    async fn put_manifest(
        &self,
        turn: &Turn<'_>,
        name: &str,
        media_type: &'static str,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let put = Wish {
            method: Method::PUT,
            target: Target::Below(format!("manifests/{name}")),
            headers: typed(media_type),
            body: Some(bytes.clone()),
        };
        self.grant(turn, &put).await.map(|_| ())
    }
}

/// A blob that is not there, or of which whoever may only write hears nothing.
fn may_not_be_there(error: &RegistryError) -> bool {
    error.kind() == RegistryErrorKind::NotFound
        || matches!(error, RegistryError::Refused { status: 401 | 403 | 405, .. })
}

fn typed(media_type: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(media_type))])
}
