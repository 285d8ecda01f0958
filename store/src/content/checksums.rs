//! Checksums of the files in a layer or a tree, which detect corruption of the disk.
//!
//! ```text
//! oras-csi sums 1 xxh3-128
//! f MODE SIZE HASH PATH NUL        a file
//! l 0 LENGTH HASH PATH NUL         a symbolic link, with length and hash of its target
//! d MODE 0 - PATH NUL              a directory
//! end COUNT HASH                   the number of entries, and the hash of all lines above
//! ```
//!
//! The hash is XXH3. Checksums detect corruption, not an attacker: a process that can write to the store can
//! change the checksums as well. They are computed after a layer's digest was verified, while the files are
//! still in the page cache: 100,000 small files or 1 GiB take well under a second.
//!
//! A hard link to a blob or to a layer's file is verified there. So a tree has checksums only of files of its
//! own: the copies that replace a link when a file already has as many links as the file system allows.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::disk::beneath::open_beneath;
use crate::disk::reader::{Pace, ReadError, Reader, Unpaced};
use crate::disk::walk::{Entry, failed, walk};
use crate::disk::{DiskError, EntryPath};
use crate::limits::Limits;

const HEADER: &str = "oras-csi sums 1 xxh3-128\n";
/// The maximum length of a line. A path has at most 4,096 bytes.
const MAX_LINE_BYTES: u64 = 8_192;

/// Selects the entries that get a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// All entries, for a layer.
    All,
    /// Files with a single link, for a tree.
    Own,
}

/// The result of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// Every entry matches its checksum.
    Same,
    /// An entry differs, as this message describes.
    Differs(String),
    /// There are no checksums, because an earlier version created the layer or tree.
    NoChecksums,
    /// [`Pace`] stopped the comparison.
    Stopped,
}

fn hex(hasher: &Xxh3) -> String {
    format!("{:032x}", hasher.digest128())
}

/// The lengths and hashes of files with several names, by inode. Each is read once: an archive can have 65,000 hard
/// links to a large file.
#[derive(Default)]
struct KnownFiles(HashMap<(u64, u64), (u64, String)>);

impl KnownFiles {
    /// Limits the memory.
    const MAX: usize = 100_000;

    fn get(&self, entry: &Entry<'_>) -> Option<(u64, String)> {
        self.0.get(&(entry.stat.st_dev, entry.stat.st_ino)).cloned()
    }

    fn remember(&mut self, entry: &Entry<'_>, known: &(u64, String)) {
        if entry.stat.st_nlink > 1 && self.0.len() < Self::MAX {
            self.0.insert((entry.stat.st_dev, entry.stat.st_ino), known.clone());
        }
    }
}

