//! The policies of one request, with what they found so far.

use crate::denial::Denial;
use crate::intent::Named;
use crate::metrics::Metrics;
use crate::policy::ApplicablePolicies;
use crate::policy::evaluate::Findings;

/// The policies that select the namespace, and the warnings and audit notes so far.
#[derive(Clone)]
pub(super) struct PolicyChecks<'a> {
    pub(super) book: &'a ApplicablePolicies,
    pub(super) metrics: &'a Metrics,
    pub(super) findings: Findings,
}

impl<'a> PolicyChecks<'a> {
    pub(super) fn new(book: &'a ApplicablePolicies, metrics: &'a Metrics) -> Self {
        Self { book, metrics, findings: Findings::default() }
    }

    /// Checks registries, repositories and tags. The first reference that a policy denies ends the request.
    pub(super) fn check_names(&mut self, names: impl IntoIterator<Item = Named>) -> Result<(), Denial> {
        for named in names {
            self.findings.check_name(self.book, &named, self.metrics)?;
        }
        Ok(())
    }
}
