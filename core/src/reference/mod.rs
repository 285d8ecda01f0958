//! References to artifacts: the forms that users write, and the canonical form that everything else compares.
//!
//! The grammar is `[oras://|oci://]host[:port]/repository[:tag][@digest]` (docs/design.md, "References"). It follows the OCI
//! distribution-spec ("Pulling manifests") and Docker's short names for docker.io.

pub(crate) mod host;

use std::fmt;
use std::str::FromStr;

pub use host::{HostError, RegistryHost};

use crate::digest::{Algorithm, Digest, DigestError};
use crate::display::{Shown, string_serde};

const MAX_REPOSITORY_LEN: usize = 255;
const MAX_TAG_LEN: usize = 128;
const DEFAULT_TAG: &str = "latest";
/// The schemes that are accepted and removed. Helm and KServe write `oci://`.
const SCHEMES: [&str; 2] = ["oras://", "oci://"];

/// A reference to an artifact in a registry by tag, by digest, or by both.
///
/// A reference always has a tag or a digest: when neither is written, the tag is `latest`. `Display` writes the
/// canonical form, and parsing it gives an equal value.
///
/// ```
/// use oras_csi_core::reference::{Reference, ReferenceError};
///
/// let reference = Reference::parse("GHCR.io:443/acme/model")?;
/// assert_eq!(reference.to_string(), "ghcr.io/acme/model:latest");
/// assert_eq!(reference.registry().host(), "ghcr.io");
/// assert_eq!(reference.repository(), "acme/model");
///
/// // Docker reads this as a repository of docker.io, ORAS as one of the host "team".
/// let error = Reference::parse("team/app").unwrap_err();
/// assert!(matches!(error, ReferenceError::Ambiguous { .. }));
/// assert!(error.to_string().ends_with("write docker.io/team/app or team:443/app"));
/// # Ok::<(), ReferenceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: RegistryHost,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The error for a text that is not a [`Reference`]. Each message says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text is empty.
    #[error("the reference is empty: write HOST/REPOSITORY:TAG, for example ghcr.io/acme/model:v1")]
    Empty,
    /// The text has spaces, control characters or characters outside ASCII.
    #[error(
        "\"{0}\" has spaces or characters that are not allowed in a reference: write only HOST/REPOSITORY:TAG"
    )]
    Characters(Shown),
    /// The text has a scheme other than `oras://` and `oci://`, for example `https://` or `docker://`.
    #[error("\"{0}\" begins with a scheme: remove it (only oras:// and oci:// are accepted)")]
    Scheme(Shown),
    /// The text is a digest and nothing else.
    #[error(
        "\"{reference}\" is a digest without a registry and a repository: write HOST/REPOSITORY@{digest}"
    )]
    DigestAlone {
        /// The complete text.
        reference: Shown,
        /// The digest.
        digest: Digest,
    },
    /// The host is invalid.
    #[error("\"{reference}\": {source}")]
    Host {
        /// The complete text.
        reference: Shown,
        /// The error of its host.
        source: HostError,
    },
    /// The first segment can be a host or a part of a repository: Docker reads `team/app` as docker.io/team/app, ORAS
    /// reads a host named `team`.
    #[error(
        "\"{reference}\" is ambiguous: write {as_docker_hub}{}",
        .as_host.as_ref().map(|host| format!(" or {host}")).unwrap_or_default()
    )]
    Ambiguous {
        /// The complete text.
        reference: Shown,
        /// The reference as Docker reads it.
        as_docker_hub: Shown,
        /// The reference as ORAS reads it, with a port that marks the host. `None` when the segment is not a valid host.
        as_host: Option<Shown>,
    },
    /// The repository does not follow the distribution-spec's rule for `<name>`.
    #[error(
        "\"{reference}\": \"{repository}\" is not a repository: write segments of a-z and 0-9, separated by \"/\"; inside a \
         segment \".\", \"_\", \"__\" and dashes are allowed; at most 255 characters"
    )]
    Repository {
        /// The complete text.
        reference: Shown,
        /// The invalid part.
        repository: Shown,
    },
    /// The repository has upper-case letters.
    #[error("\"{reference}\": a repository cannot have upper-case letters: did you mean {lower}?")]
    UpperCase {
        /// The complete text.
        reference: Shown,
        /// The reference with the repository in lower case.
        lower: Shown,
    },
    /// A digest follows a colon, as a tag does.
    #[error("\"{reference}\": a digest follows \"@\", not \":\": write {correct}")]
    DigestAsTag {
        /// The complete text.
        reference: Shown,
        /// The reference with `@`.
        correct: Shown,
    },
    /// The tag does not follow the distribution-spec's rule for `<reference>` as a tag.
    #[error(
        "\"{reference}\": \"{tag}\" is not a tag: write at most 128 characters of A-Z a-z 0-9 _ . -, and begin with \
         none of . and -"
    )]
    Tag {
        /// The complete text.
        reference: Shown,
        /// The invalid part.
        tag: Shown,
    },
    /// The text after `@` is not a digest. A user name before `@` gives this error, too.
    #[error(
        "\"{reference}\": the text after \"@\" must be a digest (a reference cannot have a user name): {source}"
    )]
    Digest {
        /// The complete text.
        reference: Shown,
        /// The error of the digest.
        source: DigestError,
    },
}

