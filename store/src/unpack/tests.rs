use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use bytes::Bytes;
use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::Descriptor;
use rstest::rstest;
use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::content::blob_reader::{BlobReader, PIECES, StreamFault};
use crate::disk::{EntryPath, Totals};
use crate::error_class::ErrorClass;
use crate::layout::LayerShape;
use crate::limits::{Limits, Reserve};

/// Returns the bytes of an entry: header, data, padding.
pub(super) fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    raw_entry(name.as_bytes(), kind, link.as_bytes(), data, 0o644)
}

fn raw_entry(name: &[u8], kind: u8, link: &[u8], data: &[u8], mode: u32) -> Vec<u8> {
    let mut header = ::tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
    header.as_mut_bytes()[156] = kind;
    header.set_size(data.len() as u64);
    header.set_mode(mode);
    header.set_mtime(1_600_000_000);
    header.set_uid(12_345);
    header.set_gid(12_345);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().div_ceil(512) * 512, 0);
    bytes
}

pub(super) fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let length = (1..6)
            .map(|digits| rest.len() + digits)
            .find(|length| length.to_string().len() + rest.len() == *length);
        text.push_str(&length.unwrap().to_string());
        text.push_str(&rest);
    }
    entry("pax", b'x', "", text.as_bytes())
}

pub(super) fn end() -> Vec<u8> {
    vec![0; 1_024]
}

pub(super) fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), end()].concat()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn open(path: &std::path::Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

/// Returns a reader that receives `bytes` in pieces, for a blob whose descriptor was made from `announced`.
fn reader(bytes: &[u8], announced: &[u8], media_type: &str) -> BlobReader {
    let descriptor = Descriptor::new(media_type, Digest::sha256_of(announced), announced.len() as u64);
    let (sender, receiver) = mpsc::channel(PIECES);
    let layers_planned = bytes.chunks(700).map(Bytes::copy_from_slice).collect::<Vec<_>>();
    std::thread::spawn(move || {
        for piece in layers_planned {
            if sender.blocking_send(Ok(piece)).is_err() {
                return;
            }
        }
    });
    BlobReader::new(descriptor, receiver)
}

pub(super) struct Case {
    folder: TempDir,
    pub(super) result: Result<UnpackSummary, UnpackError>,
}

pub(super) fn unpack_with(bytes: &[u8], media_type: &str, shape: &LayerShape, limits: Limits) -> Case {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("tree");
    fs::create_dir(&inside).unwrap();
    let unpacking = UnpackOptions::new(shape.clone(), Budget::default());
    let result = unpack_layer(reader(bytes, bytes, media_type), &unpacking, &open(&inside), &limits);
    // Nothing is written beside the tree.
    let beside = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(beside.collect::<Vec<_>>(), ["tree"]);
    Case { folder, result }
}

pub(super) fn directory(prefix: &str) -> LayerShape {
    let prefix = EntryPath::parse(prefix.as_bytes(), &Limits::default()).unwrap();
    LayerShape::Directory { prefix, content: None }
}

pub(super) fn image(entries: &[Vec<u8>]) -> Case {
    unpack_with(&archive(entries), "application/x-tar", &LayerShape::Image, Limits::default())
}

pub(super) fn oras(entries: &[Vec<u8>]) -> Case {
    let bytes = gzip(&archive(entries));
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    unpack_with(&bytes, media_type, &directory("d"), Limits::default())
}

impl Case {
    pub(super) fn path(&self, path: &str) -> std::path::PathBuf {
        self.folder.path().join("tree").join(path)
    }

    pub(super) fn error(&self) -> String {
        self.result.as_ref().unwrap_err().to_string()
    }

    pub(super) fn totals(&self) -> Totals {
        self.result.as_ref().unwrap().totals
    }
}

#[test]
fn the_prefix_of_an_oras_directory_is_removed() {
    let case = oras(&[
        entry("d", b'5', "", b""),
        entry("d/a.txt", b'0', "", b"hello"),
        entry("d/sub/b", b'0', "", b"deep"),
        entry("d/sub/link", b'2', "../a.txt", b""),
        entry("d/hard", b'1', "d/a.txt", b""),
    ]);
    assert_eq!(case.totals(), Totals { bytes: 9, inodes: 5 });
    assert_eq!(fs::read(case.path("a.txt")).unwrap(), b"hello");
    assert_eq!(fs::read(case.path("sub/link")).unwrap(), b"hello");
    assert_eq!(
        fs::metadata(case.path("hard")).unwrap().ino(),
        fs::metadata(case.path("a.txt")).unwrap().ino()
    );
    assert_eq!(fs::metadata(case.path("a.txt")).unwrap().mtime(), 1_600_000_000);
    assert_eq!(fs::metadata(case.path("")).unwrap().mtime(), 1_600_000_000);
}

#[test]
fn files_are_readable_and_have_no_setuid_setgid_or_sticky_bit() {
    let case = image(&[
        raw_entry(b"suid", b'0', b"", b"", 0o6755),
        raw_entry(b"secret", b'0', b"", b"", 0o600),
        raw_entry(b"nothing", b'0', b"", b"", 0),
        raw_entry(b"run", b'0', b"", b"", 0o700),
        raw_entry(b"world", b'0', b"", b"", 0o777),
        raw_entry(b"dir", b'5', b"", b"", 0o1700),
    ]);
    case.result.as_ref().unwrap();
    for (name, mode) in [
        ("suid", 0o755),
        ("secret", 0o644),
        ("nothing", 0o444),
        ("run", 0o755),
        ("world", 0o755),
        ("dir", 0o755),
    ] {
        let found = fs::metadata(case.path(name)).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, mode, "{name}");
        assert_eq!(found.uid(), rustix::process::geteuid().as_raw());
    }
}

