//! Writes tar archives byte by byte, including archives that no packer writes.

use std::io::Write as _;

/// An entry of a name, kind (the character of the header), link and content.
pub fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = header(name.as_bytes(), kind, link, data.len() as u64, 0o644);
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().div_ceil(512) * 512, 0);
    bytes
}

/// A header alone, of a name of at most 100 bytes.
pub fn header(name: &[u8], kind: u8, link: &str, size: u64, mode: u32) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, b"0000000\x000000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"14000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.to_vec()
}

/// Pax records for the entry behind it.
pub fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length += 1;
        }
        text.extend_from_slice(format!("{length} {key}=").as_bytes());
        text.extend_from_slice(value);
        text.push(b'\n');
    }
    entry("pax", b'x', "", &text)
}

/// Entries, and the end of an archive.
pub fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1_024]].concat()
}

/// Compressed.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    gzip_of(&[bytes], 0)
}

/// Compresses some bytes and a number of zeros behind them.
pub fn gzip_of(parts: &[&[u8]], zeros: u64) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for part in parts {
        encoder.write_all(part).expect("memory takes all");
    }
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), zeros), &mut encoder)
        .expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

/// Compresses an archive whose entries do not fit into memory.
pub fn gzip_each(entries: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for entry in entries.into_iter().chain([vec![0; 1_024]]) {
        encoder.write_all(&entry).expect("memory takes all");
    }
    encoder.finish().expect("memory takes all")
}

/// The same for zstd.
pub fn zstd_of(parts: &[&[u8]], zeros: u64) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("it starts");
    for part in parts {
        encoder.write_all(part).expect("memory takes all");
    }
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), zeros), &mut encoder)
        .expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

/// A zstd frame that says that it needs a window of 2 GiB, of one block that is not compressed (RFC 8878, 3.1.1).
pub fn zstd_with_huge_window(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 128 << 10, "a block holds no more");
    let size = u32::try_from(bytes.len()).expect("it is short");
    let block = (size << 3 | 1).to_le_bytes();
    [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3], &block[..3], bytes].concat()
}
