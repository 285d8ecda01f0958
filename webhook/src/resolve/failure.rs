//! Why a reference was not resolved, and the denial for it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use oras_csi_core::keys::{annotation, attribute};
use oras_csi_core::manifest::SelectError;
use oras_csi_core::patch::PatchError;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::RegistryError;

use crate::contents::NothingToMount;
use crate::denial::{At, Code, Denial, RecipeAt};

/// The highest number of an index's manifests that policies check.
pub(super) const MAX_CANDIDATES: usize = 64;

/// Why a reference could not be resolved.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Registry(Arc<RegistryError>),
    #[error("{0}")]
    Platform(SelectError),
    #[error("{0}")]
    NothingToMount(NothingToMount),
    #[error("the registry did not answer before the deadline of the request")]
    Deadline,
    #[error("the lookup failed inside the webhook, see its log")]
    Crashed,
    #[error("{waiting} requests already wait for the registry, which has not answered for {}.{:03} s", silent.as_secs(), silent.subsec_millis())]
    Busy { waiting: usize, silent: Duration },
    #[error("is an index of {0} manifests, more than policies can check ({MAX_CANDIDATES})")]
    TooManyCandidates(usize),
    #[error("{0}")]
    Patch(#[from] PatchError),
}

impl Failure {
    /// Returns the denial. Its code says whether the user, the registry or time can fix it.
    pub(crate) fn denial(&self, at: At<'_>, reference: &Reference) -> Denial {
        let text = reference.to_string();
        let (code, rule, instead) = match self {
            Self::Registry(error) => return registry_denial(at, &text, error),
            Self::Platform(error) => {
                (Code::NotFound, format!("is an image index that {error}"), select_advice(at, error))
            }
            Self::NothingToMount(nothing) => {
                (Code::Unprocessable, nothing.to_string(), mount_advice(at, nothing))
            }
            Self::Patch(error) => (Code::Unprocessable, error.to_string(), patch_advice(error).to_owned()),
            Self::TooManyCandidates(_) => {
                (Code::Forbidden, self.to_string(), format!("select one with {}", key_of(at, PLATFORM)))
            }
            Self::Deadline | Self::Crashed | Self::Busy { .. } => {
                (Code::Unavailable, format!("cannot be resolved: {self}"), "try again later".to_owned())
            }
        };
        let denial = Denial::new(code, at, Some(&text), rule, instead);
        if self.is_wrong_request() { denial.with_wrong_request() } else { denial }
    }

    /// Reports whether the request is wrong, and not the artifact: it names another kind of artifact, a platform or a media
    /// type that the artifact does not have.
    fn is_wrong_request(&self) -> bool {
        match self {
            Self::Platform(_) => true,
            Self::NothingToMount(nothing) => {
                matches!(nothing, NothingToMount::NoMatch { .. } | NothingToMount::Patch)
            }
            Self::Patch(error) => matches!(error, PatchError::Index | PatchError::Kind { .. }),
            Self::Registry(_)
            | Self::TooManyCandidates(_)
            | Self::Deadline
            | Self::Crashed
            | Self::Busy { .. } => false,
        }
    }
}

/// The names of a setting of an artifact: as an annotation, and as the key of a step.
type Setting = (&'static str, &'static str);

const PLATFORM: Setting = (annotation::PLATFORM, "platform");
const MEDIA_TYPES: Setting = (annotation::MEDIA_TYPES, "mediaTypes");

/// Returns where the setting of the artifact that is named `at` is written.
fn key_of(at: At<'_>, (key, in_step): Setting) -> String {
    match at {
        At::Annotation(named) => {
            let name = named.strip_prefix(annotation::ARTIFACT).unwrap_or_default();
            format!("{key}{name}")
        }
        At::Attribute { .. } if key == annotation::MEDIA_TYPES => attribute::MEDIA_TYPE.to_owned(),
        _ => format!("{in_step} of the step"),
    }
}

