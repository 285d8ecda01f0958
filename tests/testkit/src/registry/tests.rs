use std::sync::Arc;

use futures_util::StreamExt;
use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::Manifest;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::{
    Anonymous, Artifact, Content, HostsConfig, HttpRegistry, Layer, Publication, PublishError, Publisher,
    Registry, RegistryErrorKind, Settings,
};
use reqwest::{Client, StatusCode};

use super::*;

struct Running {
    base: String,
    host: String,
    requests: Requests,
    hosts: HostsConfig,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn start() -> Running {
    let registry = MemoryRegistry::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (host, requests) = (registry.address().to_string(), registry.requests());
    let serving = tokio::spawn(registry.serve(std::future::pending()));
    let hosts = HostsConfig::load(None).unwrap().with_plain_http(host.parse().unwrap());
    Running { base: format!("http://{host}/v2"), host, requests, hosts, serving }
}

/// Pushes anonymously.
async fn push(
    hosts: &HostsConfig,
    reference: &Reference,
    artifact: &Artifact,
) -> Result<Digest, PublishError> {
    let registry = HttpRegistry::new(hosts.clone(), Settings::default().with_proxies(false));
    let publisher = Publisher::new(Arc::new(registry), Arc::new(Anonymous));
    let publication = Publication::of_artifact(artifact.clone());
    let pushed = publisher.publish(reference, reference.tag(), &publication).await?;
    Ok(pushed.reference().digest().clone())
}

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

#[tokio::test]
async fn pulls_return_what_was_pushed() {
    let registry = start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("big.bin");
    let big: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&path, &big).unwrap();
    std::fs::write(folder.path().join("empty"), b"").unwrap();
    let title = "org.opencontainers.image.title";
    let layers = vec![
        Layer::new("text/plain", Content::Bytes("hello".into())).annotated(title, "hello.txt"),
        Layer::new("application/octet-stream", Content::File(path)).annotated(title, "big.bin"),
        Layer::new("application/octet-stream", Content::File(folder.path().join("empty"))),
    ];
    let artifact = Artifact::new("application/vnd.acme.app", layers).annotated("made.by", "a test");
    for repository in ["one", "some/very/deep/name"] {
        let reference: Reference = format!("{}/{repository}:v1", registry.host).parse().unwrap();
        let pushed = push(&registry.hosts, &reference, &artifact).await.unwrap();

        let reader = HttpRegistry::new(registry.hosts.clone(), Settings::default().with_proxies(false));
        let descriptor = reader.resolve(&reference).await.unwrap();
        assert_eq!(*descriptor.digest(), pushed);
        let pinned = reference.pin(pushed);
        let manifest = reader.manifest(&pinned).await.unwrap();
        let Manifest::Image(image) = manifest.manifest() else { panic!("an image") };
        assert_eq!(image.artifact_type(), Some("application/vnd.acme.app"));
        assert_eq!(image.annotations()["made.by"], "a test");
        for (layer, wanted) in image.layers().iter().zip([b"hello".as_slice(), &big, b""]) {
            for offset in [0, wanted.len() / 2] {
                let stream = reader.blob(&pinned, layer.descriptor(), offset as u64).await.unwrap();
                let read: Vec<_> = stream.map(|chunk| chunk.unwrap().to_vec()).collect().await;
                assert!(read.concat() == wanted[offset..]);
            }
        }
        let gone: Reference = format!("{}/{repository}:v2", registry.host).parse().unwrap();
        assert_eq!(reader.resolve(&gone).await.unwrap_err().kind(), RegistryErrorKind::NotFound);
    }
    assert_eq!(registry.requests.count(Kind::ManifestHead), 4);
    // Of each repository the manifest, and the tag that HEAD did not find.
    assert_eq!(registry.requests.count(Kind::ManifestGet), 4);
    assert!(registry.requests.count(Kind::Write) > 8 && registry.requests.count(Kind::BlobGet) == 8);
}

