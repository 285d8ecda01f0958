//! Reads a tar stream entry by entry: POSIX.1-1988 ustar, pax headers and the long names of GNU tar.
//!
//! The `tar` crate decodes the fields of a header. The stream is read here, so that every length in it (of a long
//! name, a pax header, an entry) is checked before the data is read. Names are decoded as by Go's `archive/tar`,
//! which ORAS uses to pack: a pax record has precedence over a GNU long name, and that over the header. The records
//! of a global header are ignored. [`super::sparse`] parses the maps of sparse files.

use std::io::{self, BufRead, Read};

use oras_csi_core::display::Shown;
use tar::{EntryType, Header};

use super::sparse::{self, Location, SparseMap, SparseRecords};
use crate::disk::entry_path::shown;

const BLOCK: u64 = 512;
/// The maximum size of a pax header, a long name or the map of a sparse file, as in Go's `archive/tar`.
const MAX_EXTENSION: u64 = 1 << 20;

/// Why a tar stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream ends too early.
    #[error("the tar archive ends in the middle of {0}. It was damaged before it was pushed; push it again")]
    Truncated(&'static str),
    /// The header at this offset is invalid.
    #[error(
        "at byte {offset} of the tar archive there is no valid header: {problem}. It was damaged before it was pushed, or is no tar archive; push it again"
    )]
    Header {
        /// The offset in the uncompressed stream.
        offset: u64,
        /// What is wrong with the header.
        problem: &'static str,
    },
    /// A pax header or a long name is too long.
    #[error(
        "at byte {offset} the tar archive has an extended header of {size} bytes: the limit is {MAX_EXTENSION}. Pack it again with shorter names and attributes"
    )]
    Extension {
        /// The offset of the header.
        offset: u64,
        /// The size in the header.
        size: u64,
    },
    /// A sparse file of an unknown format.
    #[error(
        "\"{0}\" in the tar archive is a sparse file in a format that is not supported. Pack it without --sparse"
    )]
    Sparse(Shown),
    /// The map of a sparse file contradicts itself or the header.
    #[error(
        "\"{0}\" in the tar archive is a sparse file with an invalid map. The archive is damaged; pack the file again"
    )]
    SparseMap(Shown),
    /// An entry of an unknown type, or of a type that needs another archive.
    #[error(
        "\"{name}\" in the tar archive has the unsupported entry type {kind:?}. Pack it again as a plain tar archive"
    )]
    Kind {
        /// The name of the entry.
        name: Shown,
        /// The character of the type.
        kind: char,
    },
    /// Reading the stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The type of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A regular file with data.
    File,
    /// A regular file with holes. The data of its ranges follows.
    Sparse(SparseMap),
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A hard link to an earlier entry.
    HardLink(Vec<u8>),
    /// A device node, a FIFO or similar. They are skipped.
    Special,
}

/// An entry, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The name as it is in the archive.
    pub name: Vec<u8>,
    /// The type.
    pub kind: EntryKind,
    /// How many bytes of data follow.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// The modification time in seconds since 1970.
    pub mtime: i64,
}

#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<i64>,
    sparse: Option<SparseRecords>,
}

/// Reads a tar stream. Call [`TarReader::advance`], then read the data of the entry from the reader.
pub(crate) struct TarReader<R> {
    input: R,
    offset: u64,
    data: u64,
    padding: u64,
    ended: bool,
}

impl<R: BufRead> TarReader<R> {
    /// Creates a reader that begins with the first block of `input`.
    pub(crate) fn new(input: R) -> Self {
        Self { input, offset: 0, data: 0, padding: 0, ended: false }
    }

