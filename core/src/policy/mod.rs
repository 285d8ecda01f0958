//! What an administrator allows, and what a policy says of an artifact. Pure: everything that a rule looks
//! at is given.
//!
//! A policy is asked twice about an artifact: about its name before any packet leaves
//! ([`Policy::check_name`]), and about what the registry has under that name ([`Policy::check_found`]). The
//! answer is the first rule that is broken, with the part of the artifact that broke it.
//!
//! Rules look at parsed parts and never at the text that somebody wrote: another spelling of one registry is
//! that registry.

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

/// What happens to an artifact that breaks a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// It is denied.
    #[default]
    Enforce,
    /// The user is told.
    Warn,
    /// It is noted in the audit log.
    Audit,
}

impl Mode {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "Enforce",
            Self::Warn => "Warn",
            Self::Audit => "Audit",
        }
    }
}

/// The rules that a policy may have, in the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Nothing but cluster sets.
    SetsOnly,
    /// Registries that are forbidden.
    RegistriesDeny,
    /// The only registries that are allowed.
    RegistriesAllow,
    /// A digest must be written.
    RequireDigest,
    /// Tags that are forbidden.
    DeniedTags,
    /// The only types of artifacts that are allowed.
    AllowedArtifactTypes,
    /// The only media types of layers that are allowed.
    AllowedMediaTypes,
    /// The largest artifact.
    MaxSize,
}

impl Rule {
    /// The field of a policy that it stands in.
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

    /// Whether it looks at how a reference is written, and not at what it names: a volume that is pinned
    /// already has nothing left for it to look at.
    pub fn is_about_writing(self) -> bool {
        matches!(self, Self::RequireDigest | Self::DeniedTags)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a policy demands. An absent rule demands nothing.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Nothing but cluster sets may be mounted.
    pub sets_only: bool,
    /// What may be used; anything where it is `None`.
    pub allow: Option<Vec<RegistryPattern>>,
    /// What may not be used, also where `allow` has it.
    pub deny: Vec<RegistryPattern>,
    /// Every reference must have a digest.
    pub require_digest: bool,
    /// Tags that may not be written, beside a digest neither. A reference with neither tag nor digest has the
    /// tag `latest`.
    pub denied_tags: Vec<TagPattern>,
    /// Types of artifacts that may be used: `artifactType`, or the config's media type where there is none.
    pub artifact_types: Option<Vec<TypePattern>>,
    /// Media types that every layer which is wanted must have.
    pub media_types: Option<Vec<TypePattern>>,
    /// The most bytes of the layers that are wanted, as the manifest states them.
    pub max_size: Option<ByteSize>,
}

/// Who made a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Author {
    /// An object of that name.
    Object(String),
    /// An option of the command line.
    Option(&'static str),
}

impl Author {
    /// The name alone.
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

/// Rules, who made them, and what becomes of those who break them.
#[derive(Clone, Debug)]
pub struct Policy {
    author: Author,
    mode: Mode,
    rules: Rules,
}

/// Where the right to an artifact comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Whoever wrote the pod named it.
    Direct,
    /// An administrator's set has it.
    ClusterSet,
}

/// What a registry has under a reference: one image or artifact, with the layers that are wanted of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// `artifactType`, or the config's media type.
    pub artifact_type: String,
    /// The media type and the size of each layer that is wanted.
    pub layers: Vec<(String, u64)>,
}

/// A rule that is broken.
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

    /// Which rule.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Which part of the artifact broke it, and against what.
    pub fn component(&self) -> &str {
        &self.component
    }

    /// What to write instead.
    pub fn instead(&self) -> &str {
        &self.instead
    }
}

impl Policy {
    /// A policy of these rules.
    pub fn new(author: Author, mode: Mode, rules: Rules) -> Self {
        Self { author, mode, rules }
    }

    /// Who made it.
    pub fn author(&self) -> &Author {
        &self.author
    }

    /// What becomes of those who break a rule.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether [`Self::check_found`] looks at anything, so that it has to be known.
    pub fn looks_at_contents(&self) -> bool {
        let Rules { artifact_types, media_types, max_size, .. } = &self.rules;
        artifact_types.is_some() || media_types.is_some() || max_size.is_some()
    }

