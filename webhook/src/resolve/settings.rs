//! How long answers of registries are cached, and how many.

use std::time::Duration;

/// How long things are remembered, and how many.
#[derive(Clone, Copy, Debug)]
pub struct ResolverSettings {
    /// How long a tag's digest is taken from memory.
    pub tag_ttl: Duration,
    /// How long it is remembered that a tag does not exist.
    pub missing_ttl: Duration,
    /// How long it is remembered that a credential, or anybody, may read what a digest names.
    pub authorization_ttl: Duration,
    /// How many tags are remembered.
    pub max_tags: u64,
    /// How many layers and index entries of manifests are remembered.
    pub max_entries: u64,
    /// How long one lookup may take, whoever waits for it.
    pub max_lookup: Duration,
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
        }
    }
}
