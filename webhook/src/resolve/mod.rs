//! Resolves references to digests with the registry's answers, behind a cache.
//!
//! A tag's digest is cached for a short time, and that a tag does not exist for a shorter one. What a manifest contains
//! is cached for as long as the credential that read it is trusted to read it again. Concurrent lookups of the same thing
//! are one request, in a task of its own: a caller whose deadline passes does not cancel the lookup for the others. The
//! number of callers that wait for a stalled registry is limited ([`backpressure`]).

mod backpressure;
mod failure;
mod patches;
mod resolver;
mod settings;

pub(crate) use resolver::{Requirements, Resolution, Resolver};
pub use settings::ResolverSettings;
