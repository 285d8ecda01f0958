//! References: what people type, and the one canonical form that everything else compares.
//!
//! The grammar is design §2's: `[oras://]host[:port]/repository[:tag][@digest]`, after the OCI
//! distribution-spec ("Pulling manifests") and Docker's short names for docker.io.

pub(crate) mod host;

use std::fmt;
use std::str::FromStr;

pub use host::{HostError, RegistryHost};

use crate::digest::{Digest, DigestError};
use crate::display::{Shown, string_serde};

const LONGEST_REPOSITORY: usize = 255;
const LONGEST_TAG: usize = 128;
const DEFAULT_TAG: &str = "latest";
const SCHEME: &str = "oras://";

/// An artifact in a registry by tag, by digest, or by both.
///
/// Has at least one of tag and digest: where neither is written, the tag is `latest`. `Display` is the
/// canonical form, and parsing that gives an equal value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: RegistryHost,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference, with what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was written.
    #[error("the reference is empty: write HOST/REPOSITORY:TAG, as ghcr.io/acme/model:v1")]
    Empty,
    /// Blanks, control characters or letters outside ASCII.
    #[error(
        "\"{0}\" has blanks or characters that no reference has: write HOST/REPOSITORY:TAG and nothing around it"
    )]
    Characters(Shown),
    /// `https://`, `docker://` and the like.
    #[error("\"{0}\" begins with a scheme: leave it out (only oras:// is understood)")]
    Scheme(Shown),
    /// The host part is not one.
    #[error("\"{reference}\": {source}")]
    Host {
        /// The whole text.
        reference: Shown,
        /// What is wrong with its host.
        source: HostError,
    },
    /// `team/app`: Docker reads docker.io/team/app, ORAS a host named `team`.
    #[error(
        "\"{reference}\" can be read in two ways: write {as_docker_hub}{}",
        .as_host.as_ref().map(|host| format!(" or {host}")).unwrap_or_default()
    )]
    Ambiguous {
        /// The whole text.
        reference: Shown,
        /// The reading of Docker.
        as_docker_hub: Shown,
        /// The reading of ORAS, with a port that makes the host one, where it can be a host at all.
        as_host: Option<Shown>,
    },
    /// The repository breaks the distribution-spec's rule for `<name>`.
    #[error(
        "\"{reference}\": \"{repository}\" is not a repository: segments of a-z and 0-9, joined inside by single \".\" \
         or \"_\", \"__\" or dashes, separated by \"/\", at most 255 characters"
    )]
    Repository {
        /// The whole text.
        reference: Shown,
        /// The part that is wrong.
        repository: Shown,
    },
    /// A repository in upper case.
    #[error("\"{reference}\": a repository has no upper case: did you mean {lower}?")]
    UpperCase {
        /// The whole text.
        reference: Shown,
        /// The same in lower case.
        lower: Shown,
    },
    /// The tag breaks the distribution-spec's rule for `<reference>` as a tag.
    #[error(
        "\"{reference}\": \"{tag}\" is not a tag: at most 128 characters of A-Z a-z 0-9 _ . - that begin with none of . and -"
    )]
    Tag {
        /// The whole text.
        reference: Shown,
        /// The part that is wrong.
        tag: Shown,
    },
    /// What stands behind `@` is no digest; a user name before `@` lands here too.
    #[error(
        "\"{reference}\": what follows \"@\" must be a digest (user names have no place in a reference): {source}"
    )]
    Digest {
        /// The whole text.
        reference: Shown,
        /// What is wrong with it.
        source: DigestError,
    },
}

impl Reference {
    /// Reads a reference where no dotless host is known beforehand.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Self::parse_knowing(text, &|_| false)
    }

    /// Reads a reference where the administrator's registries make some dotless first segments hosts:
    /// `is_registry` says whether one (in lower case) is.
    pub fn parse_knowing(text: &str, is_registry: &dyn Fn(&str) -> bool) -> Result<Self, ReferenceError> {
        let shown = || Shown::new(text);
        let rest = text.strip_prefix(SCHEME).unwrap_or(text);
        if rest.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ReferenceError::Characters(shown()));
        }
        if rest.contains("://") {
            return Err(ReferenceError::Scheme(shown()));
        }
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse())),
            None => (rest, None),
        };
        let digest =
            digest.transpose().map_err(|source| ReferenceError::Digest { reference: shown(), source })?;
        let (name, tag) = split_tag(name);
        let (registry, repository) = split_registry(text, name, is_registry)?;
        check_repository(text, &repository)?;
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag { reference: shown(), tag: tag.into() });
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG),
            (tag, _) => tag,
        };
        Ok(Self { registry, repository, tag: tag.map(str::to_owned), digest })
    }

    /// The registry, as `host[:port]`.
    pub fn registry(&self) -> &RegistryHost {
        &self.registry
    }

    /// The repository: the path between the registry and the tag.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag that is written, or `latest` where neither tag nor digest is.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that is written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `host[:port]/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same reference, with its tag, at `digest`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The same repository at `digest`; the tag is left behind.
    pub fn pin(&self, digest: Digest) -> PinnedReference {
        PinnedReference { registry: self.registry.clone(), repository: self.repository.clone(), digest }
    }
}

fn split_tag(name: &str) -> (&str, Option<&str>) {
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[path..].rfind(':') {
        // Brackets in the last segment are an IPv6 host with no repository behind it.
        Some(colon) if !name[path..].starts_with('[') => {
            (&name[..path + colon], Some(&name[path + colon + 1..]))
        }
        _ => (name, None),
    }
}

