//! `--allow-registry`: which registries may be used at all. Pure, and asked before any packet leaves.

use oras_csi_core::pattern::RegistryPattern;

use crate::denial::{Code, Denial};
use crate::intent::Named;

/// Patterns of registries that may be used; with none, all may.
#[derive(Clone, Debug, Default)]
pub struct RegistryRules {
    allowed: Vec<RegistryPattern>,
}

impl RegistryRules {
    /// Only what matches one of `allowed`; an empty list allows all.
    pub fn new(allowed: Vec<RegistryPattern>) -> Self {
        Self { allowed }
    }

    /// Refuses a reference that matches no pattern.
    pub(crate) fn check(&self, named: &Named) -> Result<(), Denial> {
        let matches = |pattern: &RegistryPattern| {
            pattern.matches(named.reference.registry(), named.reference.repository())
        };
        if self.allowed.is_empty() || self.allowed.iter().any(matches) {
            return Ok(());
        }
        let allowed: Vec<String> = self.allowed.iter().map(ToString::to_string).collect();
        let allowed = crate::denial::listed(allowed.iter().map(String::as_str));
        Err(Denial::new(
            Code::Forbidden,
            named.origin.at(),
            Some(&named.reference.to_string()),
            "is in a registry that the administrator does not allow (--allow-registry)",
            format_args!("use one of: {allowed}"),
        ))
    }
}