struct Hashed<W> {
    inner: W,
    hasher: Xxh3,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes the checksums of the entries beneath `root` to the new file `path`. Calls `visit` for every entry.
pub(crate) fn write(
    root: &OwnedFd,
    path: &Path,
    which: Which,
    reader: &mut Reader,
    mut visit: impl FnMut(&Entry<'_>),
) -> Result<(), DiskError> {
    let write_failed = |error| DiskError::new("write", path, error);
    let file = std::fs::File::create_new(path).map_err(write_failed)?;
    let mut output = BufWriter::new(Hashed { inner: file, hasher: Xxh3::new() });
    output.write_all(HEADER.as_bytes()).map_err(write_failed)?;
    let (mut count, mut known) = (0_u64, KnownFiles::default());
    walk(root, |entry| {
        visit(entry);
        if which == Which::Own && (entry.kind != FileType::RegularFile || entry.stat.st_nlink > 1) {
            return Ok(());
        }
        let read_error = |read_error| match read_error {
            ReadError::Disk(errno) => failed("read", &entry.path, errno),
            ReadError::Stopped => failed("read", &entry.path, Errno::INTR),
        };
        let line = line(entry, &mut known, reader, &mut Unpaced).map_err(read_error)?;
        count += 1;
        let written = output.write_all(line.as_bytes());
        let written = written.and_then(|()| output.write_all(entry.path.as_bytes()));
        written.and_then(|()| output.write_all(b"\0")).map_err(write_failed)
    })?;
    let hashed = output.into_inner().map_err(|error| write_failed(error.into_error()))?;
    let Hashed { mut inner, hasher } = hashed;
    writeln!(inner, "end {count} {}", hex(&hasher)).map_err(write_failed)
}

/// Returns the part of an entry's line before its path.
fn line(
    entry: &Entry<'_>,
    known: &mut KnownFiles,
    reader: &mut Reader,
    pace: &mut dyn Pace,
) -> Result<String, ReadError> {
    let mode = entry.stat.st_mode & 0o7777;
    Ok(match entry.kind {
        FileType::Directory => format!("d {mode:o} 0 - "),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(entry.folder, entry.name, Vec::new())?;
            let mut hasher = Xxh3::new();
            hasher.update(target.as_bytes());
            format!("l 0 {} {} ", target.as_bytes().len(), hex(&hasher))
        }
        _ => {
            let (length, hash) = if let Some(known) = known.get(entry) {
                known
            } else {
                let mut hasher = Xxh3::new();
                let length =
                    reader.read(entry.folder, entry.name, pace, &mut |piece| hasher.update(piece))?;
                let new = (length, hex(&hasher));
                known.remember(entry, &new);
                new
            };
            format!("f {mode:o} {length} {hash} ")
        }
    })
}

/// Compares the entries beneath `root` with the checksums in `path`.
pub(crate) fn compare(
    root: &OwnedFd,
    path: &Path,
    reader: &mut Reader,
    pace: &mut dyn Pace,
) -> Result<Compared, DiskError> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Compared::NoChecksums),
        Err(error) => return Err(DiskError::new("open", path, error)),
    };
    let differs = |words: String| Ok(Compared::Differs(words));
    match is_whole(&file) {
        Ok(true) => {}
        Ok(false) => return differs("its list of checksums is damaged".to_owned()),
        Err(error) => return differs(format!("its list of checksums cannot be read: {error}")),
    }
    let mut lines = BufReader::new(file);
    let limits = Limits::default().with_depth(usize::MAX);
    let (mut buffer, mut known) = (Vec::new(), KnownFiles::default());
    let start = io::Seek::rewind(&mut lines).and_then(|()| lines.read_until(b'\n', &mut buffer));
    start.map_err(|error| DiskError::new("read", path, error))?;
    loop {
        buffer.clear();
        lines.read_until(0, &mut buffer).map_err(|error| DiskError::new("read", path, error))?;
        let Some((0, entry)) = buffer.split_last() else { return Ok(Compared::Same) };
        let mut fields = entry.splitn(5, |byte| *byte == b' ');
        let name = fields.by_ref().nth(4).unwrap_or_default();
        let Ok(at) = EntryPath::parse(name, &limits) else {
            return differs("its list of checksums contains an invalid path".to_owned());
        };
        let wanted = &entry[..entry.len() - name.len()];
        match found(root, &at, &mut known, reader, pace) {
            Ok(found) if found.as_bytes() == wanted => {}
            Ok(found) => return differs(difference(&at, wanted, &found)),
            Err(ReadError::Stopped) => return Ok(Compared::Stopped),
            Err(ReadError::Disk(Errno::NOENT)) => return differs(format!("\"{at}\" is missing")),
            Err(ReadError::Disk(errno)) => {
                return differs(format!("\"{at}\" cannot be read: {}", io::Error::from(errno)));
            }
        }
    }
}

fn found(
    root: &OwnedFd,
    path: &EntryPath,
    known: &mut KnownFiles,
    reader: &mut Reader,
    pace: &mut dyn Pace,
) -> Result<String, ReadError> {
    let (parent, name) = path.split().ok_or(Errno::INVAL)?;
    let folder = open_beneath(root, &parent)?;
    let name = OsStr::from_bytes(name);
    let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let folder = std::os::fd::AsFd::as_fd(&folder);
    line(&Entry { path: path.clone(), name, folder, kind, stat }, known, reader, pace)
}

fn difference(path: &EntryPath, wanted: &[u8], found: &str) -> String {
    let wanted = String::from_utf8_lossy(wanted);
    let mut fields = wanted.split(' ').zip(found.split(' '));
    let what = match fields.by_ref().position(|(wanted, found)| wanted != found) {
        Some(0) => "has another file type",
        Some(1) => "has another mode",
        Some(2) => "has another length",
        _ => "has other content",
    };
    format!("\"{path}\" {what} than when it was written")
}

