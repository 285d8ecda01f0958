//! Admission requests by outcome. The counters exist from the start, so that a request neither allocates nor looks up.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::Labels;
use crate::denial::Code;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RequestOutcome {
    /// Allowed without a change: the object requests no artifact.
    Untouched,
    /// Allowed with a patch.
    Patched,
    /// Allowed without a change: the object is complete already.
    Unchanged,
    /// Allowed with a warning: the pods of a workload will be denied.
    Warned,
    /// Denied, with the code of the denial.
    Denied(Code),
    /// Answered with an HTTP error: the request is not a valid AdmissionReview.
    Unreadable,
    /// Rejected because too many requests were in progress.
    Overload,
    /// The handler panicked: a bug.
    Crashed,
}

impl RequestOutcome {
    const ALL: [Self; 13] = [
        Self::Untouched,
        Self::Patched,
        Self::Unchanged,
        Self::Warned,
        Self::Unreadable,
        Self::Overload,
        Self::Crashed,
        Self::Denied(Code::BadRequest),
        Self::Denied(Code::Forbidden),
        Self::Denied(Code::NotFound),
        Self::Denied(Code::Unprocessable),
        Self::Denied(Code::TooManyRequests),
        Self::Denied(Code::Unavailable),
    ];

    /// Returns the values of the labels `outcome` and `code`. The code is that of the answer to the user.
    fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Untouched => ("untouched", "200"),
            Self::Patched => ("patched", "200"),
            Self::Unchanged => ("unchanged", "200"),
            Self::Warned => ("warned", "200"),
            Self::Denied(Code::BadRequest) => ("denied", "400"),
            Self::Denied(Code::Forbidden) => ("denied", "403"),
            Self::Denied(Code::NotFound) => ("denied", "404"),
            Self::Denied(Code::Unprocessable) => ("denied", "422"),
            Self::Denied(Code::TooManyRequests) => ("denied", "429"),
            Self::Denied(Code::Unavailable) => ("denied", "503"),
            Self::Unreadable => ("unreadable", "400"),
            Self::Overload => ("overload", "503"),
            Self::Crashed => ("crashed", "500"),
        }
    }
}

/// The counters of requests.
#[derive(Debug)]
pub(super) struct Requests([(RequestOutcome, Counter); RequestOutcome::ALL.len()]);

impl Requests {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let family = Family::<Labels<2>, Counter>::default();
        registry.register(
            "requests",
            "Admission requests, by outcome and code of the answer",
            family.clone(),
        );
        Self(RequestOutcome::ALL.map(|outcome| {
            let (word, code) = outcome.labels();
            (outcome, family.get_or_create_owned(&[("outcome", word), ("code", code)]))
        }))
    }

    pub(super) fn count(&self, outcome: RequestOutcome) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == outcome) {
            counter.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_denials() {
        for outcome in RequestOutcome::ALL {
            if let RequestOutcome::Denied(code) = outcome {
                assert_eq!(outcome.labels(), ("denied", code.number().to_string().as_str()));
            }
        }
    }
}
