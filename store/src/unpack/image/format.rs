//! The on-disk structures of EROFS (Linux fs/erofs/erofs_fs.h). All numbers are little-endian.

/// The size of a block.
pub(super) const BLOCK: usize = 4_096;
/// The size of an extended inode.
pub(super) const INODE: usize = 64;
/// The most data that fits into one block behind its inode.
pub(super) const MAX_INLINE: usize = BLOCK - INODE;
/// Where the superblock is.
pub(super) const SUPERBLOCK_AT: u64 = 1_024;
/// Where the root inode is. Its number must have 16 bits.
pub(super) const ROOT_AT: u64 = 2_048;
/// The offset of the number of links in an inode.
pub(super) const LINKS_AT: u64 = 44;
/// The size of a directory entry without its name.
const DIRENT: usize = 12;
/// Inodes are numbered in units of 32 bytes.
pub(super) const SLOT: usize = 32;

/// The numbers of file types in directory entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File = 1,
    Directory = 2,
    Symlink = 7,
}

/// Where the data of an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// In whole blocks from this one.
    Blocks(u32),
    /// In whole blocks from this one, and the rest behind the inode.
    BlocksAndInline(u32),
}

/// An inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inode {
    /// File type and permissions, as in `st_mode`.
    pub(super) mode: u16,
    pub(super) size: u64,
    pub(super) links: u32,
    /// In seconds since 1970.
    pub(super) mtime: i64,
    pub(super) data: Data,
}

/// A field of a structure at an offset.
fn put<const N: usize>(into: &mut [u8], at: usize, bytes: [u8; N]) {
    into[at..at + N].copy_from_slice(&bytes);
}

impl Inode {
    /// Encodes an extended inode. The number is shown by `stat` on systems with 32-bit inodes only.
    pub(super) fn encode(&self, number: u64) -> [u8; INODE] {
        const EXTENDED: u16 = 1;
        let (layout, block) = match self.data {
            Data::Blocks(block) => (0_u16, block),
            Data::BlocksAndInline(block) => (2, block),
        };
        let mut bytes = [0; INODE];
        put(&mut bytes, 0, (EXTENDED | layout << 1).to_le_bytes());
        put(&mut bytes, 4, self.mode.to_le_bytes());
        put(&mut bytes, 8, self.size.to_le_bytes());
        put(&mut bytes, 16, block.to_le_bytes());
        put(&mut bytes, 20, u32::try_from(number & 0xffff_ffff).unwrap_or_default().to_le_bytes());
        put(&mut bytes, 32, self.mtime.to_le_bytes());
        put(&mut bytes, 44, self.links.to_le_bytes());
        bytes
    }
}

/// Returns the number of the inode at an offset.
pub(super) fn number_at(offset: u64) -> u64 {
    offset / SLOT as u64
}

/// Encodes the superblock of an image with so many inodes and blocks.
pub(super) fn superblock(inodes: u64, blocks: u32) -> [u8; 128] {
    const MAGIC: u32 = 0xe0f5_e1e2;
    const BLOCK_BITS: u8 = 12;
    let mut bytes = [0; 128];
    put(&mut bytes, 0, MAGIC.to_le_bytes());
    put(&mut bytes, 12, [BLOCK_BITS]);
    put(&mut bytes, 14, u16::try_from(number_at(ROOT_AT)).unwrap_or_default().to_le_bytes());
    put(&mut bytes, 16, inodes.to_le_bytes());
    put(&mut bytes, 36, blocks.to_le_bytes());
    bytes
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u64,
    pub(super) kind: Kind,
}

/// Returns the size of a directory with names of these lengths, in order.
pub(super) fn directory_size(names: impl Iterator<Item = usize>) -> u64 {
    let (mut whole, mut used) = (0_u64, 0);
    for name in names {
        if used + DIRENT + name > BLOCK {
            (whole, used) = (whole + BLOCK as u64, 0);
        }
        used += DIRENT + name;
    }
    whole + used as u64
}

/// Encodes a directory. The entries are sorted by name. Each block has its entries, and behind them their names.
pub(super) fn directory(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let count = rest
            .iter()
            .take_while(|entry| {
                used += DIRENT + entry.name.len();
                used <= BLOCK
            })
            .count();
        let (block, others) = rest.split_at(count);
        let mut name_at = count * DIRENT;
        for entry in block {
            bytes.extend_from_slice(&entry.inode.to_le_bytes());
            bytes.extend_from_slice(&u16::try_from(name_at).unwrap_or_default().to_le_bytes());
            bytes.extend_from_slice(&[entry.kind as u8, 0]);
            name_at += entry.name.len();
        }
        for entry in block {
            bytes.extend_from_slice(entry.name);
        }
        rest = others;
        if !rest.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_directory_is_known_before_it_is_encoded() {
        for (count, length) in [(2, 1), (100, 20), (341, 1), (5_000, 255), (40, 255), (1_000, 3)] {
            let names: Vec<Vec<u8>> = (0..count).map(|_| vec![b'n'; length]).collect();
            let entries: Vec<Dirent<'_>> =
                names.iter().map(|name| Dirent { name, inode: 7, kind: Kind::File }).collect();
            let encoded = directory(&entries);
            assert_eq!(encoded.len() as u64, directory_size(names.iter().map(Vec::len)), "{count} {length}");
            // No entry and no name crosses a block.
            for block in encoded.chunks(BLOCK) {
                let first = usize::from(u16::from_le_bytes([block[8], block[9]]));
                assert!(first.is_multiple_of(DIRENT) && first <= block.len());
            }
        }
    }
}
