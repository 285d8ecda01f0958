//! Resolution of tags: requests to registries, the cache, deadlines, and messages of failures.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{
    Behaviour, Bench, default_digest, index, inline, manifest, not_found, patient, pod, soon,
};
use oras_csi_core::digest::Digest;
use oras_csi_core::display::Printable;
use oras_csi_core::registry::RegistryError;
use oras_csi_webhook::ResolverSettings;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::Instant;

fn one(reference: &str) -> Value {
    pod(&[("artifact", reference)])
}

fn resolves(bench: &Bench) -> usize {
    bench.registry.resolves.load(Ordering::SeqCst)
}

#[tokio::test]
async fn a_registry_that_is_not_allowed_is_never_contacted() {
    let bench = Bench::with(&["ghcr.io/acme/**", "kind-registry:5000"], ResolverSettings::default());
    // The recording works: an allowed registry is contacted.
    bench.admit(&one("ghcr.io/acme/model:v1")).await.unwrap();
    bench.admit(&one("kind-registry:5000/java-app")).await.unwrap();
    let asked = bench.registry.calls();
    assert_eq!(asked, 4);
    let digest = default_digest("r.io/a:1");
    let canonical = Bench::new().admitted(&inline(&json!({"oras.artifact.reference": "r.io/a:1"}))).await;
    for refused in [
        one("ghcr.io.evil.example/acme/model:v1"),
        one("ghcr.io:444/acme/model:v1"),
        one("ghcr.io/acmeevil/model:v1"),
        one("kind-registry:5001/java-app"),
        one("busybox"),
        one(&format!("r.io/a@{digest}")),
        pod(&[("artifact", "ghcr.io/acme/model:v1"), ("artifact.b", "r.io/b:1")]),
        inline(&json!({"oras.artifact.reference": "r.io/a:1", "oras.options.pullalways": "true"})),
        canonical,
    ] {
        let denial = bench.admit(&refused).await.unwrap_err();
        assert_eq!(denial.code().number(), 403, "{denial}");
        assert!(denial.message().contains("use one of: ghcr.io/acme/**, kind-registry:5000"), "{denial}");
    }
    assert_eq!(bench.registry.calls(), asked);
    // Another spelling of an allowed reference is allowed.
    bench.admit(&one("oras://GHCR.IO:443/acme/model:v1")).await.unwrap();
    assert_eq!(bench.registry.calls(), asked, "and was cached under its canonical name");
}

