//! Policies: the rules of an administrator, and their evaluation for one artifact (docs/design.md, "Policy"). This
//! module does no I/O.
//!
//! A policy is evaluated twice for an artifact: for its reference, before any network request
//! ([`Policy::check_reference`]), and for the content that the registry has under that reference
//! ([`Policy::check_contents`]). The result is the first rule that the artifact violates, with the component that
//! violates it.
//!
//! Rules compare parsed components and never the text that a user wrote, so another spelling of a registry cannot
//! bypass a rule.

mod size;
#[cfg(test)]
mod tests;
mod wildcard;

use std::fmt;

use crate::display::Shown;
use crate::pattern::RegistryPattern;
use crate::reference::Reference;

pub use size::{ByteSize, ByteSizeError};
pub use wildcard::{TagPattern, TagPatternError, TypePattern, TypePatternError};

/// What the webhook does with an artifact that violates a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// It denies the pod.
    #[default]
    Enforce,
    /// It allows the pod and returns a warning.
    Warn,
    /// It allows the pod and adds an audit annotation.
    Audit,
}

impl Mode {
    /// Returns the name of the mode, as in an ArtifactPolicy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "Enforce",
            Self::Warn => "Warn",
            Self::Audit => "Audit",
        }
    }
}

/// The rules that a policy can have, in the order of their evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Only cluster sets are allowed.
    SetsOnly,
    /// The registries that are denied.
    RegistriesDeny,
    /// The only registries that are allowed.
    RegistriesAllow,
    /// Every reference must have a digest.
    RequireDigest,
    /// The tags that are denied.
    DeniedTags,
    /// The only artifact types that are allowed.
    AllowedArtifactTypes,
    /// The only media types of layers that are allowed.
    AllowedMediaTypes,
    /// The maximum size of an artifact.
    MaxSize,
}

impl Rule {
    /// Returns the field of an ArtifactPolicy that has the rule.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SetsOnly => "setsOnly",
            Self::RegistriesDeny => "registries.deny",
            Self::RegistriesAllow => "registries.allow",
            Self::RequireDigest => "requireDigest",
            Self::DeniedTags => "deniedTags",
            Self::AllowedArtifactTypes => "allowedArtifactTypes",
            Self::AllowedMediaTypes => "allowedMediaTypes",
            Self::MaxSize => "maxSize",
        }
    }

    /// Reports whether the rule is about tags. It cannot be evaluated for a volume that is pinned already, because a
    /// pinned reference has no tag.
    pub fn is_about_tags(self) -> bool {
        matches!(self, Self::RequireDigest | Self::DeniedTags)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The rules of a policy. A rule that is not set allows everything.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Only cluster sets can be mounted.
    pub sets_only: bool,
    /// The registries and repositories that are allowed. `None` allows all.
    pub allow: Option<Vec<RegistryPattern>>,
    /// The registries and repositories that are denied, even if `allow` matches them.
    pub deny: Vec<RegistryPattern>,
    /// Every reference must have a digest.
    pub require_digest: bool,
    /// The tags that are denied, also in a reference that has a digest. A reference with neither tag nor digest has
    /// the tag `latest`.
    pub denied_tags: Vec<TagPattern>,
    /// The artifact types that are allowed: `artifactType`, or else the media type of the config.
    pub artifact_types: Option<Vec<TypePattern>>,
    /// The media types that are allowed for the selected layers.
    pub media_types: Option<Vec<TypePattern>>,
    /// The maximum size of all selected layers together, in bytes, as the manifest states it.
    pub max_size: Option<ByteSize>,
}

/// The origin of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Author {
    /// An ArtifactPolicy with that name.
    Object(String),
    /// A command-line option.
    Option(&'static str),
}

impl Author {
    /// Returns the name of the object or of the option.
    pub fn name(&self) -> &str {
        match self {
            Self::Object(name) => name,
            Self::Option(name) => name,
        }
    }
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(name) => write!(f, "ArtifactPolicy {}", Shown::new(name)),
            Self::Option(name) => f.write_str(name),
        }
    }
}

/// A policy: its rules, its origin, and what happens on a violation.
///
/// ```
/// use oras_csi_core::policy::{Author, Mode, Policy, Rule, Rules, Source};
/// use oras_csi_core::reference::Reference;
///
/// let rules = Rules { allow: Some(vec!["ghcr.io/acme/**".parse()?]), ..Rules::default() };
/// let policy = Policy::new(Author::Object("team-registries".into()), Mode::Enforce, rules);
///
/// // The pattern that allows the reference is returned, whatever the spelling of the registry.
/// let pattern = policy.check_reference(&Reference::parse("GHCR.io:443/acme/model")?, Source::Direct)?;
/// assert_eq!(pattern.map(ToString::to_string).as_deref(), Some("ghcr.io/acme/**"));
///
/// let other = Reference::parse("registry.example/acme/model")?;
/// let violation = policy.check_reference(&other, Source::Direct).unwrap_err();
/// assert_eq!(violation.rule(), Rule::RegistriesAllow);
/// assert_eq!(violation.instead(), "use one of: ghcr.io/acme/**");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    author: Author,
    mode: Mode,
    rules: Rules,
}

/// How a pod requests an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The pod names the artifact itself.
    Direct,
    /// The pod names a ClusterArtifactSet that has the artifact.
    ClusterSet,
}

/// The content of one image or artifact in a registry, with the layers that the recipe selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArtifactContents {
    /// `artifactType`, or else the media type of the config.
    pub artifact_type: String,
    /// The media type and the size (in bytes) of each selected layer.
    pub layers: Vec<(String, u64)>,
}

/// A violation of a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {component}")]
pub struct Violation {
    rule: Rule,
    component: String,
    instead: String,
}

