//! Limits on what a registry may send.

/// How much a registry may send before the response is cut off.
///
/// ```
/// use oras_csi_core::registry::Limits;
///
/// let limits = Limits::default().with_manifest(1 << 20);
/// assert_eq!(limits.manifest(), 1024 * 1024);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    manifest: u64,
    token: u64,
    error: u64,
    redirects: u8,
}

impl Limits {
    /// Returns the maximum size of a manifest in bytes. The default is 4 MiB, which the OCI distribution-spec asks
    /// registries to accept.
    pub fn manifest(&self) -> u64 {
        self.manifest
    }

    /// Returns the maximum size of a token service's response in bytes.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Returns how many bytes of an error response are read.
    pub fn error(&self) -> u64 {
        self.error
    }

    /// Returns how many redirects are followed for one request.
    pub fn redirects(&self) -> u8 {
        self.redirects
    }

    /// Sets the maximum size of a manifest.
    #[must_use]
    pub fn with_manifest(mut self, bytes: u64) -> Self {
        self.manifest = bytes;
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { manifest: 4 << 20, token: 64 << 10, error: 64 << 10, redirects: 10 }
    }
}
