//! Invalid HTTP.

use std::time::Duration;

use oras_csi_testkit::scripted::Part;
use oras_csi_testkit::scripted::tricks::{chunk, chunked, header, parts};

use super::{DONE, FAILED, FEW, always, check, once};

#[test]
fn framing() {
    let broken = |name, body: &'static [u8]| always(name, FAILED, "/blobs/", chunked(move |_| body.to_vec()));
    let trailers = parts(|_, answer| {
        let body = [&chunk(answer.sent())[..], b"0\r\n"].concat();
        let answer = answer.header("Transfer-Encoding", "chunked");
        answer.then(0, [Part::Bytes(body), Part::Repeat(b"X-Y: z\r\n".to_vec(), Duration::ZERO)])
    });
    let extension = parts(|_, answer| {
        let endless = Part::Repeat(vec![b'x'; 4_096], Duration::ZERO);
        answer.header("Transfer-Encoding", "chunked").then(0, [Part::Bytes(b"5;".to_vec()), endless])
    });
    let gone = chunked(|body| chunk(&body[..body.len() / 2]));
    check(
        FEW,
        vec![
            always(
                "chunks",
                DONE,
                "/v2/",
                chunked(|body| {
                    [&body.chunks(1_000).flat_map(chunk).collect::<Vec<_>>()[..], b"0\r\n\r\n"].concat()
                }),
            ),
            always("no last chunk", DONE, "/blobs/", chunked(chunk)),
            once("a chunked blob is cut in the middle", DONE, "/blobs/", gone).stored(),
            once("a chunk's size is no number, once", DONE, "/blobs/", chunked(|_| b"zz\r\nhello".to_vec())),
            broken("a chunk's size is no number", b"zz\r\nhello\r\n0\r\n\r\n"),
            broken("a chunk's size is beyond 64 bits", b"fffffffffffffffff\r\nhello\r\n"),
            broken("a chunk's size is negative", b"-5\r\nhello\r\n0\r\n\r\n"),
            broken("a chunk is longer than it says", b"2\r\nhello\r\n0\r\n\r\n"),
            broken("a chunk's size has no end", b"000000000000000000000000000000000000000000000000"),
            always("an endless chunk extension", FAILED, "/blobs/", extension).bound(30),
            always("endless trailers", DONE, "/blobs/", trailers),
            always(
                "bytes as they are in an unknown transfer encoding",
                DONE,
                "/blobs/",
                header("Transfer-Encoding", "gzip, lzw"),
            ),
        ],
    );
}
