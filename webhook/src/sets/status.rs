//! The next status of a set, and when its tags must be resolved again. No I/O.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use oras_csi_kube_support::conditions::{NewCondition, set_condition};

use super::object::{EarlierRecipe, SetNodes, SetStatus};
use crate::denial::Code;

/// The conditions of a set.
pub(super) const READY: &str = "Ready";
pub(super) const REFRESHED: &str = "Refreshed";
pub(super) const PRELOADED: &str = "Preloaded";

/// The reason of a condition if the user must correct the spec.
pub(super) const INVALID: &str = "InvalidSpec";

/// How many earlier recipes the status lists.
const MAX_HISTORY: usize = 10;
/// How often tags are resolved if the spec names no interval.
const DEFAULT_INTERVAL: Duration = Duration::from_mins(5);
/// The shortest interval.
const MIN_INTERVAL: Duration = Duration::from_secs(10);

/// The result of resolving the recipe of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The pinned recipe as canonical JSON.
    pub(crate) recipe: String,
    /// The id of the volume.
    pub(crate) id: String,
    /// The references with tags and digests, for people.
    pub(crate) references: Vec<String>,
}

/// When the tags of a set must be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Now: the spec is new or has changed.
    SpecChanged,
    /// Now: the interval is over.
    IntervalOver,
    /// After that time.
    In(Duration),
    /// Not before the spec changes.
    Never,
}

/// Parses an interval such as `1h30m`, in the form that the schema allows. Returns `None` for `0s`, which means never.
pub(super) fn interval(text: Option<&str>) -> Option<Duration> {
    let Some(text) = text else { return Some(DEFAULT_INTERVAL) };
    let (mut seconds, mut number) = (0_u64, 0_u64);
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' => number = number.saturating_mul(10).saturating_add(u64::from(byte - b'0')),
            b'h' => seconds = seconds.saturating_add(std::mem::take(&mut number).saturating_mul(3_600)),
            b'm' => seconds = seconds.saturating_add(std::mem::take(&mut number).saturating_mul(60)),
            b's' => seconds = seconds.saturating_add(std::mem::take(&mut number)),
            _ => return Some(DEFAULT_INTERVAL),
        }
    }
    Some(Duration::from_secs(seconds)).filter(|time| !time.is_zero()).map(|time| time.max(MIN_INTERVAL))
}

/// Returns when the tags of a set must be resolved.
pub(super) fn due(
    status: Option<&SetStatus>,
    generation: i64,
    interval: Option<Duration>,
    now: Timestamp,
) -> Due {
    let Some(status) = status.filter(|status| {
        status.recipe_generation == Some(generation) && status.observed_generation == generation
    }) else {
        return Due::SpecChanged;
    };
    let Some(interval) = interval else { return Due::Never };
    let refreshed = status.refreshed.as_deref().and_then(|time| time.parse::<Timestamp>().ok());
    let Some(refreshed) = refreshed else { return Due::IntervalOver };
    let since = now.duration_since(refreshed);
    // A clock that was set back must not stop all refreshes until it has caught up.
    let Ok(since) = Duration::try_from(since) else { return Due::IntervalOver };
    match interval.checked_sub(since).filter(|left| !left.is_zero()) {
        Some(left) => Due::In(left),
        None => Due::IntervalOver,
    }
}

/// Returns why a generation could not be resolved: the reason and the message of the condition Ready.
pub(super) fn refusal(status: &SetStatus, generation: i64) -> Option<(&str, &str)> {
    let ready = status.conditions.iter().find(|condition| condition.type_ == READY)?;
    let is_failed = ready.status == "False" && ready.observed_generation == Some(generation);
    is_failed.then_some((ready.reason.as_str(), ready.message.as_str()))
}

