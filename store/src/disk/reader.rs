//! Reads files from the disk, bypassing the page cache if the file system allows it (`O_DIRECT`).
//!
//! The page cache can hold correct data while the disk does not, and verification must not evict data that
//! pods read.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The size of one read.
const READ_BYTES: usize = 1 << 20;
/// The alignment that `O_DIRECT` requires for addresses and lengths, sufficient for all disks.
const ALIGNMENT: usize = 4_096;

/// Controls how fast a file is read, and whether reading continues.
pub trait Pace {
    /// Called after this many bytes were read. It can block to slow down the reader. `false` stops it.
    fn spend(&mut self, bytes: u64) -> bool;
}

/// Reads at full speed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unpaced;

impl Pace for Unpaced {
    fn spend(&mut self, _: u64) -> bool {
        true
    }
}

/// The reason why a file was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// The kernel reported an error.
    Disk(Errno),
    /// [`Pace`] stopped the reader.
    Stopped,
}

impl From<Errno> for ReadError {
    fn from(errno: Errno) -> Self {
        Self::Disk(errno)
    }
}

/// Reads files with one reusable buffer.
#[derive(Debug)]
pub(crate) struct Reader {
    buffer: Vec<u8>,
    direct: bool,
}

impl Reader {
    /// Returns a reader that bypasses the page cache if possible.
    pub(crate) fn from_disk() -> Self {
        Self { buffer: vec![0; READ_BYTES + ALIGNMENT], direct: true }
    }

    /// Returns a reader that uses the page cache, for files that were just written.
    pub(crate) fn from_memory() -> Self {
        Self { direct: false, ..Self::from_disk() }
    }

    /// Passes the content of a file to `sink` and returns its length.
    pub(crate) fn read(
        &mut self,
        folder: impl AsFd,
        name: &OsStr,
        pace: &mut dyn Pace,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<u64, ReadError> {
        let mut direct = self.direct;
        let mut file = open(&folder, name, &mut direct)?;
        let start = self.buffer.as_ptr().align_offset(ALIGNMENT);
        let buffer = self.buffer.get_mut(start..start + READ_BYTES).ok_or(Errno::INVAL)?;
        let mut length = 0_u64;
        loop {
            let count = match rustix::io::pread(&file, &mut *buffer, length) {
                Ok(0) => return Ok(length),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                // The end of the file on a file system that requires a larger alignment.
                Err(Errno::INVAL) if direct => {
                    direct = false;
                    file = open(&folder, name, &mut direct)?;
                    continue;
                }
                Err(errno) => return Err(errno.into()),
            };
            sink(&buffer[..count]);
            length += count as u64;
            if !pace.spend(count as u64) {
                return Err(ReadError::Stopped);
            }
            // After a short read the offset is not aligned for O_DIRECT.
            if direct && !count.is_multiple_of(ALIGNMENT) {
                direct = false;
                file = open(&folder, name, &mut direct)?;
            }
        }
    }
}

fn open(folder: impl AsFd, name: &OsStr, direct: &mut bool) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if *direct {
        match rustix::fs::openat(&folder, name, flags | OFlags::DIRECT, Mode::empty()) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) => *direct = false,
            other => return other,
        }
    }
    rustix::fs::openat(&folder, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_files_of_any_length() {
        let folder = tempfile::tempdir().unwrap();
        let opened = rustix::fs::open(folder.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for length in [0, 1, 4_095, 4_096, 4_097, READ_BYTES, READ_BYTES + 1, 3 * READ_BYTES + 5_000] {
            let bytes: Vec<u8> = (0..length).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
            std::fs::write(folder.path().join("f"), &bytes).unwrap();
            for mut reader in [Reader::from_disk(), Reader::from_memory()] {
                let mut read = Vec::new();
                let mut sink = |piece: &[u8]| read.extend_from_slice(piece);
                let found = reader.read(&opened, OsStr::new("f"), &mut Unpaced, &mut sink).unwrap();
                assert_eq!(found, length as u64);
                assert!(read == bytes, "{length}");
            }
        }
    }
}
