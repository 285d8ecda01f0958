//! Manifests that do not match their content.

use oras_csi_testkit::scripted::tricks::{answer, header, honest, status};
use oras_csi_testkit::scripted::{Script, Trick};
use serde_json::Value;
use serde_json::json;

use super::{
    Artifact, DIGEST, DONE, FAILED, FEW, MANIFEST, REFUSED, always, check, described, holding, large, layer,
    manifest, row, sha256,
};

#[test]
fn content() {
    let honest_with =
        |name, status, artifact: Artifact| always(name, status, "/v2/", honest()).artifact(artifact);
    let sized =
        |name, status, size: Value| honest_with(name, status, described(|layer| layer["size"] = size));
    let titled = |name, title: &'static str| {
        honest_with(
            name,
            REFUSED,
            described(|layer| layer["annotations"]["org.opencontainers.image.title"] = json!(title)),
        )
    };
    // The bytes are those of the registry, whatever the header says.
    let called = |name: &'static str| header("Content-Encoding", name);
    // The client must not unpack these bytes.
    let encoded = |name: &'static str| {
        answer(move |_, answer| {
            let answer = answer.status(200).without("Content-Range");
            answer.header("Content-Encoding", name).body(b"\x1f\x8b\x08 hello".as_slice())
        })
    };
    let foreign = |storage: &str, blob: Trick| {
        // The address is in the manifest, so the script gives the manifest.
        let text = described_text(&format!("{storage}/{}", sha256(&large())));
        let digest = sha256(text.as_bytes());
        let manifest = answer(move |_, answer| {
            answer
                .status(200)
                .without(DIGEST)
                .without("Content-Type")
                .header("Content-Type", MANIFEST)
                .header(DIGEST, &digest)
                .body(text.clone())
        });
        Script::default().on("/manifests/", manifest).on("/blobs/", blob)
    };
    check(
        FEW,
        vec![
            sized("the manifest says that a layer is longer", REFUSED, json!(400_000)).stored(),
            sized("the manifest says that a layer is shorter", REFUSED, json!(5)).stored(),
            sized("the manifest says that a layer is empty", REFUSED, json!(0)),
            sized("a layer of a negative size", REFUSED, json!(-1)),
            sized("a layer of a size in words", REFUSED, json!("307200")),
            sized("a layer of a broken size", REFUSED, json!(307_200.5)),
            sized("a layer beyond any disk", REFUSED, json!(1_u64 << 60)).at_most_asked(4),
            titled("a title that leaves the folder", "../large.bin"),
            titled("a title that is absolute", "/etc/large.bin"),
            titled("a title with terminal codes", "\u{1b}[31mlarge.bin"),
            titled("a title with a line break", "large\n.bin"),
            honest_with(
                "a layer type with terminal codes",
                REFUSED,
                described(|layer| layer["mediaType"] = json!("\u{1b}[31m")),
            ),
            honest_with(
                "a layer digest with a path",
                REFUSED,
                described(|layer| layer["digest"] = json!("sha256:../../x")),
            ),
            honest_with(
                "an unknown manifest type",
                REFUSED,
                holding(json!({"schemaVersion": 2, "mediaType": "\u{9b}31m/x"}).to_string()),
            ),
            honest_with("a manifest that is none", REFUSED, holding("hello")),
            honest_with("an empty manifest", REFUSED, holding("")),
            always(
                "other bytes for a manifest",
                REFUSED,
                "GET /manifests/",
                answer(|_, answer| {
                    let text = manifest(&[layer(b"evil", "evil")]).to_string();
                    answer.body(text)
                }),
            )
            .says("digest"),
            always("a blob in gzip", REFUSED, "/blobs/", encoded("gzip")).stored(),
            always("a manifest in gzip", REFUSED, "GET /manifests/", encoded("gzip")).says("encoded as"),
            always("a token in gzip", FAILED, "/token", encoded("gzip")).private(),
            always("a blob that is called gzip", DONE, "/blobs/", called("gzip")).stored(),
            always("a blob that is called aws-chunked", DONE, "/blobs/", called("aws-chunked")).stored(),
            always("manifests that are called x-gzip", DONE, "/manifests/", called("x-gzip")),
            always("a token that is called gzip", DONE, "/token", called("gzip")).private(),
            always("an encoding that is none", DONE, "/v2/", header("Content-Encoding", "identity")),
            always("an encoding with terminal codes", REFUSED, "/blobs/", encoded("\u{9b}31m")),
            row("a foreign layer that is here as well", DONE, move |storage| foreign(storage, honest()))
                .storage_is_not_asked(),
            row("a foreign layer that is not here", FAILED, move |storage| foreign(storage, status(404, "")))
                .storage_is_not_asked(),
        ],
    );
}

fn described_text(url: &str) -> String {
    let mut layer = layer(&large(), "large.bin");
    layer["urls"] = json!([url]);
    manifest(&[layer]).to_string()
}
