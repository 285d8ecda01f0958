use rstest::rstest;
use serde_json::{Value, json};

use super::*;

fn digest(seed: &str) -> String {
    Digest::sha256_of(seed.as_bytes()).to_string()
}

fn descriptor(seed: &str) -> Value {
    json!({"mediaType": "application/octet-stream", "digest": digest(seed), "size": 7})
}

fn image() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "artifactType": "application/vnd.acme.model",
        "config": {"mediaType": media::EMPTY, "digest": digest("{}"), "size": 2, "data": "e30="},
        "layers": [{
            "mediaType": "text/plain", "digest": digest("layer"), "size": 5,
            "annotations": {"org.opencontainers.image.title": "a.txt"},
            "urls": ["https://elsewhere.example/a"],
        }],
        "subject": descriptor("base"),
        "annotations": {"Title": "x", "title": "y"},
        "fieldFromTheFuture": {"layers": 1},
    })
}

fn with(mut value: Value, pointer: &str, new: Value) -> Value {
    *value.pointer_mut(pointer).unwrap() = new;
    value
}

fn add(mut value: Value, key: &str, new: Value) -> Value {
    value[key] = new;
    value
}

fn parse(value: &Value) -> Result<Manifest, ManifestError> {
    Manifest::parse(None, &serde_json::to_vec(value).unwrap())
}

#[test]
fn parses_all_fields_of_an_artifact() {
    let Manifest::Image(read) = parse(&image()).unwrap() else { panic!("an image") };
    assert_eq!(read.artifact_type(), Some("application/vnd.acme.model"));
    assert_eq!(read.kind(), "application/vnd.acme.model");
    assert_eq!(read.config().size(), 2);
    assert_eq!(read.subject().unwrap().digest().to_string(), digest("base"));
    assert_eq!(read.annotations().len(), 2);
    let [layer] = read.layers() else { panic!("one layer") };
    assert_eq!(layer.descriptor().media_type(), "text/plain");
    assert_eq!(layer.annotations()["org.opencontainers.image.title"], "a.txt");
    assert_eq!(layer.descriptor().urls(), ["https://elsewhere.example/a"]);
}

#[test]
fn the_content_type_the_media_type_field_or_the_fields_alone_determine_the_kind() {
    let bytes = |value: &Value| serde_json::to_vec(value).unwrap();
    let mut bare = image();
    bare.as_object_mut().unwrap().remove("mediaType");
    for (header, value) in [
        (Some(media::OCI_MANIFEST), &bare),
        (Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"), &image()),
        (Some("text/plain; charset=utf-8"), &image()),
        (Some("application/json"), &bare),
        (None, &bare),
    ] {
        assert_eq!(
            Manifest::parse(header, &bytes(value)).unwrap().media_type(),
            media::OCI_MANIFEST,
            "{header:?}"
        );
    }
    let docker = with(image(), "/mediaType", media::DOCKER_MANIFEST.into());
    assert_eq!(parse(&docker).unwrap().media_type(), media::DOCKER_MANIFEST);
}

/// Proxy caches convert the Content-Type and not the bytes. The digest is that of the bytes, so their `mediaType` counts.
#[rstest]
#[case(media::DOCKER_MANIFEST, image())]
#[case(media::OCI_MANIFEST, with(image(), "/mediaType", media::DOCKER_MANIFEST.into()))]
#[case(media::DOCKER_LIST, json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": []}))]
#[case(media::OCI_INDEX, json!({"schemaVersion": 2, "mediaType": media::DOCKER_LIST, "manifests": []}))]
fn a_content_type_of_the_same_kind_is_accepted(#[case] header: &str, #[case] value: Value) {
    let bytes = bytes::Bytes::from(serde_json::to_vec(&value).unwrap());
    let digest = Digest::sha256_of(&bytes);
    let read = VerifiedManifest::verify(&digest, Some(header), bytes.clone()).unwrap();
    // The driver stores the bytes without the Content-Type and parses them again.
    let stored = VerifiedManifest::verify(&digest, None, bytes).unwrap();
    assert!(read.is_self_described());
    assert_eq!(read.manifest(), stored.manifest());
    assert_eq!(read.descriptor(), stored.descriptor());
    assert_eq!(read.descriptor().media_type(), value["mediaType"]);
}

#[rstest]
#[case::other_header(Some(media::OCI_INDEX), image())]
#[case::other_header_of_docker(Some(media::DOCKER_LIST), image())]
#[case::an_index_as_an_image(
    Some(media::OCI_MANIFEST), json!({"schemaVersion": 2, "mediaType": media::DOCKER_LIST, "manifests": []}))]
