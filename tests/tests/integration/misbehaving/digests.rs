//! Answers to HEAD and GET that differ, and wrong digests.

use oras_csi_testkit::scripted::tricks::{answer, header, parts, raw, status};
use oras_csi_testkit::scripted::{Part, Script};

use super::{
    DIGEST, DONE, FAILED, FEW, INDEX, MANIFEST, OTHER, REFUSED, always, check, large, layer, manifest, row,
};

#[test]
fn heads_and_digests() {
    let twice = |first: &'static str, second: &'static str| {
        answer(move |_, answer| {
            let right = answer.headers.iter().find(|(name, _)| name == DIGEST);
            let Some((_, right)) = right.cloned() else { return answer };
            let pick = |value: &str| if value.is_empty() { right.clone() } else { value.to_owned() };
            answer.without(DIGEST).header(DIGEST, &pick(first)).header(DIGEST, &pick(second))
        })
    };
    let other_by_digest = || {
        // Whatever is asked for is the same manifest, without saying which it is.
        answer(|_, answer| {
            let text = manifest(&[layer(&large(), "large.bin")]).to_string();
            answer
                .status(200)
                .without(DIGEST)
                .without("Content-Type")
                .header("Content-Type", MANIFEST)
                .body(text)
        })
    };
    let missing = |_: &str| Script::default().on("/manifests/", answer(|_, answer| answer.without(DIGEST)));
    check(
        FEW,
        vec![
            always(
                "HEAD names a digest that is not there",
                FAILED,
                "HEAD /manifests/",
                header(DIGEST, OTHER),
            ),
            row("HEAD names a digest, GET gives another manifest for it", REFUSED, move |_| {
                Script::default()
                    .on("HEAD /manifests/", header(DIGEST, OTHER))
                    .on("GET /manifests/", other_by_digest())
            })
            .says("digest"),
            always(
                "HEAD and GET have other lengths",
                DONE,
                "HEAD /manifests/",
                header("Content-Length", "17"),
            ),
            always("HEAD and GET have other types", DONE, "HEAD /manifests/", header("Content-Type", INDEX)),
            always(
                "HEAD has a type that is none",
                DONE,
                "HEAD /manifests/",
                header("Content-Type", "text/html"),
            ),
            always("GET has the type of an index", REFUSED, "GET /manifests/", header("Content-Type", INDEX)),
            always("HEAD 200, GET 404", FAILED, "GET /manifests/", status(404, "")),
            always("HEAD 404, GET 200", DONE, "HEAD /manifests/", status(404, "")),
            always("HEAD is forbidden, GET is not", DONE, "HEAD /manifests/", status(403, "")),
            always("HEAD is not known", DONE, "HEAD /manifests/", status(405, "")),
            always("HEAD is not implemented", DONE, "HEAD /manifests/", status(501, "")),
            always(
                "HEAD is answered with a body",
                DONE,
                "HEAD /manifests/",
                parts(|_, answer| {
                    vec![Part::Bytes([&answer.start()[..], &answer.body].concat()), Part::Keep]
                }),
            ),
            row("no digest", DONE, missing),
            always(
                "no digest, no type and no length",
                DONE,
                "HEAD /manifests/",
                raw("HTTP/1.1 200 OK\r\n\r\n"),
            ),
            always("another digest", REFUSED, "GET /manifests/", header(DIGEST, OTHER)),
            always("an empty digest", DONE, "HEAD /manifests/", header(DIGEST, "")),
            // What is no digest is treated as missing: the bytes of the manifest are hashed in any case.
            always("a digest in words", DONE, "HEAD /manifests/", header(DIGEST, "latest")),
            always("a short digest", DONE, "HEAD /manifests/", header(DIGEST, "sha256:abc")),
            always(
                "a digest with a path",
                DONE,
                "HEAD /manifests/",
                header(DIGEST, "sha256:../../../etc/passwd"),
            ),
            always(
                "a digest of an unknown kind",
                DONE,
                "HEAD /manifests/",
                header(DIGEST, "md5:d41d8cd98f00b204e9800998ecf8427e"),
            ),
            always(
                "a digest with terminal codes",
                DONE,
                "HEAD /manifests/",
                header(DIGEST, "sha256:\u{9b}31m\u{202e}"),
            ),
            always("the same digest twice", DONE, "/manifests/", twice("", "")),
            always("two digests, the right one first", REFUSED, "/manifests/", twice("", OTHER)),
            always("two digests, the right one last", REFUSED, "/manifests/", twice(OTHER, "")),
            always("another digest on the blob", DONE, "/blobs/", header(DIGEST, OTHER)),
        ],
    );
}
