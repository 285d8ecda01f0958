//! Layers: whatever they hold, what comes of them lies beneath the directory that they are unpacked in.
//!
//! The first byte says how the rest is read: as the bytes of a layer, or as entries (see [`entries`]) that make an
//! archive, since bytes alone seldom have a checksum that fits. Both are then unpacked in both shapes.

#![no_main]
// A panic is how a fuzz target says that something is wrong.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod printable;

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use bytes::Bytes;
use libfuzzer_sys::{Corpus, fuzz_target};
use oras_csi_store::BlobReader;
use oras_csi_store::EntryPath;
use oras_csi_store::Limits;
use oras_csi_store::Reserve;
use oras_csi_store::unpack::Budget;
use oras_csi_store::unpack::{UnpackOptions, unpack_layer};
use oras_csi_store::{LayerShape, Totals};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tar::{EntryType, Header};

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((how, rest)) = input.split_first() else { return Corpus::Reject };
    let plain = if how & 1 == 0 { rest.to_vec() } else { entries(rest) };
    let (bytes, media_type) = match (how >> 1) & 7 {
        0 => (plain, "application/x-tar"),
        1 => (gzip(&plain), "application/x-tar"),
        2 => (zstd::encode_all(&plain[..], 1).expect("memory takes all"), "application/x-tar"),
        3 => (plain, "application/vnd.oci.image.layer.v1.tar+gzip"),
        4 => (plain, "application/vnd.oci.image.layer.v1.tar+zstd"),
        5 => ([&[0x1f, 0x8b, 8][..], &plain].concat(), "application/x-tar"),
        6 => ([&[0x28, 0xb5, 0x2f, 0xfd][..], &plain].concat(), "application/x-tar"),
        // Two members, which are one stream.
        _ => {
            ([gzip(&plain[..plain.len() / 2]), gzip(&plain[plain.len() / 2..])].concat(), "application/gzip")
        }
    };
    let bytes = Bytes::from(bytes);
    let prefix = EntryPath::parse(b"d", &Limits::default()).expect("a path");
    unpack(&bytes, media_type, &LayerShape::Image);
    unpack(&bytes, media_type, &LayerShape::Directory { prefix, content: None });
    Corpus::Keep
});

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

fn unpack(bytes: &Bytes, media_type: &str, shape: &LayerShape) {
    let folder = scratch();
    let root = folder.path().join("tree");
    fs::create_dir(&root).expect("makes");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let opened = rustix::fs::open(&root, flags, Mode::empty()).expect("opens");
    let limits = Limits::default()
        .with_reserve(Reserve::bytes(0))
        .with_unpacked(1 << 20)
        .with_entries(300)
        .with_depth(32);
    let options = UnpackOptions::new(shape.clone(), Budget::default());
    let result = unpack_layer(BlobReader::of_bytes(media_type, bytes.clone()), &options, &opened, &limits);
    let beside = fs::read_dir(folder.path()).expect("reads").count();
    assert_eq!(beside, 1, "something lies beside the tree");
    let mut found = Found { is_whole: result.is_ok(), ..Found::default() };
    look(&root, &opened, &root, *shape == LayerShape::Image, &mut found);
    match result {
        Ok(unpacked) => {
            assert_eq!(unpacked.totals, found.totals);
            assert!(unpacked.totals.bytes <= limits.unpacked());
        }
        Err(error) => printable::check(&error.to_string()),
    }
}

/// In memory where that is to be had: an input makes some files, and there are thousands of inputs a second.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder")
}

#[derive(Default)]
struct Found {
    is_whole: bool,
    totals: Totals,
    inodes: HashSet<u64>,
}

