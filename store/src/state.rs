//! State of an open store, one module for each concern. These modules do not depend on [`crate::Store`].

pub(crate) mod durability;
pub(crate) mod gc_roots;
pub(crate) mod leases;
pub(crate) mod node_record;
pub(crate) mod observer;
pub(crate) mod provenance;
pub(crate) mod verified_items;

pub use self::gc_roots::{GcRoots, RootsError, TreesInUse};
pub use self::leases::{Lease, Leases};
pub use self::node_record::{CollectionReport, Damage, NodeRecord, ScrubReport};
pub use self::observer::{NoObserver, StoreObserver, Work};
pub use self::provenance::Provenance;
