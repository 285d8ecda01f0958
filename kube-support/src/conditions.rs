//! Conditions in the status of an object (meta/v1 `Condition`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The new state of a condition.
#[derive(Clone, Copy, Debug)]
pub struct NewCondition<'a> {
    /// The type, such as `Ready`.
    pub type_: &'a str,
    /// Whether the status is `True`; otherwise it is `False`.
    pub is_true: bool,
    /// One word in CamelCase, as the API conventions ask for.
    pub reason: &'a str,
    /// A sentence for people.
    pub message: &'a str,
    /// The generation of the spec that the condition describes.
    pub generation: i64,
}

/// Sets a condition. The time of the last transition changes only when the status changes.
pub fn set_condition(conditions: &mut Vec<Condition>, new: NewCondition<'_>, now: Timestamp) {
    let status = if new.is_true { "True" } else { "False" };
    let old = conditions.iter_mut().find(|condition| condition.type_ == new.type_);
    let unchanged_since =
        old.as_ref().filter(|old| old.status == status).map(|old| old.last_transition_time.clone());
    let condition = Condition {
        type_: new.type_.to_owned(),
        status: status.to_owned(),
        reason: new.reason.to_owned(),
        message: new.message.to_owned(),
        observed_generation: Some(new.generation),
        last_transition_time: unchanged_since.unwrap_or(Time(now)),
    };
    match old {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_changes_only_with_the_status() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let condition = |is_true, message| NewCondition {
            type_: "Ready",
            is_true,
            reason: "Tested",
            message,
            generation: 1,
        };
        let mut conditions = Vec::new();
        set_condition(&mut conditions, condition(true, "one"), at(1));
        set_condition(&mut conditions, condition(true, "two"), at(2));
        assert_eq!(conditions.len(), 1);
        assert_eq!(
            (conditions[0].message.as_str(), &conditions[0].last_transition_time),
            ("two", &Time(at(1)))
        );
        set_condition(&mut conditions, condition(false, "two"), at(3));
        assert_eq!(
            (conditions[0].status.as_str(), &conditions[0].last_transition_time),
            ("False", &Time(at(3)))
        );
    }
}
