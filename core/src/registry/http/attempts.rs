//! The order in which the endpoints of a registry are tried, and the time that each of them gets.
//!
//! Any failure of a mirror leads to the next endpoint, as in containerd: a mirror may lack the content, require
//! credentials or send wrong data. A mirror that does not answer must leave time for the next endpoint. It is then tried
//! after the others for 30 s ([`FailedEndpoints`](super::failed_endpoints::FailedEndpoints)), so that not every request
//! waits for it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::failed_endpoints::{AVOIDED_FOR, EndpointKey};
use super::route::{Attempt, Capability, Route};
use crate::registry::address::origin;
use crate::registry::error::{RegistryError, RegistryErrorKind};
use crate::registry::hosts::Endpoint;
use crate::registry::transport::{NO_CONNECTION, NO_SLOT};

/// A connection that fails after this time costs as much as one that does not answer. A connection that is refused costs
/// nothing, so the endpoint stays in its place.
const SLOW_FAILURE: Duration = Duration::from_secs(1);
/// How many failures of mirrors an error names.
const MAX_NAMED_MIRRORS: usize = 2;
/// How many characters of the failures of mirrors an error has, without their names.
const MAX_MIRROR_CHARS: usize = 120;

/// The time that the endpoints of a registry get.
#[derive(Clone, Copy, Debug)]
pub(super) struct EndpointTimeouts {
    /// The time for a connection to the only endpoint, or to the last one.
    pub(super) connect: Duration,
    /// The time for a connection to another endpoint.
    pub(super) mirror_connect: Duration,
    /// How long the caller waits, if that is shorter than the operation may take.
    pub(super) caller: Option<Duration>,
}

/// The endpoints of a registry in the order in which they are tried, and how they failed.
pub(super) struct Attempts<'a> {
    route: &'a Route,
    capability: Capability,
    /// The position of the last endpoint with the capability.
    last: Option<usize>,
    /// The positions of the endpoints that are still to be tried.
    pending: VecDeque<usize>,
    /// The positions of the endpoints that did not answer in the last 30 s.
    avoided: Vec<usize>,
    failures: Vec<Failed>,
    has_second_chance: bool,
}

struct Failed {
    position: usize,
    error: RegistryError,
    /// Whether the endpoint had only a part of the time.
    was_hurried: bool,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(route: &'a Route, capability: Capability) -> Self {
        let is_capable = |endpoint: &Endpoint| match capability {
            Capability::Pull => endpoint.pulls(),
            Capability::Resolve => endpoint.pulls() && endpoint.resolves(),
            Capability::Push => endpoint.pushes(),
        };
        let endpoints = route.endpoints.iter().enumerate();
        let mut capable: Vec<usize> =
            endpoints.filter(|(_, endpoint)| is_capable(endpoint)).map(|(position, _)| position).collect();
        let last = capable.last().copied();
        let now = Instant::now();
        let has_order = capable.len() > 1 && capability != Capability::Push;
        let is_avoided = |position: &usize| {
            let keys = [key(route, *position, true), key(route, *position, false)];
            has_order && keys.iter().any(|key| route.failed.is_avoided(key, now))
        };
        let avoided: Vec<usize> = capable.iter().copied().filter(is_avoided).collect();
        if avoided.len() < capable.len() {
            // The sort is stable, so the order of the file remains within both parts.
            capable.sort_by_key(|position| avoided.contains(position));
        }
        let pending = capable.into();
        let has_second_chance = has_order;
        Self { route, capability, last, pending, avoided, failures: Vec::new(), has_second_chance }
    }

