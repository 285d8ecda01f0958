//! Locks that admit one call at a time for each target.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The targets that a call is working on.
#[derive(Clone, Debug, Default)]
pub struct TargetLocks(Arc<Mutex<HashSet<PathBuf>>>);

/// The exclusive use of a target. Dropping it unlocks the target.
#[derive(Debug)]
pub struct TargetLock {
    all: TargetLocks,
    target: PathBuf,
}

impl TargetLocks {
    /// Locks a target. Returns `None` if another call has locked it.
    pub fn try_lock(&self, target: &Path) -> Option<TargetLock> {
        let mut locked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locked.insert(target.to_owned()).then(|| TargetLock { all: self.clone(), target: target.to_owned() })
    }
}

impl Drop for TargetLock {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_locked_once_at_a_time() {
        let locks = TargetLocks::default();
        let first = locks.try_lock(Path::new("/a")).unwrap();
        assert!(locks.try_lock(Path::new("/a")).is_none());
        assert!(locks.try_lock(Path::new("/b")).is_some());
        drop(first);
        assert!(locks.try_lock(Path::new("/a")).is_some());
    }
}