/// Returns the status after the tags were resolved.
pub(crate) fn resolved(
    before: Option<&SetStatus>,
    generation: i64,
    resolved: Resolved,
    now: Timestamp,
) -> SetStatus {
    let mut status = before.cloned().unwrap_or_default();
    let Resolved { recipe, id, references } = resolved;
    if status.recipe.as_ref() != Some(&recipe) {
        if let (Some(recipe), Some(since)) = (status.recipe.take(), status.since.take()) {
            let references = std::mem::take(&mut status.references);
            status.history.insert(0, EarlierRecipe { recipe, references, since });
        }
        status.since = Some(now.to_string());
    }
    status.history.retain(|earlier| earlier.recipe != recipe);
    status.history.truncate(MAX_HISTORY);
    let message = format!("resolved {} references to {id}", references.len());
    status.observed_generation = generation;
    status.recipe_generation = Some(generation);
    status.refreshed = Some(now.to_string());
    (status.recipe, status.id, status.references) = (Some(recipe), Some(id), references);
    let condition =
        |type_, message| NewCondition { type_, is_true: true, reason: "Resolved", message, generation };
    set_condition(&mut status.conditions, condition(READY, &message), now);
    set_condition(&mut status.conditions, condition(REFRESHED, "the tags were resolved"), now);
    status
}