impl Violation {
    fn new(rule: Rule, component: String, instead: impl Into<String>) -> Self {
        Self { rule, component, instead: instead.into() }
    }

    /// Returns the rule.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Returns the component of the artifact that violates the rule, and what it was compared with.
    pub fn component(&self) -> &str {
        &self.component
    }

    /// Returns what the user can write instead.
    pub fn instead(&self) -> &str {
        &self.instead
    }
}

impl Policy {
    /// Creates a policy with these rules.
    pub fn new(author: Author, mode: Mode, rules: Rules) -> Self {
        Self { author, mode, rules }
    }

    /// Returns the origin of the policy.
    pub fn author(&self) -> &Author {
        &self.author
    }

    /// Returns what happens on a violation.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Reports whether [`Self::check_contents`] has a rule to evaluate, so the content must be known.
    pub fn looks_at_contents(&self) -> bool {
        let Rules { artifact_types, media_types, max_size, .. } = &self.rules;
        artifact_types.is_some() || media_types.is_some() || max_size.is_some()
    }

    /// Evaluates the rules about references, before any network request.
    ///
    /// Returns the `allow` pattern that matches, if the policy has such patterns.
    pub fn check_reference(
        &self,
        reference: &Reference,
        source: Source,
    ) -> Result<Option<&RegistryPattern>, Violation> {
        let rules = &self.rules;
        if rules.sets_only && source == Source::Direct {
            let component = format!("{} is requested directly", reference.name());
            let instead = "request a ClusterArtifactSet by its name";
            return Err(Violation::new(Rule::SetsOnly, component, instead));
        }
        let (registry, repository) = (reference.registry(), reference.repository());
        let matches = |pattern: &&RegistryPattern| pattern.matches(registry, repository);
        if let Some(pattern) = rules.deny.iter().find(matches) {
            let component =
                format!("{} matches {pattern}", component_of(reference, pattern.is_whole_registry()));
            return Err(Violation::new(
                Rule::RegistriesDeny,
                component,
                "use another registry or repository",
            ));
        }
        let allowed_by = rules.allow.as_ref().map(|allow| allow.iter().find(matches).ok_or(allow));
        let allowed_by = match allowed_by {
            None => None,
            Some(Ok(pattern)) => Some(pattern),
            Some(Err(allow)) => {
                let is_whole_registry = !allow.iter().any(|pattern| pattern.matches_registry(registry));
                let component =
                    format!("{} matches none of its patterns", component_of(reference, is_whole_registry));
                let instead = format!("use one of: {}", join(allow));
                return Err(Violation::new(Rule::RegistriesAllow, component, instead));
            }
        };
        if rules.require_digest && reference.digest().is_none() {
            let component = format!("tag {} has no digest", reference.tag().unwrap_or("latest"));
            let instead = format!(
                "write {}@sha256:…; `oras-csi explain {reference}` shows the digest",
                Shown::new(&reference.name())
            );
            return Err(Violation::new(Rule::RequireDigest, component, instead));
        }
        if let Some(tag) = reference.tag()
            && let Some(pattern) = rules.denied_tags.iter().find(|pattern| pattern.matches(tag))
        {
            let component = format!("tag {tag} matches {pattern}");
            return Err(Violation::new(
                Rule::DeniedTags,
                component,
                "write another tag, or a digest without a tag",
            ));
        }
        Ok(allowed_by)
    }

    /// Evaluates the rules about the content that the registry has.
    pub fn check_contents(&self, contents: &ArtifactContents) -> Result<(), Violation> {
        let rules = &self.rules;
        if let Some(allowed) = &rules.artifact_types
            && !allowed.iter().any(|pattern| pattern.matches(&contents.artifact_type))
        {
            let component =
                format!("artifact type {} matches none of its types", Shown::new(&contents.artifact_type));
            let instead = format!("use an artifact of one of: {}", join(allowed));
            return Err(Violation::new(Rule::AllowedArtifactTypes, component, instead));
        }
        let is_denied = |allowed: &[TypePattern], media_type: &str| {
            !allowed.iter().any(|pattern| pattern.matches(media_type))
        };
        if let Some(allowed) = &rules.media_types
            && let Some((media_type, _)) =
                contents.layers.iter().find(|(media_type, _)| is_denied(allowed, media_type))
        {
            let component =
                format!("a layer's media type {} matches none of its types", Shown::new(media_type));
            let instead = format!("keep only layers of: {} (oras.land/media-types)", join(allowed));
            return Err(Violation::new(Rule::AllowedMediaTypes, component, instead));
        }
        let size = contents.layers.iter().fold(0_u64, |sum, (_, size)| sum.saturating_add(*size));
        if let Some(limit) = rules.max_size.as_ref().filter(|limit| size > limit.bytes()) {
            let component = format!("its layers have {size} bytes, more than {limit}");
            let instead = "use a smaller artifact, or fewer of its layers (oras.land/media-types)";
            return Err(Violation::new(Rule::MaxSize, component, instead));
        }
        Ok(())
    }
}

/// Names the registry, or the complete repository.
fn component_of(reference: &Reference, is_whole_registry: bool) -> String {
    if is_whole_registry {
        format!("registry {}", reference.registry())
    } else {
        format!("repository {}", Shown::new(&reference.name()))
    }
}

/// Lists at most twelve values, `a, b, c`, and the number of the others.
fn join<T: fmt::Display>(list: &[T]) -> String {
    const MAX_LISTED: usize = 12;
    let mut shown: Vec<String> = list.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    if list.len() > MAX_LISTED {
        shown.push(format!("and {} more", list.len() - MAX_LISTED));
    }
    shown.join(", ")
}
