//! Bringing what a recipe names into the store, and from there to a mount or into a directory.
//!
//! [`Fetcher`] does the work; [`Pulls`] runs it apart from the calls that ask for it; [`into_directory`]
//! is the command line's way, with the same store and the same unpacking.

mod assemble;
mod directory;
mod download;
mod error;
mod fetch;
mod fetch_blob;
mod keyed_lock;
mod priority;
mod progress;
mod scheduler;
mod single_flight;
mod steps;

pub use self::directory::{DirectoryError, into_directory};
pub use self::error::PullError;
pub use self::fetch::Fetcher;
pub use self::progress::{Meter, Planned, Progress, Reading, Silent};
pub use self::single_flight::{BackgroundPull, Outcome, Pulls, Waited};
pub use crate::error_class::PullErrorKind;
