//! What the status of a set says next, and when its tags are due. Pure.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::object::{EarlierRecipe, SetNodes, SetStatus};
use crate::denial::Code;

/// The conditions of a set.
pub(super) const READY: &str = "Ready";
pub(super) const REFRESHED: &str = "Refreshed";
pub(super) const PRELOADED: &str = "Preloaded";

/// The reason where a spec has to be rewritten.
pub(super) const INVALID: &str = "InvalidSpec";

/// How many earlier recipes are kept.
const MOST_EARLIER: usize = 10;
/// How often tags are looked up where nothing is written.
const USUAL_INTERVAL: Duration = Duration::from_mins(5);
/// The shortest time between two looks.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(10);

/// What a recipe of a set came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Canonical JSON.
    pub(crate) recipe: String,
    pub(crate) id: String,
    /// With tags and digests, for people.
    pub(crate) references: Vec<String>,
}

/// When tags are to be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The spec is new or was changed.
    Changed,
    /// The interval is over.
    Over,
    /// After that time.
    In(Duration),
    /// Not before the spec is changed.
    Never,
}

/// The time in whole seconds, which is what comes back from the API server.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// `1h30m`, as the schema has it; `None` for never.
pub(super) fn interval(text: Option<&str>) -> Option<Duration> {
    let Some(text) = text else { return Some(USUAL_INTERVAL) };
    let (mut seconds, mut number) = (0_u64, 0_u64);
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' => number = number.saturating_mul(10).saturating_add(u64::from(byte - b'0')),
            b'h' => seconds = seconds.saturating_add(std::mem::take(&mut number).saturating_mul(3_600)),
            b'm' => seconds = seconds.saturating_add(std::mem::take(&mut number).saturating_mul(60)),
            b's' => seconds = seconds.saturating_add(std::mem::take(&mut number)),
            _ => return Some(USUAL_INTERVAL),
        }
    }
    Some(Duration::from_secs(seconds)).filter(|time| !time.is_zero()).map(|time| time.max(SHORTEST_INTERVAL))
}

/// When the tags of a set are to be looked up.
pub(super) fn due(
    status: Option<&SetStatus>,
    generation: i64,
    interval: Option<Duration>,
    now: Timestamp,
) -> Due {
    let Some(status) = status.filter(|status| {
        status.recipe_generation == Some(generation) && status.observed_generation == generation
    }) else {
        return Due::Changed;
    };
    let Some(interval) = interval else { return Due::Never };
    let refreshed = status.refreshed.as_deref().and_then(|time| time.parse::<Timestamp>().ok());
    let Some(refreshed) = refreshed else { return Due::Over };
    let since = now.duration_since(refreshed);
    // A clock that was set back must not stop all looks until it has caught up.
    let Ok(since) = Duration::try_from(since) else { return Due::Over };
    match interval.checked_sub(since).filter(|left| !left.is_zero()) {
        Some(left) => Due::In(left),
        None => Due::Over,
    }
}

/// Why a generation cannot be had: the reason and the message of its condition Ready.
pub(super) fn refusal(status: &SetStatus, generation: i64) -> Option<(&str, &str)> {
    let ready = status.conditions.iter().find(|condition| condition.type_ == READY)?;
    let is_no = ready.status == "False" && ready.observed_generation == Some(generation);
    is_no.then_some((ready.reason.as_str(), ready.message.as_str()))
}

/// The status once tags were looked up.
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
    status.history.truncate(MOST_EARLIER);
    let message = format!("{} of {} references", id, references.len());
    status.observed_generation = generation;
    status.recipe_generation = Some(generation);
    status.refreshed = Some(now.to_string());
    (status.recipe, status.id, status.references) = (Some(recipe), Some(id), references);
    say(&mut status, READY, true, "Resolved", &message, generation, now);
    say(&mut status, REFRESHED, true, "Resolved", "the tags were looked up", generation, now);
    status
}

