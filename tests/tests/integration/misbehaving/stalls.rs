//! Answers that never come, or come a byte at a time.

use std::time::Duration;

use oras_csi_testkit::scripted::tricks::{only, parts, then};
use oras_csi_testkit::scripted::{Part, Script, Trick};

use super::{DONE, FAILED, REFUSED, Tls, always, check, once, row};

/// Rows that wait for a timeout run all at once.
#[test]
fn stalls() {
    let slow_start = || {
        parts(|_, answer| {
            let start = answer.start();
            vec![Part::Bytes(start[..9].to_vec()), Part::ByteASecond(start[9..].repeat(100))]
        })
    };
    let long_token = parts(|_, answer| {
        let answer = answer.body(format!(r#"{{"token":"{}"}}"#, "a".repeat(1_000)));
        answer.clone().then(0, [Part::ByteASecond(answer.body)])
    });
    let provisional = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".to_vec();
    let provisional = Part::Repeat(provisional, Duration::from_millis(5));
    let rows = vec![
        once("the first HEAD is not answered", DONE, "HEAD /manifests/", only(Part::Hang)).bound(45),
        once("the first GET of the manifest is not answered", DONE, "GET /manifests/", only(Part::Hang))
            .bound(45),
        once("the first GET of the blob is not answered", DONE, "/blobs/", only(Part::Hang)).bound(45),
        once("the first token is not answered", DONE, "/token", only(Part::Hang)).private().bound(45),
        once("the blob stalls in the middle, once", DONE, "/blobs/", then(100_000, Part::Hang))
            .stored()
            .bound(45),
        once("the manifest stalls in the middle, once", DONE, "GET /manifests/", then(100, Part::Hang))
            .bound(45),
        always("no HEAD is ever answered", FAILED, "/manifests/", only(Part::Hang)).bound(70),
        always("no GET of a manifest is ever answered", FAILED, "GET /manifests/", only(Part::Hang))
            .bound(70),
        always("every manifest stalls in the middle", FAILED, "GET /manifests/", then(100, Part::Hang))
            .bound(70),
        always("the blob is never answered", FAILED, "/blobs/", only(Part::Hang)).stored().bound(70),
        always("the manifest comes a byte a second", FAILED, "GET /manifests/", byte_a_second()).bound(70),
        always("the blob stalls in the middle, always", FAILED, "/blobs/", then(1_000, Part::Hang)).bound(75),
        always("the blob comes a byte a second", FAILED, "/blobs/", byte_a_second()).bound(75),
        always("the token comes a byte a second", FAILED, "/token", long_token).private().bound(70),
        always("headers come a byte a second", FAILED, "HEAD /manifests/", slow_start()).bound(70),
        always("endless 1xx answers", REFUSED, "HEAD /manifests/", only(provisional.clone())).bound(70),
        always("endless 1xx answers to a blob", REFUSED, "/blobs/", only(provisional)).bound(70),
        row("no TLS handshake", FAILED, |_| Script::default()).tls(Tls::Client).bound(45),
    ];
    check(rows.len(), rows);
}

fn byte_a_second() -> Trick {
    parts(|_, answer| answer.clone().then(0, [Part::ByteASecond(answer.sent().to_vec())]))
}
