//! The hostile artifacts, one by one.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use oras_csi_core::digest::Digest;
use oras_csi_tests::archive::{archive, entry, gzip, gzip_of, header, pax, zstd_of, zstd_with_huge_window};
use oras_csi_tests::registry::Distribution;
use oras_csi_tests::registry::raw::Raw;
use serde_json::{Value, json};
use tonic::Code;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const TITLE: &str = "org.opencontainers.image.title";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A table that shrinks no longer tests what it did.
pub(crate) const FEWEST: usize = 50;

/// How a pull ends.
#[derive(Debug)]
pub(crate) enum End {
    /// With these files and their content; `None` is a directory.
    Files(&'static [(&'static str, Option<&'static str>)]),
    /// Refused, in words with these in them.
    Refused(&'static [&'static str]),
    /// The bytes are not what was asked for.
    Corrupt(&'static [&'static str]),
    /// Something is not there.
    NotFound(&'static [&'static str]),
}

impl End {
    /// The exit status of the command.
    pub(crate) fn status(&self) -> i32 {
        match self {
            Self::Files(_) => 0,
            Self::NotFound(_) => 1,
            Self::Refused(_) | Self::Corrupt(_) => 4,
        }
    }

    /// The code of the driver's answer.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Files(_) => Code::Ok,
            Self::NotFound(_) => Code::NotFound,
            Self::Refused(_) => Code::FailedPrecondition,
            Self::Corrupt(_) => Code::DataLoss,
        }
    }

    /// What the message says, where there is one.
    pub(crate) fn words(&self) -> Option<&'static [&'static str]> {
        match self {
            Self::Files(_) => None,
            Self::Refused(words) | Self::Corrupt(words) | Self::NotFound(words) => Some(words),
        }
    }

    /// Compares names, contents and kinds; nothing that is found is special or privileged.
    pub(crate) fn check_files(&self, root: &Path) -> Result<(), String> {
        let Self::Files(expected) = self else { return Err("no files were expected".to_owned()) };
        let mut found = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).map_err(|error| error.to_string())? {
                let path = entry.expect("an entry").path();
                let metadata = path.symlink_metadata().expect("it is there");
                if metadata.permissions().mode() & 0o7000 != 0 {
                    return Err(format!("{} has {:o}", path.display(), metadata.permissions().mode()));
                }
                let at = path.strip_prefix(root).expect("below").to_str().expect("UTF-8").to_owned();
                let content = if metadata.is_dir() {
                    folders.push(path);
                    None
                } else if metadata.is_symlink() {
                    Some(format!("-> {}", std::fs::read_link(&path).expect("a link").display()))
                } else if metadata.is_file() {
                    Some(std::fs::read_to_string(&path).expect("reads"))
                } else {
                    return Err(format!("{} is no file", path.display()));
                };
                found.insert(at, content);
            }
        }
        let expected = expected.iter().map(|(at, text)| ((*at).to_owned(), text.map(str::to_owned)));
        let expected: BTreeMap<_, _> = expected.collect();
        if found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) }
    }
}

type Then = Box<dyn Fn(&Distribution, &Raw)>;

/// A manifest whose blobs are pushed, and what is done to the registry behind it.
pub(crate) struct Pushed {
    pub(crate) manifest: Vec<u8>,
    pub(crate) media_type: &'static str,
    pub(crate) then: Then,
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) push: Box<dyn Fn(&Raw) -> Pushed>,
    pub(crate) end: End,
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8], title: Option<&str>) -> Value {
    let mut descriptor =
        json!({"mediaType": media_type, "digest": Digest::sha256_of(bytes).to_string(), "size": bytes.len()});
    if let Some(title) = title {
        descriptor["annotations"] = json!({TITLE: title});
    }
    descriptor
}

pub(crate) fn manifest(layers: &[Value]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}", None),
        "layers": layers,
    })
}

fn pushed(document: &Value, media_type: &'static str) -> Pushed {
    Pushed { manifest: document.to_string().into_bytes(), media_type, then: Box::new(|_, _| ()) }
}