/// Returns the status after resolving failed. Pods continue to get the recipe that this generation has.
pub(super) fn failed(
    before: Option<&SetStatus>,
    generation: i64,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> SetStatus {
    let mut status = before.cloned().unwrap_or_default();
    status.observed_generation = generation;
    let condition = |type_| NewCondition { type_, is_true: false, reason, message, generation };
    if status.recipe_generation != Some(generation) {
        set_condition(&mut status.conditions, condition(READY), now);
    }
    set_condition(&mut status.conditions, condition(REFRESHED), now);
    status
}

/// Returns the status with the number of nodes that have the set. `nodes` is `None` if no node preloads it.
pub(super) fn with_nodes(
    before: &SetStatus,
    nodes: Option<SetNodes>,
    generation: i64,
    now: Timestamp,
) -> SetStatus {
    let mut status = before.clone();
    status.nodes = nodes;
    match nodes {
        None => status.conditions.retain(|condition| condition.type_ != PRELOADED),
        Some(SetNodes { desired, ready, failed }) => {
            let (is_done, reason) = match (desired, failed) {
                (0, _) => (false, "NoNodes"),
                (_, 0) if ready == desired => (true, "Ready"),
                (_, 0) => (false, "Fetching"),
                _ => (false, "Failed"),
            };
            let message =
                format!("{ready} of {desired} nodes have it, {failed} failed: kubectl get nodeartifacts");
            let new =
                NewCondition { type_: PRELOADED, is_true: is_done, reason, message: &message, generation };
            set_condition(&mut status.conditions, new, now);
        }
    }
    status
}

/// Returns the reason of a condition: one word, as the API conventions ask for.
pub(super) fn reason_of(code: Code) -> &'static str {
    match code {
        Code::BadRequest | Code::Unprocessable => INVALID,
        Code::Forbidden => "Refused",
        Code::NotFound => "NotFound",
        Code::TooManyRequests => "RegistryBusy",
        Code::Unavailable => "RegistryUnavailable",
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use rstest::rstest;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn of(recipe: &str) -> Resolved {
        Resolved { recipe: recipe.into(), id: format!("id-{recipe}"), references: vec![recipe.into()] }
    }

    fn condition<'a>(status: &'a SetStatus, type_: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.type_ == type_).unwrap()
    }

    #[rstest]
    #[case(None, Some(300))]
    #[case(Some("30s"), Some(30))]
    #[case(Some("1h30m"), Some(5_400))]
    #[case(Some("0s"), None)]
    #[case(Some("1s"), Some(10))]
    #[case(Some("99999h99999m99999s"), Some(366_096_339))]
    fn an_interval_is_parsed(#[case] text: Option<&str>, #[case] seconds: Option<u64>) {
        assert_eq!(interval(text), seconds.map(Duration::from_secs));
    }

    #[test]
    fn tags_are_resolved_when_the_spec_changes_and_when_the_interval_is_over() {
        let minute = Some(Duration::from_mins(1));
        assert_eq!(due(None, 1, minute, at(0)), Due::SpecChanged);
        let status = resolved(None, 1, of("a"), at(0));
        assert_eq!(due(Some(&status), 1, minute, at(20)), Due::In(Duration::from_secs(40)));
        assert_eq!(due(Some(&status), 1, minute, at(60)), Due::IntervalOver);
        assert_eq!(due(Some(&status), 1, minute, at(-5)), Due::IntervalOver, "the clock was set back");
        assert_eq!(due(Some(&status), 1, None, at(600)), Due::Never);
        assert_eq!(due(Some(&status), 2, None, at(20)), Due::SpecChanged);
        let status = failed(Some(&status), 2, "Registry", "unreachable", at(30));
        assert_eq!(due(Some(&status), 2, None, at(30)), Due::SpecChanged);
    }

    #[test]
    fn a_failed_refresh_leaves_the_recipe_of_the_same_generation() {
        let good = resolved(None, 1, of("a"), at(0));
        let bad = failed(Some(&good), 1, "Registry", "unreachable", at(60));
        assert_eq!((&bad.recipe, &bad.refreshed), (&good.recipe, &good.refreshed));
        assert_eq!(condition(&bad, READY), condition(&good, READY));
        let refreshed = condition(&bad, REFRESHED);
        assert_eq!((refreshed.status.as_str(), refreshed.message.as_str()), ("False", "unreachable"));
        assert_eq!(refusal(&bad, 1), None);
        // The same failure again does not change the status, so nothing is written.
        assert_eq!(failed(Some(&bad), 1, "Registry", "unreachable", at(120)), bad);

        let changed = failed(Some(&good), 2, INVALID, "cannot be read", at(60));
        assert_eq!(refusal(&changed, 2), Some((INVALID, "cannot be read")));
        assert_eq!((changed.recipe_generation, changed.observed_generation), (Some(1), 2));
        let corrected = resolved(Some(&changed), 3, of("b"), at(90));
        assert_eq!(condition(&corrected, READY).status, "True");
        assert_eq!(condition(&corrected, READY).last_transition_time, Time(at(90)));
    }

    #[test]
    fn earlier_recipes_are_listed_newest_first() {
        let mut status = resolved(None, 1, of("0"), at(0));
        for number in 1..=12 {
            status = resolved(Some(&status), 1, of(&number.to_string()), at(number));
        }
        let recipes: Vec<&str> = status.history.iter().map(|earlier| earlier.recipe.as_str()).collect();
        assert_eq!(recipes, ["11", "10", "9", "8", "7", "6", "5", "4", "3", "2"]);
        assert_eq!(status.history[0].since, at(11).to_string());
        assert_eq!(status.history[0].references, of("11").references);
        let back = resolved(Some(&status), 1, of("11"), at(20));
        assert_eq!(back.history[0].recipe, "12");
        assert!(back.history.iter().all(|earlier| earlier.recipe != "11"));
        let same = resolved(Some(&back), 1, of("11"), at(30));
        assert_eq!((&same.history, &same.since), (&back.history, &back.since));
    }

    #[rstest]
    #[case(3, 3, 0, "True")]
    #[case(3, 2, 0, "False")]
    #[case(3, 2, 1, "False")]
    #[case(0, 0, 0, "False")]
    fn nodes_are_counted(#[case] desired: u32, #[case] ready: u32, #[case] failed: u32, #[case] done: &str) {
        let nodes = Some(SetNodes { desired, ready, failed });
        let status = with_nodes(&resolved(None, 1, of("a"), at(0)), nodes, 1, at(1));
        assert_eq!((condition(&status, PRELOADED).status.as_str(), status.nodes), (done, nodes));
        let status = with_nodes(&status, None, 1, at(2));
        assert!(status.nodes.is_none() && status.conditions.iter().all(|one| one.type_ != PRELOADED));
    }
}