#[test]
fn no_entry_leaves_the_tree() {
    let evil = [
        (entry("../evil", b'0', "", b"x"), "leave"),
        (entry("d/../../evil", b'0', "", b"x"), "leave"),
        (entry("d/..", b'5', "", b""), "leave"),
        (entry("evil", b'0', "", b"x"), "beneath \"d\""),
        (entry("dd/evil", b'0', "", b"x"), "beneath \"d\""),
        (entry("/etc/evil", b'0', "", b"x"), "absolute"),
        (entry("d/l", b'2', "/etc/passwd", b""), "leads to"),
        (entry("d/l", b'2', "../x", b""), "leads to"),
        (entry("d/s/l", b'2', "../../x", b""), "leads to"),
        (entry("d/s/l", b'2', "a/../../x", b""), "leads to"),
        (entry("d/h", b'1', "../../etc/passwd", b""), "leave"),
        (entry("d/h", b'1', "/etc/passwd", b""), "absolute"),
        (entry("d/h", b'1', "d/later", b""), "no earlier file"),
        (entry("d/h", b'1', "d", b""), "no earlier file"),
        (entry("d", b'0', "", b"x"), "root of the volume"),
        (entry("d/l", b'2', "", b""), "empty"),
    ];
    for (entry, word) in evil {
        let error = oras(&[entry]).error();
        assert!(error.contains(word), "{error} / {word}");
    }
}

#[test]
fn an_oras_directory_writes_nothing_through_a_link() {
    for entries in [
        [entry("d/l", b'2', ".", b""), entry("d/l/evil", b'0', "", b"x")],
        [entry("d/l", b'2', ".", b""), entry("d/l/evil", b'5', "", b"")],
        [entry("d/l", b'2', "a", b""), entry("d/l/evil", b'2', "x", b"")],
        [entry("d/a/l", b'2', "..", b""), entry("d/a/l/b/evil", b'0', "", b"x")],
    ] {
        let case = oras(&entries);
        assert!(case.error().contains("symbolic link"), "{}", case.error());
    }
    let case = oras(&[
        entry("d/a/f", b'0', "", b"x"),
        entry("d/l", b'2', "a", b""),
        entry("d/h", b'1', "d/l/f", b""),
    ]);
    assert!(case.error().contains("no earlier file"), "{}", case.error());
    let case = oras(&[entry("d/a/f", b'0', "", b"x"), entry("d/a", b'2', "b", b"")]);
    assert!(case.error().contains("directory with something in it"), "{}", case.error());
}