fn select_advice(at: At<'_>, error: &SelectError) -> String {
    match error {
        // The driver runs on Linux nodes only.
        SelectError::NoPlatform { available, .. } if !available.as_str().contains("linux/") => {
            "push a manifest for a Linux platform".to_owned()
        }
        SelectError::NoPlatform { .. } => {
            format!(
                "write one of its platforms as {}, or push a manifest for this platform",
                key_of(at, PLATFORM)
            )
        }
        SelectError::NoPlatformStated { .. } => "write the digest of one of them in the reference".to_owned(),
    }
}

fn mount_advice(at: At<'_>, nothing: &NothingToMount) -> String {
    match nothing {
        NothingToMount::NoMatch { .. } => {
            format!("write media types that it has as {}", key_of(at, MEDIA_TYPES))
        }
        NothingToMount::Patch => {
            "apply it with oras.land/patch, oras.artifact.patch or a patch step of a recipe".to_owned()
        }
        NothingToMount::NoLayers => "push files, as `oras push REFERENCE FILE` does".to_owned(),
        NothingToMount::NoName { .. } => {
            "give one layer a name with mediaTypes and as in oras.land/recipe, or push files, \
             as `oras push REFERENCE FILE` does"
                .to_owned()
        }
        NothingToMount::Name { .. } => {
            "select the layer with mediaTypes, so that it is the only one without a title, or remove as"
                .to_owned()
        }
        NothingToMount::NestedIndex => {
            "write the inner index, or a manifest of it, in the reference".to_owned()
        }
        NothingToMount::EmptyIndex => "push it again with its manifests".to_owned(),
        // The message ends with what to do.
        NothingToMount::Refused(_) => String::new(),
    }
}

fn patch_advice(error: &PatchError) -> &'static str {
    match error {
        PatchError::TwoBases { .. }
        | PatchError::NoLevels
        | PatchError::NoDigest { .. }
        | PatchError::Digest { .. }
        | PatchError::Reference { .. }
        | PatchError::Differs { .. }
        | PatchError::Twice { .. }
        | PatchError::Circle { .. }
        | PatchError::BaseAgain { .. } => "create the patch again with `oras-csi patch`",
        // The message ends with what to do, or is about a recipe.
        _ => "",
    }
}

/// The maximum `Retry-After`, in seconds. Clients of the API server wait for as long as it says, so a registry must not
/// be able to make them wait for a day.
const MAX_RETRY_AFTER_SECONDS: u32 = 60;