    /// Returns the next endpoint.
    pub(super) fn next(&mut self) -> Option<Attempt<'a>> {
        let Some(position) = self.pending.pop_front() else { return self.second_chance() };
        let route = self.route;
        let has_answer = self.has_answer();
        let is_avoided = self.avoided.contains(&position);
        let only_avoided_follow = self.pending.iter().all(|next| self.avoided.contains(next));
        let is_final = self.pending.is_empty();
        // An endpoint that did not answer before must not delay the answer of another one.
        let has_all_time = (only_avoided_follow && !is_avoided) || (is_final && !has_answer);
        let is_patient = self.last == Some(position) && !has_answer && !is_avoided;
        let now = Instant::now();
        let share = self.callers_deadline().saturating_duration_since(now) / 2;
        Some(Attempt {
            route,
            endpoint: &route.endpoints[position],
            position,
            is_last: has_all_time,
            connect_timeout: if is_patient { route.timeouts.connect } else { route.timeouts.mirror_connect },
            started: now,
            deadline: if has_all_time { route.deadline } else { now + share },
        })
    }

    /// Returns the last endpoint in the order of the file, with all remaining time.
    pub(super) fn last(&self) -> Option<Attempt<'a>> {
        let (route, position) = (self.route, self.last?);
        Some(Attempt {
            route,
            endpoint: &route.endpoints[position],
            position,
            is_last: true,
            connect_timeout: route.timeouts.connect,
            started: Instant::now(),
            deadline: route.deadline,
        })
    }

    /// Returns the first endpoint that was given up early, with the rest of the time, if no endpoint answered: a mirror
    /// can be slow and still be the only endpoint that is reachable.
    fn second_chance(&mut self) -> Option<Attempt<'a>> {
        if !std::mem::take(&mut self.has_second_chance) || self.has_answer() {
            return None;
        }
        let (route, now, deadline) = (self.route, Instant::now(), self.callers_deadline());
        let position =
            self.failures.iter().filter(|failed| failed.was_hurried).map(|failed| failed.position).min()?;
        (now < deadline).then(|| Attempt {
            route,
            endpoint: &route.endpoints[position],
            position,
            is_last: false,
            connect_timeout: route.timeouts.connect,
            started: now,
            deadline,
        })
    }

    /// Returns the result of an endpoint, or remembers its failure.
    pub(super) fn record<T>(&mut self, attempt: &Attempt<'_>, result: Result<T, RegistryError>) -> Option<T> {
        let error = match result {
            Ok(found) => {
                self.forget(attempt.position);
                return Some(found);
            }
            Err(error) => error,
        };
        let now = Instant::now();
        let is_slow = match &error {
            // The client itself had too many requests in progress.
            RegistryError::Stalled { what, .. } => !what.as_str().starts_with(NO_SLOT),
            RegistryError::Unreachable { .. } => {
                now.saturating_duration_since(attempt.started) >= SLOW_FAILURE
            }
            _ => false,
        };
        let is_connected = matches!(&error, RegistryError::Stalled { what, .. } if !what.as_str().starts_with(NO_CONNECTION));
        let failed = &self.route.failed;
        if is_slow && self.capability != Capability::Push && self.route.endpoints.len() > 1 {
            if failed.record(key(self.route, attempt.position, !is_connected), now) {
                let (endpoint, error) =
                    (origin(attempt.endpoint.base()), self.route.redactor().redact(error.clone()));
                let seconds = AVOIDED_FOR.as_secs();
                tracing::warn!(registry = %self.route.registry, endpoint, %error,
                    "an endpoint does not answer: it is tried after the others for {seconds} s");
            }
        } else if !is_silent(&error) {
            self.forget(attempt.position);
        }
        let was_hurried = error.kind() == RegistryErrorKind::Stalled
            && (!attempt.is_last || attempt.connect_timeout < self.route.timeouts.connect);
        self.failures.retain(|failed| failed.position != attempt.position);
        self.failures.push(Failed { position: attempt.position, error, was_hurried });
        None
    }

    /// Returns the error of the operation after all endpoints failed: that of the last endpoint in the order of the file,
    /// with what the mirrors answered. The kind of the last endpoint counts: while the registry itself cannot be reached,
    /// a mirror that refuses does not say whether the registry would.
    pub(super) fn into_error(self) -> RegistryError {
        let route = self.route;
        let redactor = route.redactor();
        let mut failures = self.failures;
        failures.sort_by_key(|failed| failed.position);
        let Some(last) = failures.pop() else {
            let needed = match self.capability {
                Capability::Pull => "pull",
                Capability::Resolve => "pull and resolve",
                Capability::Push => "push",
            };
            return route.label().not_allowed(format!(
                "the registry's hosts.toml has no host with the capability to {needed}: add it to `capabilities`"
            ));
        };
        let last = redactor.redact(last.error);
        let mut mirrors = Vec::new();
        for Failed { position, error, .. } in failures {
            let error = redactor.redact(error);
            tracing::warn!(registry = %route.registry, %error, "a mirror failed; trying the next endpoint");
            if error.kind() != RegistryErrorKind::NotFound || last.kind() != RegistryErrorKind::NotFound {
                mirrors.push((origin(route.endpoints[position].base()), error));
            }
        }
        let more = mirrors.len().saturating_sub(MAX_NAMED_MIRRORS);
        mirrors.truncate(MAX_NAMED_MIRRORS);
        let max_chars = MAX_MIRROR_CHARS / mirrors.len().max(1);
        let named = |(host, error): &(String, RegistryError)| {
            format!("mirror {host}: {}", shortened(error, max_chars))
        };
        let mut mirrors: Vec<String> = mirrors.iter().map(named).collect();
        if more > 0 {
            mirrors.push(format!("and {more} more"));
        }
        if mirrors.is_empty() { last } else { last.with_note(&mirrors.join("; ")) }
    }

    /// Records that an endpoint answered.
    fn forget(&self, position: usize) {
        for is_whole in [true, false] {
            self.route.failed.forget(&key(self.route, position, is_whole));
        }
    }

    /// Reports whether an endpoint answered, whatever the answer was.
    fn has_answer(&self) -> bool {
        self.failures.iter().any(|failed| !is_silent(&failed.error))
    }

    fn callers_deadline(&self) -> Instant {
        self.route.callers_deadline().unwrap_or(self.route.deadline)
    }
}

/// Reports whether there was no complete answer.
fn is_silent(error: &RegistryError) -> bool {
    matches!(error.kind(), RegistryErrorKind::Stalled | RegistryErrorKind::Unreachable)
}

/// Returns the key of an endpoint: for all repositories, or for the one of this operation.
fn key(route: &Route, position: usize, is_whole: bool) -> EndpointKey {
    EndpointKey {
        registry: route.registry.clone(),
        base: route.endpoints[position].base().to_string(),
        repository: (!is_whole).then(|| route.repository.clone()),
    }
}

/// Returns the text of an error without its request, cut to `max_chars` characters.
fn shortened(error: &RegistryError, max_chars: usize) -> String {
    let text = error.to_string();
    let text = text.strip_prefix(error.request()).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&text);
    if text.chars().count() <= max_chars {
        return text.to_owned();
    }
    text.chars().take(max_chars).chain(['…']).collect()
}
