use rstest::rstest;

use super::*;
use crate::unpack::tests::{archive, end, entry, pax};

fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.advance()? {
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        entries.push((entry, data));
    }
    Ok(entries)
}

fn names(bytes: &[u8]) -> Vec<String> {
    let text = |(entry, _): (Entry, Vec<u8>)| String::from_utf8(entry.name).unwrap();
    read_all(bytes).unwrap().into_iter().map(text).collect()
}

#[test]
fn reads_files_with_their_data() {
    let data = vec![7; 1_300];
    let bytes =
        archive(&[entry("a", b'0', "", &data), entry("b/", b'5', "", b""), entry("c", b'2', "a", b"")]);
    let entries = read_all(&bytes).unwrap();
    assert_eq!(entries[0].1, data);
    assert_eq!(entries[1].0.kind, EntryKind::Directory);
    assert_eq!(entries[2].0.kind, EntryKind::Symlink(b"a".to_vec()));
    assert_eq!(entries.len(), 3);
}

#[test]
fn data_that_was_not_read_is_skipped() {
    let bytes = archive(&[entry("a", b'0', "", &[1; 2_000]), entry("b", b'0', "", b"x")]);
    let mut reader = TarReader::new(&bytes[..]);
    assert_eq!(reader.advance().unwrap().unwrap().name, b"a");
    assert_eq!(reader.advance().unwrap().unwrap().name, b"b");
    assert!(reader.advance().unwrap().is_none());
    assert!(reader.advance().unwrap().is_none());
}

#[test]
fn a_pax_path_has_precedence_over_a_gnu_long_name_and_that_over_the_header() {
    let long = "d/".repeat(90) + "long";
    let gnu = entry("././@LongLink", b'L', "", [long.as_bytes(), b"\0"].concat().as_slice());
    assert_eq!(names(&archive(&[gnu.clone(), entry("short", b'0', "", b"")])), std::slice::from_ref(&long));
    let records = pax(&[("path", "a\nb=c")]);
    assert_eq!(names(&archive(&[records.clone(), entry("short", b'0', "", b"")])), ["a\nb=c"]);
    assert_eq!(names(&archive(&[gnu, records, entry("short", b'0', "", b"")])), ["a\nb=c"]);
    // A record applies to one entry only.
    let both = archive(&[pax(&[("path", "x")]), entry("s", b'0', "", b""), entry("t", b'0', "", b"")]);
    assert_eq!(names(&both), ["x", "t"]);
}

#[rstest]
#[case::three_high_bytes([0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]
#[case::the_lowest_of_them([0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5])]
#[case::negative([0xff; 12])]
#[case::a_seventh_bit([0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5])]
fn a_size_beyond_sixty_four_bits_is_refused(#[case] size: [u8; 12]) {
    let mut header = tar::Header::new_gnu();
    header.set_path("x").unwrap();
    header.as_old_mut().size = size;
    header.set_cksum();
    assert!(matches!(read_all(header.as_bytes()), Err(TarError::Header { .. })));
}

#[test]
fn a_pax_size_replaces_the_size_of_the_header() {
    // Go writes the header of a file that is too large for it with the size 0.
    let mut lying = entry("big", b'0', "", b"hello");
    tar::Header::from_byte_slice(&lying[..512]);
    lying.splice(..512, entry("big", b'0', "", b"")[..512].to_vec());
    let bytes = archive(&[pax(&[("size", "5")]), lying, entry("next", b'0', "", b"")]);
    let entries = read_all(&bytes).unwrap();
    assert_eq!((entries[0].1.as_slice(), entries.len()), (&b"hello"[..], 2));
}

#[test]
fn global_records_are_ignored() {
    let mut global = pax(&[("path", "everything"), ("comment", "git")]);
    global[156] = b'g';
    let header: &mut [u8] = &mut global[..512];
    let mut checked = tar::Header::from_byte_slice(header).clone();
    checked.set_cksum();
    header.copy_from_slice(checked.as_bytes());
    assert_eq!(names(&archive(&[global, entry("a", b'0', "", b"")])), ["a"]);
}

#[test]
fn a_file_whose_name_ends_in_a_slash_is_a_directory() {
    let bytes = archive(&[entry("d/", b'\0', "", b"")]);
    assert_eq!(read_all(&bytes).unwrap()[0].0.kind, EntryKind::Directory);
}

#[test]
fn links_have_no_data_whatever_their_size_field_says() {
    let mut link = entry("l", b'2', "a", b"");
    let mut header = tar::Header::from_byte_slice(&link[..512]).clone();
    header.set_size(4_096);
    header.set_cksum();
    link[..512].copy_from_slice(header.as_bytes());
    assert_eq!(names(&archive(&[link, entry("b", b'0', "", b"")])), ["l", "b"]);
}

#[test]
fn accepts_the_ends_that_tar_writers_produce() {
    let one = entry("a", b'0', "", b"x");
    assert_eq!(names(&one), ["a"]);
    assert_eq!(names(&[&one[..], &[0; 512]].concat()), ["a"]);
    assert_eq!(names(&[&one[..513]].concat()), ["a"]);
    assert_eq!(names(&[&one[..], &end(), b"garbage behind the end"].concat()), ["a"]);
    assert_eq!(names(b""), Vec::<String>::new());
}

#[test]
fn rejects_invalid_archives() {
    let good = archive(&[entry("a", b'0', "", &[1; 600])]);
    let mut flipped = good.clone();
    flipped[3] ^= 1;
    let lone = [&[0; 512][..], &entry("a", b'0', "", b"")].concat();
    let endless = {
        let mut header = tar::Header::from_byte_slice(&entry("x", b'x', "", b"")[..512]).clone();
        header.set_size(3 << 30);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let record = |text: &str| archive(&[entry("x", b'x', "", text.as_bytes()), entry("a", b'0', "", b"")]);
    for (bytes, word) in [
        (&flipped[..], "checksum"),
        (&good[..700], "middle"),
        (&good[..100], "middle"),
        (b"this is no archive at all", "middle"),
        (&[b'x'; 512], "checksum"),
        (&lone, "alone"),
        (&endless, "extended header of 3221225472"),
        (&record("99 path=short\n"), "pax"),
        (&record("0 path=a\n"), "pax"),
        (&record("path=a\n"), "pax"),
        (&record("12 size=abc\n"), "pax"),
        (&record("11 path=abc"), "pax"),
        (&archive(&[pax(&[("GNU.sparse.major", "1")]), entry("a", b'0', "", b"")]), "sparse"),
        (&archive(&[entry("a", b'S', "", b"")]), "sparse"),
        (&archive(&[entry("a", b'M', "", b"")]), "'M'"),
        (&archive(&[entry("a", b'Z', "", b"")]), "'Z'"),
    ] {
        let error = read_all(bytes).unwrap_err().to_string();
        assert!(error.contains(word), "{error} / {word}");
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_cause_no_panic(noise: Vec<u8>, at in 0_usize..2_048) {
        let mut bytes = archive(&[pax(&[("path", "p")]), entry("a", b'0', "", &[1; 600])]);
        let at = at.min(bytes.len());
        bytes.splice(at..(at + noise.len()).min(bytes.len()), noise);
        let _ = read_all(&bytes);
    }
}
