//! The webhook configuration as it was last read from the API server, and whether it trusts a certificate.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::plan::injector;
use super::webhook_configuration::WebhookConfiguration;
use crate::ca_bundle::CaBundle;
use crate::readiness::Check;

/// A webhook configuration as it was last read from the API server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ObservedConfiguration {
    kind: &'static str,
    name: String,
    state: State,
    problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// It has not been read yet.
    Unknown,
    /// There is no configuration of this name.
    Missing,
    /// It exists.
    Found { webhooks: Vec<Webhook>, injector: Option<&'static str>, expects_bundle: bool },
}

#[derive(Clone, Debug, PartialEq)]
struct Webhook {
    name: String,
    bundle: CaBundle,
}

impl ObservedConfiguration {
    /// The configuration `name` has not been read yet.
    pub(crate) fn unknown<C: WebhookConfiguration>(name: &str) -> Self {
        Self::of::<C>(name, State::Unknown)
    }

    /// There is no configuration `name`.
    pub(crate) fn missing<C: WebhookConfiguration>(name: &str) -> Self {
        Self::of::<C>(name, State::Missing)
    }

    /// The configuration `name` as it was read. `expects_bundle` is true if this process has a bundle to
    /// write into it.
    pub(crate) fn found<C: WebhookConfiguration>(
        name: &str,
        configuration: &C,
        expects_bundle: bool,
    ) -> Self {
        let entries = configuration.entries();
        let webhooks =
            entries.map(|entry| Webhook { name: entry.name.to_owned(), bundle: entry.bundle }).collect();
        Self::of::<C>(name, State::Found { webhooks, injector: injector(configuration), expects_bundle })
    }

    /// Records why it cannot be read or written. Returns true if that is another problem than the last one.
    pub(crate) fn set_problem(&mut self, problem: String) -> bool {
        let is_new = self.problem.as_ref() != Some(&problem);
        self.problem = Some(problem);
        is_new
    }

    fn of<C: WebhookConfiguration>(name: &str, state: State) -> Self {
        Self { kind: C::KIND, name: name.to_owned(), state, problem: None }
    }
}

/// Checks whether the API server accepts `chain` at `now`, according to the configuration.
pub(crate) fn check_trust(
    observed: &ObservedConfiguration,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Check {
    let ObservedConfiguration { kind, name, .. } = observed;
    let problem = observed.problem.as_ref().map(|problem| format!(" ({problem})")).unwrap_or_default();
    let failed = |why: String| Check::failed(format!("{kind} {name}: {why}{problem}"));
    let (webhooks, injector, expects_bundle) = match &observed.state {
        State::Unknown => return failed("it has not been read yet".to_owned()),
        State::Missing => return failed("it does not exist yet; waiting for it".to_owned()),
        State::Found { webhooks, injector, expects_bundle } => (webhooks, injector, *expects_bundle),
    };
    if webhooks.is_empty() {
        return failed("it has no webhooks".to_owned());
    }
    for webhook in webhooks {
        let hook = &webhook.name;
        if webhook.bundle.is_empty() {
            match injector {
                Some(annotation) => {
                    return failed(format!(
                        "the caBundle of {hook} is empty; waiting for cert-manager ({annotation})"
                    ));
                }
                None if expects_bundle => return failed(format!("the caBundle of {hook} is not set yet")),
                // The API server then uses the root certificates of its system, which are not known here.
                None => {}
            }
        } else if let Err(reason) = webhook.bundle.verify_chain(chain, now) {
            return failed(format!(
                "the caBundle of {hook} does not trust the serving certificate: {reason}"
            ));
        }
    }
    Check::passed(format!("{kind} {name} trusts the serving certificate"))
}

/// Reports whether [`check_trust`] passes.
pub(crate) fn is_trusted(
    observed: &ObservedConfiguration,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> bool {
    check_trust(observed, chain, now).is_ok()
}
