//! The state of an open store, one file a concern. None of them knows the store as a whole.

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
pub use self::observer::{NoObserver, StoreObserver};
pub use self::provenance::Provenance;
