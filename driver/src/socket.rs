//! A Unix socket that only its owner can connect to, from the moment it exists.
//!
//! The socket file gets its mode from the descriptor, less the umask. The mode is set on the descriptor before `bind`,
//! so no other user can connect at any time.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

/// Why the driver cannot listen on a socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The folder of the socket could not be created.
    #[error("cannot create the folder {} for a socket: {source}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file that is not a socket has the path.
    #[error(
        "cannot listen on {}: a file that is not a socket exists there, and the driver replaces only a socket of an earlier run. Move the file",
        .path.display()
    )]
    Occupied {
        /// The socket's path.
        path: PathBuf,
    },
    /// Another process listens on the path.
    #[error(
        "cannot listen on {}: another process listens there. If another driver runs on this node, stop it first",
        .path.display()
    )]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path is longer than a socket address.
    #[error(
        "cannot listen on {}: the path is longer than the 107 bytes of a Unix socket address. Choose a shorter path",
        .path.display()
    )]
    TooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot listen on {}: {step}: {source}", .path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// The call that failed.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// A listening socket of mode 0600. Dropping it removes the socket file.
#[derive(Debug)]
pub struct PrivateSocket {
    listener: Option<UnixListener>,
    path: PathBuf,
    inode: u64,
}

impl PrivateSocket {
    /// Listens on `path`. Creates its folder, and replaces a socket that no process listens on.
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

    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the listener. Only the first call returns it.
    pub(crate) fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        // A newer driver may have bound another socket to the path.
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
            std::fs::remove_file(path).map_err(|source| failed("remove the socket of an earlier run", source))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn is_private_and_removed_when_dropped() {
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
    async fn replaces_only_the_socket_of_a_killed_run() {
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
    async fn rejects_a_path_that_is_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x".repeat(120));
        assert!(matches!(PrivateSocket::bind(&path), Err(SocketError::TooLong { .. })));
    }

    #[tokio::test]
    async fn does_not_remove_the_socket_of_a_newer_driver() {
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
