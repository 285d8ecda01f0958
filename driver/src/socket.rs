//! A Unix socket that only its owner can open, from the moment it exists.
//!
//! The socket's file gets its mode from the descriptor that is bound, less the umask: the mode is set
//! on the descriptor before `bind`, so there is no instant at which anybody else could connect.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The folder for it cannot be made.
    #[error("cannot make the folder {} for a socket: {source}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something else has the name.
    #[error(
        "{} is there already and is no socket: this driver replaces only a socket that an earlier run left; move it away",
        .path.display()
    )]
    Occupied {
        /// The socket's path.
        path: PathBuf,
    },
    /// Another process answers on it.
    #[error(
        "a process is already listening on {}: is another driver running on this node? Stop it first",
        .path.display()
    )]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Longer than an address may be.
    #[error(
        "the path {} is longer than the 107 bytes that a Unix socket's address holds: choose a shorter one",
        .path.display()
    )]
    TooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// The kernel refuses.
    #[error("cannot listen on {}: {step}: {source}", .path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// Which call failed.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// A listening socket of mode 0600 whose file goes when this is dropped.
#[derive(Debug)]
pub struct PrivateSocket {
    listener: Option<UnixListener>,
    path: PathBuf,
    inode: u64,
}

impl PrivateSocket {
    /// Listens at `path`; makes its folder, and removes a socket that nobody answers on.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |step, source| SocketError::Listen { path: path.to_owned(), step, source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| SocketError::Folder { path: folder.to_owned(), source })?;
        }
        remove_stale(path)?;
        let address =
            SocketAddrUnix::new(path).map_err(|_| SocketError::TooLong { path: path.to_owned() })?;
        let socket: OwnedFd = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|errno| failed("socket", errno.into()))?;
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed("fchmod", errno.into()))?;
        rustix::net::bind(&socket, &address).map_err(|errno| failed("bind", errno.into()))?;
        rustix::net::listen(&socket, 128).map_err(|errno| failed("listen", errno.into()))?;
        let inode = std::fs::symlink_metadata(path).map_err(|source| failed("stat", source))?.ino();
        let listener = UnixListener::from_std(socket.into()).map_err(|source| failed("register", source))?;
        Ok(Self { listener: Some(listener), path: path.to_owned(), inode })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, once.
    pub(crate) fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        // Only what we made: a newer driver may have taken the name over.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |step, source| SocketError::Listen { path: path.to_owned(), step, source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("stat", error)),
        Ok(found) if !found.file_type().is_socket() => Err(SocketError::Occupied { path: path.to_owned() }),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            Err(SocketError::InUse { path: path.to_owned() })
        }
        Ok(_) => {
            std::fs::remove_file(path).map_err(|source| failed("remove what an earlier run left", source))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn is_private_and_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugins/csi.sock");
        let socket = PrivateSocket::bind(&path).unwrap();
        let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(matches!(PrivateSocket::bind(&path), Err(SocketError::InUse { .. })));
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn replaces_what_a_killed_run_left_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(PrivateSocket::bind(&path).unwrap());

        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(PrivateSocket::bind(&path), Err(SocketError::Occupied { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();

        let other = folder.path().join("other");
        drop(std::os::unix::net::UnixListener::bind(&other).unwrap());
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(matches!(PrivateSocket::bind(&path), Err(SocketError::Occupied { .. })));
    }

    #[tokio::test]
    async fn too_long_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x".repeat(120));
        assert!(matches!(PrivateSocket::bind(&path), Err(SocketError::TooLong { .. })));
    }

    #[tokio::test]
    async fn a_successor_keeps_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        let first = PrivateSocket::bind(&path).unwrap();
        std::fs::rename(&path, folder.path().join("away")).unwrap();
        let second = PrivateSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