fn layers(raw: &Raw, blobs: &[Vec<u8>], layers: &[Value]) -> Pushed {
    raw.blob(b"{}");
    for blob in blobs {
        raw.blob(blob);
    }
    pushed(&manifest(layers), MANIFEST)
}

/// A file with a title.
fn titled(name: &'static str, title: String, end: End) -> Case {
    titles(name, vec![(title, b"bytes".to_vec())], end)
}

fn titles(name: &'static str, files: Vec<(String, Vec<u8>)>, end: End) -> Case {
    let push = move |raw: &Raw| {
        let blobs: Vec<_> = files.iter().map(|(_, bytes)| bytes.clone()).collect();
        let described = files.iter().map(|(title, bytes)| descriptor("a/b", bytes, Some(title)));
        layers(raw, &blobs, &described.collect::<Vec<_>>())
    };
    Case { name, push: Box::new(push), end }
}

/// One layer of an image, of these bytes.
fn blob(name: &'static str, media_type: &'static str, bytes: Vec<u8>, end: End) -> Case {
    let push =
        move |raw: &Raw| layers(raw, std::slice::from_ref(&bytes), &[descriptor(media_type, &bytes, None)]);
    Case { name, push: Box::new(push), end }
}

/// One layer of an image, of these entries.
fn image(name: &'static str, entries: &[Vec<u8>], end: End) -> Case {
    blob(name, TAR_GZIP, gzip(&archive(entries)), end)
}

/// An ORAS directory `d` of these entries.
fn directory(name: &'static str, entries: &[Vec<u8>], end: End) -> Case {
    let bytes = gzip(&archive(entries));
    let push = move |raw: &Raw| {
        let mut layer = descriptor(TAR_GZIP, &bytes, Some("d"));
        layer["annotations"]["io.deis.oras.content.unpack"] = json!("true");
        layers(raw, std::slice::from_ref(&bytes), &[layer])
    };
    Case { name, push: Box::new(push), end }
}

/// A file `f` whose descriptor is changed before it is pushed, or whose blob is behind it.
fn changed(
    name: &'static str,
    change: fn(&mut Value),
    then: fn(&Distribution, &Raw, &Digest),
    end: End,
) -> Case {
    let push = move |raw: &Raw| {
        let bytes = format!("the bytes of {name}").into_bytes();
        let digest = Digest::sha256_of(&bytes);
        let mut layer = descriptor("a/b", &bytes, Some("f"));
        change(&mut layer);
        let mut pushed = layers(raw, &[bytes], &[layer]);
        pushed.then = Box::new(move |registry, raw| then(registry, raw, &digest));
        pushed
    };
    Case { name, push: Box::new(push), end }
}

fn nothing(_: &Distribution, _: &Raw, _: &Digest) {}

fn file(name: &str, text: &str) -> Vec<u8> {
    entry(name, b'0', "", text.as_bytes())
}

fn many(prefix: &str, count: usize) -> Vec<u8> {
    let entries: Vec<_> = (0..count).map(|number| file(&format!("{prefix}{number}"), "")).collect();
    gzip(&archive(&entries))
}

/// All of them. `canary` is a folder outside, in which nothing may appear.
pub(crate) fn all(canary: &Path) -> Vec<Case> {
    let outside = canary.to_str().expect("UTF-8").to_owned();
    [titles_of_files(&outside), entries_of_archives(&outside), streams(), manifests()]
        .into_iter()
        .flatten()
        .collect()
}

