//! Bringing what a recipe names into the store, and from there to a mount or into a directory.
//!
//! [`Fetcher`] does the work; [`Pulls`] runs it apart from the calls that ask for it; [`into_directory`]
//! is the command line's way, with the same store and the same unpacking.

mod assemble;
mod bring;
mod directory;
mod download;
mod error;
mod fetch;
mod flight;
mod locks;
mod progress;
mod slots;
mod steps;
mod urgency;

pub use self::directory::{DirectoryError, into_directory};
pub use self::error::{PullError, PullErrorKind};
pub use self::fetch::Fetcher;
pub use self::flight::{Ahead, Outcome, Pulls, Waited};
pub use self::progress::{Meter, Planned, Progress, Reading, Silent};