/// Returns where the user can name credentials for the artifact that is named `at`.
fn credentials_advice(at: At<'_>) -> &'static str {
    let of_volume = "name a Secret that can pull it in the volume's nodePublishSecretRef";
    match at {
        At::Attribute { .. } | At::Step { recipe: RecipeAt::Attribute { .. }, .. } | At::Volume(_) => {
            of_volume
        }
        At::Field(_) => "name a Secret that can pull it in spec.pullSecret of the set",
        At::Reference => "log in with credentials that can pull it",
        At::Annotation(_) | At::Step { .. } | At::Namespace(_) => {
            "name a Secret that can pull it in oras.land/pull-secret or in the pod's imagePullSecrets"
        }
    }
}

fn registry_denial(at: At<'_>, text: &str, error: &RegistryError) -> Denial {
    let (code, rule, instead): (_, _, Cow<'static, str>) = match error {
        RegistryError::NotFound { .. } => (
            Code::NotFound,
            "does not exist",
            format!("push it, or write a tag or digest that exists; if it is private, {}", credentials_advice(at))
                .into(),
        ),
        RegistryError::Redirected { status: 404, .. } => (
            Code::NotFound,
            "cannot be pulled: the host that the registry redirected to does not have it",
            "push it again, or ask the operator of the registry to check its storage".into(),
        ),
        RegistryError::Redirected { .. } => (
            Code::Unavailable,
            "cannot be pulled: the host that the registry redirected to refused",
            "ask the operator of the registry to check its storage, or try again later".into(),
        ),
        RegistryError::Refused { status: 401 | 403, .. } => (
            Code::Forbidden,
            "cannot be pulled: the registry denied access",
            credentials_advice(at).into(),
        ),
        RegistryError::Refused { .. } => (
            Code::Forbidden,
            "cannot be pulled: the registry refused the request",
            "check that the host is an OCI registry, and that no proxy answers in its place".into(),
        ),
        RegistryError::NotAllowed { .. } => (
            Code::Forbidden,
            "cannot be pulled: a request for it is not allowed",
            "ask the administrator to correct the registry or its hosts.toml".into(),
        ),
        RegistryError::Misconfigured { .. } => (
            Code::Unavailable,
            "cannot be pulled with the current registry configuration",
            "ask the administrator to fix the configuration".into(),
        ),
        RegistryError::Certificate { .. } => (
            Code::Unavailable,
            "cannot be resolved: TLS with the registry failed",
            "ask the administrator to fix the certificate or the registry configuration".into(),
        ),
        RegistryError::Authentication { .. } => (
            Code::Unavailable,
            "cannot be resolved: the registry's authentication failed",
            "ask the administrator of the registry to check its WWW-Authenticate header and its token service".into(),
        ),
        RegistryError::RateLimited { .. } => (
            Code::TooManyRequests,
            "cannot be resolved: the registry limits the request rate",
            "try again later".into(),
        ),
        RegistryError::TooLarge { .. } => (
            Code::Unprocessable,
            "cannot be read",
            "push it again with fewer layers or shorter annotations".into(),
        ),
        RegistryError::Invalid { .. } => (
            Code::Unprocessable,
            "cannot be read",
            "push it again with a valid manifest within the limits, for example with `oras push`".into(),
        ),
        RegistryError::Untruthful { .. } => (
            Code::Unavailable,
            "cannot be resolved",
            "check the registry, and any mirror or proxy in front of it".into(),
        ),
        RegistryError::Unreachable { .. } => (
            Code::Unavailable,
            "cannot be resolved",
            "check the name of the registry and the network, or try again later".into(),
        ),
        RegistryError::Unavailable { .. } | RegistryError::Stalled { .. } => {
            (Code::Unavailable, "cannot be resolved", "try again later".into())
        }
    };
    let wait = error
        .retry_after()
        .map(|wait| u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).clamp(1, MAX_RETRY_AFTER_SECONDS));
    Denial::new(code, at, Some(text), format_args!("{rule} ({error})"), instead)
        .with_retry_after(wait)
        .with_registry_error(error.kind(), text)
}

#[cfg(test)]
mod tests {
    use oras_csi_core::manifest::PlanError;
    use rstest::rstest;

    use super::*;

    const SECRET: &str =
        "name a Secret that can pull it in oras.land/pull-secret or in the pod's imagePullSecrets";
    const ARTIFACT: At<'_> = At::Annotation("oras.land/artifact");
    const MODEL: At<'_> = At::Annotation("oras.land/artifact.model");
    const ATTRIBUTE: At<'_> = At::Attribute { volume: "v", key: "oras.artifact.reference" };
    const STEP: At<'_> =
        At::Step { recipe: RecipeAt::Annotation("oras.land/recipe"), step: crate::denial::StepAt::Number(2) };

    fn registry(error: RegistryError) -> Failure {
        Failure::Registry(Arc::new(error))
    }

    fn no_platform(available: &str) -> Failure {
        let (platform, available) = ("linux/arm64".parse().unwrap(), available.into());
        Failure::Platform(SelectError::NoPlatform { platform, available })
    }

    fn no_match() -> Failure {
        Failure::NothingToMount(NothingToMount::NoMatch { requested: "a/b".into(), found: "c/d".into() })
    }