fn titles_of_files(outside: &str) -> Vec<Case> {
    const COLON: &[(&str, Option<&str>)] = &[("a:b", Some("bytes"))];
    const DISTINCT: &[(&str, Option<&str>)] = &[
        ("CASE", Some("1")),
        ("case", Some("2")),
        ("caf\u{e9}", Some("3")),
        ("cafe\u{301}", Some("4")),
        ("\u{1f600}", Some("5")),
    ];
    let distinct = DISTINCT
        .iter()
        .map(|(name, text)| ((*name).to_owned(), text.unwrap_or_default().as_bytes().to_vec()));
    vec![
        titled("a title that goes up", "../evil".into(), End::Refused(&["../evil", "\"..\""])),
        titled("a title that goes up in the middle", "a/../../evil".into(), End::Refused(&["\"..\""])),
        titled("an absolute title", format!("{outside}/evil"), End::Refused(&["absolute"])),
        titled("a title with NUL", "a\0b".into(), End::Refused(&["control character"])),
        titled("a title of two lines", "a\nb".into(), End::Refused(&["control character"])),
        titled("a title of 5,000 characters", "x".repeat(5_000), End::Refused(&["5000 bytes", "4096"])),
        titled("a title with a name of 300 characters", "x".repeat(300), End::Refused(&["300 bytes", "255"])),
        titled("a title that is a dot", ".".into(), End::Refused(&["does not name a file"])),
        titled("a title with a colon", "a:b".into(), End::Files(COLON)),
        titles("titles that differ in case and in composition", distinct.collect(), End::Files(DISTINCT)),
        titles(
            "two files of one title",
            vec![("f".into(), b"1".to_vec()), ("f".into(), b"2".to_vec())],
            End::Refused(&["two layers", "\"f\""]),
        ),
        titles(
            "a title that is a file and a directory",
            vec![("f".into(), b"1".to_vec()), ("f/g".into(), b"2".to_vec())],
            End::Refused(&["\"f\"", "directory in another"]),
        ),
    ]
}