fn look(root: &Path, opened: &impl std::os::fd::AsFd, path: &Path, is_image: bool, found: &mut Found) {
    let metadata = fs::symlink_metadata(path).expect("it is there");
    let kind = metadata.file_type();
    if found.inodes.insert(metadata.ino()) {
        found.totals.inodes += 1;
        found.totals.bytes += if kind.is_file() { metadata.len() } else { 0 };
    }
    assert!(!(kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket()));
    if kind.is_symlink() {
        let relative = path.strip_prefix(root).expect("below");
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolved = rustix::fs::openat2(opened, relative, flags, Mode::empty(), ResolveFlags::BENEATH);
        assert!(is_image || resolved.err() != Some(Errno::XDEV), "{} leaves the tree", relative.display());
        return;
    }
    assert_eq!(metadata.mode() & 0o7000, 0, "{}", path.display());
    // Files that were being written when the layer was refused must not be visible.
    assert!(!found.is_whole || metadata.mode() & 0o444 == 0o444, "{}", path.display());
    if kind.is_dir() {
        for entry in fs::read_dir(path).expect("reads") {
            look(root, opened, &entry.expect("an entry").path(), is_image, found);
        }
    }
}

const SEGMENTS: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"..",
    b".",
    b"",
    b"...",
    b".wh.a",
    b".wh..wh..opq",
    b"\xff\xfe",
    b"\xc3\xa9",
    b"A",
    b"a:b",
    b"a\nb",
    b"etc",
];

const KINDS: [EntryType; 12] = [
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Link,
    EntryType::Regular,
    EntryType::Symlink,
    EntryType::Char,
    EntryType::Fifo,
    EntryType::GNUSparse,
    EntryType::Continuous,
    EntryType::GNULongName,
    EntryType::XHeader,
];

/// Entries of a tar, each of a few bytes: kind and how the name is written, name, link, data.
fn entries(mut bytes: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    while let Some((&first, rest)) = bytes.split_first() {
        bytes = rest;
        let kind = KINDS[usize::from(first & 0x0f) % KINDS.len()];
        let name = path(&mut bytes);
        let link = path(&mut bytes);
        let data = match bytes.split_first() {
            Some((&length, rest)) => {
                let (data, rest) = rest.split_at(usize::from(length & 0x3f).min(rest.len()));
                bytes = rest;
                data.to_vec()
            }
            None => Vec::new(),
        };
        // Half of the names lie where a directory of ORAS has its entries.
        let name = if first & 0x10 == 0 { [b"d/", &name[..]].concat() } else { name };
        if first & 0x20 != 0 {
            let records = [record("path", &name), record("linkpath", &link)].concat();
            push(&mut archive, EntryType::XHeader, b"pax", b"", &records);
        }
        push(&mut archive, kind, &name, &link, &data);
    }
    archive.extend([0; 1024]);
    archive
}

/// A path of up to seven segments, two a byte.
fn path(bytes: &mut &[u8]) -> Vec<u8> {
    let Some((&length, rest)) = bytes.split_first() else { return b"a".to_vec() };
    let (named, rest) = rest.split_at(usize::from(length & 3).min(rest.len()));
    *bytes = rest;
    let nibbles = named.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let mut path = nibbles.map(|nibble| SEGMENTS[usize::from(nibble)]).collect::<Vec<_>>().join(&b'/');
    match length >> 2 & 7 {
        0 => path.insert(0, b'/'),
        1 => path.push(b'/'),
        2 => path.extend([b'x'; 120]),
        3 => path.push(0),
        _ => {}
    }
    path
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length += 1;
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn push(archive: &mut Vec<u8>, kind: EntryType, name: &[u8], link: &[u8], data: &[u8]) {
    let mut header = Header::new_ustar();
    let raw = header.as_mut_bytes();
    let put = |raw: &mut [u8; 512], at: usize, text: &[u8]| {
        let length = text.len().min(100);
        raw[at..at + length].copy_from_slice(&text[..length]);
    };
    put(raw, 0, name);
    put(raw, 157, link);
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o6755);
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(data);
    archive.resize(archive.len().div_ceil(512) * 512, 0);
}