#[rstest]
#[case::relative(&[("l", "usr/lib")], "l/x", "usr/lib/x")]
#[case::absolute(&[("l", "/usr/lib")], "l/x", "usr/lib/x")]
#[case::upwards(&[("a/l", "../../../../usr")], "a/l/b/x", "usr/b/x")]
#[case::upwards_from_the_root(&[("l", "/../..//./usr/../lib/")], "l/x", "lib/x")]
#[case::to_the_root(&[("l", "/")], "l/x", "x")]
#[case::to_itself(&[("a/l", ".")], "a/l/l/l/x", "a/x")]
#[case::link_to_link(&[("l", "m"), ("m", "/n/o"), ("n", "p")], "l/x", "p/o/x")]
#[case::back_and_forth(&[("a/l", "../b/m"), ("b/m", "../a/n")], "a/l/x", "a/n/x")]
#[case::beneath(&[("a/b/l", "../c")], "a/b/l/d/x", "a/c/d/x")]
#[case::not_utf8(&[("l", "\u{fc}/ ")], "l/x", "\u{fc}/ /x")]
fn an_image_writes_through_its_links_beneath_its_root(
    #[case] links: &[(&str, &str)],
    #[case] path: &str,
    #[case] found: &str,
) {
    let links = links.iter().map(|(name, target)| entry(name, b'2', target, b"")).collect::<Vec<_>>();
    let parent = found.rsplit_once('/').map_or("", |(parent, _)| parent);
    // The target of the link is created, or was there before.
    for directory in [None, Some(entry(&format!("./{parent}"), b'5', "", b""))] {
        let file = [entry(path, b'0', "", b"data")];
        let entries = directory.into_iter().chain(links.clone()).chain(file).collect::<Vec<_>>();
        let case = image(&entries);
        case.result.as_ref().unwrap();
        assert_eq!(fs::read(case.path(found)).unwrap(), b"data");
        assert!(fs::symlink_metadata(case.path(found)).unwrap().is_file());
    }
}

#[test]
fn nothing_is_written_outside_through_a_link() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let target = outside.path().to_str().unwrap();
    let inside = |name: &str| format!("{}/{name}", target.trim_start_matches('/'));
    let link = || entry("l", b'2', target, b"");
    let case = image(&[
        link(),
        entry("l/evil", b'0', "", b"x"),
        entry("l/d", b'5', "", b""),
        entry("l/s", b'2', "x", b""),
        entry("f", b'0', "", b"x"),
        entry("l/h", b'1', "f", b""),
    ]);
    assert_eq!(case.totals().bytes, 2);
    for name in ["evil", "h"] {
        assert_eq!(fs::read(case.path(&inside(name))).unwrap(), b"x");
    }
    assert!(case.path(&inside("d")).is_dir());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    // A file of the node is no earlier file of the layer.
    let case = image(&[link(), entry("h", b'1', "l/secret", b"")]);
    assert!(case.error().contains("no earlier file"), "{}", case.error());
    // A directory entry replaces the link, and files are written into the directory.
    let case = image(&[link(), entry("l", b'5', "", b""), entry("l/file", b'0', "", b"x")]);
    assert_eq!(case.totals().inodes, 3);
    assert!(fs::symlink_metadata(case.path("l")).unwrap().is_dir());
}

