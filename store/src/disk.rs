//! File system helpers: errors, free space, paths beneath a root, directory walks. They do not depend on the
//! store.

pub(crate) mod beneath;
mod boot_id;
mod disk_space;
pub(crate) mod entry_path;
mod error;
pub(crate) mod files;
pub(crate) mod folders;
pub(crate) mod ranges;
pub(crate) mod reader;
pub(crate) mod reservations;
pub(crate) mod selinux;
mod totals;
mod usage;
pub(crate) mod walk;

pub(crate) use self::boot_id::boot_id;
pub(crate) use self::disk_space::{DiskSpace, Resource};
pub use self::entry_path::{EntryPath, NameError};
pub use self::error::DiskError;
pub use self::reader::{Pace, Unpaced};
pub use self::totals::Totals;
pub(crate) use self::usage::BLOCK;
pub use self::usage::Usage;