fn entries_of_archives(outside: &str) -> Vec<Case> {
    let deep = "d/".repeat(1_000);
    let sparse =
        pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"99")]);
    vec![
        image(
            "a file through a link of an image",
            &[entry("l", b'2', "/../opt", b""), file("l/f", "x")],
            End::Files(&[("l", Some("-> /../opt")), ("opt", None), ("opt/f", Some("x"))]),
        ),
        image(
            "a loop of links",
            &[entry("l", b'2', "m", b""), entry("m", b'2', "l", b""), file("l/f", "x")],
            End::Refused(&["\"l\"", "loop"]),
        ),
        directory(
            "a file through a link of a directory",
            &[entry("d/l", b'2', "a", b""), file("d/l/evil", "x")],
            End::Refused(&["\"l\"", "symbolic link"]),
        ),
        directory(
            "a directory through a link of a directory",
            &[entry("d/l", b'2', "a", b""), entry("d/l/evil", b'5', "", b"")],
            End::Refused(&["symbolic link"]),
        ),
        image(
            "a hard link through a link",
            &[entry("l", b'2', "/etc", b""), entry("h", b'1', "l/passwd", b"")],
            End::Refused(&["\"h\"", "no earlier file"]),
        ),
        image(
            "a link of an image that leads out",
            &[entry("l", b'2', "/etc/passwd", b""), file("f", "x")],
            End::Files(&[("f", Some("x")), ("l", Some("-> /etc/passwd"))]),
        ),
        directory(
            "a link of a directory that leads out",
            &[entry("d/l", b'2', "../../../../etc/passwd", b"")],
            End::Refused(&["\"l\"", "etc/passwd", "outside"]),
        ),
        directory(
            "an absolute link of a directory",
            &[entry("d/l", b'2', "/etc/passwd", b"")],
            End::Refused(&["\"l\"", "/etc/passwd"]),
        ),
        image(
            "a hard link that goes up",
            &[entry("h", b'1', "../../etc/passwd", b"")],
            End::Refused(&["\"..\""]),
        ),
        image(
            "an absolute hard link",
            &[entry("h", b'1', "/etc/passwd", b"")],
            End::Refused(&["\"h\"", "etc/passwd", "no earlier file"]),
        ),
        image("an entry that goes up", &[file("../evil", "x")], End::Refused(&["../evil", "\"..\""])),
        image("an absolute entry of an image", &[file("/f", "x")], End::Files(&[("f", Some("x"))])),
        directory("an absolute entry of a directory", &[file("/d/f", "x")], End::Refused(&["absolute"])),
        directory("an entry beside the directory", &[file("e/f", "x")], End::Refused(&["\"e/f\"", "\"d\""])),
        image(
            "devices and FIFOs",
            &[
                entry("null", b'3', "", b""),
                entry("sda", b'4', "", b""),
                entry("pipe", b'6', "", b""),
                file("f", "x"),
            ],
            End::Files(&[("f", Some("x"))]),
        ),
        image(
            "setuid, setgid and sticky",
            &[header(b"f", b'0', "", 0, 0o7755), header(b"d", b'5', "", 0, 0o7777)],
            End::Files(&[("d", None), ("f", Some(""))]),
        ),
        image(
            "a sparse file of GNU tar without a map",
            &[entry("s", b'S', "", b"")],
            End::Refused(&["\"s\"", "sparse"]),
        ),
        image(
            "a sparse file of pax with an invalid map",
            &[sparse, file("s", "1\n0\n1\n")],
            End::Refused(&["\"s\"", "sparse"]),
        ),
        image(
            "a pax path that goes up",
            &[pax(&[("path", b"../../evil")]), file("harmless", "x")],
            End::Refused(&["../../evil", "\"..\""]),
        ),
        directory(
            "an absolute pax path",
            &[pax(&[("path", format!("{outside}/evil").as_bytes())]), file("d/harmless", "x")],
            End::Refused(&["absolute"]),
        ),
        image(
            "a pax path with NUL",
            &[pax(&[("path", b"a\0b")]), file("harmless", "x")],
            End::Refused(&["control character"]),
        ),
        directory(
            "a pax link that leads out",
            &[pax(&[("linkpath", b"/etc/shadow")]), entry("d/l", b'2', "harmless", b"")],
            End::Refused(&["/etc/shadow"]),
        ),
        image(
            "a pax size that is none",
            &[pax(&[("size", b"many")]), file("f", "x")],
            End::Refused(&["pax record is malformed"]),
        ),
        image(
            "the same name twice",
            &[file("f", "first"), file("f", "second"), entry("f", b'2', "f", b""), file("f", "last")],
            End::Files(&[("f", Some("last"))]),
        ),
        image(
            "a file in the place of a full directory of an image",
            &[file("d/f", "x"), file("d", "y")],
            End::Files(&[("d", Some("y"))]),
        ),
        directory(
            "a file in the place of a full directory",
            &[file("d/e/f", "x"), file("d/e", "y")],
            End::Refused(&["\"e\"", "something in it"]),
        ),
        image(
            "1,000 directories in each other",
            &[pax(&[("path", deep.as_bytes())]), entry("d", b'5', "", b"")],
            End::Refused(&["1000 directories deep", "256"]),
        ),
        image(
            "a path of 5,000 bytes",
            &[pax(&[("path", "x".repeat(5_000).as_bytes())]), file("f", "")],
            End::Refused(&["5000 bytes", "4096"]),
        ),
        image("a whiteout of the parent", &[file(".wh...", "")], End::Refused(&[".wh...", "names no file"])),
        image("a whiteout of nothing", &[file("f", "x"), file(".wh.", "")], End::Refused(&["whiteout"])),
        image("an entry of no known kind", &[entry("f", b'V', "", b"")], End::Refused(&["\"f\"", "'V'"])),
        image("an archive of nothing", &[], End::Refused(&["empty"])),
    ]
}

