//! Content of a store on the disk: verification of incoming blobs, descriptions, checksums and the inventory.

pub(crate) mod blob_reader;
pub(crate) mod blob_sink;
pub(crate) mod checksums;
pub(crate) mod description;
pub(crate) mod inventory;
pub(crate) mod spool;
pub(crate) mod verify;

pub use self::blob_reader::{BlobReader, StreamFault};
pub use self::description::TreeContent;
pub use self::inventory::{HeldBlob, HeldEntry, HeldLayer, HeldTree, Inventory, State};
pub use self::verify::{Verdict, verify_blob, verify_layer, verify_tree};
