//! The tenants of a node: the namespaces whose pods wait for pulls.

use std::fmt;
use std::sync::Arc;

/// A namespace whose pods wait for content. All pods of a namespace have one fair share of the node's downloads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// Returns the tenant of the pods in `namespace`.
    pub fn of_namespace(namespace: &str) -> Self {
        Self(namespace.into())
    }

    /// Returns the tenant of work that belongs to no namespace, such as the pulls of the command line. No namespace
    /// has an empty name.
    pub fn node() -> Self {
        Self("".into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "the node" } else { &self.0 })
    }
}

/// A volume of a pod that waits for a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    tenant: Tenant,
    volume: String,
    id: String,
}

impl Waiter {
    /// Creates a waiter for a volume. `volume` must be the same in each call for it, and different for each volume of
    /// the node: the driver uses the target path.
    pub fn new(tenant: Tenant, volume: impl Into<String>) -> Self {
        Self { tenant, volume: volume.into(), id: String::new() }
    }

    /// Sets the name under which [`super::Pulls::in_progress`] lists the pull. Without one, it is not listed for this volume.
    #[must_use]
    pub fn with_id(self, id: impl Into<String>) -> Self {
        Self { id: id.into(), ..self }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    pub(super) fn volume(&self) -> &str {
        &self.volume
    }
}
