//! What is known of the live webhook configuration, and whether it trusts a certificate.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::configuration::Configuration;
use super::plan::injector;
use crate::bundle::Bundle;
use crate::readiness::Check;

/// What is known of the live webhook configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Live {
    kind: &'static str,
    name: String,
    state: State,
    trouble: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// It has not been read yet.
    Unknown,
    /// There is none of this name.
    Missing,
    /// It is there.
    Found { webhooks: Vec<Webhook>, injector: Option<&'static str>, expects_us: bool },
}

#[derive(Clone, Debug, PartialEq)]
struct Webhook {
    name: String,
    bundle: Bundle,
}

impl Live {
    /// The configuration `name` has not been read yet.
    pub(crate) fn unknown<C: Configuration>(name: &str) -> Self {
        Self::of::<C>(name, State::Unknown)
    }

    /// There is no configuration `name`.
    pub(crate) fn missing<C: Configuration>(name: &str) -> Self {
        Self::of::<C>(name, State::Missing)
    }

    /// The configuration `name` as it was read; `expects_us` when we have a bundle to put there.
    pub(crate) fn found<C: Configuration>(name: &str, configuration: &C, expects_us: bool) -> Self {
        let entries = configuration.entries();
        let webhooks =
            entries.map(|entry| Webhook { name: entry.name.to_owned(), bundle: entry.bundle }).collect();
        Self::of::<C>(name, State::Found { webhooks, injector: injector(configuration), expects_us })
    }

    /// Notes what goes wrong with reading or writing it; true if that is news.
    pub(crate) fn set_trouble(&mut self, trouble: String) -> bool {
        let news = self.trouble.as_ref() != Some(&trouble);
        self.trouble = Some(trouble);
        news
    }

    fn of<C: Configuration>(name: &str, state: State) -> Self {
        Self { kind: C::KIND, name: name.to_owned(), state, trouble: None }
    }
}

/// Whether the API server, going by the live configuration, accepts `chain` at `now`.
pub(crate) fn judge(live: &Live, chain: &[CertificateDer<'_>], now: SystemTime) -> Check {
    let Live { kind, name, .. } = live;
    let trouble = live.trouble.as_ref().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
    let failed = |why: String| Check::failed(format!("{kind} {name}: {why}{trouble}"));
    let (webhooks, injector, expects_us) = match &live.state {
        State::Unknown => return failed("not read yet".to_owned()),
        State::Missing => return failed("there is none of this name yet; waiting for it".to_owned()),
        State::Found { webhooks, injector, expects_us } => (webhooks, injector, *expects_us),
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
                None if expects_us => return failed(format!("the caBundle of {hook} is not set yet")),
                // The API server then goes by the roots of its system, which we cannot see.
                None => {}
            }
        } else if let Err(reason) = webhook.bundle.vouches_for(chain, now) {
            return failed(format!(
                "the caBundle of {hook} does not trust the serving certificate: {reason}"
            ));
        }
    }
    Check::passed(format!("{kind} {name} trusts the serving certificate"))
}

/// Whether [`judge`] passes.
pub(crate) fn trusts(live: &Live, chain: &[CertificateDer<'_>], now: SystemTime) -> bool {
    judge(live, chain, now).is_ok()
}