fn streams() -> Vec<Case> {
    const BOMB: u64 = 300 << 20;
    let zeros = header(b"zeros", b'0', "", BOMB, 0o644);
    let good = gzip(&archive(&[file("f", "x")]));
    let mut broken = archive(&[file("f", "x")]);
    broken[0] = b'g';
    let cut = archive(&[file("f", &"x".repeat(2_000))]);
    vec![
        blob("a gzip bomb", TAR_GZIP, gzip_of(&[&zeros], BOMB), End::Refused(&["more than 67108864 bytes"])),
        blob("a zstd bomb", TAR_ZSTD, zstd_of(&[&zeros], BOMB), End::Refused(&["more than 67108864 bytes"])),
        blob(
            "a gzip bomb behind the archive",
            TAR_GZIP,
            gzip_of(&[&archive(&[file("f", "x")])], BOMB),
            End::Refused(&["more than 67108864 bytes"]),
        ),
        blob(
            "a zstd window of 2 GiB",
            TAR_ZSTD,
            zstd_with_huge_window(&archive(&[file("f", "x")])),
            End::Refused(&["zstd window", "128 MiB"]),
        ),
        blob(
            "gzip that is tar",
            TAR_GZIP,
            archive(&[file("f", "x")]),
            End::Refused(&["says gzip", "neither"]),
        ),
        blob(
            "gzip that is zstd",
            TAR_GZIP,
            zstd_of(&[&archive(&[file("f", "x")])], 0),
            End::Refused(&["zstd"]),
        ),
        blob("zstd that is gzip", TAR_ZSTD, good.clone(), End::Refused(&["says zstd", "is gzip"])),
        blob("tar that is gzip", TAR, good.clone(), End::Files(&[("f", Some("x"))])),
        blob(
            "a tar that is none",
            TAR,
            b"nothing of the kind".repeat(60),
            End::Refused(&["no valid header"]),
        ),
        blob(
            "gzip that ends early",
            TAR_GZIP,
            good[..good.len() - 6].to_vec(),
            End::Refused(&["decompressed"]),
        ),
        blob(
            "gzip with something behind it",
            TAR_GZIP,
            [&good[..], b"garbage"].concat(),
            End::Refused(&["decompressed"]),
        ),
        blob(
            "gzip with zeros behind it",
            TAR_GZIP,
            [&good[..], &[0; 700]].concat(),
            End::Files(&[("f", Some("x"))]),
        ),
        blob(
            "zstd with zeros behind it",
            TAR_ZSTD,
            [&zstd_of(&[&archive(&[file("f", "x")])], 0)[..], &[0; 700]].concat(),
            End::Refused(&["decompressed"]),
        ),
        blob(
            "a tar that ends early",
            TAR,
            cut[..1_500].to_vec(),
            End::Refused(&["ends in the middle of a file"]),
        ),
        blob("a header that was changed", TAR, broken, End::Refused(&["checksum"])),
        blob(
            "an extended header of 2 GiB",
            TAR_GZIP,
            gzip(&header(b"pax", b'x', "", 2 << 30, 0o644)),
            End::Refused(&["extended header of 2147483648 bytes"]),
        ),
        blob("10,000 entries", TAR_GZIP, many("f", 10_000), End::Refused(&["more than 5000 entries"])),
        Case {
            name: "3,000 entries in each of two layers",
            push: Box::new(|raw| {
                let blobs = [many("a", 3_000), many("b", 3_000)];
                let described = blobs.iter().map(|bytes| descriptor(TAR_GZIP, bytes, None));
                layers(raw, &blobs, &described.collect::<Vec<_>>())
            }),
            end: End::Refused(&["more than 5000 entries"]),
        },
        Case {
            name: "another digest of the content",
            push: Box::new(|raw| {
                let bytes = gzip(&archive(&[file("d/f", "x")]));
                let mut layer = descriptor(TAR_GZIP, &bytes, Some("d"));
                layer["annotations"]["io.deis.oras.content.unpack"] = json!("true");
                let digest = Digest::sha256_of(b"other").to_string();
                layer["annotations"]["io.deis.oras.content.digest"] = json!(digest);
                layers(raw, &[bytes], &[layer])
            }),
            end: End::Corrupt(&["annotation says"]),
        },
    ]
}