#[tokio::test]
async fn a_preview_contacts_no_registry() {
    let bench = Bench::with(&["r.io"], ResolverSettings::default());
    let digest = default_digest("r.io/a:1");
    let by_digest = format!("r.io/a@{digest}");
    let mut asking = pod(&[("artifact", "R.io/a:1"), ("artifact.m", "other.io/m:1")]);
    asking["spec"]["volumes"] =
        inline(&json!({"oras.artifact.reference": by_digest}))["spec"]["volumes"].clone();
    let asked = bench.admission.preview().pod(&asking, "team", soon()).await.unwrap();
    let previews: Vec<_> = asked
        .iter()
        .flat_map(|volume| volume.references().iter().map(move |one| (volume.name(), one)))
        .map(|(name, one)| (name, one.place(), one.reference().to_string(), one.denial().is_some()))
        .collect();
    let previews: Vec<_> =
        previews.iter().map(|(name, place, text, no)| (*name, place.as_str(), text.as_str(), *no)).collect();
    assert_eq!(
        previews,
        [
            ("oras-artifacts", "annotation oras.land/artifact", "r.io/a:1", false),
            ("oras-artifacts", "annotation oras.land/artifact.m", "other.io/m:1", true),
            ("in", "volume in, attribute oras.artifact.reference", by_digest.as_str(), false),
        ]
    );
    assert!(asked[0].pinned().is_none());
    assert_eq!(asked[1].pinned().unwrap().recipe().references().next().unwrap().digest(), &digest);
    asking["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("x");
    assert!(bench.admission.preview().pod(&asking, "team", soon()).await.unwrap().is_empty());
    assert_eq!(bench.registry.calls(), 0);
}

#[tokio::test]
async fn a_cached_tag_is_not_resolved_again() {
    let settings = ResolverSettings { tag_ttl: Duration::from_millis(200), ..ResolverSettings::default() };
    let bench = Bench::with(&[], settings);
    let first = bench.admitted(&one("r.io/a:1")).await;
    let moved = bench.registry.tag("r.io/a:1", &manifest(&[("x/y", Some("moved"))]));
    assert_eq!(bench.admitted(&one("r.io/a:1")).await, first);
    assert_eq!(bench.registry.calls(), 2, "the tag and its manifest");
    tokio::time::sleep(Duration::from_millis(250)).await;
    let then = bench.admitted(&one("r.io/a:1")).await;
    assert!(then.to_string().contains(&moved.to_string()));
    assert_eq!(bench.registry.calls(), 4);
}

#[tokio::test]
async fn pull_always_bypasses_and_refreshes_the_cache() {
    let bench = Bench::new();
    bench.admitted(&one("r.io/a:1")).await;
    let moved = bench.registry.tag("r.io/a:1", &manifest(&[("x/y", Some("moved"))]));
    let always = inline(&json!({"oras.artifact.reference": "r.io/a:1", "oras.options.pullalways": "1"}));
    for pod in [always, one("r.io/a:1")] {
        assert!(bench.admitted(&pod).await.to_string().contains(&moved.to_string()));
    }
    assert_eq!(resolves(&bench), 2);
}

#[tokio::test]
async fn a_reference_with_a_digest_needs_no_tag_lookup() {
    let bench = Bench::new();
    let digest = bench.registry.store(&manifest(&[("x/y", Some("f"))]));
    bench.registry.tag("r.io/a:1", &manifest(&[("x/y", Some("other"))]));
    for reference in [format!("r.io/a@{digest}"), format!("r.io/a:1@{digest}")] {
        let outcome = bench.admit(&one(&reference)).await.unwrap();
        assert!(outcome.pinned().unwrap().contains(&format!("{reference}\"")), "{:?}", outcome.pinned());
        assert!(outcome.warnings().is_empty());
    }
    assert_eq!(resolves(&bench), 0);
    assert_eq!(bench.registry.calls(), 1, "the manifest, to see that there is something in it");
}

#[tokio::test]
async fn a_missing_tag_is_cached_for_a_short_time() {
    let settings =
        ResolverSettings { missing_ttl: Duration::from_millis(200), ..ResolverSettings::default() };
    let bench = Bench::with(&[], settings);
    bench.registry.set("r.io/a:1", Behaviour::Fails(not_found("r.io/a:1")));
    for _ in 0..10 {
        let denial = bench.admit(&one("r.io/a:1")).await.unwrap_err();
        assert_eq!(denial.code().number(), 404);
        assert!(
            denial.message().contains("annotation oras.land/artifact: \"r.io/a:1\" does not exist"),
            "{denial}"
        );
    }
    assert_eq!(resolves(&bench), 1);
    bench.registry.tag("r.io/a:1", &manifest(&[("x/y", Some("f"))]));
    tokio::time::sleep(Duration::from_millis(250)).await;
    bench.admit(&one("r.io/a:1")).await.unwrap();
}

/// A public repository may become private.
#[tokio::test]
async fn anonymous_access_is_cached_for_a_limited_time() {
    let settings =
        ResolverSettings { authorization_ttl: Duration::from_millis(200), ..ResolverSettings::default() };
    let bench = Bench::with(&[], settings);
    let digest = bench.registry.store(&manifest(&[("x/y", Some("f"))]));
    let pod = one(&format!("r.io/a@{digest}"));
    for _ in 0..3 {
        bench.admit(&pod).await.unwrap();
    }
    assert_eq!(bench.registry.calls(), 1);
    tokio::time::sleep(Duration::from_millis(250)).await;
    let refused = RegistryError::Refused { at: "GET x".into(), status: 401, words: "private now".into() };
    bench.registry.set(&format!("r.io/a@{digest}"), Behaviour::Fails(refused));
    let denial = bench.admit(&pod).await.unwrap_err();
    assert!(denial.message().contains("private now"), "{denial}");
}

#[tokio::test]
async fn a_failure_is_not_cached() {
    let bench = Bench::new();
    let failure = RegistryError::Unavailable { at: "GET x".into(), status: 502, words: "bad gateway".into() };
    bench.registry.set("r.io/a:1", Behaviour::Fails(failure));
    let denial = bench.admit(&one("r.io/a:1")).await.unwrap_err();
    assert!(denial.message().contains("bad gateway"), "{denial}");
    bench.registry.tag("r.io/a:1", &manifest(&[("x/y", Some("f"))]));
    bench.admit(&one("r.io/a:1")).await.unwrap();
}

#[tokio::test]
async fn concurrent_lookups_of_one_tag_are_one_request() {
    let bench = Arc::new(Bench::new());
    bench.registry.set_delay(Duration::from_millis(50));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move { bench.admitted(&one("r.io/a:1")).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(bench.registry.calls(), 2);
}

#[tokio::test]
async fn a_caller_that_gives_up_does_not_cancel_the_lookup() {
    let bench = Arc::new(Bench::new());
    bench.registry.set_delay(Duration::from_millis(150));
    let first = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move { bench.admit(&one("r.io/a:1")).await }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    let second = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move { bench.admit(&one("r.io/a:1")).await }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    first.abort();
    second.await.unwrap().unwrap();
    assert_eq!(resolves(&bench), 1, "the first one's request went on");
}

#[tokio::test]
async fn a_deadline_limits_only_requests_to_the_stalled_registry() {
    let bench = Bench::new();
    bench.registry.set("slow.io/a:1", Behaviour::Hangs);
    let started = Instant::now();
    let slow = one("slow.io/a:1");
    let hangs = bench.admission.admit_pod(&slow, "team", started + Duration::from_millis(200));
    let (hung, fine) = tokio::join!(hangs, async {
        let fine = bench.admit(&one("r.io/a:1")).await;
        (fine, started.elapsed())
    });
    assert!(fine.0.is_ok() && fine.1 < Duration::from_millis(150), "{:?}", fine.1);
    let denial = hung.unwrap_err();
    assert_eq!(denial.code().number(), 503);
    assert!(denial.message().contains("\"slow.io/a:1\" cannot be resolved"), "{denial}");
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_lookup_without_callers_ends() {
    let settings = ResolverSettings { max_lookup: Duration::from_millis(100), ..ResolverSettings::default() };
    let bench = Bench::with(&[], settings);
    bench.registry.set("slow.io/a:1", Behaviour::Hangs);
    let denial = bench.admit(&one("slow.io/a:1")).await.unwrap_err();
    assert!(denial.message().contains("no answer within 0.1 s"), "{denial}");
    bench.registry.tag("slow.io/a:1", &manifest(&[("x/y", Some("f"))]));
    bench.admit(&one("slow.io/a:1")).await.unwrap();
}

#[tokio::test]
async fn a_panic_in_a_lookup_is_a_denial() {
    let bench = Bench::new();
    bench.registry.set("r.io/a:1", Behaviour::Panics);
    let denial = bench.admit(&one("r.io/a:1")).await.unwrap_err();
    assert_eq!(denial.code().number(), 503);
    bench.admit(&one("r.io/a:2")).await.unwrap();
}

#[rstest]
#[case(RegistryError::Refused { at: "GET x".into(), status: 401, words: "denied".into() }, 403, "cannot be pulled: the registry denied access (GET x: refused with 401: denied; asked with no credentials)", None)]
#[case(RegistryError::NotAllowed { at: "GET x".into(), words: "a loopback address".into() }, 403, "a loopback address", None)]
#[case(RegistryError::Misconfigured { at: "r.io/a".into(), words: "r.io/hosts.toml: server: write a URL in quotes".into() }, 503, "cannot be pulled with the current registry configuration (r.io/a: r.io/hosts.toml: server: write a URL", None)]
#[case(RegistryError::Redirected { at: "GET x".into(), status: 403, words: "AccessDenied".into() }, 503, "the host that the registry redirected to refused (GET x: the registry redirected to this host, which answered 403: AccessDenied)", None)]
#[case(RegistryError::RateLimited { at: "GET x".into(), retry_after: Some(Duration::from_secs(7)), words: "".into() }, 429, "asks to wait 7 s", Some(7))]
#[case(RegistryError::RateLimited { at: "GET x".into(), retry_after: None, words: "".into() }, 429, "limits the request rate", None)]
#[case(RegistryError::RateLimited { at: "GET x".into(), retry_after: None, words: "the limit".into() }, 429, "too many requests: the limit; asked with no credentials", None)]
#[case(RegistryError::Unavailable { at: "GET x".into(), status: 503, words: "gone fishing".into() }, 503, "gone fishing", None)]
#[case(RegistryError::Unreachable { at: "GET x".into(), words: "no such host".into() }, 503, "no such host", None)]
#[case(RegistryError::Stalled { at: "GET x".into(), what: "answer".into(), after: Duration::from_secs(3) }, 503, "within 3 s", None)]
#[case(RegistryError::Untruthful { at: "GET x".into(), words: "wrong digest".into() }, 503, "wrong digest", None)]
#[case(RegistryError::TooLarge { at: "GET x".into(), what: "a manifest", limit: 4 }, 422, "longer than 4 bytes", None)]
#[case(RegistryError::Invalid { at: "GET x".into(), words: "no JSON".into() }, 422, "no JSON", None)]
#[tokio::test]
async fn a_registry_failure_has_its_code_and_message(
    #[case] error: RegistryError,
    #[case] code: u16,
    #[case] words: &str,
    #[case] wait: Option<u32>,
) {
    let bench = Bench::new();
    let kind = error.kind();
    bench.registry.set("r.io/a:1", Behaviour::Fails(error));
    let denial = bench.admit(&one("r.io/a:1")).await.unwrap_err();
    assert_eq!(denial.registry(), Some(kind), "it can be told apart from a policy's denial");
    assert_eq!((denial.code().number(), denial.retry_after()), (code, wait), "{denial}");
    assert!(denial.message().contains(words) && denial.message().contains("\"r.io/a:1\""), "{denial}");
}

#[tokio::test]
async fn the_first_failure_in_the_order_of_the_steps_is_reported() {
    let bench = Bench::new();
    for tag in ["r.io/b:1", "r.io/c:1"] {
        bench.registry.set(tag, Behaviour::Fails(not_found(tag)));
    }
    let pod = pod(&[("artifact.c", "r.io/c:1"), ("artifact.b", "r.io/b:1"), ("artifact", "r.io/a:1")]);
    let denial = bench.admit(&pod).await.unwrap_err();
    assert!(denial.message().contains("annotation oras.land/artifact.b: \"r.io/b:1\""), "{denial}");
}

#[rstest]
#[case::nothing_named(&[("x/y", None)], &[], Some("has nothing to mount"))]
#[case::no_layers(&[], &[], Some("has no layers"))]
#[case::no_match(&[("x/y", Some("f"))], &[("media-types", "x/z")], Some("(x/z); it has x/y: write media types that it has as oras.land/media-types"))]
#[case::match_unnamed(&[("x/y", None), ("x/z", Some("f"))], &[("media-types", "x/y")], Some("has nothing to mount"))]
#[case::tar(&[("application/vnd.oci.image.layer.v1.tar+gzip", None)], &[], None)]
#[case::a_known_type(&[("application/vnd.docker.ai.gguf.v3", None)], &[], None)]
#[case::an_encrypted_layer(&[("application/vnd.oci.image.layer.v1.tar", None), ("application/vnd.oci.image.layer.v1.tar+encrypted", None)], &[], Some("layer 2 is a part of an image"))]
#[case::an_encrypted_layer_that_is_not_chosen(&[("x/y.tar", None), ("application/vnd.oci.image.layer.v1.tar+encrypted", None)], &[("media-types", "x/y.tar")], None)]
#[case::a_title_that_leaves(&[("x/y", Some("../f"))], &[], Some("cannot be mounted: the title of layer 1 is invalid"))]
#[case::an_absolute_title(&[("x/y", Some("/f"))], &[], Some("is absolute"))]
#[case::a_control_character(&[("x/y", Some("f\u{7}"))], &[], Some("control character"))]
#[case::a_file_and_a_directory(&[("x/y", Some("a")), ("x/y", Some("a/b"))], &[], Some("is a directory in another"))]
#[case::a_problem_that_is_not_chosen(&[("x/y", Some("../f")), ("x/z", Some("f"))], &[("media-types", "x/z")], None)]
#[case::chosen(&[("x/y", None), ("x/z", Some("f"))], &[("media-types", "x/z")], None)]
#[tokio::test]
async fn an_artifact_without_files_is_denied(
    #[case] layers: &[(&str, Option<&str>)],
    #[case] annotations: &[(&str, &str)],
    #[case] words: Option<&str>,
) {
    let bench = Bench::new();
    bench.registry.tag("r.io/a:1", &manifest(layers));
    let mut all = vec![("artifact", "r.io/a:1")];
    all.extend(annotations);
    match (bench.admit(&pod(&all)).await, words) {
        (Ok(_), None) => {}
        (Err(denial), Some(words)) => {
            assert_eq!(denial.code().number(), 422);
            assert!(denial.message().contains(words), "{denial}");
        }
        (other, _) => panic!("{other:?}"),
    }
}

/// Tools write entries for attestations and for other purposes, which fit no node.
#[rstest]
#[case::beside_an_empty_platform(&[json!({}), json!({"os": "linux", "architecture": "amd64"})], None)]
#[case::beside_half_a_platform(
    &[json!({"architecture": "amd64"}), json!({"os": "", "architecture": ""}), json!({"os": "linux", "architecture": "arm64"})],
    None
)]
#[case::one_without_a_platform(&[json!(null), json!({})], None)]
#[case::several_without_a_platform(&[json!(null), json!(null)], Some("is an image index that has 2 manifests that state no platform: write the digest of one"))]
#[case::unknown(&[json!({"os": "unknown", "architecture": "unknown"})], Some("is an image index that has no manifest for linux/amd64; it has unknown/unknown: push a manifest for a Linux"))]
#[case::only_an_empty_platform(&[json!({})], Some("it has ?/?"))]
#[case::another_operating_system(&[json!({"os": "windows", "architecture": "amd64"})], Some("it has windows/amd64: push a manifest for a Linux platform"))]
#[tokio::test]
async fn an_index_that_no_node_can_select_from_is_denied(
    #[case] platforms: &[Value],
    #[case] words: Option<&str>,
) {
    let bench = Bench::new();
    let good = bench.registry.store(&manifest(&[("x/y", Some("f"))]));
    let mut index = index(&[]);
    index["manifests"] = platforms
        .iter()
        .map(|platform| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": good.to_string(),
            "size": manifest(&[("x/y", Some("f"))]).to_string().len(), "platform": platform})
        })
        .collect();
    bench.registry.tag("r.io/a:1", &index);
    match (bench.admit(&one("r.io/a:1")).await, words) {
        (Ok(_), None) => {}
        (Err(denial), Some(words)) => assert!(denial.message().contains(words), "{denial}"),
        (other, _) => panic!("{platforms:?}: {other:?}"),
    }
}

