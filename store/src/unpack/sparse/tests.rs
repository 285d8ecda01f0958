use std::fs;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::layout::LayerShape;
use crate::limits::Limits;
use crate::unpack::tests::{Case, archive, entry, image, pax, unpack_with};

const SIZE: u64 = (1 << 20) + 17;
const PAIRS: [(u64, u64); 6] =
    [(0, 512), (100_000, 700), (300_000, 1), (400_000, 5_000), (500_000, 10), (SIZE, 0)];

/// Returns the data of the ranges.
fn stored(pairs: &[(u64, u64)]) -> Vec<u8> {
    let byte = |at: u64| u8::try_from(at % 250 + 1).unwrap();
    pairs.iter().flat_map(|(at, length)| (*at..at + length).map(byte)).collect()
}

/// Returns the content of the file with its holes.
fn content(size: u64, pairs: &[(u64, u64)]) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(size).unwrap()];
    for pair in pairs {
        let start = usize::try_from(pair.0).unwrap();
        let data = stored(&[*pair]);
        content[start..start + data.len()].copy_from_slice(&data);
    }
    content
}

/// Makes a GNU header of the header of an entry.
fn with_header(mut entry: Vec<u8>, change: impl FnOnce(&mut ::tar::GnuHeader)) -> Vec<u8> {
    let mut header = ::tar::Header::new_gnu();
    let magic = header.as_bytes()[257..265].to_vec();
    header.as_mut_bytes().copy_from_slice(&entry[..512]);
    header.as_mut_bytes()[257..265].copy_from_slice(&magic);
    header.as_mut_bytes()[345..512].fill(0);
    change(header.as_gnu_mut().unwrap());
    header.set_cksum();
    entry[..512].copy_from_slice(header.as_bytes());
    entry
}

/// An entry of type `S`, with the rest of its map behind the header.
fn gnu(size: u64, pairs: &[(u64, u64)], data: &[u8]) -> Vec<u8> {
    let (first, rest) = pairs.split_at(pairs.len().min(4));
    let mut header = with_header(entry("sparse.img", b'S', "", data), |header| {
        for (slot, (offset, length)) in header.sparse.iter_mut().zip(first) {
            slot.set_offset(*offset);
            slot.set_length(*length);
        }
        header.set_real_size(size);
        header.set_is_extended(!rest.is_empty());
    });
    let blocks = rest.chunks(21).collect::<Vec<_>>();
    let blocks = blocks.iter().enumerate().map(|(at, pairs)| {
        let mut block = ::tar::GnuExtSparseHeader::new();
        for (slot, (offset, length)) in block.sparse_mut().iter_mut().zip(*pairs) {
            slot.set_offset(*offset);
            slot.set_length(*length);
        }
        block.set_is_extended(at + 1 < blocks.len());
        block.as_bytes().to_vec()
    });
    let map = blocks.flatten().collect::<Vec<_>>();
    header.splice(512..512, map);
    header
}

fn pax_0_0(size: u64, pairs: &[(u64, u64)], data: &[u8]) -> Vec<u8> {
    let texts = pairs.iter().map(|(offset, length)| (offset.to_string(), length.to_string()));
    let (texts, size, count) = (texts.collect::<Vec<_>>(), size.to_string(), pairs.len().to_string());
    let mut records = vec![("GNU.sparse.size", size.as_str()), ("GNU.sparse.numblocks", &count)];
    for (offset, length) in &texts {
        records.extend([("GNU.sparse.offset", offset.as_str()), ("GNU.sparse.numbytes", length)]);
    }
    [pax(&records), entry("sparse.img", b'0', "", data)].concat()
}

fn pax_0_1(size: u64, pairs: &[(u64, u64)], data: &[u8]) -> Vec<u8> {
    let map = pairs.iter().map(|(offset, length)| format!("{offset},{length}")).collect::<Vec<_>>();
    let records = [
        ("GNU.sparse.size", &*size.to_string()),
        ("GNU.sparse.numblocks", &pairs.len().to_string()),
        ("GNU.sparse.name", "sparse.img"),
        ("GNU.sparse.map", &map.join(",")),
    ];
    [pax(&records), entry("./GNUSparseFile.7/sparse.img", b'0', "", data)].concat()
}

fn pax_1_0(size: u64, pairs: &[(u64, u64)], data: &[u8]) -> Vec<u8> {
    let mut map = format!("{}\n", pairs.len()).into_bytes();
    map.extend(pairs.iter().flat_map(|(offset, length)| format!("{offset}\n{length}\n").into_bytes()));
    map.resize(map.len().div_ceil(512) * 512, 0);
    let records = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "sparse.img"),
        ("GNU.sparse.realsize", &*size.to_string()),
    ];
    [pax(&records), entry("./GNUSparseFile.0/sparse.img", b'0', "", &[&map[..], data].concat())].concat()
}

type Format = fn(u64, &[(u64, u64)], &[u8]) -> Vec<u8>;

fn unpack(format: Format, size: u64, pairs: &[(u64, u64)], limits: Limits) -> Case {
    let bytes = archive(&[format(size, pairs, &stored(pairs)), entry("next", b'0', "", b"next")]);
    unpack_with(&bytes, "application/x-tar", &LayerShape::Image, limits)
}

