//! How long answers of registries are cached, and how many.

use std::time::Duration;

/// The settings of the cache.
#[derive(Clone, Copy, Debug)]
pub struct ResolverSettings {
    /// How long the digest of a tag is cached.
    pub tag_ttl: Duration,
    /// How long it is cached that a tag does not exist.
    pub missing_ttl: Duration,
    /// How long it is cached that a credential, or an anonymous client, may read what a digest names.
    pub authorization_ttl: Duration,
    /// How many tags are cached.
    pub max_tags: u64,
    /// How many layers and index entries of manifests are cached.
    pub max_entries: u64,
    /// How long one lookup may take.
    pub max_lookup: Duration,
    /// How long a registry may not answer before only a few lookups wait for it. The registry client must wait less than
    /// this before it repeats a request that the registry asked it to repeat later: such a request counts as answered.
    pub unresponsive_after: Duration,
}

impl Default for ResolverSettings {
    fn default() -> Self {
        Self {
            tag_ttl: Duration::from_secs(30),
            missing_ttl: Duration::from_secs(5),
            authorization_ttl: Duration::from_mins(10),
            max_tags: 10_000,
            max_entries: 100_000,
            max_lookup: Duration::from_secs(20),
            unresponsive_after: Duration::from_secs(2),
        }
    }
}
