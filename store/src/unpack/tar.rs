//! A tar stream, entry by entry: POSIX.1-1988 ustar, pax headers and GNU's long names.
//!
//! The `tar` crate decodes the fields of a header; walking the stream is ours, because everything that
//! an archive says about itself (the length of a long name, of a pax header, of an entry) is bounded
//! here before it is read. Names are what Go's `archive/tar` makes of them, since ORAS packs with it:
//! a pax record goes before a GNU name, that before the header's; records of a global header are left out.

use std::io::{self, BufRead, Read};

use oras_csi_core::display::Shown;
use tar::{EntryType, Header};

use crate::disk::entry_path::shown;

const BLOCK: u64 = 512;
/// What a pax header or a long name may have, as in Go's `archive/tar`.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// Why a tar stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It ends in the middle.
    #[error("the tar archive ends in the middle of {0}")]
    Truncated(&'static str),
    /// The header at this offset is none.
    #[error("at byte {offset} of the tar archive there is no valid header: {problem}")]
    Header {
        /// Where, in the uncompressed stream.
        offset: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A pax header or a long name without end.
    #[error(
        "at byte {offset} the tar archive has an extended header of {size} bytes: the limit is {LONGEST_EXTENSION}"
    )]
    Extension {
        /// Where.
        offset: u64,
        /// How long it says it is.
        size: u64,
    },
    /// Sparse files.
    #[error("\"{0}\" in the tar archive is a sparse file, which is not supported: pack without --sparse")]
    Sparse(Shown),
    /// A kind of entry that nobody defines, or that cannot be unpacked from one archive.
    #[error("\"{name}\" in the tar archive is an entry of the unsupported type {kind:?}")]
    Kind {
        /// The entry's name.
        name: Shown,
        /// The type's character.
        kind: char,
    },
    /// The stream itself failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file with data.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this text.
    Symlink(Vec<u8>),
    /// Another name of an earlier entry.
    HardLink(Vec<u8>),
    /// A device node, a FIFO: nothing that we make.
    Special,
}

/// One entry, before its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The name as it is written.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// How many bytes of data follow.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Seconds since 1970.
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
    sparse: bool,
}

/// Walks a stream. Call [`TarReader::advance`], then read the entry's data from the reader itself.
pub(crate) struct TarReader<R> {
    input: R,
    offset: u64,
    data: u64,
    padding: u64,
    ended: bool,
}

impl<R: BufRead> TarReader<R> {
    /// Reads from the first block on.
    pub(crate) fn new(input: R) -> Self {
        Self { input, offset: 0, data: 0, padding: 0, ended: false }
    }

    /// The next entry; what was not read of the one before is passed over.
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
            let size = size(&header).ok_or_else(|| problem("its size is no number"))?;
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
        extensions: Extensions,
    ) -> Result<Entry, TarError> {
        let name =
            extensions.path.or(extensions.gnu_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || {
            let written = || header.link_name_bytes().map(std::borrow::Cow::into_owned);
            extensions.link.or(extensions.gnu_link).or_else(written).unwrap_or_default()
        };
        if extensions.sparse || kind == EntryType::GNUSparse {
            return Err(TarError::Sparse(shown(&name)));
        }
        let size = extensions.size.unwrap_or(size);
        let (kind, size) = match kind {
            // Before POSIX a directory was a file whose name ends in a slash.
            EntryType::Regular if name.ends_with(b"/") => (Kind::Directory, size),
            EntryType::Regular | EntryType::Continuous => (Kind::File, size),
            // These have no data, whatever the size says.
            EntryType::Directory => (Kind::Directory, 0),
            EntryType::Symlink => (Kind::Symlink(link()), 0),
            EntryType::Link => (Kind::HardLink(link()), 0),
            EntryType::Char | EntryType::Block | EntryType::Fifo => (Kind::Special, 0),
            other => {
                return Err(TarError::Kind { name: shown(&name), kind: char::from(other.as_byte()) });
            }
        };
        self.announce(size);
        let mtime = extensions.mtime.or_else(|| i64::try_from(header.mtime().ok()?).ok()).unwrap_or(0);
        let mode = header.mode().unwrap_or(0o644);
        Ok(Entry { name, kind, size, mode, mtime })
    }

    /// Reads a header block; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let at = self.offset;
        if !self.block(header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            // The end is two blocks of zeros; one of them and the end of the stream are taken as well.
            let mut second = [0; 512];
            if self.block(&mut second)? && second.iter().any(|byte| *byte != 0) {
                return Err(TarError::Header { offset: at, problem: "an empty block stands alone" });
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

    /// Fills one block; `false` where the stream ends before it.
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

    fn announce(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn extension(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        if size > LONGEST_EXTENSION {
            return Err(TarError::Extension { offset: at, size });
        }
        self.announce(size);
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

/// The data of the entry that [`TarReader::advance`] gave last.
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

/// The size field (POSIX ustar; GNU's base-256 above 8 GiB). The tar crate reads the last eight bytes of a
/// base-256 number alone: one that is larger, or negative, would be some other number to it.
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

/// Reads pax records, `LENGTH KEY=VALUE\n` each, by their lengths: a value may hold newlines.
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
            key if key.starts_with(b"GNU.sparse.") => extensions.sparse = true,
            _ => {}
        }
        text = &text[length..];
    }
    Some(())
}

#[cfg(test)]
mod tests;