#[rstest]
fn a_sparse_file_keeps_its_holes(#[values(gnu, pax_0_0, pax_0_1, pax_1_0)] format: Format) {
    let many = (0..200).map(|at| (at * 5_000, 100)).collect::<Vec<_>>();
    for pairs in [&PAIRS[..], &PAIRS[..3], &[(SIZE, 0)], &many] {
        let case = unpack(format, SIZE, pairs, Limits::default());
        assert_eq!(case.totals().bytes, SIZE + 4);
        assert!(fs::read(case.path("sparse.img")).unwrap() == content(SIZE, pairs));
        assert_eq!(fs::read(case.path("next")).unwrap(), b"next");
        let found = fs::metadata(case.path("sparse.img")).unwrap();
        assert_eq!(found.mtime(), 1_600_000_000);
        let usage = case.result.as_ref().unwrap().usage;
        assert!(found.blocks() * 512 <= usage.bytes, "{} {}", found.blocks(), usage.bytes);
        if pairs.len() < 10 {
            assert!(usage.bytes < 64 << 10, "{}", usage.bytes);
        }
    }
}

#[rstest]
fn holes_count_as_unpacked_bytes_and_not_as_disk_usage(
    #[values(gnu, pax_0_0, pax_0_1, pax_1_0)] format: Format,
) {
    let huge = 1 << 40;
    let error = unpack(format, huge, &[(5, 5)], Limits::default()).error();
    assert!(error.contains("--max-unpacked"), "{error}");
    let limits = Limits::default().with_unpacked(1 << 41);
    let case = unpack(format, huge, &[(5, 5), (huge - 1, 1)], limits);
    assert_eq!(case.totals().bytes, huge + 4);
    assert_eq!(fs::metadata(case.path("sparse.img")).unwrap().len(), huge);
    assert!(case.result.as_ref().unwrap().usage.bytes < 32 << 10);
}

#[rstest]
fn an_invalid_map_is_rejected_with_the_name_of_the_file(
    #[values(gnu, pax_0_0, pax_0_1, pax_1_0)] format: Format,
) {
    for (size, pairs) in
        [(100, &[(0, 101)][..]), (100, &[(99, 2)]), (100, &[(10, 10), (5, 5)]), (100, &[(10, 10), (15, 10)])]
    {
        let error = unpack(format, size, pairs, Limits::default()).error();
        assert!(error.contains("\"sparse.img\"") && error.contains("invalid map"), "{error}");
    }
    // The archive stores more or less than the map says.
    for data in [&[1; 9][..], &[1; 11]] {
        let error = image(&[format(100, &[(0, 10)], data)]).error();
        assert!(error.contains("\"sparse.img\"") && error.contains("invalid map"), "{error}");
    }
}

#[test]
fn an_unknown_format_and_a_malformed_map_are_rejected() {
    let with = |records: &[(&str, &str)], data: &[u8]| {
        let name = ("GNU.sparse.name", "sparse.img");
        let records = [records, &[name]].concat();
        image(&[pax(&records), entry("./GNUSparseFile.0/x", b'0', "", data)]).error()
    };
    let error = with(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")], b"");
    assert!(error.contains("\"sparse.img\"") && error.contains("not supported"), "{error}");
    let one = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9")];
    let block = |text: &str| [text.as_bytes(), &[0; 512][..512 - text.len()]].concat();
    for data in [
        block("x\n"),
        block("1\n-1\n3\n"),
        block("18446744073709551615\n0\n0\n"),
        block("2\n0\n0\n"),
        b"1\n0\n0\n".to_vec(),
    ] {
        let error = with(&one, &data);
        assert!(error.contains("\"sparse.img\"") && error.contains("invalid map"), "{error}");
    }
    let endless = vec![b'1'; 2 << 20];
    assert!(with(&one, &endless).contains("invalid map"));
    assert!(with(&[("GNU.sparse.numbytes", "1")], b"x").contains("pax"));
    assert!(with(&[("GNU.sparse.map", "1"), ("GNU.sparse.size", "1")], b"x").contains("pax"));
}

#[test]
fn a_sparse_file_that_is_replaced_is_refunded_what_it_was_charged() {
    let sparse = gnu(1 << 30, &[(0, 10)], &stored(&[(0, 10)]));
    let replaced = image(&[sparse, entry("sparse.img", b'0', "", b"x")]);
    let plain = image(&[entry("sparse.img", b'0', "", b"y"), entry("sparse.img", b'0', "", b"x")]);
    assert_eq!(replaced.totals(), plain.totals());
    assert_eq!(replaced.result.unwrap().usage, plain.result.unwrap().usage);
}

#[test]
fn numbers_of_gnu_headers_are_octal_or_base_256() {
    for (field, expected) in [
        (&b"00000001000\0"[..], Some(512)),
        (b"   1000 \0\0\0\0", Some(512)),
        (&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0], Some(1 << 33)),
        (&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], None),
        (&[0xff; 12], None),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0", None),
        (b"00000009000\0", None),
    ] {
        assert_eq!(number(field), expected, "{field:?}");
    }
}

proptest! {
    #[test]
    fn the_usage_is_that_of_the_blocks_with_data(
        gaps in prop::collection::vec((0_u64..20_000, 0_u64..20_000), 0..8)
    ) {
        let mut pairs = Vec::new();
        let mut end = 0;
        for (gap, length) in gaps {
            pairs.push((end + gap, length));
            end += gap + length;
        }
        let blocks = (0..end.div_ceil(BLOCK)).filter(|block| {
            let overlaps = |(start, length): &(u64, u64)| {
                *length > 0 && *start < (block + 1) * BLOCK && start + length > block * BLOCK
            };
            pairs.iter().any(overlaps)
        });
        let expected = Usage::file(blocks.count() as u64 * BLOCK);
        prop_assert_eq!(SparseMap::new(end, &pairs).unwrap().usage(), expected);
    }
}