#[test]
fn loops_and_links_to_files_are_rejected() {
    let long = "d/".repeat(200);
    let links = |links: &[(&str, &str)]| {
        links.iter().map(|(name, target)| entry(name, b'2', target, b"")).collect::<Vec<_>>()
    };
    let chain = (0..50).map(|at| (format!("l{at}"), format!("l{}", at + 1))).collect::<Vec<_>>();
    let chain = chain.iter().map(|(name, target)| (&**name, &**target)).collect::<Vec<_>>();
    let deep = [
        pax(&[("linkpath", &long)]),
        entry("l", b'2', "", b""),
        pax(&[("path", &format!("l/{long}x"))]),
        entry("x", b'0', "", b""),
    ];
    for (entries, word) in [
        ([links(&[("l", "l")]), vec![entry("l/x", b'0', "", b"")]].concat(), "loop"),
        ([links(&[("a", "b"), ("b", "a")]), vec![entry("b/x", b'0', "", b"")]].concat(), "loop"),
        ([links(&[("a", "b/c"), ("b", "a/c")]), vec![entry("a/x", b'0', "", b"")]].concat(), "loop"),
        ([links(&chain), vec![entry("l0/x", b'0', "", b"")]].concat(), "too many symbolic links"),
        (
            [links(&[("l", "f")]), vec![entry("f", b'0', "", b""), entry("l/x", b'0', "", b"")]].concat(),
            "or a file",
        ),
        (deep.to_vec(), "directories deep"),
    ] {
        let case = image(&entries);
        assert!(case.error().contains(word), "{} / {word}", case.error());
    }
}

#[test]
fn lookups_of_links_are_limited() {
    let links = (0..30).map(|at| entry(&format!("l{at}"), b'2', &format!("l{}", at + 1), b""));
    let files = (0..20).map(|at| entry(&format!("l{}/f{at}", at % 2), b'0', "", b""));
    let bytes = archive(&links.chain(files).collect::<Vec<_>>());
    let unpack = |entries| {
        let limits = Limits::default().with_entries(entries);
        unpack_with(&bytes, "application/x-tar", &LayerShape::Image, limits)
    };
    assert!(unpack(60).error().contains("too many symbolic links"));
    assert_eq!(unpack(1_000).totals().inodes, 52);
}

#[test]
fn an_image_replaces_a_directory_with_its_contents() {
    let before = [
        entry("d/a/b", b'0', "", b"12345"),
        entry("d/l", b'2', "a", b""),
        entry("kept", b'0', "", b"kept"),
        entry("d/kept", b'1', "kept", b""),
        entry("e/f", b'0', "", b"e"),
    ];
    for (last, inodes) in [
        (entry("d", b'2', "e", b""), 5),
        (entry("d", b'0', "", b""), 5),
        (entry("d", b'1', "kept", b""), 4),
        (entry("d", b'1', "d/kept", b""), 0),
    ] {
        let case = image(&[&before[..], &[last]].concat());
        if inodes == 0 {
            assert!(case.error().contains("no earlier file"), "{}", case.error());
            continue;
        }
        assert_eq!(case.totals(), Totals { bytes: 5, inodes });
        assert!(!fs::symlink_metadata(case.path("d")).unwrap().is_dir());
    }
    // Files of the directory are written again, beneath the target of the link.
    let case = image(&[
        entry("lib/old", b'0', "", b"1"),
        entry("lib", b'2', "usr/lib", b""),
        entry("lib/new", b'0', "", b"2"),
    ]);
    assert!(!case.path("usr/lib/old").exists() && case.path("usr/lib/new").exists());
    // The cached directory is that of the link before.
    let case = image(&[
        entry("l", b'2', "a", b""),
        entry("l/1", b'0', "", b""),
        entry("l", b'2', "b", b""),
        entry("l/2", b'0', "", b""),
    ]);
    assert!(case.path("a/1").exists() && case.path("b/2").exists());
}

