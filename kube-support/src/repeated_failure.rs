//! Failures of a task that is retried for as long as the process runs.

/// Remembers the last failure of a task, so that the same failure is logged once and not with every retry.
#[derive(Debug, Default)]
pub struct RepeatedFailure(Option<String>);

impl RepeatedFailure {
    /// Records a failure. Returns true if it is another one than the last.
    pub fn is_new(&mut self, failure: &str) -> bool {
        let is_new = self.0.as_deref() != Some(failure);
        if is_new {
            self.0 = Some(failure.to_owned());
        }
        is_new
    }

    /// Records a success. Returns true if the task had failed before.
    pub fn clear(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_new_once_until_the_task_succeeds() {
        let mut failure = RepeatedFailure::default();
        assert!(!failure.clear());
        assert!(failure.is_new("a") && !failure.is_new("a") && failure.is_new("b"));
        assert!(failure.clear() && failure.is_new("b"));
    }
}