#[case::an_artifact_as_an_image(
    Some(media::OCI_MANIFEST),
    json!({"mediaType": media::OCI_ARTIFACT, "artifactType": media::PATCH_ARTIFACT}))]
#[case::an_image_as_an_artifact(Some(media::OCI_ARTIFACT), image())]
#[case::both_kinds(None, add(image(), "manifests", json!([])))]
#[case::both_kinds_unnamed(None, json!({"schemaVersion": 2, "layers": [], "config": {}, "manifests": []}))]
#[case::index_by_name(None, with(image(), "/mediaType", media::OCI_INDEX.into()))]
#[case::image_by_name(None, json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "manifests": []}))]
#[case::image_by_header(Some(media::DOCKER_MANIFEST), json!({"schemaVersion": 2, "manifests": []}))]
#[case::schema_1_too(None, add(image(), "fsLayers", json!([])))]
fn rejects_manifests_of_two_kinds(#[case] header: Option<&str>, #[case] value: Value) {
    let error = Manifest::parse(header, &serde_json::to_vec(&value).unwrap()).unwrap_err();
    assert!(matches!(error, ManifestError::Ambiguous(_)), "{error}");
}

#[rstest]
#[case(Some("application/vnd.docker.distribution.manifest.v1+prettyjws"))]
#[case(Some("text/html"))]
#[case(Some("application/vnd.oci.artifact.manifest.v1+json"))]
fn an_unsupported_media_type_is_named_in_the_error(#[case] header: Option<&str>) {
    let mut bare = image();
    bare.as_object_mut().unwrap().remove("mediaType");
    let error = Manifest::parse(header, &serde_json::to_vec(&bare).unwrap()).unwrap_err();
    assert!(matches!(error, ManifestError::Unsupported(_)), "{error}");
    assert!(error.to_string().contains(header.unwrap()), "{error}");
}

#[rstest]
#[case::negative("/layers/0/size", json!(-1), "layers[0].size")]
#[case::fraction("/layers/0/size", json!(1.5), "layers[0].size")]
#[case::text("/layers/0/size", json!("5"), "layers[0].size")]
#[case::huge("/layers/0/size", json!(u64::MAX), "layers[0].size")]
#[case::just_too_huge("/layers/0/size", json!(1_u64 << 63), "layers[0].size")]
#[case::no_digest("/layers/0/digest", json!(""), "layers[0].digest")]
#[case::short_digest("/layers/0/digest", json!("sha256:abcd"), "layers[0].digest")]
#[case::upper_digest("/config/digest", json!(digest("x").to_uppercase()), "config.digest")]
#[case::path_digest("/config/digest", json!("sha256:../../etc/passwd"), "config.digest")]
#[case::no_type("/layers/0/mediaType", Value::Null, "layers[0].mediaType")]
#[case::control_type("/layers/0/mediaType", json!("a/b\u{1b}[31m"), "layers[0].mediaType")]
#[case::long_type("/layers/0/mediaType", json!("a".repeat(256)), "layers[0].mediaType")]
#[case::annotation("/layers/0/annotations", json!({"a": 1}), "layers[0].annotations")]
#[case::urls("/layers/0/urls", json!([1]), "layers[0].urls")]
#[case::layer("/layers/0", json!(7), "layers[0]")]
#[case::layers("/layers", json!({}), "layers")]
#[case::config("/config", Value::Null, "config")]
#[case::subject("/subject", json!([]), "subject")]
#[case::version("/schemaVersion", json!(1), "schemaVersion")]
#[case::artifact_type("/artifactType", json!("a\nb"), "artifactType")]
fn an_invalid_field_is_named_in_the_error(#[case] pointer: &str, #[case] value: Value, #[case] named: &str) {
    let error = parse(&with(image(), pointer, value)).unwrap_err();
    let ManifestError::Field { field, .. } = &error else { panic!("{error}") };
    assert_eq!(field.as_str(), named, "{error}");
    assert!(!error.to_string().chars().any(char::is_control), "{error}");
}

