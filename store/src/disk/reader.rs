//! Reads files as they are on the disk, past the page cache where the file system allows it: what is in memory
//! may be right where the disk is not, and what pods read stays in memory.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// How much is read at once.
const PIECE: usize = 1 << 20;
/// What O_DIRECT wants addresses and lengths to be a multiple of, on any disk there is.
const ALIGNED: usize = 4_096;

/// How fast one may read, and whether to go on.
pub trait Pace {
    /// Called after so many bytes; may wait. `false` is the end.
    fn spend(&mut self, bytes: u64) -> bool;
}

/// As fast as the disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unpaced;

impl Pace for Unpaced {
    fn spend(&mut self, _: u64) -> bool {
        true
    }
}

/// Why a file was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// What the kernel said.
    Disk(Errno),
    /// It was told to end.
    Stopped,
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Self {
        Self::Disk(errno)
    }
}

/// A buffer to read with.
#[derive(Debug)]
pub(crate) struct Reader {
    buffer: Vec<u8>,
    direct: bool,
}

impl Reader {
    /// From the disk, where that can be asked for.
    pub(crate) fn from_disk() -> Self {
        Self { buffer: vec![0; PIECE + ALIGNED], direct: true }
    }

    /// From memory, where it is there: for what was written a moment ago.
    pub(crate) fn from_memory() -> Self {
        Self { direct: false, ..Self::from_disk() }
    }

    /// Gives `sink` all of a file, and says how long it is.
    pub(crate) fn read(
        &mut self,
        folder: impl AsFd,
        name: &OsStr,
        pace: &mut dyn Pace,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<u64, Broken> {
        let mut direct = self.direct;
        let mut file = open(&folder, name, &mut direct)?;
        let start = self.buffer.as_ptr().align_offset(ALIGNED);
        let buffer = self.buffer.get_mut(start..start + PIECE).ok_or(Errno::INVAL)?;
        let mut length = 0_u64;
        loop {
            let count = match rustix::io::pread(&file, &mut *buffer, length) {
                Ok(0) => return Ok(length),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                // The end of the file on a file system that wants more than we thought.
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
                return Err(Broken::Stopped);
            }
            // After a short read the offset is none that O_DIRECT takes.
            if direct && !count.is_multiple_of(ALIGNED) {
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
    fn all_of_a_file_whatever_its_length() {
        let folder = tempfile::tempdir().unwrap();
        let opened = rustix::fs::open(folder.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for length in [0, 1, 4_095, 4_096, 4_097, PIECE, PIECE + 1, 3 * PIECE + 5_000] {
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
