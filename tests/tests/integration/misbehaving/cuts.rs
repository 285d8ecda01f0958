//! Connections that break.

use oras_csi_testkit::scripted::tricks::{cut, only, parts, raw, then};
use oras_csi_testkit::scripted::{Part, Script};

use super::{DONE, FAILED, FEW, Tls, always, check, large, many_files, once, row};

#[test]
fn cuts_and_resets() {
    let nothing = || only(Part::Bytes(Vec::new()));
    let forged = || {
        parts(|_, answer| {
            let lie = answer.clone().body("{}").start();
            answer.then(usize::MAX, [Part::Bytes([&lie[..], b"{}"].concat()), Part::Keep])
        })
    };
    let garbage = || {
        let garbage = Part::Bytes(b"\x00\xff garbage".to_vec());
        parts(move |_, answer| answer.then(usize::MAX, [garbage.clone(), Part::Keep]))
    };
    check(
        FEW,
        vec![
            always("cut at every 64 KiB", DONE, "/blobs/", cut(64 << 10)).stored(),
            always("cut at every 64 KiB, with TLS", DONE, "/blobs/", cut(64 << 10)).tls(Tls::Both),
            row("reset at every 64 KiB, then good", DONE, |_| {
                Script::default().times(3, "/blobs/", then(64 << 10, Part::Reset))
            })
            .stored(),
            once("HEAD is cut before an answer", DONE, "HEAD /manifests/", nothing()),
            once("GET of the manifest is cut before an answer", DONE, "GET /manifests/", nothing()),
            once("the blob is cut before an answer", DONE, "/blobs/", nothing()),
            once("the blob is cut before its first byte", DONE, "/blobs/", cut(0)),
            once("the blob is cut before its last byte", DONE, "/blobs/", cut(large().len() - 1)).stored(),
            once("the manifest is cut in the middle, once", DONE, "GET /manifests/", cut(100)),
            once("the token is cut in the middle, once", DONE, "/token", cut(10)).private(),
            once("HEAD is reset", DONE, "HEAD /manifests/", only(Part::Reset)),
            once("GET of the manifest is reset", DONE, "GET /manifests/", only(Part::Reset)),
            once(
                "the manifest is reset in the middle, once",
                DONE,
                "GET /manifests/",
                then(100, Part::Reset),
            ),
            once("the blob is reset before an answer", DONE, "/blobs/", only(Part::Reset)),
            once("the blob is reset in the middle", DONE, "/blobs/", then(100_000, Part::Reset)).stored(),
            once("the token is reset", DONE, "/token", only(Part::Reset)).private(),
            always("every request is reset", FAILED, "/v2/", only(Part::Reset)),
            always("every blob is reset", FAILED, "/blobs/", only(Part::Reset)).stored(),
            always("every manifest is cut in the middle", FAILED, "GET /manifests/", cut(100)),
            always("every blob is cut after a byte", FAILED, "/blobs/", cut(1)).bound(30),
            always("headers are cut in the middle", FAILED, "/blobs/", raw("HTTP/1.1 200 OK\r\nContent-Le")),
            always("garbage after the blob", DONE, "/blobs/", garbage()).stored(),
            always("garbage after the manifest", DONE, "/manifests/", garbage()),
            always("a forged answer after each honest one", DONE, "/v2/", forged()).artifact(many_files()),
            always("no HTTP at all", FAILED, "/v2/", raw([0xff; 10_000])),
            always("the HTTP of the year 1991", FAILED, "/blobs/", raw("hello\n")),
            always("HTTP/2 without being asked", FAILED, "/v2/", raw("\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0d")),
        ],
    );
}
