//! Wrong lengths and ranges.

use oras_csi_testkit::scripted::Part;
use oras_csi_testkit::scripted::tricks::{answer, chunk, chunked, header, honest, parts, status};

use super::{DONE, FAILED, FEW, REFUSED, always, check, large, resumed, with_bytes};

#[test]
fn lengths_and_ranges() {
    let whole = || answer(|_, answer| answer.status(200).without("Content-Range").body(large()));
    let lying = |place: &'static str| header("Content-Range", place);
    let multipart = answer(|_, answer| {
        let body = [b"--x\r\nContent-Range: bytes 0-1/2\r\n\r\n", &answer.body[..], b"\r\n--x--"].concat();
        answer
            .without("Content-Range")
            .without("Content-Type")
            .header("Content-Type", "multipart/byteranges; boundary=x")
            .body(body)
    });
    let shifted = answer(|_, answer| answer.body(&large()[..207_200]));
    let piecewise = answer(|request, answer| {
        let first = request.header("range").trim_start_matches("bytes=").split('-').next();
        let first = first.and_then(|first| first.parse().ok()).unwrap_or(0_usize);
        let end = (first + (64 << 10)).min(large().len());
        let place = format!("bytes {first}-{}/{}", end - 1, large().len());
        answer.without("Content-Range").header("Content-Range", &place).body(&large()[first..end])
    });
    let digest_of_other = with_bytes([&large()[..300_000], &[0; 7_200]].concat());
    let both = parts(|_, answer| {
        let body = chunk(answer.sent());
        let length = answer.body.len().to_string();
        let answer = answer.header("Transfer-Encoding", "chunked").header("Content-Length", &length);
        answer.then(0, [Part::Bytes([&body[..], b"0\r\n\r\n"].concat())])
    });
    check(
        FEW,
        vec![
            always("the blob's length is too long", REFUSED, "/blobs/", header("Content-Length", "307300"))
                .stored(),
            always("the blob's length is too short", REFUSED, "/blobs/", header("Content-Length", "300")),
            always(
                "the manifest's length is too long",
                FAILED,
                "GET /manifests/",
                header("Content-Length", "5000"),
            ),
            always(
                "the manifest's length is too short",
                REFUSED,
                "GET /manifests/",
                header("Content-Length", "99"),
            ),
            always("a negative length", FAILED, "/blobs/", header("Content-Length", "-5")),
            always("a length in words", FAILED, "/blobs/", header("Content-Length", "many")),
            always(
                "a length beyond 64 bits",
                FAILED,
                "/blobs/",
                header("Content-Length", "18446744073709551617"),
            ),
            always(
                "two lengths",
                FAILED,
                "/blobs/",
                answer(|_, answer| answer.header("Content-Length", "307200").header("Content-Length", "5")),
            ),
            always("a length and chunks", DONE, "/blobs/", both),
            always("a longer blob", REFUSED, "/blobs/", honest())
                .artifact(with_bytes([&large()[..], b"more"].concat()))
                .stored(),
            always(
                "a longer blob in chunks",
                REFUSED,
                "/blobs/",
                chunked(|body| [&chunk(body)[..], &chunk(b"more"), b"0\r\n\r\n"].concat()),
            ),
            always("a shorter blob", REFUSED, "/blobs/", honest())
                .artifact(with_bytes(large()[..99].to_vec())),
            always(
                "a shorter blob in chunks",
                REFUSED,
                "/blobs/",
                chunked(|body| [&chunk(body)[..], b"0\r\n\r\n"].concat()),
            )
            .artifact(with_bytes(large()[..100_000].to_vec())),
            always("the right length and wrong bytes", REFUSED, "/blobs/", honest())
                .artifact(digest_of_other)
                .stored()
                .says("digest"),
            always("an empty blob", REFUSED, "/blobs/", honest()).artifact(with_bytes(Vec::new())),
            always("204 for a blob", REFUSED, "/blobs/", status(204, "")),
            always(
                "206 that was not asked for",
                REFUSED,
                "/blobs/",
                answer(|_, answer| answer.status(206).header("Content-Range", "bytes 0-307199/307200")),
            ),
            resumed("200 to a range", DONE, whole()),
            resumed("a part of what was asked for, each time", DONE, piecewise),
            resumed("206 with another range", DONE, lying("bytes 0-207199/307200")),
            resumed("206 with a longer range", DONE, lying("bytes 100000-999999/1000000")),
            resumed("206 with another total", DONE, lying("bytes 100000-307199/400000")),
            resumed("206 with a range backwards", DONE, lying("bytes 100000-99999/307200")),
            resumed("206 with a range that cannot be read", DONE, lying("bytes much of it")),
            resumed(
                "206 with a range beyond 64 bits",
                DONE,
                lying("bytes 100000-99999999999999999999/307200"),
            ),
            resumed("206 without a range", DONE, answer(|_, answer| answer.without("Content-Range"))),
            resumed("206 with the right range and bytes from elsewhere", REFUSED, shifted).says("digest"),
            resumed(
                "206 with the right range and a shorter body",
                REFUSED,
                answer(|_, answer| answer.body("short")),
            ),
            resumed("multipart/byteranges", REFUSED, multipart),
            resumed("416 to a range", REFUSED, status(416, "")),
        ],
    );
}