#[tokio::test]
async fn a_second_push_uploads_only_the_manifest() {
    let registry = start().await;
    let reference: Reference = format!("{}/app:v1", registry.host).parse().unwrap();
    let artifact = Artifact::new("a/b", vec![Layer::new("text/plain", Content::Bytes("x".into()))]);
    let first = push(&registry.hosts, &reference, &artifact).await.unwrap();
    let before = registry.requests.count(Kind::Write);
    assert_eq!(push(&registry.hosts, &reference, &artifact).await.unwrap(), first);
    assert_eq!(registry.requests.count(Kind::Write), before + 1, "the manifest alone");
    let pinned: Reference = format!("{}/app:v1@{first}", registry.host).parse().unwrap();
    assert!(push(&registry.hosts, &pinned, &artifact).await.is_err());
    let gone = Artifact::new("a/b", vec![Layer::new("t/p", Content::File("/does/not/exist".into()))]);
    let error = push(&registry.hosts, &reference, &gone).await.unwrap_err();
    assert!(error.to_string().contains("/does/not/exist"), "{error}");
}

#[tokio::test]
async fn uploads_are_checked_against_their_digest_and_range() {
    let registry = start().await;
    let http = client();
    let uploads = format!("{}/a/b/blobs/uploads/", registry.base);
    let digest = Digest::sha256_of(b"hello world");

    // In one request, with another digest first.
    let whole = |digest: &Digest| http.post(format!("{uploads}?digest={digest}")).body("hello world").send();
    assert_eq!(whole(&Digest::sha256_of(b"x")).await.unwrap().status(), StatusCode::BAD_REQUEST);
    let blob = format!("{}/a/b/blobs/{digest}", registry.base);
    assert_eq!(http.head(&blob).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(whole(&digest).await.unwrap().status(), StatusCode::CREATED);

    // In chunks, one of them out of order.
    let started = http.post(&uploads).send().await.unwrap();
    assert_eq!(started.status(), StatusCode::ACCEPTED);
    let location = format!("http://{}{}", registry.host, started.headers()["location"].to_str().unwrap());
    let chunk = |range: &'static str, body: &'static str| {
        http.patch(&location).header("content-range", range).body(body).send()
    };
    assert_eq!(chunk("0-5", "hello ").await.unwrap().headers()["range"], "0-5");
    assert_eq!(chunk("7-10", "orld").await.unwrap().status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(http.get(&location).send().await.unwrap().headers()["range"], "0-5");
    let put = |digest: Digest| http.put(format!("{location}?digest={digest}")).body("world").send();
    assert_eq!(put(digest.clone()).await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(put(digest.clone()).await.unwrap().status(), StatusCode::NOT_FOUND, "the upload has ended");

    // Mounted from another repository, which must have it.
    let mount = |from: &str| {
        let url = format!("{}/other/blobs/uploads/?mount={digest}&from={from}", registry.base);
        http.post(url).send()
    };
    assert_eq!(mount("unknown").await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(mount("a/b").await.unwrap().status(), StatusCode::CREATED);
    let gone = http.delete(&blob).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::ACCEPTED);
    assert_eq!(http.get(&blob).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    let mounted = http.get(format!("{}/other/blobs/{digest}", registry.base)).send().await.unwrap();
    assert_eq!(mounted.text().await.unwrap(), "hello world");
}

#[tokio::test]
async fn lists_tags_and_referrers_and_deletes_manifests() {
    let registry = start().await;
    let reference = |tag: &str| format!("{}/app:{tag}", registry.host).parse::<Reference>().unwrap();
    let base = Artifact::new("application/vnd.base", Vec::new());
    for tag in ["v1", "v2", "v3"] {
        push(&registry.hosts, &reference(tag), &base).await.unwrap();
    }
    let http = client();
    let get = |path: &str| http.get(format!("{}/app/{path}", registry.base)).send();
    let json = async |path: &str| get(path).await.unwrap().json_value().await;
    assert_eq!(json("tags/list").await["tags"], serde_json::json!(["v1", "v2", "v3"]));
    assert_eq!(json("tags/list?n=2&last=v1").await["tags"], serde_json::json!(["v2", "v3"]));
    assert_eq!(
        get("tags/list?n=1").await.unwrap().headers()["link"],
        "</v2/app/tags/list?n=1&last=v1>; rel=\"next\""
    );

    let subject = HttpRegistry::new(registry.hosts.clone(), Settings::default().with_proxies(false))
        .resolve(&reference("v1"))
        .await
        .unwrap();
    let digest = subject.digest().clone();
    let attached = Artifact::new("application/vnd.signature", Vec::new()).attached_to(subject);
    let attached = push(&registry.hosts, &reference("signature"), &attached).await.unwrap();
    let referrers = json(&format!("referrers/{digest}")).await;
    assert_eq!(referrers["manifests"][0]["digest"], attached.to_string());
    assert_eq!(referrers["manifests"][0]["artifactType"], "application/vnd.signature");
    let none = json(&format!("referrers/{digest}?artifactType=other")).await;
    assert_eq!(none["manifests"], serde_json::json!([]));

    let put = |bytes: &'static str, path: &str| {
        http.put(format!("{}/app/manifests/{path}", registry.base))
            .header("content-type", "application/vnd.oci.image.manifest.v1+json")
            .body(bytes)
            .send()
    };
    assert_eq!(put("{", "bad").await.unwrap().status(), StatusCode::BAD_REQUEST);
    let elsewhere = "{\"schemaVersion\":2,\"layers\":[{\"digest\":\"sha256:0\"}]}";
    assert_eq!(put(elsewhere, "bad").await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(
        put("{}", &Digest::sha256_of(b"x").to_string()).await.unwrap().status(),
        StatusCode::BAD_REQUEST
    );

    let delete = async |path: &str| {
        http.delete(format!("{}/app/manifests/{path}", registry.base)).send().await.unwrap().status()
    };
    assert_eq!(delete("v1").await, StatusCode::ACCEPTED);
    assert_eq!(get("manifests/v2").await.unwrap().status(), StatusCode::OK);
    assert_eq!(delete(&digest.to_string()).await, StatusCode::ACCEPTED);
    assert_eq!(get("manifests/v2").await.unwrap().status(), StatusCode::NOT_FOUND, "the tag went with it");
    assert_eq!(delete("v9").await, StatusCode::NOT_FOUND);
}

/// Stands in for the feature `json` of reqwest, which is not enabled.
trait JsonValue {
    async fn json_value(self) -> serde_json::Value;
}

impl JsonValue for reqwest::Response {
    async fn json_value(self) -> serde_json::Value {
        serde_json::from_slice(&self.bytes().await.unwrap()).unwrap()
    }
}

#[tokio::test]
async fn invalid_requests_have_the_error_codes_of_the_specification() {
    let registry = start().await;
    let http = client();
    for (path, status, code) in [
        ("Upper/manifests/v1", StatusCode::BAD_REQUEST, "NAME_INVALID"),
        ("a//b/manifests/v1", StatusCode::BAD_REQUEST, "NAME_INVALID"),
        ("a/manifests/v1", StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
        ("a/manifests/-v1", StatusCode::BAD_REQUEST, "TAG_INVALID"),
        ("a/manifests/sha256:1", StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        ("a/blobs/sha256:1", StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        ("a/blobs/uploads/1", StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
        ("a/tags/list", StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        ("_catalog", StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
    ] {
        let answer = http.get(format!("{}/{path}", registry.base)).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.json_value().await["errors"][0]["code"], code, "{path}");
    }
    for path in ["", "/"] {
        assert_eq!(
            http.get(format!("{}{path}", registry.base)).send().await.unwrap().status(),
            StatusCode::OK
        );
    }
    let shared: Arc<Shared> = registry.requests.0.clone();
    assert!(shared.store.lock().repositories.is_empty());
}

#[test]
fn accepts_the_repository_names_of_the_specification() {
    for name in ["a", "a/b", "a-b", "a--b", "a__b", "a.b/c_d", "0/1"] {
        assert!(is_repository(name), "{name}");
    }
    for name in ["", "/", "a/", "/a", "A", "a..b", "a___b", "-a", "a-", "a._b", "a b", "a/../b"] {
        assert!(!is_repository(name), "{name}");
    }
}