#[tokio::test]
async fn layers_without_a_name_beside_others_give_a_warning() {
    let bench = Bench::new();
    let empty = "application/vnd.oci.empty.v1+json";
    bench
        .registry
        .tag("r.io/a:1", &manifest(&[("x/y", Some("f")), ("x/gguf", None), ("x/z", None), (empty, None)]));
    let unnamed = async |annotations: &[(&str, &str)]| {
        let outcome = bench.admit(&pod(annotations)).await.unwrap();
        let warnings = outcome.warnings().iter();
        warnings.filter(|warning| warning.contains("are not mounted")).cloned().collect::<Vec<_>>()
    };
    assert_eq!(
        unnamed(&[("artifact", "r.io/a:1")]).await,
        [
            "annotation oras.land/artifact: r.io/a:1 has layers that are not mounted, because they have no file name \
          (org.opencontainers.image.title): x/gguf, x/z. In oras.land/recipe, mediaTypes and as give one layer a name"
        ]
    );
    assert_eq!(unnamed(&[("artifact", "r.io/a:1"), ("media-types", "x/y")]).await, [""; 0]);
    // A step that names a layer has selected what it wants.
    let recipe = "- {add: 'r.io/a:1', mediaTypes: [x/y, x/z], as: model.gguf}";
    assert_eq!(unnamed(&[("recipe", recipe)]).await, [""; 0]);
}