    /// Returns the next entry. Data of the previous one that was not read is skipped.
    pub(crate) fn advance(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            if self.ended {
                return Ok(None);
            }
            let at = self.offset;
            let Some(header) = self.header()? else {
                self.ended = true;
                return Ok(None);
            };
            let problem = |problem| TarError::Header { offset: at, problem };
            let size = size(&header).ok_or_else(|| problem("its size is not a valid number"))?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let text = self.extension(at, size)?;
                    read_pax(&text, &mut extensions).ok_or_else(|| problem("a pax record is malformed"))?;
                }
                EntryType::XGlobalHeader => {
                    self.extension(at, size)?;
                }
                EntryType::GNULongName => extensions.gnu_path = Some(until_nul(self.extension(at, size)?)),
                EntryType::GNULongLink => extensions.gnu_link = Some(until_nul(self.extension(at, size)?)),
                kind => return self.entry(&header, kind, size, extensions).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        mut extensions: Extensions,
    ) -> Result<Entry, TarError> {
        // In the formats pax 0.1 and 1.0, the other names are placeholders ("GNUSparseFile.0/…").
        let sparse_name = extensions.sparse.as_mut().and_then(|records| records.name.take());
        let name = sparse_name
            .or(extensions.path)
            .or(extensions.gnu_path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || {
            let written = || header.link_name_bytes().map(std::borrow::Cow::into_owned);
            extensions.link.or(extensions.gnu_link).or_else(written).unwrap_or_default()
        };
        let size = extensions.size.unwrap_or(size);
        let mtime = extensions.mtime.or_else(|| i64::try_from(header.mtime().ok()?).ok()).unwrap_or(0);
        let mode = header.mode().unwrap_or(0o644);
        if let Some(map) = self.sparse_map(header, kind, size, extensions.sparse.as_ref(), &name)? {
            let size = map.stored();
            return Ok(Entry { name, kind: EntryKind::Sparse(map), size, mode, mtime });
        }
        let (kind, size) = match kind {
            // Before POSIX a directory was a file whose name ends in a slash.
            EntryType::Regular if name.ends_with(b"/") => (EntryKind::Directory, size),
            EntryType::Regular | EntryType::Continuous => (EntryKind::File, size),
            // These have no data, whatever their size field says.
            EntryType::Directory => (EntryKind::Directory, 0),
            EntryType::Symlink => (EntryKind::Symlink(link()), 0),
            EntryType::Link => (EntryKind::HardLink(link()), 0),
            EntryType::Char | EntryType::Block | EntryType::Fifo => (EntryKind::Special, 0),
            other => {
                return Err(TarError::Kind { name: shown(&name), kind: char::from(other.as_byte()) });
            }
        };
        self.expect_data(size);
        Ok(Entry { name, kind, size, mode, mtime })
    }

    /// Returns the map of a sparse file, and leaves the reader before its data. Returns `None` for other entries.
    fn sparse_map(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        records: Option<&SparseRecords>,
        name: &[u8],
    ) -> Result<Option<SparseMap>, TarError> {
        let invalid = || TarError::SparseMap(shown(name));
        let map = match (kind, records) {
            (EntryType::GNUSparse, _) => {
                let map = self.gnu_map(header, name)?;
                self.expect_data(size);
                map
            }
            (EntryType::Regular | EntryType::Continuous, Some(records)) => {
                self.expect_data(size);
                match records.location() {
                    Location::Records(map) => map,
                    Location::Data(size) => SparseMap::new(size, &self.map_before_data(name)?),
                    Location::Unknown => return Err(TarError::Sparse(shown(name))),
                }
            }
            _ => return Ok(None),
        };
        let map = map.ok_or_else(invalid)?;
        if map.stored() == self.data { Ok(Some(map)) } else { Err(invalid()) }
    }

    /// Reads the map of a GNU header, and the blocks of it behind the header.
    fn gnu_map(&mut self, header: &Header, name: &[u8]) -> Result<Option<SparseMap>, TarError> {
        let invalid = || TarError::SparseMap(shown(name));
        let size = sparse::gnu_size(header.as_bytes()).ok_or_else(invalid)?;
        let mut pairs = Vec::new();
        let mut has_more = sparse::read_gnu(header.as_bytes(), true, &mut pairs).ok_or_else(invalid)?;
        let begin = self.offset;
        while has_more {
            let mut block = [0; 512];
            if self.offset - begin >= MAX_EXTENSION || !self.block(&mut block)? {
                return Err(invalid());
            }
            has_more = sparse::read_gnu(&block, false, &mut pairs).ok_or_else(invalid)?;
        }
        Ok(SparseMap::new(size, &pairs))
    }

    /// Reads the map before the data of a file in the format pax 1.0, in whole blocks.
    fn map_before_data(&mut self, name: &[u8]) -> Result<Vec<(u64, u64)>, TarError> {
        let invalid = || TarError::SparseMap(shown(name));
        let (mut text, mut found, mut wanted) = (Vec::new(), 0, 1);
        while found < wanted {
            if self.data < BLOCK || text.len() as u64 >= MAX_EXTENSION {
                return Err(invalid());
            }
            let mut block = [0; 512];
            self.read_exact(&mut block).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => TarError::Truncated("the map of a sparse file"),
                _ => error.into(),
            })?;
            text.extend_from_slice(&block);
            found += block.split(|byte| *byte == b'\n').skip(1).count();
            if found > 0 && wanted == 1 {
                wanted = sparse::count_lines(&text).ok_or_else(invalid)?;
            }
        }
        sparse::read_lines(&text, wanted).ok_or_else(invalid)
    }

    /// Reads a header block. Returns `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let at = self.offset;
        if !self.block(header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            // The end is two blocks of zeros. One block and the end of the stream are accepted as well.
            let mut second = [0; 512];
            if self.block(&mut second)? && second.iter().any(|byte| *byte != 0) {
                return Err(TarError::Header { offset: at, problem: "a block of zeros stands alone" });
            }
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum = |byte: fn(u8) -> i64| {
            let field =
                |(at, value): (usize, &u8)| byte(if (148..156).contains(&at) { b' ' } else { *value });
            bytes.iter().enumerate().map(field).sum::<i64>()
        };
        let given = header.cksum().ok().map(i64::from);
        let signed = |byte: u8| i64::from(byte.cast_signed());
        if given != Some(sum(i64::from)) && given != Some(sum(signed)) {
            return Err(TarError::Header { offset: at, problem: "its checksum does not match" });
        }
        Ok(Some(header))
    }

    /// Fills one block. Returns `false` if the stream ends before it.
    fn block(&mut self, block: &mut [u8; 512]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Truncated("a header")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.offset += BLOCK;
        Ok(true)
    }

    fn expect_data(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn extension(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(TarError::Extension { offset: at, size });
        }
        self.expect_data(size);
        let mut bytes = Vec::new();
        while self.data > 0 {
            let piece = self.fill_buf()?;
            if piece.is_empty() {
                return Err(TarError::Truncated("an extended header"));
            }
            bytes.extend_from_slice(piece);
            let length = piece.len();
            self.consume(length);
        }
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        while self.data > 0 {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Err(TarError::Truncated("a file"));
            }
            self.consume(length);
        }
        while self.padding > 0 {
            let length = self.input.fill_buf()?.len();
            if length == 0 {
                // Some writers leave out the padding of the last file.
                self.padding = 0;
                self.ended = true;
                return Ok(());
            }
            let taken = self.padding.min(length as u64);
            self.input.consume(usize::try_from(taken).unwrap_or(length));
            self.padding -= taken;
            self.offset += taken;
        }
        Ok(())
    }
}