    /// The advice is true for each cause, and names the place where the user wrote the reference.
    #[rstest]
    #[case(
        no_match(),
        MODEL,
        422,
        true,
        "it has c/d: write media types that it has as oras.land/media-types.model"
    )]
    #[case(no_match(), STEP, 422, true, "write media types that it has as mediaTypes of the step")]
    #[case(
        no_match(),
        ATTRIBUTE,
        422,
        true,
        "write media types that it has as oras.artifact.layers.mediatype"
    )]
    #[case(
        no_platform("linux/amd64"),
        ARTIFACT,
        404,
        true,
        "is an image index that has no manifest for linux/arm64; it has linux/amd64: write one of its platforms as \
         oras.land/platform, or push a manifest for this platform"
    )]
    #[case(
        no_platform("linux/amd64"),
        STEP,
        404,
        true,
        "write one of its platforms as platform of the step, or push a manifest for this platform"
    )]
    #[case(no_platform("windows/amd64"), ATTRIBUTE, 404, true, "push a manifest for a Linux platform")]
    #[case(
        Failure::NothingToMount(NothingToMount::Patch),
        ARTIFACT,
        422,
        true,
        "or a patch step of a recipe"
    )]
    #[case(
        Failure::NothingToMount(NothingToMount::EmptyIndex),
        ARTIFACT,
        422,
        false,
        "push it again with its manifests"
    )]
    #[case(Failure::NothingToMount(NothingToMount::Refused(PlanError::NoFiles { layers: "none".into() })),
        ARTIFACT, 422, false, "a patch is mounted with oras.land/patch or a patch step")]
    #[case(
        Failure::Patch(PatchError::NoLevels),
        ARTIFACT,
        422,
        false,
        "create the patch again with `oras-csi patch`"
    )]
    #[case(
        Failure::Patch(PatchError::Index),
        ARTIFACT,
        422,
        true,
        "oras.artifact.reference, or an add step)"
    )]
    #[case(registry(RegistryError::NotFound { at: "GET x".into(), words: "".into() }), ARTIFACT, 404, false, SECRET)]
    #[case(registry(RegistryError::Refused { at: "GET x".into(), status: 403, words: "".into() }), STEP, 403, false, SECRET)]
    #[case(registry(RegistryError::Refused { at: "GET x".into(), status: 401, words: "".into() }), ATTRIBUTE, 403, false,
        "name a Secret that can pull it in the volume's nodePublishSecretRef")]
    #[case(registry(RegistryError::Refused { at: "GET x".into(), status: 401, words: "".into() }),
        At::Field("spec.recipe[0]"), 403, false, "in spec.pullSecret of the set")]
    #[case(registry(RegistryError::Refused { at: "GET x".into(), status: 405, words: "".into() }), ARTIFACT, 403, false,
        "check that the host is an OCI registry, and that no proxy answers in its place")]
    #[case(registry(RegistryError::Authentication { at: "GET x".into(), words: "no token".into() }), ARTIFACT, 503, false,
        "the registry's authentication failed (GET x: no token): ask the administrator of the registry to check its \
         WWW-Authenticate header and its token service")]
    #[case(registry(RegistryError::Certificate { at: "GET x".into(), words: "expired".into() }), ARTIFACT, 503, false,
        "(GET x: expired): ask the administrator to fix the certificate or the registry configuration")]
    #[case(registry(RegistryError::NotAllowed { at: "GET x".into(), words: "no".into() }), ARTIFACT, 403, false,
        "ask the administrator to correct the registry or its hosts.toml")]
    #[case(registry(RegistryError::Untruthful { at: "GET x".into(), words: "no".into() }), ARTIFACT, 503, false,
        "check the registry, and any mirror or proxy in front of it")]
    #[case(registry(RegistryError::TooLarge { at: "GET x".into(), what: "a manifest", limit: 1 }), ARTIFACT, 422, false,
        "push it again with fewer layers or shorter annotations")]
    #[case(registry(RegistryError::Unreachable { at: "GET x".into(), words: "refused".into() }), ARTIFACT, 503, false,
        "check the name of the registry and the network, or try again later")]
    #[case(registry(RegistryError::Unavailable { at: "GET x".into(), status: 500, words: "".into() }), ARTIFACT, 503, false,
        "try again later")]
    fn a_denial_says_what_to_do(
        #[case] failure: Failure,
        #[case] at: At<'_>,
        #[case] code: u16,
        #[case] is_wrong_request: bool,
        #[case] end: &str,
    ) {
        let denial = failure.denial(at, &"r.io/a:1".parse().unwrap());
        assert_eq!((denial.code().number(), denial.is_wrong_request()), (code, is_wrong_request), "{denial}");
        assert!(denial.message().ends_with(end), "{denial}");
    }
}