#[test]
fn an_image_links_through_linked_directories() {
    let case = image(&[
        entry("lib", b'2', "usr/lib", b""),
        entry("usr/lib/a", b'0', "", b"data"),
        entry("b", b'1', "lib/a", b""),
        entry("lib/c", b'1', "/lib/a", b""),
        entry("lib/a", b'1', "usr/lib/a", b""),
    ]);
    assert_eq!(case.totals(), Totals { bytes: 4, inodes: 5 });
    let inode = |name: &str| fs::metadata(case.path(name)).unwrap().ino();
    assert_eq!((inode("b"), inode("usr/lib/c")), (inode("usr/lib/a"), inode("usr/lib/a")));
}

#[rstest]
#[case::inside(&[("d/s/b/", ""), ("d/s/l", "b/../../x")], true)]
#[case::inside_before_the_directory(&[("d/s/l", "b/../../x"), ("d/s/b/", "")], true)]
#[case::several(&[("d/s/b/c/", ""), ("d/s/l", "../s/b/./c//../../b/../x")], true)]
#[case::to_the_root(&[("d/s/b/", ""), ("d/s/l", "b/../..")], true)]
#[case::outside_by_its_text(&[("d/s/b/", ""), ("d/s/l", "b/../../../x")], false)]
#[case::outside_and_back(&[("d/s/b/", ""), ("d/s/l", "b/../../../d/x")], false)]
#[case::missing_directory(&[("d/s/l", "b/../../x")], false)]
#[case::a_link(&[("d/s/b", ".."), ("d/s/l", "b/../../x")], false)]
#[case::a_link_above(&[("d/s/a", ".."), ("d/s/l", "a/s/../../x")], false)]
#[case::a_directory_that_becomes_a_link(&[("d/s/b/", ""), ("d/s/l", "b/../../x"), ("d/s/b", "..")], false)]
#[case::absolute(&[("d/s/l", "/d/b/../x")], false)]
fn a_link_with_upward_segments_behind_a_directory_must_stay_inside(
    #[case] entries: &[(&str, &str)],
    #[case] is_accepted: bool,
) {
    let entries = entries.iter().map(|(name, target)| match target {
        &"" => entry(name, b'5', "", b""),
        target => entry(name, b'2', target, b""),
    });
    let case = oras(&entries.collect::<Vec<_>>());
    if is_accepted {
        case.result.as_ref().unwrap();
        assert!(fs::symlink_metadata(case.path("s/l")).unwrap().is_symlink());
    } else {
        assert!(case.error().contains("may lie outside"), "{}", case.error());
        assert!(case.error().contains("push the directory that holds both the link and its target"));
    }
}

#[test]
fn many_links_with_upward_segments_are_rejected() {
    let links = (0..600).map(|at| {
        let target = format!("b/../{}x", "b/../".repeat(400));
        [pax(&[("linkpath", &target)]), entry(&format!("d/l{at}"), b'2', "", b"")].concat()
    });
    let entries = [entry("d/b/", b'5', "", b"")].into_iter().chain(links).collect::<Vec<_>>();
    assert_eq!(oras(&entries[..400]).totals().inodes, 401);
    assert!(oras(&entries).error().contains("may lie outside"));
}

#[test]
fn symbolic_links_of_images_are_kept_as_they_are() {
    let case = image(&[
        entry("abs", b'2', "/etc/passwd", b""),
        entry("up", b'2', "../../x", b""),
        entry("hard", b'1', "abs", b""),
    ]);
    assert_eq!(case.totals().inodes, 3);
    assert_eq!(fs::read_link(case.path("abs")).unwrap().to_str(), Some("/etc/passwd"));
    assert_eq!(fs::read_link(case.path("hard")).unwrap().to_str(), Some("/etc/passwd"));
    // With another name the link could leave the directory that was pushed.
    let case = oras(&[entry("d/a/b/l", b'2', "../../x", b""), entry("d/l", b'1', "d/a/b/l", b"")]);
    assert!(case.error().contains("no earlier file"));
}

