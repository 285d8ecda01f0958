//! What `status` and `why` read from the API server, and what it means. Only [`list`] sends requests.

pub(crate) mod artifact;
pub(crate) mod events;
pub(crate) mod format;
pub(crate) mod list;
pub(crate) mod pod;
pub(crate) mod volume_state;
