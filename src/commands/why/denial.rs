//! What a refusal of the API server to create a pod means: which step it belongs to, and what to do.

use crate::cluster::format::shown;
use crate::exit_status::ExitStatus;

/// The longest refusal that is shown. The denials of the webhook have at most 2,000 characters, and events 1,024.
const MAX_CHARS: usize = 1_024;

/// The step at which the API server refused a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Annotation,
    Admission,
    Policy,
    Digest,
    Credential,
    /// Another component than oras-csi refused: a quota, another webhook.
    Other,
}

/// A refusal to create a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) place: Place,
    pub(crate) message: String,
    pub(crate) status: ExitStatus,
}

impl Refusal {
    /// Reads the message of a FailedCreate event.
    pub(crate) fn of(event: &str) -> Self {
        let is_ours =
            event.contains("csi.oras.land\"") || event.contains("ValidatingAdmissionPolicy 'oras-csi-");
        let denied =
            event.split_once("denied the request: ").or_else(|| event.split_once("denied request: "));
        let text = denied.map_or(event, |(_, message)| message);
        let message = long(text);
        let (place, status) = match () {
            () if !is_ours => (Place::Other, ExitStatus::Failed),
            () if event.contains("failed calling webhook") => (Place::Admission, ExitStatus::Failed),
            () if event.contains("ValidatingAdmissionPolicy 'oras-csi-") => {
                (Place::Admission, ExitStatus::Failed)
            }
            () => place_of(text),
        };
        Self { place, message, status }
    }
}

/// Returns the step of a denial of the webhook, by the words of `webhook/src/policy/`, `webhook/src/resolve/failure.rs` and
/// `webhook/src/credentials/`.
fn place_of(text: &str) -> (Place, ExitStatus) {
    let has = |words: &[&str]| words.iter().any(|words| text.contains(words));
    if has(&[
        "is refused by ArtifactPolicy",
        "is refused by --allow-registry",
        "is selected by no ArtifactPolicy",
        "is selected by ArtifactPolicy",
    ]) {
        (Place::Policy, ExitStatus::Denied)
    } else if has(&["that the webhook has not read yet", "has labels that cannot be read"]) {
        (Place::Policy, ExitStatus::Failed)
    } else if has(&["names a Secret that cannot be used"]) {
        (Place::Credential, ExitStatus::BadInput)
    } else if has(&["the registry denied access"]) {
        (Place::Credential, ExitStatus::Failed)
    } else if has(&["is an image index", "has no layer", "nothing to mount"]) {
        (Place::Digest, ExitStatus::BadInput)
    } else if has(&["does not exist", "cannot be pulled", "cannot be resolved", "too many requests"]) {
        (Place::Digest, ExitStatus::Failed)
    } else {
        (Place::Annotation, ExitStatus::BadInput)
    }
}

/// Returns a long message without control characters. [`shown`] cuts after 300 characters, and these say what to do at the end.
pub(crate) fn long(text: &str) -> String {
    let mut rest = text;
    let mut message = String::new();
    while !rest.is_empty() && message.chars().count() < MAX_CHARS {
        let end = rest.char_indices().nth(200).map_or(rest.len(), |(end, _)| end);
        // At the end of a word, because white space at both ends of a part is dropped.
        let end = if end < rest.len() { rest[..end].rfind(' ').map_or(end, |space| space + 1) } else { end };
        let (part, more) = rest.split_at(end);
        let part = shown(part);
        if !message.is_empty() && !part.is_empty() {
            message.push(' ');
        }
        message.push_str(&part);
        rest = more;
    }
    message
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const DENIED: &str = "Error creating: admission webhook \"pods.csi.oras.land\" denied the request: ";

    #[rstest]
    #[case(
        "annotation oras.land/artifact: \"a.b/c:1\" is refused by ArtifactPolicy team, rule registries.deny (x): y",
        Place::Policy,
        ExitStatus::Denied
    )]
    #[case(
        "annotation oras.land/artifact: \"a.b/c:1\" does not exist: push it",
        Place::Digest,
        ExitStatus::Failed
    )]
    #[case(
        "annotation oras.land/artifact: \"a.b/c:1\" cannot be pulled: the registry denied access: name a Secret",
        Place::Credential,
        ExitStatus::Failed
    )]
    #[case(
        "annotation oras.land/artifact: \"a.b/c:1\" cannot be resolved: no answer: try again later",
        Place::Digest,
        ExitStatus::Failed
    )]
    #[case(
        "annotation oras.land/pull-secret: \"s\" names a Secret that cannot be used: it does not exist: create it",
        Place::Credential,
        ExitStatus::BadInput
    )]
    #[case(
        "annotation oras.land/mount-path: \"mnt\" is not an absolute path: write /mnt",
        Place::Annotation,
        ExitStatus::BadInput
    )]
    fn a_denial_belongs_to_a_step(#[case] denial: &str, #[case] place: Place, #[case] status: ExitStatus) {
        let refusal = Refusal::of(&format!("{DENIED}{denial}"));
        assert_eq!(refusal, Refusal { place, status, message: denial.to_owned() });
    }

    #[test]
    fn a_webhook_that_does_not_answer_is_no_denial() {
        let text = "Error creating: Internal error occurred: failed calling webhook \"pods.csi.oras.land\": failed to call \
                    webhook: Post \"https://oras-csi-webhook.oras-csi-system.svc:443/mutate\": connection refused";
        assert_eq!(Refusal::of(text).place, Place::Admission);
        let text = "Error creating: pods \"web\" is forbidden: ValidatingAdmissionPolicy 'oras-csi-annotations' with binding \
                    'x' denied request: an annotation requests an artifact";
        assert_eq!(
            (Refusal::of(text).place, Refusal::of(text).message.as_str()),
            (Place::Admission, "an annotation requests an artifact")
        );
        let text = "Error creating: pods \"web-1\" is forbidden: exceeded quota: team";
        assert_eq!((Refusal::of(text).place, Refusal::of(text).message.as_str()), (Place::Other, text));
    }

    #[test]
    fn a_long_message_is_whole_and_has_no_control_characters() {
        let words = "word ".repeat(150);
        assert_eq!(long(&format!("{words}\u{1b}[2J end")), format!("{words}end"));
        assert!(long(&"x".repeat(100_000)).chars().count() <= MAX_CHARS + 200);
        assert!(!long(&"\u{202e}\u{0}\n".repeat(1_000)).contains(char::is_control));
    }
}
