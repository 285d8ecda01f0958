//! What an error of the API server means, and how it is printed.

use std::error::Error as _;

use kube::Error;
use kube::core::Status;
use kube::core::response::reason;

/// Returns the message of the API server if it refused the request for lack of permission (401 or 403).
pub fn forbidden_message(error: &Error) -> Option<&str> {
    match error {
        Error::Api(status) if matches!(status.code, 401 | 403) => Some(&status.message),
        _ => None,
    }
}

/// Reports whether the API server answered 404: the object, its namespace or its kind does not exist.
pub fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

/// Reports whether an object of that name exists already.
pub fn is_already_exists(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.reason == reason::ALREADY_EXISTS)
}

/// Reports whether the object has changed since it was read (409).
pub fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 409)
}

/// Reports whether the same request may succeed soon: the API server is overloaded, fails or cannot be reached.
pub fn is_transient(error: &Error) -> bool {
    match error {
        Error::Api(status) => status.code >= 500 || status.code == 429,
        Error::Service(_) | Error::HyperError(_) => true,
        _ => false,
    }
}

/// Reports whether a 404 is about the kind and not about one object: the answer to a path that is not served is not a
/// `Status` with the name of an object.
pub fn is_unknown_kind(status: &Status) -> bool {
    let names_an_object = status.details.as_ref().is_some_and(|details| !details.name.is_empty());
    status.code == 404 && !(status.reason == reason::NOT_FOUND && names_an_object)
}

/// Returns the message of an error, without the debug output that kube appends to an answer of the API server.
pub fn message(error: &Error) -> String {
    match error {
        Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

/// Returns the message of an error and of its causes. The outermost message of kube alone may be no more than
/// "client error".
pub fn message_with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn status(code: u16, reason: &str) -> Error {
        let status = Status { code, reason: reason.into(), message: "no".into(), ..Status::default() };
        Error::Api(Box::new(status))
    }

    #[rstest]
    #[case(401, Some("no"))]
    #[case(403, Some("no"))]
    #[case(404, None)]
    fn a_refusal_for_lack_of_permission_gives_its_message(#[case] code: u16, #[case] message: Option<&str>) {
        assert_eq!(forbidden_message(&status(code, "")), message);
    }

    #[test]
    fn a_conflict_about_a_quota_is_not_an_object_that_exists() {
        assert!(is_already_exists(&status(409, "AlreadyExists")));
        assert!(!is_already_exists(&status(409, "Conflict")));
        assert!(is_conflict(&status(409, "Conflict")));
    }

    #[rstest]
    #[case(429, true)]
    #[case(503, true)]
    #[case(403, false)]
    fn overload_and_failures_are_transient(#[case] code: u16, #[case] transient: bool) {
        assert_eq!(is_transient(&status(code, "")), transient);
    }

    #[test]
    fn the_message_of_an_answer_has_no_debug_output() {
        assert_eq!(message(&status(403, "Forbidden")), "no");
    }
}
