//! The field manager: the name under which the API server records who wrote a field.

use kube::api::{PatchParams, PostParams};

/// Names the writer in each request that changes an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldManager(&'static str);

impl FieldManager {
    /// Makes a field manager of that name.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Returns the name.
    pub const fn name(self) -> &'static str {
        self.0
    }

    /// Returns the parameters of a request that creates or replaces an object.
    pub fn post(self) -> PostParams {
        PostParams { field_manager: Some(self.0.to_owned()), ..PostParams::default() }
    }

    /// Returns the parameters of a JSON patch or a merge patch.
    pub fn patch(self) -> PatchParams {
        PatchParams { field_manager: Some(self.0.to_owned()), ..PatchParams::default() }
    }

    /// Returns the parameters of a server-side apply that takes fields over from other managers.
    pub fn force_apply(self) -> PatchParams {
        PatchParams::apply(self.0).force()
    }
}