impl Reference {
    /// Parses a reference. A first segment without a dot, a port or `localhost` is ambiguous, and an error.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Self::parse_with_known_hosts(text, &|_| false)
    }

    /// Parses a reference, and accepts some hosts without a dot: `is_registry` reports whether a first segment (in lower
    /// case) is a host in the administrator's registry configuration.
    pub fn parse_with_known_hosts(
        text: &str,
        is_registry: &dyn Fn(&str) -> bool,
    ) -> Result<Self, ReferenceError> {
        let shown = || Shown::new(text);
        let rest = without_scheme(text);
        if rest.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ReferenceError::Characters(shown()));
        }
        if rest.contains("://") {
            return Err(ReferenceError::Scheme(shown()));
        }
        if let Some(digest) = digest_alone(rest) {
            return Err(ReferenceError::DigestAlone { reference: shown(), digest });
        }
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse())),
            None => (rest, None),
        };
        let digest =
            digest.transpose().map_err(|source| ReferenceError::Digest { reference: shown(), source })?;
        let (name, tag) = split_tag(name);
        if let Some((before, digest)) = tag.and_then(|tag| digest_as_tag(name, tag)) {
            let correct = Shown::new(&format!("{before}@{digest}"));
            return Err(ReferenceError::DigestAsTag { reference: shown(), correct });
        }
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

    /// Returns the registry, `host[:port]`.
    pub fn registry(&self) -> &RegistryHost {
        &self.registry
    }

    /// Returns the repository: the path between the registry and the tag.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag that is written, or `latest` when neither a tag nor a digest is written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest that is written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns `host[:port]/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Returns the reference with `digest`; the tag stays.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// Pins the reference to `digest`; the tag is removed.
    pub fn pin(&self, digest: Digest) -> PinnedReference {
        PinnedReference { registry: self.registry.clone(), repository: self.repository.clone(), digest }
    }
}

fn without_scheme(text: &str) -> &str {
    SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text)
}

/// Returns the digest if the text is nothing else. Docker reads `sha256:HEX` as a repository with a tag, and refuses 64
/// hexadecimal characters, which are the id of an image there.
fn digest_alone(text: &str) -> Option<Digest> {
    let digest = text.strip_prefix('@').unwrap_or(text);
    // A reference with a repository is not a digest.
    if digest.contains('/') {
        return None;
    }
    digest.parse().or_else(|_| format!("{}:{digest}", Algorithm::Sha256.name()).parse()).ok()
}

/// Splits `NAME:sha256` and `HEX`, in which a colon precedes the digest, into `NAME` and the digest.
fn digest_as_tag<'a>(name: &'a str, tag: &str) -> Option<(&'a str, Digest)> {
    let (before, algorithm) = name.rsplit_once(':').filter(|(_, algorithm)| !algorithm.contains('/'))?;
    Some((before, format!("{algorithm}:{tag}").parse().ok()?))
}

fn split_tag(name: &str) -> (&str, Option<&str>) {
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[path..].rfind(':') {
        // Brackets in the last segment are an IPv6 host without a repository.
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
    if host::is_unambiguous_host(first) {
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
    // The error suggests two references, so an error that both would have comes first.
    let rest = rest.to_ascii_lowercase();
    if !is_repository(&format!("{lower}/{rest}")) {
        return Err(ReferenceError::Repository { reference: text.into(), repository: name.into() });
    }
    let written = without_scheme(text);
    let suffix = format!("/{rest}{}", &written[name.len()..]);
    Err(ReferenceError::Ambiguous {
        reference: text.into(),
        as_docker_hub: Shown::new(&format!("docker.io/{lower}{suffix}")),
        as_host: host.is_ok().then(|| Shown::new(&format!("{lower}:443{suffix}"))),
    })
}

fn check_repository(text: &str, repository: &str) -> Result<(), ReferenceError> {
    let lower = repository.to_ascii_lowercase();
    if is_repository(repository) {
        return Ok(());
    }
    Err(if is_repository(&lower) {
        // `library/` of Docker Hub may not be written.
        let written =
            if text.contains(repository) { repository } else { repository.trim_start_matches("library/") };
        let lower = text.replacen(written, &written.to_ascii_lowercase(), 1);
        ReferenceError::UpperCase { reference: text.into(), lower: Shown::new(&lower) }
    } else {
        ReferenceError::Repository { reference: text.into(), repository: repository.into() }
    })
}

/// Reports whether a text is a repository by the distribution-spec:
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`.
fn is_repository(text: &str) -> bool {
    text.len() <= MAX_REPOSITORY_LEN && text.split('/').all(is_repository_segment)
}

/// Reports whether a text is one segment of a repository.
pub(crate) fn is_repository_segment(segment: &str) -> bool {
    let alphanumeric = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
    segment.starts_with(alphanumeric)
        && segment.ends_with(alphanumeric)
        && segment.split(alphanumeric).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

/// Reports whether a text is a tag by the distribution-spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG_LEN
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
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

/// A reference with a digest and without a tag: the only form that the driver accepts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinnedReference {
    registry: RegistryHost,
    repository: String,
    digest: Digest,
}

/// The error for a text that is not a [`PinnedReference`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinnedReferenceError {
    /// The text is not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The reference has no digest.
    #[error("\"{0}\" has no digest: write HOST/REPOSITORY@sha256:… or let the webhook resolve the tag")]
    NoDigest(Shown),
    /// The reference has a tag and a digest.
    #[error("\"{0}\" has a tag beside its digest: remove the tag, a canonical volume has digests only")]
    Tag(Shown),
    /// The text is not the canonical form of the reference.
    #[error("\"{value}\" is not in canonical form: write {canonical}")]
    NotCanonical {
        /// The text.
        value: Shown,
        /// The canonical form.
        canonical: Shown,
    },
}

impl PinnedReference {
    /// Returns the registry, `host[:port]`.
    pub fn registry(&self) -> &RegistryHost {
        &self.registry
    }

    /// Returns the repository: the path between the registry and the digest.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the digest of the manifest, which can be an image or an index.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns `host[:port]/repository`, without the digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Returns the reference of another manifest in the same repository.
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