    /// What the policy says of a reference, before anybody is asked about it. Where it is in order, the
    /// pattern that allows it, if it takes one.
    pub fn check_name(
        &self,
        reference: &Reference,
        source: Source,
    ) -> Result<Option<&RegistryPattern>, Violation> {
        let rules = &self.rules;
        if rules.sets_only && source == Source::Direct {
            let component = format!("{} is named directly", reference.name());
            let instead = "ask for one of the cluster's artifact sets by its name";
            return Err(Violation::new(Rule::SetsOnly, component, instead));
        }
        let (registry, repository) = (reference.registry(), reference.repository());
        let matches = |pattern: &&RegistryPattern| pattern.matches(registry, repository);
        if let Some(pattern) = rules.deny.iter().find(matches) {
            let component = format!("{} matches {pattern}", part(reference, pattern.is_host_alone()));
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
                let host_alone = !allow.iter().any(|pattern| pattern.matches_registry(registry));
                let component = format!("{} matches none of its patterns", part(reference, host_alone));
                let instead = format!("use one of: {}", listed(allow));
                return Err(Violation::new(Rule::RegistriesAllow, component, instead));
            }
        };
        if rules.require_digest && reference.digest().is_none() {
            let component = format!("tag {} stands without a digest", reference.tag().unwrap_or("latest"));
            let instead = format!(
                "write {}@sha256:…, which `oras-csi explain {reference}` shows",
                Shown::new(&reference.name())
            );
            return Err(Violation::new(Rule::RequireDigest, component, instead));
        }
        if let Some(tag) = reference.tag()
            && let Some(pattern) = rules.denied_tags.iter().find(|pattern| pattern.matches(tag))
        {
            let component = format!("tag {tag} matches {pattern}");
            return Err(Violation::new(Rule::DeniedTags, component, "write another tag, or a digest alone"));
        }
        Ok(allowed_by)
    }

    /// What the policy says of what the registry has.
    pub fn check_found(&self, found: &Found) -> Result<(), Violation> {
        let rules = &self.rules;
        if let Some(allowed) = &rules.artifact_types
            && !allowed.iter().any(|pattern| pattern.matches(&found.artifact_type))
        {
            let component =
                format!("artifact type {} matches none of its types", Shown::new(&found.artifact_type));
            let instead = format!("use an artifact of one of: {}", listed(allowed));
            return Err(Violation::new(Rule::AllowedArtifactTypes, component, instead));
        }
        let is_forbidden = |allowed: &[TypePattern], media_type: &str| {
            !allowed.iter().any(|pattern| pattern.matches(media_type))
        };
        if let Some(allowed) = &rules.media_types
            && let Some((media_type, _)) =
                found.layers.iter().find(|(media_type, _)| is_forbidden(allowed, media_type))
        {
            let component =
                format!("a layer's media type {} matches none of its types", Shown::new(media_type));
            let instead = format!("keep only layers of: {} (oras.land/media-types)", listed(allowed));
            return Err(Violation::new(Rule::AllowedMediaTypes, component, instead));
        }
        let size = found.layers.iter().fold(0_u64, |sum, (_, size)| sum.saturating_add(*size));
        if let Some(most) = rules.max_size.as_ref().filter(|most| size > most.bytes()) {
            let component = format!("its layers have {size} bytes, more than {most}");
            let instead = "use a smaller artifact, or fewer of its layers (oras.land/media-types)";
            return Err(Violation::new(Rule::MaxSize, component, instead));
        }
        Ok(())
    }
}

fn part(reference: &Reference, host_alone: bool) -> String {
    if host_alone {
        format!("registry {}", reference.registry())
    } else {
        format!("repository {}", Shown::new(&reference.name()))
    }
}

/// `a, b, c`: at most twelve, and how many more there are.
fn listed<T: fmt::Display>(list: &[T]) -> String {
    const MOST: usize = 12;
    let mut shown: Vec<String> = list.iter().take(MOST).map(ToString::to_string).collect();
    if list.len() > MOST {
        shown.push(format!("and {} more", list.len() - MOST));
    }
    shown.join(", ")
}