#[test]
fn the_last_entry_of_a_name_counts() {
    let case = image(&[
        entry("a", b'0', "", b"first"),
        entry("h", b'1', "a", b""),
        entry("a", b'0', "", b"second!"),
        entry("x", b'2', "a", b""),
        entry("x", b'0', "", b"file"),
        entry("e", b'5', "", b""),
        entry("e", b'0', "", b"e"),
        entry("f", b'0', "", b"f"),
        entry("f/below", b'5', "", b""),
    ]);
    // A directory that is only implied by a path does not replace a file. A directory entry does.
    assert!(case.error().contains("or a file"), "{}", case.error());
    assert_eq!(fs::read(case.path("a")).unwrap(), b"second!");
    let counted = image(&[
        entry("a", b'0', "", b"first"),
        entry("h", b'1', "a", b""),
        entry("a", b'0', "", b"second!"),
        entry("l", b'2', "a-long-target", b""),
        entry("l", b'0', "", b"x"),
    ]);
    assert_eq!(counted.totals(), Totals { bytes: 13, inodes: 4 }, "what stays under another name counts");
    assert_eq!(fs::read(case.path("h")).unwrap(), b"first");
    assert_eq!(fs::read(case.path("x")).unwrap(), b"file");
    assert_eq!(fs::read(case.path("e")).unwrap(), b"e");
    let case =
        image(&[entry("d/in", b'0', "", b"x"), entry("d/", b'5', "", b""), entry("d/in", b'1', "d/in", b"")]);
    assert_eq!(case.totals(), Totals { bytes: 1, inodes: 3 });
}

#[test]
fn devices_and_fifos_are_skipped_and_counted() {
    for case in [
        image(&[
            entry("n", b'3', "", b""),
            entry("b", b'4', "", b""),
            entry("p", b'6', "", b""),
            entry("f", b'0', "", b""),
        ]),
        oras(&[
            entry("d/n", b'3', "", b""),
            entry("d/b", b'4', "", b""),
            entry("d/p", b'6', "", b""),
            entry("d/f", b'0', "", b""),
        ]),
    ] {
        assert_eq!(case.result.as_ref().unwrap().skipped, 3);
        assert_eq!(fs::read_dir(case.path("")).unwrap().count(), 1);
    }
}

#[test]
fn unusual_names_are_kept() {
    let names: [&[u8]; 5] = [b"a:b", "\u{fc}\u{1f600}".as_bytes(), b"line\nbreak", b"\xff\xfe", b"A"];
    let mut entries = names.iter().map(|name| raw_entry(name, b'0', b"", b"", 0o644)).collect::<Vec<_>>();
    entries.push(entry("a", b'0', "", b""));
    let case = image(&entries);
    assert_eq!(fs::read_dir(case.path("")).unwrap().count(), 6);
    let case = image(&[pax(&[("path", "x\0y")]), entry("a", b'0', "", b"")]);
    assert!(case.error().contains("control character"));
}

#[test]
fn each_limit_has_its_own_message() {
    let limits = Limits::default();
    let many = (0..12).map(|number| entry(&format!("f{number}"), b'0', "", b"")).collect::<Vec<_>>();
    let deep = pax(&[("path", &"d/".repeat(300))]);
    let long = pax(&[("path", &"x".repeat(5_000))]);
    let bomb = gzip(&archive(&[entry("zeros", b'0', "", &vec![0; 4 << 20])]));
    let tail = gzip(&[archive(&[entry("a", b'0', "", b"")]), vec![0; 4 << 20]].concat());
    let implied = [entry("a/b/c/d/e/f/g/h/i/j/k/l/m", b'0', "", b"")];
    for (bytes, limits, word) in [
        (archive(&many), limits.with_entries(10), "more than 10 entries"),
        (archive(&implied), limits.with_entries(10), "more than 10 entries"),
        (archive(&[deep, entry("a", b'5', "", b"")]), limits, "300 directories deep"),
        (archive(&[long, entry("a", b'5', "", b"")]), limits, "5000 bytes"),
        (bomb.clone(), limits.with_unpacked(1 << 20), "more than 1048576 bytes"),
        (tail, limits.with_unpacked(1 << 20), "more than 1048576 bytes"),
        (bomb.clone(), limits.with_reserve(Reserve::bytes(u64::MAX)), "(--keep-free)"),
        (bomb, limits.with_inode_reserve(Reserve::inodes(u64::MAX)), "(--keep-free-inodes)"),
    ] {
        let case = unpack_with(&bytes, "application/x-tar", &LayerShape::Image, limits);
        assert!(case.error().contains(word), "{} / {word}", case.error());
    }
}