/// The status once looking up failed: what pods of this generation had, they have.
pub(super) fn failed(
    before: Option<&SetStatus>,
    generation: i64,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> SetStatus {
    let mut status = before.cloned().unwrap_or_default();
    status.observed_generation = generation;
    if status.recipe_generation != Some(generation) {
        say(&mut status, READY, false, reason, message, generation, now);
    }
    say(&mut status, REFRESHED, false, reason, message, generation, now);
    status
}

/// The status with how far nodes are; `None` where none fetches the set ahead of use.
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
            let words =
                format!("{ready} of {desired} nodes have it, {failed} failed: kubectl get nodeartifacts");
            say(&mut status, PRELOADED, is_done, reason, &words, generation, now);
        }
    }
    status
}

/// The reason of a condition: one word, as the API conventions want it.
pub(super) fn reason_of(code: Code) -> &'static str {
    match code {
        Code::BadRequest | Code::Unprocessable => INVALID,
        Code::Forbidden => "Refused",
        Code::NotFound => "NotFound",
        Code::TooManyRequests => "RegistryBusy",
        Code::Unavailable => "RegistryUnavailable",
    }
}

fn say(
    status: &mut SetStatus,
    type_: &str,
    is_true: bool,
    reason: &str,
    message: &str,
    generation: i64,
    now: Timestamp,
) {
    let text = if is_true { "True" } else { "False" };
    let old = status.conditions.iter_mut().find(|condition| condition.type_ == type_);
    let since = old.as_ref().filter(|old| old.status == text).map(|old| old.last_transition_time.clone());
    let new = Condition {
        type_: type_.to_owned(),
        status: text.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: Some(generation),
        last_transition_time: since.unwrap_or(Time(now)),
    };
    match old {
        Some(old) => *old = new,
        None => status.conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
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
    fn an_interval_is_read(#[case] text: Option<&str>, #[case] seconds: Option<u64>) {
        assert_eq!(interval(text), seconds.map(Duration::from_secs));
    }

    #[test]
    fn tags_are_due_when_the_spec_changes_and_when_the_interval_is_over() {
        let minute = Some(Duration::from_mins(1));
        assert_eq!(due(None, 1, minute, at(0)), Due::Changed);
        let status = resolved(None, 1, of("a"), at(0));
        assert_eq!(due(Some(&status), 1, minute, at(20)), Due::In(Duration::from_secs(40)));
        assert_eq!(due(Some(&status), 1, minute, at(60)), Due::Over);
        assert_eq!(due(Some(&status), 1, minute, at(-5)), Due::Over, "the clock was set back");
        assert_eq!(due(Some(&status), 1, None, at(600)), Due::Never);
        assert_eq!(due(Some(&status), 2, None, at(20)), Due::Changed);
        let status = failed(Some(&status), 2, "Registry", "is away", at(30));
        assert_eq!(due(Some(&status), 2, None, at(30)), Due::Changed);
    }

    #[test]
    fn a_failed_look_leaves_what_the_same_generation_had() {
        let good = resolved(None, 1, of("a"), at(0));
        let bad = failed(Some(&good), 1, "Registry", "is away", at(60));
        assert_eq!((&bad.recipe, &bad.refreshed), (&good.recipe, &good.refreshed));
        assert_eq!(condition(&bad, READY), condition(&good, READY));
        let refreshed = condition(&bad, REFRESHED);
        assert_eq!((refreshed.status.as_str(), refreshed.message.as_str()), ("False", "is away"));
        assert_eq!(refusal(&bad, 1), None);
        // The same failure again says nothing new, so nothing is written.
        assert_eq!(failed(Some(&bad), 1, "Registry", "is away", at(120)), bad);

        let changed = failed(Some(&good), 2, INVALID, "cannot be read", at(60));
        assert_eq!(refusal(&changed, 2), Some((INVALID, "cannot be read")));
        assert_eq!((changed.recipe_generation, changed.observed_generation), (Some(1), 2));
        let mended = resolved(Some(&changed), 3, of("b"), at(90));
        assert_eq!(condition(&mended, READY).status, "True");
        assert_eq!(condition(&mended, READY).last_transition_time, Time(at(90)));
    }

    #[test]
    fn earlier_recipes_are_kept_the_newest_first() {
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
