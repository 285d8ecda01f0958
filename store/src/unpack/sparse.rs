//! Parses the maps of sparse files: which ranges of a file a tar archive stores. The rest are holes.
//!
//! GNU tar writes four formats ("Storing Sparse Files" in its manual):
//!
//! | format | map | size of the file | name of the file |
//! |---|---|---|---|
//! | GNU (type `S`) | in the header, and in blocks behind it | in the header | in the header |
//! | pax 0.0 | records `GNU.sparse.offset` and `GNU.sparse.numbytes`, in pairs | `GNU.sparse.size` | `path` |
//! | pax 0.1 | the record `GNU.sparse.map` | `GNU.sparse.size` | `GNU.sparse.name` |
//! | pax 1.0 | decimal lines before the data, in whole blocks | `GNU.sparse.realsize` | `GNU.sparse.name` |

use std::ops::Range;

use crate::disk::{BLOCK, Usage};

/// The bytes of one entry of a map in a GNU header: its offset and its length.
const PAIR: usize = 24;
/// Where the map of a GNU header begins, and how many entries it has.
const HEADER_MAP: (usize, usize) = (386, 4);
/// The same for a block behind the header.
const BLOCK_MAP: (usize, usize) = (0, 21);

/// The ranges of a sparse file that have data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SparseMap {
    size: u64,
    data: Vec<Range<u64>>,
}

impl SparseMap {
    /// Creates a map of pairs of offset and length. Returns `None` unless they are in order and within the file.
    pub(super) fn new(size: u64, pairs: &[(u64, u64)]) -> Option<Self> {
        let mut end = 0;
        let mut data = Vec::new();
        for &(offset, length) in pairs {
            let next = offset.checked_add(length)?;
            if offset < end || next > size {
                return None;
            }
            end = next;
            if length > 0 {
                data.push(offset..next);
            }
        }
        // The kernel has no files above this size.
        i64::try_from(size).ok().map(|_| Self { size, data })
    }

    /// Returns the size of the file, with its holes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Returns how many bytes of the file the archive stores.
    pub(crate) fn stored(&self) -> u64 {
        self.data.iter().map(|range| range.end - range.start).sum()
    }

    /// Returns how many bytes of the file are holes.
    pub(crate) fn holes(&self) -> u64 {
        self.size - self.stored()
    }

    /// Returns the ranges with data, in order.
    pub(crate) fn data(&self) -> &[Range<u64>] {
        &self.data
    }

    /// Returns what the disk is charged: the blocks that have data.
    pub(crate) fn usage(&self) -> Usage {
        let mut blocks = 0;
        let mut end = 0;
        for range in &self.data {
            let next = range.end.div_ceil(BLOCK);
            blocks += next - end.max(range.start / BLOCK).min(next);
            end = next;
        }
        Usage::file(blocks.saturating_mul(BLOCK))
    }
}

/// A map of which parts were read.
#[derive(Clone, Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    pairs: Vec<(u64, u64)>,
    offset: Option<u64>,
    major: Option<u64>,
    minor: Option<u64>,
}

/// Where the map of a file is.
pub(super) enum Location {
    /// In the pax records.
    Records(Option<SparseMap>),
    /// Before the data. The file has this size.
    Data(u64),
    /// In a version of the format that this reader does not know.
    Unknown,
}

impl SparseRecords {
    /// Reads the pax record `GNU.sparse.KEY`. Returns `None` if it is malformed.
    pub(super) fn read(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => self.pairs.push((self.offset.take()?, decimal(value)?)),
            b"map" => self.pairs = pairs(value.split(|byte| *byte == b','))?,
            _ => {}
        }
        Some(())
    }

    /// Returns where the map is.
    pub(super) fn location(&self) -> Location {
        match (self.major, self.minor, self.size) {
            (Some(1), Some(0), Some(size)) => Location::Data(size),
            (None | Some(0), None | Some(0 | 1), Some(size)) => {
                Location::Records(SparseMap::new(size, &self.pairs))
            }
            _ => Location::Unknown,
        }
    }
}

/// Adds the entries of a GNU header, or of a block behind it, to `pairs`. Returns whether another block follows.
pub(super) fn read_gnu(block: &[u8; 512], is_header: bool, pairs: &mut Vec<(u64, u64)>) -> Option<bool> {
    let (start, count) = if is_header { HEADER_MAP } else { BLOCK_MAP };
    let end = start + count * PAIR;
    for pair in block[start..end].chunks_exact(PAIR) {
        let (offset, length) = pair.split_at(PAIR / 2);
        if offset[0] == 0 {
            break;
        }
        pairs.push((number(offset)?, number(length)?));
    }
    Some(block[end] != 0)
}

/// Returns the size of the file in a GNU header.
pub(super) fn gnu_size(header: &[u8; 512]) -> Option<u64> {
    number(&header[483..495])
}

/// Returns how many lines a map in the format pax 1.0 has: the number of entries, and two for each. `text` has the first
/// line.
pub(super) fn count_lines(text: &[u8]) -> Option<usize> {
    let count = decimal(text.split(|byte| *byte == b'\n').next()?)?;
    usize::try_from(count).ok()?.checked_mul(2)?.checked_add(1)
}

/// Parses so many lines of a map in the format pax 1.0.
pub(super) fn read_lines(text: &[u8], lines: usize) -> Option<Vec<(u64, u64)>> {
    pairs(text.split(|byte| *byte == b'\n').take(lines).skip(1))
}

fn pairs<'a>(mut numbers: impl Iterator<Item = &'a [u8]>) -> Option<Vec<(u64, u64)>> {
    let mut pairs = Vec::new();
    while let Some(offset) = numbers.next() {
        pairs.push((decimal(offset)?, decimal(numbers.next()?)?));
    }
    Some(pairs)
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.iter().all(u8::is_ascii_digit) { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

/// Decodes a number of a header: octal digits, or the base-256 of GNU tar.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        let is_small = high.iter().enumerate().all(|(at, byte)| *byte == if at == 0 { 0x80 } else { 0 });
        return is_small.then(|| low.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    u64::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests;
