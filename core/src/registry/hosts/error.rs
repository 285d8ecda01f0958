//! Errors of the registry configuration.

use std::path::PathBuf;

use crate::display::Printable;

/// Why the configuration of a registry cannot be used. The message always names the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// The configured folder cannot be read.
    #[error(
        "cannot read the registry configuration folder {}: {reason}. Set the folder that contains HOST/hosts.toml",
        .path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error of the operating system.
        reason: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {reason}. Correct the file, its mode, or the key in hosts.toml that names it", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        reason: String,
    },
    /// The file is not TOML.
    #[error("{}: not valid TOML: {reason}", .path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The position and the cause.
        reason: Printable,
    },
    /// A key has an invalid value.
    #[error("{}: {key}: {problem}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key, as `host."https://mirror:5000".ca`.
        key: Printable,
        /// What is wrong, and what to write instead.
        problem: Printable,
    },
}