#[test]
fn rejects_field_names_in_another_case_except_in_annotations() {
    for (pointer, name) in [("", "Layers"), ("/layers/0", "Digest"), ("/config", "SIZE")] {
        let mut value = image();
        value.pointer_mut(pointer).unwrap()[name] = json!([]);
        let error = parse(&value).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn rejects_duplicate_names() {
    let text = serde_json::to_string(&image()).unwrap();
    for (once, twice) in [
        ("\"schemaVersion\":2", "\"schemaVersion\":2,\"schemaVersion\":2"),
        ("\"size\":5", "\"size\":5,\"size\":6"),
        ("\"title\":\"y\"", "\"title\":\"y\",\"title\":\"z\""),
    ] {
        assert!(text.contains(once), "{once}");
        let error = Manifest::parse(None, text.replacen(once, twice, 1).as_bytes()).unwrap_err();
        assert!(matches!(error, ManifestError::Json(_)), "{error}");
    }
}

#[test]
fn limits_the_number_of_layers_and_manifests() {
    let layers = |count: usize| Value::Array(vec![descriptor("x"); count]);
    assert!(parse(&with(image(), "/layers", layers(MAX_ENTRIES))).is_ok());
    let error = parse(&with(image(), "/layers", layers(MAX_ENTRIES + 1))).unwrap_err();
    assert_eq!(error, ManifestError::TooMany { what: "layers", count: 4_097 });
    let index = json!({"schemaVersion": 2, "manifests": layers(MAX_ENTRIES + 1)});
    assert!(matches!(parse(&index), Err(ManifestError::TooMany { what: "manifests", .. })));
}

#[test]
fn verifies_the_digest_before_parsing() {
    let bytes = bytes::Bytes::from(serde_json::to_vec(&image()).unwrap());
    let right = Digest::sha256_of(&bytes);
    let read = VerifiedManifest::verify(&right, None, bytes.clone()).unwrap();
    assert_eq!((read.descriptor().size(), read.descriptor().digest()), (bytes.len() as u64, &right));
    let error = VerifiedManifest::verify(&Digest::sha256_of(b"x"), None, bytes).unwrap_err();
    assert!(matches!(error, ManifestError::Digest { actual, .. } if actual == right));
}

fn index(entries: &[(&str, Option<Value>)]) -> Index {
    let entries = entries.iter().map(|(seed, platform)| {
        let mut entry = descriptor(seed);
        entry["mediaType"] = media::OCI_MANIFEST.into();
        if let Some(platform) = platform {
            entry["platform"] = platform.clone();
        }
        entry
    });
    let value =
        json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries.collect::<Vec<_>>()});
    let Manifest::Index(index) = parse(&value).unwrap() else { panic!("an index") };
    index
}

#[allow(clippy::unnecessary_wraps)]
fn on(os: &str, architecture: &str, variant: &str) -> Option<Value> {
    Some(json!({"os": os, "architecture": architecture, "variant": variant}))
}

#[rstest]
#[case("linux/amd64", Ok("amd64"))]
#[case("linux/arm64", Ok("arm64"))]
#[case("linux/arm64/v8", Ok("arm64"))]
#[case("linux/arm/v7", Ok("armv7"))]
#[case("linux/s390x", Err("linux/amd64, linux/arm64/v8, linux/arm/v7, unknown/unknown"))]
#[case("windows/amd64", Err("linux/amd64, linux/arm64/v8, linux/arm/v7, unknown/unknown"))]
fn selects_the_manifest_of_the_platform(#[case] platform: &str, #[case] wanted: Result<&str, &str>) {
    let index = index(&[
        ("amd64", on("linux", "amd64", "")),
        ("arm64", on("linux", "arm64", "v8")),
        ("armv7", on("linux", "arm", "v7")),
        ("attestation", on("unknown", "unknown", "")),
    ]);
    let chosen = index.select(&platform.parse().unwrap());
    match (chosen, wanted) {
        (Ok(entry), Ok(seed)) => assert_eq!(entry.descriptor().digest().to_string(), digest(seed)),
        (Err(SelectError::NoPlatform { available, .. }), Err(list)) => assert_eq!(available.as_str(), list),
        other => panic!("{other:?}"),
    }
}

#[test]
fn selects_the_only_manifest_without_a_platform() {
    let platform = "linux/amd64".parse().unwrap();
    let one = index(&[("any", None), ("arm64", on("linux", "arm64", ""))]);
    assert_eq!(one.select(&platform).unwrap().descriptor().digest().to_string(), digest("any"));
    let two = index(&[("a", None), ("b", None)]);
    assert_eq!(two.select(&platform).unwrap_err(), SelectError::NoPlatformStated { count: 2 });
    let none = index(&[]).select(&platform).unwrap_err();
    assert!(none.to_string().contains("it has no manifests"), "{none}");
    assert_eq!(none.advice(), "Push it again with its manifests");
    let other = index(&[("arm64", on("linux", "arm64", ""))]).select(&platform).unwrap_err();
    assert_eq!(other.to_string(), "has no manifest for linux/amd64; it has linux/arm64");
    assert!(other.advice().starts_with("Request a platform that it has"), "{}", other.advice());
}
