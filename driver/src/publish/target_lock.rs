//! One call at a time for one target.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The targets that a call is working on.
#[derive(Clone, Debug, Default)]
pub struct Guards(Arc<Mutex<HashSet<PathBuf>>>);

/// Nobody else works on this target while this is there.
#[derive(Debug)]
pub struct Guard {
    all: Guards,
    target: PathBuf,
}

impl Guards {
    /// Takes a target; `None` where another call has it.
    pub fn take(&self, target: &Path) -> Option<Guard> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(target.to_owned()).then(|| Guard { all: self.clone(), target: target.to_owned() })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let guards = Guards::default();
        let first = guards.take(Path::new("/a")).unwrap();
        assert!(guards.take(Path::new("/a")).is_none());
        assert!(guards.take(Path::new("/b")).is_some());
        drop(first);
        assert!(guards.take(Path::new("/a")).is_some());
    }
}