fn manifests() -> Vec<Case> {
    const LYING: &str = r#"{"schemaVersion":2}"#;
    let index = |entries: Value| json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    let inner = |raw: &Raw| {
        let pushed = layers(raw, &[b"x".to_vec()], &[descriptor("a/b", b"x", Some("f"))]);
        raw.manifest(MANIFEST, &pushed.manifest).expect("it is taken");
        pushed.manifest
    };
    vec![
        changed(
            "a layer that is smaller than it says",
            |layer| layer["size"] = json!(1_000),
            nothing,
            End::Corrupt(&["announced with 49 bytes", "manifest says 1000"]),
        ),
        changed(
            "a layer that is larger than it says",
            |layer| layer["size"] = json!(3),
            nothing,
            End::Corrupt(&["announced with 48 bytes", "manifest says 3"]),
        ),
        changed(
            "a layer of other bytes",
            |_| (),
            |registry, _, digest| {
                let length = "the bytes of a layer of other bytes".len();
                registry.damage(&digest.to_string(), &vec![b'x'; length]);
            },
            End::Corrupt(&["have the digest"]),
        ),
        changed(
            "a layer that is gone",
            |_| (),
            |_, raw, digest| raw.forget(digest),
            End::NotFound(&["not found"]),
        ),
        changed(
            "a layer of a digest that is none",
            |layer| layer["digest"] = json!("sha256:zz"),
            nothing,
            End::Refused(&["digest"]),
        ),
        changed(
            "urls of a layer",
            |layer| layer["urls"] = json!(["http://169.254.169.254/latest/meta-data"]),
            nothing,
            End::Files(&[("f", Some("the bytes of urls of a layer"))]),
        ),
        changed(
            "a size that is negative",
            |layer| layer["size"] = json!(-1),
            nothing,
            End::Refused(&["size"]),
        ),
        Case {
            name: "10,000 layers",
            push: Box::new(|raw| {
                let described: Vec<_> =
                    (0..10_000).map(|number| descriptor("a/b", b"x", Some(&number.to_string()))).collect();
                layers(raw, &[b"x".to_vec()], &described)
            }),
            end: End::Refused(&["10000 layers", "4096"]),
        },
        Case {
            name: "an index in an index",
            push: Box::new(move |raw| {
                let manifest = inner(raw);
                let middle = index(
                    json!([{"mediaType": MANIFEST, "digest": Digest::sha256_of(&manifest).to_string(), "size": manifest.len()}]),
                );
                let middle = middle.to_string().into_bytes();
                raw.manifest(INDEX, &middle).expect("it is taken");
                let entry = json!({"mediaType": INDEX, "digest": Digest::sha256_of(&middle).to_string(), "size": middle.len()});
                pushed(&index(json!([entry])), INDEX)
            }),
            end: End::Files(&[("f", Some("x"))]),
        },
        Case {
            name: "an index that lies about a size",
            push: Box::new(move |raw| {
                let manifest = inner(raw);
                let entry = json!({"mediaType": MANIFEST, "digest": Digest::sha256_of(&manifest).to_string(), "size": 1});
                pushed(&index(json!([entry])), INDEX)
            }),
            end: End::Refused(&["the index that names it says 1"]),
        },
        Case {
            name: "a manifest of two kinds",
            push: Box::new(|raw| {
                let mut pushed = layers(raw, &[b"x".to_vec()], &[descriptor("a/b", b"x", Some("f"))]);
                let mut document: Value = serde_json::from_slice(&pushed.manifest).expect("JSON");
                document["manifests"] = json!([]);
                pushed.manifest = document.to_string().into_bytes();
                pushed
            }),
            end: End::Refused(&["ambiguous"]),
        },
        Case {
            name: "a manifest that says a thing twice",
            push: Box::new(|raw| {
                let mut pushed = layers(raw, &[b"x".to_vec()], &[descriptor("a/b", b"x", Some("f"))]);
                pushed.manifest.truncate(pushed.manifest.len() - 1);
                pushed.manifest.extend(br#","layers":[]}"#);
                pushed
            }),
            end: End::Refused(&["JSON"]),
        },
        Case {
            name: "a manifest of nothing",
            push: Box::new(|_| Pushed {
                manifest: LYING.as_bytes().to_vec(),
                media_type: MANIFEST,
                then: Box::new(|_, _| ()),
            }),
            end: End::Refused(&["manifest"]),
        },
    ]
}