#[test]
fn verifies_the_digest_of_the_uncompressed_content() {
    let plain =
        [archive(&[entry("d/a", b'0', "", b"x")]), vec![0; 9_000], b"behind the end".to_vec()].concat();
    let bytes = gzip(&plain);
    let shape = |content: &[u8]| LayerShape::Directory {
        prefix: EntryPath::parse(b"d", &Limits::default()).unwrap(),
        content: Some(Digest::sha256_of(content)),
    };
    let unpack = |shape| unpack_with(&bytes, "x/y.tar+gzip", &shape, Limits::default());
    unpack(shape(&plain)).result.unwrap();
    assert!(unpack(shape(&plain[..plain.len() - 1])).error().contains("annotation says"));
}

#[test]
fn rejects_bytes_that_differ_from_the_descriptor() {
    let bytes = archive(&[entry("a", b'0', "", &[1; 3_000])]);
    let mut flipped = bytes.clone();
    flipped[700] ^= 1;
    let longer = [&bytes[..], b"more"].concat();
    let folder = tempfile::tempdir().unwrap();
    let unpack = |sent: &[u8]| {
        let inside = tempfile::tempdir_in(folder.path()).unwrap();
        let reader = reader(sent, &bytes, "application/x-tar");
        let unpacking = UnpackOptions::new(LayerShape::Image, Budget::default());
        unpack_layer(reader, &unpacking, &open(inside.path()), &Limits::default()).unwrap_err()
    };
    assert!(matches!(unpack(&flipped), UnpackError::Stream(StreamFault::Digest { .. })));
    assert!(matches!(unpack(&longer), UnpackError::Stream(StreamFault::Size { found: None, .. })));
    // A sender that stops says nothing about the content.
    let error = unpack(&bytes[..1_000]);
    assert!(matches!(error, UnpackError::Stream(StreamFault::Stopped)), "{error}");
    assert_eq!(error.class(), ErrorClass::Failed);
}

#[test]
fn rejects_content_that_does_not_decompress() {
    let good = gzip(&archive(&[entry("a", b'0', "", &[1; 3_000])]));
    for bytes in [good[..good.len() / 2].to_vec(), [&good[..], b"garbage"].concat(), {
        let mut flipped = good.clone();
        flipped[20] ^= 0x55;
        flipped
    }] {
        let case = unpack_with(&bytes, "application/x-tar", &LayerShape::Image, Limits::default());
        assert_eq!(case.result.as_ref().unwrap_err().class(), ErrorClass::Refused, "{}", case.error());
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(256))]
    /// For all names and links of an archive, nothing is written outside (checked by `unpack_with`).
    #[test]
    fn no_archive_writes_outside(
        entries in proptest::collection::vec(
            ("[ab./]{1,6}", proptest::sample::select(vec![b'0', b'1', b'2', b'5']), "[ab./]{0,6}"), 1..8)
    ) {
        let entries = entries.iter().map(|(name, kind, link)| entry(name, *kind, link, b"")).collect::<Vec<_>>();
        for shape in [LayerShape::Image, directory("a"), directory("")] {
            let _ = unpack_with(&archive(&entries), "application/x-tar", &shape, Limits::default());
        }
    }
}
