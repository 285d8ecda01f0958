//! A registry in memory that answers at once. Its answer to a reference depends only on the text of the reference, so
//! that one input always has the same result.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use oras_csi_core::digest::Digest;
use oras_csi_core::display::Printable;
use oras_csi_core::manifest::media;
use oras_csi_core::patch;
use oras_csi_core::recipe::artifact;
use oras_csi_core::reference::RegistryHost;
use oras_csi_core::registry::RegistryError;
use oras_csi_testkit::client::{Behaviour, FakeRegistry};
use oras_csi_webhook::Registries;
use serde_json::{Value, json};

/// One in so many tags has an error, or no answer at all.
const TAGS_PER_ERROR: u64 = 64;
/// One in so many digests that exist has an error.
const DIGESTS_PER_ERROR: u64 = 128;
const TITLE: &str = "org.opencontainers.image.title";

/// Returns a registry without any memory of earlier inputs.
pub(crate) fn fake_registry() -> FakeRegistry {
    let registry = FakeRegistry::default().with_fallback(behaviour).with_only_blobs(artifact::LAYER_TYPE);
    for manifest in SHELF.manifests.values() {
        registry.put_manifest_bytes(manifest.clone());
    }
    for recipe in RECIPES {
        registry.put_blob(recipe.as_bytes());
    }
    registry
}

fn behaviour(reference: &str) -> Option<Behaviour> {
    let hash = hash(reference);
    if let Some((_, digest)) = reference.split_once('@') {
        if let Some(error) = error(hash % DIGESTS_PER_ERROR, reference) {
            return Some(error);
        }
        let missing = || RegistryError::NotFound { at: at(reference), words: words() };
        let exists = digest.parse().is_ok_and(|digest| SHELF.manifests.contains_key(&digest));
        return (!exists).then(|| Behaviour::Fails(missing()));
    }
    if let Some(error) = error(hash % TAGS_PER_ERROR, reference) {
        return Some(error);
    }
    let number = usize::try_from(hash >> 32).unwrap_or_default();
    let repository = reference.split_once('/').map_or("", |(_, rest)| rest);
    if repository.split(':').next() == Some(INSTRUCTIONS) {
        let all = &SHELF.instructions;
        return Some(Behaviour::Is(all[number % all.len()].clone()));
    }
    // The manifests that can be mounted come first, and get the rest of the numbers.
    let all = &SHELF.digests;
    let number = number % (2 * all.len());
    Some(Behaviour::Is(all.get(number).unwrap_or(&all[number % MOUNTABLE]).clone()))
}

/// The administrator names the registry `kind`, and allows plain HTTP and unverified certificates for one host each.
pub(crate) struct Administrator;

impl Registries for Administrator {
    fn names(&self, segment: &str) -> bool {
        segment == "kind"
    }

    fn allows_plain_http(&self, host: &RegistryHost) -> bool {
        host.host() == "plain.example"
    }

    fn allows_insecure(&self, host: &RegistryHost) -> bool {
        host.host() == "insecure.example"
    }
}

/// A seed with which the references of `examples/` have what their manifests need.
const SEED: u64 = 0x004a_b928;