/// Reads the data of the entry that [`TarReader::advance`] returned last.
impl<R: BufRead> Read for TarReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let count = piece.len().min(into.len());
        into[..count].copy_from_slice(&piece[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for TarReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let piece = self.input.fill_buf()?;
        let wanted = usize::try_from(self.data).unwrap_or(usize::MAX);
        Ok(&piece[..piece.len().min(wanted)])
    }

    fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.data -= count as u64;
        self.offset += count as u64;
    }
}

/// Decodes the size field (POSIX ustar; base-256 of GNU tar above 8 GiB). The tar crate reads only the last eight
/// bytes of a base-256 number, so it would return another number for one that is larger or negative.
fn size(header: &Header) -> Option<u64> {
    let [first, high @ .., _, _, _, _, _, _, _, _] = header.as_old().size;
    let too_large = first > 0x80 || (first == 0x80 && high != [0; 3]);
    if too_large { None } else { header.entry_size().ok() }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Reads pax records (`LENGTH KEY=VALUE\n`) by their lengths, because a value may contain newlines.
fn read_pax(mut text: &[u8], extensions: &mut Extensions) -> Option<()> {
    while !text.is_empty() {
        let space = text.iter().take(20).position(|byte| *byte == b' ')?;
        let length = std::str::from_utf8(&text[..space]).ok()?.parse::<usize>().ok()?;
        let record = text.get(space + 1..length)?;
        let record = record.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let number = || std::str::from_utf8(value).ok();
        match key {
            b"path" => extensions.path = Some(value.to_vec()).filter(|value| !value.is_empty()),
            b"linkpath" => extensions.link = Some(value.to_vec()).filter(|value| !value.is_empty()),
            b"size" => extensions.size = Some(number()?.parse().ok()?),
            b"mtime" => extensions.mtime = number()?.split('.').next()?.parse().ok(),
            key => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    extensions.sparse.get_or_insert_default().read(key, value)?;
                }
            }
        }
        text = &text[length..];
    }
    Some(())
}

#[cfg(test)]
mod tests;
