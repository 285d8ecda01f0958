//! Answers that never end.

use std::time::Duration;

use oras_csi_testkit::scripted::tricks::{answer, chunk, chunked, endless, header, honest, only, parts};
use oras_csi_testkit::scripted::{Part, Script};

use super::{DONE, FAILED, FEW, REFUSED, always, check, holding, large, layer, manifest, row, sha256};

#[test]
fn floods() {
    let header_of = |length: usize| header("X-Long", "x".repeat(length));
    let many = |count: usize| {
        answer(move |_, answer| {
            (0..count).fold(answer, |answer, number| answer.header(&format!("X-{number}"), "y"))
        })
    };
    let endless_headers = || {
        parts(|_, answer| {
            let mut start = answer.start();
            start.truncate(start.len() - 2);
            vec![Part::Bytes(start), Part::Repeat(b"X-More: y\r\n".repeat(100), Duration::ZERO)]
        })
    };
    let endless_line = Part::Repeat(vec![b'x'; 4_096], Duration::ZERO);
    let announced = header("Content-Length", "1000000000000000");
    let big = || {
        let text = manifest(&[layer(&large(), "large.bin")]).to_string();
        let filler = format!(r#","x":["{}"]}}"#, "y".repeat(50 << 20));
        holding([&text.as_bytes()[..text.len() - 1], filler.as_bytes()].concat())
    };
    let deep = holding("[".repeat(2 << 20));
    let deep_in = format!(r#"{{"schemaVersion":2,"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let blown_up = format!(r#"{{"schemaVersion":2,"x":[{}0]}}"#, "[[[[0]]]],".repeat(400_000));
    let hidden = answer(|request, answer| {
        if request.method == "HEAD" {
            answer.without("Content-Length").header("Content-Length", "500")
        } else {
            answer
        }
    });
    let endless_error = parts(|_, answer| {
        let answer = answer.status(403).header("Transfer-Encoding", "chunked");
        let piece = chunk(&[b'x'; 16 << 10]);
        vec![Part::Bytes(answer.start()), Part::Repeat(piece, Duration::ZERO)]
    });
    let moved = |storage: &str| {
        let to = format!("{storage}/{}", sha256(&large()));
        Script::default().on(
            "/blobs/",
            parts(move |_, answer| {
                let answer =
                    answer.status(307).header("Location", &to).header("Transfer-Encoding", "chunked");
                vec![Part::Bytes(answer.start()), Part::Repeat(chunk(&[b'x'; 16 << 10]), Duration::ZERO)]
            }),
        )
    };
    check(
        FEW,
        vec![
            always("an endless manifest", REFUSED, "GET /manifests/", endless()),
            always("an endless manifest without a HEAD", REFUSED, "/manifests/", endless()),
            always("a manifest of a petabyte", REFUSED, "GET /manifests/", announced.clone()),
            always("a manifest of a petabyte by HEAD", REFUSED, "HEAD /manifests/", announced.clone()),
            always("a manifest of 50 MB", REFUSED, "HEAD /manifests/", honest()).artifact(big()),
            always("a manifest of 50 MB behind a short HEAD", REFUSED, "/manifests/", hidden).artifact(big()),
            row("a manifest of 50 MB in chunks", REFUSED, |_| {
                let in_chunks = chunked(|body| {
                    let chunks = body.chunks(100_000).flat_map(chunk);
                    chunks.chain(*b"0\r\n\r\n").collect()
                });
                let short = header("Content-Length", "500");
                Script::default().on("HEAD /manifests/", short).on("GET /manifests/", in_chunks)
            })
            .artifact(big()),
            always("deep JSON", REFUSED, "/v2/", honest()).artifact(deep),
            always("deep JSON in a field", REFUSED, "/v2/", honest()).artifact(holding(deep_in)),
            always("JSON that grows in memory", REFUSED, "/v2/", honest()).artifact(holding(blown_up)),
            always("an endless blob", REFUSED, "/blobs/", endless()).stored(),
            always("a blob of a petabyte", REFUSED, "/blobs/", announced),
            always("an endless token", FAILED, "/token", endless()).private(),
            always("an endless error", FAILED, "GET /manifests/", endless_error.clone()),
            always("an endless error for a blob", FAILED, "/blobs/", endless_error),
            row("a redirect with an endless body", DONE, moved),
            always("200 headers", FAILED, "HEAD /manifests/", many(200)),
            always("10,000 headers for a blob", FAILED, "/blobs/", many(10_000)),
            always("endless headers", FAILED, "HEAD /manifests/", endless_headers()),
            always("endless headers for a blob", FAILED, "/blobs/", endless_headers()).stored(),
            always("endless headers for a token", FAILED, "/token", endless_headers()).private(),
            always("a header of 10 MB", FAILED, "HEAD /manifests/", header_of(10 << 20)),
            always("an endless status line", FAILED, "/v2/", only(endless_line)),
        ],
    );
}
