//! Pulls recipes: downloads the artifacts of a recipe into the store and assembles a tree from them. See
//! `docs/design.md`, "Driver: pulls" and "Limits".
//!
//! [`Fetcher`] does the work. [`Pulls`] runs it in the background, independent of the calls that wait for it, so that
//! the driver can mount the tree. [`pull_into_directory`] copies the files to a directory for the command line; it
//! uses the same store and the same unpacking.

mod assemble;
mod directory;
mod download;
mod error;
mod fetch;
mod fetch_blob;
mod keyed_lock;
mod parked;
mod presence;
mod priority;
mod progress;
mod queued;
mod read_manifests;
mod scheduler;
mod shared_map;
mod single_flight;
mod steps;
mod tenant;
mod tenant_turns;

pub use self::directory::{DirectoryError, pull_into_directory};
pub use self::error::{PullError, registry_reason};
pub use self::fetch::Fetcher;
pub use self::progress::{ByteSize, NoProgress, Planned, Progress, ProgressCounter, ProgressSnapshot};
pub use self::single_flight::{BackgroundPull, PullInProgress, PullResult, PullStatus, Pulls};
pub use self::tenant::{Tenant, Waiter};
pub use crate::error_class::PullErrorKind;