fn split_registry(
    text: &str,
    name: &str,
    is_registry: &dyn Fn(&str) -> bool,
) -> Result<(RegistryHost, String), ReferenceError> {
    let parse_host = |host: &str| {
        host.parse::<RegistryHost>().map_err(|source| ReferenceError::Host { reference: text.into(), source })
    };
    let Some((first, rest)) = name.split_once('/') else {
        return Ok((RegistryHost::docker_hub(), format!("library/{name}")));
    };
    if first.is_empty() {
        return Err(ReferenceError::Host { reference: text.into(), source: HostError::Empty });
    }
    if host::speaks_for_itself(first) {
        let host = parse_host(first)?;
        let short = host.is_docker_hub() && !rest.contains('/');
        return Ok((host, if short { format!("library/{rest}") } else { rest.to_owned() }));
    }
    if first == "library" && !rest.contains('/') {
        return Ok((RegistryHost::docker_hub(), name.to_owned()));
    }
    let lower = first.to_ascii_lowercase();
    if is_registry(&lower) {
        return Ok((parse_host(first)?.unambiguous(), rest.to_owned()));
    }
    let host = parse_host(first);
    if !is_repository_segment(&lower) {
        host?;
        return Err(ReferenceError::Repository { reference: text.into(), repository: name.into() });
    }
    // What is offered is a reference: what is wrong in both readings is told first.
    let rest = rest.to_ascii_lowercase();
    if !is_repository(&format!("{lower}/{rest}")) {
        return Err(ReferenceError::Repository { reference: text.into(), repository: name.into() });
    }
    let written = text.strip_prefix(SCHEME).unwrap_or(text);
    let behind = format!("/{rest}{}", &written[name.len()..]);
    Err(ReferenceError::Ambiguous {
        reference: text.into(),
        as_docker_hub: Shown::new(&format!("docker.io/{lower}{behind}")),
        as_host: host.is_ok().then(|| Shown::new(&format!("{lower}:443{behind}"))),
    })
}

fn check_repository(text: &str, repository: &str) -> Result<(), ReferenceError> {
    let lower = repository.to_ascii_lowercase();
    if is_repository(repository) {
        return Ok(());
    }
    Err(if is_repository(&lower) {
        ReferenceError::UpperCase {
            reference: text.into(),
            lower: Shown::new(&text.replacen(repository, &lower, 1)),
        }
    } else {
        ReferenceError::Repository { reference: text.into(), repository: repository.into() }
    })
}

/// distribution-spec: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`.
fn is_repository(text: &str) -> bool {
    text.len() <= LONGEST_REPOSITORY && text.split('/').all(is_repository_segment)
}

pub(crate) fn is_repository_segment(segment: &str) -> bool {
    let alphanumeric = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
    segment.starts_with(alphanumeric)
        && segment.ends_with(alphanumeric)
        && segment.split(alphanumeric).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

/// distribution-spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= LONGEST_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

string_serde!(Reference);

/// A reference that says exactly which bytes: a digest and no tag. What a driver accepts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinnedReference {
    registry: RegistryHost,
    repository: String,
    digest: Digest,
}

/// Why a text is not a pinned reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinnedReferenceError {
    /// Not even a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A reference with no digest.
    #[error(
        "\"{0}\" has no digest: a volume names its bytes by HOST/REPOSITORY@sha256:…; let the webhook resolve tags"
    )]
    NoDigest(Shown),
    /// A tag beside the digest.
    #[error("\"{0}\" has a tag beside its digest: a volume names its bytes by digest alone")]
    Tag(Shown),
    /// Another spelling than the canonical one.
    #[error("\"{value}\" is not in canonical form: write {canonical}")]
    NotCanonical {
        /// What was given.
        value: Shown,
        /// The one spelling that is taken.
        canonical: Shown,
    },
}

impl PinnedReference {
    /// The registry, as `host[:port]`.
    pub fn registry(&self) -> &RegistryHost {
        &self.registry
    }

    /// The repository: the path between the registry and the digest.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest of the manifest (of an image or of an index).
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// `host[:port]/repository`, without the digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Another manifest of the same repository.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest, ..self.clone() }
    }
}

impl FromStr for PinnedReference {
    type Err = PinnedReferenceError;

    fn from_str(text: &str) -> Result<Self, PinnedReferenceError> {
        let reference = Reference::parse(text)?;
        let Some(digest) = reference.digest.clone() else {
            return Err(PinnedReferenceError::NoDigest(text.into()));
        };
        if reference.tag.is_some() {
            return Err(PinnedReferenceError::Tag(text.into()));
        }
        let pinned = reference.pin(digest);
        let canonical = pinned.to_string();
        if canonical != text {
            let (value, canonical) = (text.into(), Shown::new(&canonical));
            return Err(PinnedReferenceError::NotCanonical { value, canonical });
        }
        Ok(pinned)
    }
}

impl From<PinnedReference> for Reference {
    fn from(pinned: PinnedReference) -> Self {
        let PinnedReference { registry, repository, digest } = pinned;
        Self { registry, repository, tag: None, digest: Some(digest) }
    }
}

impl fmt::Display for PinnedReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.registry, self.repository, self.digest)
    }
}

string_serde!(PinnedReference);

#[cfg(test)]
mod tests;