/// Reports whether a list of checksums is complete and undamaged.
fn is_whole(file: &std::fs::File) -> io::Result<bool> {
    let mut lines = BufReader::with_capacity(256 << 10, file);
    let mut hasher = Xxh3::new();
    let mut buffer = Vec::new();
    lines.read_until(b'\n', &mut buffer)?;
    if buffer != HEADER.as_bytes() {
        return Ok(false);
    }
    let mut count = 0_u64;
    loop {
        hasher.update(&buffer);
        buffer.clear();
        io::Read::take(&mut lines, MAX_LINE_BYTES).read_until(0, &mut buffer)?;
        if buffer.last() != Some(&0) {
            return Ok(buffer == format!("end {count} {}\n", hex(&hasher)).into_bytes());
        }
        count += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::{Mode, OFlags};

    use super::*;

    /// Counts the bytes that are read.
    struct Counted(u64);

    impl Pace for Counted {
        fn spend(&mut self, bytes: u64) -> bool {
            self.0 += bytes;
            true
        }
    }

    #[test]
    fn a_file_with_many_names_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let (files, sums) = (folder.path().join("files"), folder.path().join("sums"));
        fs::create_dir_all(&files).unwrap();
        fs::write(files.join("a"), vec![7; 10_000]).unwrap();
        for number in 0..50 {
            fs::hard_link(files.join("a"), files.join(format!("b{number}"))).unwrap();
        }
        let root = rustix::fs::open(&files, OFlags::DIRECTORY, Mode::empty()).unwrap();
        write(&root, &sums, Which::All, &mut Reader::from_memory(), |_| {}).unwrap();
        let mut read = Counted(0);
        let compared = compare(&root, &sums, &mut Reader::from_disk(), &mut read).unwrap();
        assert_eq!((compared, read.0), (Compared::Same, 10_000));
        // Another file in the place of one of the links is detected.
        fs::remove_file(files.join("b7")).unwrap();
        fs::write(files.join("b7"), vec![8; 10_000]).unwrap();
        let compared = compare(&root, &sums, &mut Reader::from_disk(), &mut Unpaced).unwrap();
        assert!(matches!(compared, Compared::Differs(_)), "{compared:?}");
    }

    #[test]
    fn detects_changed_entries() {
        let folder = tempfile::tempdir().unwrap();
        let (files, sums) = (folder.path().join("files"), folder.path().join("sums"));
        fs::create_dir_all(files.join("d")).unwrap();
        fs::write(files.join("d/with space\nand line"), "hello").unwrap();
        fs::write(files.join("empty"), "").unwrap();
        std::os::unix::fs::symlink("d", files.join("link")).unwrap();
        let root = rustix::fs::open(&files, OFlags::DIRECTORY, Mode::empty()).unwrap();
        let compare = || compare(&root, &sums, &mut Reader::from_disk(), &mut Unpaced).unwrap();
        assert_eq!(compare(), Compared::NoChecksums);
        write(&root, &sums, Which::All, &mut Reader::from_memory(), |_| {}).unwrap();
        assert_eq!(compare(), Compared::Same);

        let file = files.join("d/with space\nand line");
        let differs = |words: &str| match compare() {
            Compared::Differs(found) => assert!(found.contains(words), "{found}"),
            other => panic!("{words}: {other:?}"),
        };
        fs::write(&file, "hellp").unwrap();
        differs("other content");
        fs::write(&file, "hello!").unwrap();
        differs("another length");
        fs::write(&file, "hello").unwrap();
        fs::set_permissions(files.join("empty"), fs::Permissions::from_mode(0o600)).unwrap();
        differs("another mode");
        fs::remove_file(files.join("empty")).unwrap();
        differs("is missing");
        fs::write(files.join("empty"), "").unwrap();
        assert_eq!(compare(), Compared::Same);
        fs::remove_file(files.join("link")).unwrap();
        std::os::unix::fs::symlink("e", files.join("link")).unwrap();
        differs("other content");

        let text = fs::read(&sums).unwrap();
        for at in [0, 30, text.len() / 2, text.len() - 3] {
            let mut flipped = text.clone();
            flipped[at] ^= 1;
            fs::write(&sums, flipped).unwrap();
            differs("list of checksums is damaged");
        }
        fs::write(&sums, &text[..text.len() - 40]).unwrap();
        differs("list of checksums is damaged");
    }
}