/// FNV-1a. The hash of the standard library can change with a release.
fn hash(text: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ SEED;
    text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn at(text: &str) -> Printable {
    Printable::new(&format!("GET {text}"))
}

/// A message of a registry with characters that must not reach a terminal.
fn words() -> Printable {
    Printable::new("\u{1b}[2J\u{202e}no\r\n\u{0} \"such\" <thing> \u{9b}31m")
}

fn error(kind: u64, text: &str) -> Option<Behaviour> {
    let (at, words) = (at(text), words());
    Some(Behaviour::Fails(match kind {
        0 => RegistryError::NotFound { at, words },
        1 => RegistryError::Refused { at, status: 401, words },
        2 => RegistryError::RateLimited { at, retry_after: Some(Duration::from_hours(24)), words },
        3 => RegistryError::Unavailable { at, status: 502, words },
        4 => RegistryError::Unreachable { at, words },
        5 => RegistryError::Stalled { at, what: "answer".into(), after: Duration::from_secs(5) },
        6 => RegistryError::Untruthful { at, words },
        7 => RegistryError::TooLarge { at, what: "a manifest", limit: 4 << 20 },
        8 => RegistryError::Invalid { at, words },
        9 => RegistryError::NotAllowed { at, words },
        10 => return Some(Behaviour::Hangs),
        _ => return None,
    }))
}

struct Shelf {
    /// The digests that tags name.
    digests: Vec<Digest>,
    /// The digests that tags name in the repository [`INSTRUCTIONS`].
    instructions: Vec<Digest>,
    manifests: HashMap<Digest, Bytes>,
}

/// The repository that has only patches and recipes.
const INSTRUCTIONS: &str = "patches";
/// Recipes, some of them invalid.
const RECIPES: [&str; 5] = [
    "- add: r.io/a\n- overlay: r.io/b:v1\n  path: p\n- remove: p/*\n",
    "- {add: r.io/evil/a, include: [\"*\"]}\n- add: kind/b\n  path: b\n",
    "- add: r.io/patches:1\n",
    "- {add: r.io/a, path: a}\n- {patch: r.io/patches:1, path: p, level: minor}\n",
    "- ad: r.io/a\n\u{202e}",
];

/// The number of manifests at the beginning that have something to mount.
const MOUNTABLE: usize = 7;

static SHELF: LazyLock<Shelf> = LazyLock::new(|| {
    let mut shelf = Shelf { digests: Vec::new(), instructions: Vec::new(), manifests: HashMap::new() };
    let titled = |media_type: &str| layer(media_type, 1, &json!({TITLE: "a file"}));
    let jar = shelf.put(&image(&[titled("application/java-archive")]));
    let notes = shelf.put(&image(&[titled("application/java-archive"), titled("text/plain")]));
    shelf.put(&image(&[layer("application/vnd.oci.image.layer.v1.tar+gzip", 1_000_000, &json!({}))]));
    let model = json!({"org.cncf.model.filepath": "weights.bin"});
    shelf.put(&image(&vec![layer("application/vnd.acme.model", u64::MAX / 2, &model); 3]));
    let mut typed = image(&[titled("Application/JSON; charset=utf-8")]);
    typed["artifactType"] = json!("application/vnd.acme.config");
    shelf.put(&typed);
    let platforms =
        shelf.put(&index(&[(Some("linux/amd64"), &jar), (Some("linux/arm64"), &notes), (None, &jar)]));
    let gone = Digest::sha256_of(b"gone");
    shelf.put(&index(&[(Some("linux/riscv64"), &gone), (Some("linux/s390x"), &jar)]));
    assert_eq!(shelf.digests.len(), MOUNTABLE);

    let untitled = shelf.put(&image(&[layer("application/vnd.acme.star", 1, &json!({TITLE: ""}))]));
    shelf.put(&image(&[]));
    shelf.put(&index(&[]));
    shelf.put(&index(&[(Some("linux/amd64"), &platforms)]));
    shelf.put(&index(&[(Some("linux/amd64"), &untitled), (Some("windows/amd64"), &gone)]));
    shelf.put(&index(&[(None, &jar), (None, &notes)]));
    shelf.put(&index(&[(Some("linux/arm"), &notes); 70]));
    // Some registries return a digest that they do not have.
    shelf.digests.push(gone.clone());
    shelf.put_instructions(&jar, &notes, &gone);
    shelf
});

impl Shelf {
    /// Adds patches, valid and invalid, one of them in the earlier form, and recipes.
    fn put_instructions(&mut self, base: &Digest, fix: &Digest, gone: &Digest) {
        let known = self.digests.len();
        let level = |level: &str| format!("org.opencontainers.image.patch.{level}.digest");
        let subject = json!({"mediaType": media::OCI_MANIFEST, "digest": base, "size": 1});
        let of = |annotations: Value| {
            let mut patch = image(&[]);
            patch["artifactType"] = json!(patch::ARTIFACT_TYPE);
            patch["subject"] = subject.clone();
            patch["annotations"] = annotations;
            patch
        };
        let elsewhere = json!({"org.opencontainers.image.base.name": "r.io/a:v1", level("minor"): fix,
            "land.oras.csi.patch.minor.ref": "other.example/team/b:latest", level("crit"): fix});
        self.put(&of(json!({level("minor"): fix})));
        self.put(&of(elsewhere));
        self.put(&of(json!({level("critical"): gone})));
        self.put(&of(json!({})));
        self.put(&of(json!({level("major"): base})));
        self.put(&of(json!({level("major"): fix, "land.oras.csi.patch.major.ref": "\u{202e}\u{1b}"})));
        self.put(
            &json!({"mediaType": media::OCI_ARTIFACT, "artifactType": patch::ARTIFACT_TYPE, "refers": subject,
            "annotations": {level("major"): fix}}),
        );
        for yaml in RECIPES {
            let manifest = serde_json::from_slice(&artifact::to_manifest(yaml)).expect("JSON");
            self.put(&manifest);
        }
        self.instructions = self.digests.split_off(known);
    }

    fn put(&mut self, manifest: &Value) -> Digest {
        let text = manifest.to_string();
        let digest = Digest::sha256_of(text.as_bytes());
        self.manifests.insert(digest.clone(), text.into());
        self.digests.push(digest.clone());
        digest
    }
}

fn layer(media_type: &str, size: u64, annotations: &Value) -> Value {
    let digest = Digest::sha256_of(media_type.as_bytes());
    json!({"mediaType": media_type, "digest": digest, "size": size, "annotations": annotations})
}

fn image(layers: &[Value]) -> Value {
    let config = json!({"mediaType": media::EMPTY, "digest": Digest::sha256_of(b"{}"), "size": 2});
    json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": layers})
}

fn index(entries: &[(Option<&str>, &Digest)]) -> Value {
    let entry = |(platform, digest): &(Option<&str>, &Digest)| {
        let mut entry = json!({"mediaType": media::OCI_MANIFEST, "digest": digest, "size": 1});
        if let Some((os, architecture)) = platform.and_then(|platform| platform.split_once('/')) {
            entry["platform"] = json!({"os": os, "architecture": architecture});
        }
        entry
    };
    let entries: Vec<Value> = entries.iter().map(entry).collect();
    json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries})
}