#[rstest]
#[case::the_only_layer(&[("x/gguf", None)], "as: model.gguf", None)]
#[case::one_that_is_selected(&[("x/gguf", None), ("x/z", None)], "mediaTypes: [x/gguf], as: model.gguf", None)]
#[case::beside_one_with_a_title(&[("x/gguf", None), ("x/z", Some("f"))], "as: model.gguf", None)]
#[case::two(&[("x/gguf", None), ("x/gguf", None)], "as: model.gguf", Some("2 have no title"))]
#[case::two_types(&[("x/gguf", None), ("x/z", None)], "as: model.gguf", Some("2 have no title"))]
#[case::none(&[("x/gguf", Some("f")), ("a/b.tar", None)], "as: model.gguf", Some("0 have no title"))]
#[case::only_the_empty_layer(&[("application/vnd.oci.empty.v1+json", None)], "as: model.gguf", Some("0 have no title"))]
#[case::no_such_type(&[("x/gguf", None)], "mediaTypes: [x/z], as: model.gguf", Some("no layer of the requested media types"))]
#[case::a_known_type_beside_its_name(&[("application/wasm", None), ("x/z", Some("module.wasm"))], "as: other.wasm", None)]
#[tokio::test]
async fn a_step_can_name_one_layer_without_a_title(
    #[case] layers: &[(&str, Option<&str>)],
    #[case] keys: &str,
    #[case] words: Option<&str>,
) {
    let bench = Bench::new();
    bench.registry.tag("r.io/a:1", &manifest(layers));
    let recipe = format!("- {{add: 'r.io/a:1', {keys}}}");
    match (bench.admit(&pod(&[("recipe", &recipe)])).await, words) {
        (Ok(_), None) => {}
        (Err(denial), Some(words)) => assert!(denial.message().contains(words), "{denial}"),
        (other, _) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_index_is_pinned_as_an_index() {
    let bench = Bench::new();
    let good = bench.registry.store(&manifest(&[("x/y", Some("f"))]));
    let empty = bench.registry.store(&manifest(&[("x/y", None)]));
    let lost = default_digest("r.io/never-stored:1");
    let digest = bench
        .registry
        .tag("r.io/a:1", &index(&[("linux/s390x", &lost), ("linux/arm64", &empty), ("linux/amd64", &good)]));
    let pinned = |outcome: &str| outcome.contains(&digest.to_string());
    assert!(pinned(bench.admit(&one("r.io/a:1")).await.unwrap().pinned().unwrap()));
    let on = |platform| pod(&[("artifact", "r.io/a:1"), ("platform", platform)]);
    assert!(pinned(bench.admit(&on("linux/amd64")).await.unwrap().pinned().unwrap()));
    for (platform, code, words) in [
        ("linux/arm64", 422, "has nothing to mount"),
        ("linux/riscv64", 404, "no manifest for linux/riscv64; it has linux/s390x, linux/arm64, linux/amd64"),
        ("linux/s390x", 404, "does not exist"),
    ] {
        let denial = bench.admit(&on(platform)).await.unwrap_err();
        assert_eq!(denial.code().number(), code, "{denial}");
        assert!(denial.message().contains(words), "{denial}");
    }

    bench.registry.tag("r.io/b:1", &index(&[("linux/arm64", &empty), ("linux/s390x", &lost)]));
    assert!(bench.admit(&one("r.io/b:1")).await.is_err());
    bench.registry.tag("r.io/c:1", &index(&[]));
    let denial = bench.admit(&one("r.io/c:1")).await.unwrap_err();
    assert!(denial.message().contains("index without manifests"), "{denial}");
    let nested = bench.registry.store(&index(&[("linux/amd64", &good)]));
    bench.registry.tag("r.io/d:1", &index(&[("linux/amd64", &nested)]));
    assert!(bench.admit(&one("r.io/d:1")).await.is_ok());
    // The node of another platform finds nothing, as in an index of one level.
    let outer = bench.registry.store(&index(&[("linux/s390x", &lost), ("linux/amd64", &nested)]));
    bench.registry.tag("r.io/e:1", &index(&[("linux/amd64", &outer)]));
    assert!(bench.admit(&one("r.io/e:1")).await.is_ok());
    let third = bench.registry.store(&index(&[("linux/amd64", &outer)]));
    bench.registry.tag("r.io/f:1", &index(&[("linux/amd64", &third)]));
    assert!(bench.admit(&one("r.io/f:1")).await.is_ok());
    let fourth = bench.registry.store(&index(&[("linux/amd64", &third)]));
    bench.registry.tag("r.io/g:1", &index(&[("linux/amd64", &fourth)]));
    let denial = bench.admit(&one("r.io/g:1")).await.unwrap_err();
    assert_eq!(denial.code().number(), 422, "{denial}");
    assert!(denial.message().contains("more than 4 indexes"), "{denial}");
}

/// Each index names sixteen others, four levels deep.
#[tokio::test]
async fn the_manifests_below_nested_indexes_are_bounded() {
    let bench = Bench::new();
    let architectures: Vec<String> = (0..16).map(|number| format!("linux/a{number}")).collect();
    let mut level: Vec<Digest> =
        (0..16).map(|number| bench.registry.store(&manifest(&[(&format!("x/{number}"), None)]))).collect();
    for depth in 0..3 {
        level = (0..16)
            .map(|number| {
                let entries: Vec<_> = architectures
                    .iter()
                    .zip(&level)
                    .map(|(platform, digest)| (platform.as_str(), digest))
                    .collect();
                let mut index = index(&entries);
                index["annotations"] = json!({"a": format!("{depth} {number}")});
                bench.registry.store(&index)
            })
            .collect();
    }
    let entries: Vec<_> =
        architectures.iter().zip(&level).map(|(platform, digest)| (platform.as_str(), digest)).collect();
    bench.registry.tag("r.io/a:1", &index(&entries));
    let denial = bench.admit(&one("r.io/a:1")).await.unwrap_err();
    assert_eq!(denial.code().number(), 422, "{denial}");
    assert!(bench.registry.calls() < 128, "{}", bench.registry.calls());
}

#[tokio::test]
async fn a_digest_is_checked_at_its_registry() {
    let bench = Bench::new();
    let digest = bench.registry.store(&manifest(&[("x/y", Some("f"))]));
    let reference = format!("r.io/a@{digest}");
    let down = RegistryError::Unreachable {
        at: Printable::new("GET x"),
        words: Printable::new("connection refused"),
    };
    bench.registry.set(&reference, Behaviour::Fails(down.clone()));
    assert_eq!(bench.admit(&one(&reference)).await.unwrap_err().code().number(), 503);
    // Once read, its manifest is cached.
    bench.registry.set(&reference, Behaviour::Is(digest.clone()));
    bench.admit(&one(&reference)).await.unwrap();
    bench.registry.set(&reference, Behaviour::Fails(down));
    bench.admit(&one(&reference)).await.unwrap();
    // A canonical volume needs no registry.
    let admitted = bench.admitted(&one(&reference)).await;
    let asked = bench.registry.calls();
    let elsewhere = Bench::new();
    let mut copied = admitted;
    copied["metadata"]["annotations"].as_object_mut().unwrap().remove("oras.land/artifact");
    elsewhere.admit(&copied).await.unwrap();
    assert_eq!((elsewhere.registry.calls(), bench.registry.calls()), (0, asked));
}

/// Each wave has nearly as many requests as may wait in total, and the cache time is so short that lookups end, expire and
/// begin again all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_parallel_requests_never_swap_digests() {
    const WAVE: usize = 12_500;
    let settings = ResolverSettings { tag_ttl: Duration::from_millis(50), ..patient() };
    let bench = Arc::new(Bench::with(&[], settings));
    bench.registry.set_delay(Duration::from_millis(5));
    let mut right = 0;
    for _ in 0..8 {
        let mut wave = tokio::task::JoinSet::new();
        for number in 0..WAVE {
            let bench = Arc::clone(&bench);
            wave.spawn(async move {
                let reference = format!("r.io/a:{}", number % 100);
                let soon = Instant::now() + Duration::from_mins(1);
                let outcome = bench.admission.admit_pod(&one(&reference), "team", soon).await.unwrap();
                let wanted = format!("{reference}@{}\"", default_digest(&reference));
                assert!(outcome.pinned().unwrap().contains(&wanted), "{reference}: {:?}", outcome.pinned());
            });
        }
        while let Some(one) = wave.join_next().await {
            one.unwrap();
            right += 1;
        }
    }
    assert_eq!(right, 100_000);
    let asked = resolves(&bench);
    // On a slow machine the lookups of a wave expire several times.
    assert!((800..50_000).contains(&asked), "{asked} lookups: each wave's ran out, and were shared");
}
