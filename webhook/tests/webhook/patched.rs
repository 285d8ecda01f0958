//! Patches and recipe artifacts in pods: what they expand to, and the order of policy checks and registry requests.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::support::{
    Behaviour, Bench, FakeRegistry, default_digest, index, inline, manifest, patched, pod, review, soon,
};
use base64::Engine as _;
use oras_csi_core::digest::Digest;
use oras_csi_core::patch::Level;
use oras_csi_core::reference::Reference;
use oras_csi_core::seal::SealKey;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_webhook::pins::MemoryPins;
use oras_csi_webhook::review::{Hook, Review};
use oras_csi_webhook::seal::Sealer;
use rstest::rstest;
use serde_json::{Value, json};

const BASE: &str = "r.io/app:1";
const MINOR: &str = "r.io/app:minor";
const MAJOR: &str = "fix.io/team/major:2";
const CRITICAL: &str = "fix.io/team/critical:3";

/// Returns a reference with the digest that the registry has by default.
fn at(text: &str) -> Reference {
    Reference::parse(text).unwrap().with_digest(default_digest(text))
}

fn levels() -> Vec<(Level, Reference)> {
    vec![(Level::Minor, at(MINOR)), (Level::Major, at(MAJOR)), (Level::Critical, at(CRITICAL))]
}

/// Pushes everything that the patch `r.io/app:patched` names.
fn fill(registry: &FakeRegistry) -> Digest {
    for text in [BASE, MINOR, MAJOR, CRITICAL] {
        registry.store(&crate::support::default_manifest(text));
    }
    registry.tag_patch("r.io/app:patched", &at(BASE), &levels())
}

fn bench() -> (Bench, Digest) {
    let bench = Bench::new();
    let digest = fill(&bench.registry);
    (bench, digest)
}

fn volume(pod: &Value) -> CanonicalVolume {
    let attributes = pod["spec"]["volumes"][0]["csi"]["volumeAttributes"].as_object().unwrap();
    let texts = attributes.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap()));
    CanonicalVolume::from_attributes(texts).unwrap()
}

/// Returns the canonical recipe of these steps, as `add` and `overlay`.
fn recipe(steps: &[&str]) -> String {
    let step = |(number, text): (usize, &&str)| {
        let verb = if number == 0 { "add" } else { "overlay" };
        format!("{{\"{verb}\":\"{}@{}\"}}", at(text).name(), default_digest(text))
    };
    format!("[{}]", steps.iter().enumerate().map(step).collect::<Vec<_>>().join(","))
}

fn lines(pod: &Value, volume: &str) -> Vec<String> {
    let note = pod["metadata"]["annotations"]["oras.land/pinned"].as_str().unwrap();
    let note: Value = serde_json::from_str(note).unwrap();
    note[volume].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

#[rstest]
#[case(None, &[BASE, MINOR, MAJOR, CRITICAL])]
#[case(Some("critical"), &[BASE, MINOR, MAJOR, CRITICAL])]
#[case(Some("crit"), &[BASE, MINOR, MAJOR, CRITICAL])]
#[case(Some("major"), &[BASE, MINOR, MAJOR])]
#[case(Some("minor"), &[BASE, MINOR])]
#[tokio::test]
async fn a_patch_becomes_its_base_and_its_levels_each_pinned(
    #[case] level: Option<&str>,
    #[case] steps: &[&str],
) {
    let (bench, digest) = bench();
    let mut annotations = vec![("patch", "r.io/app:patched")];
    annotations.extend(level.map(|level| ("patch-level", level)));
    let outcome = bench.admit(&pod(&annotations)).await.unwrap();
    let after = patched(&pod(&annotations), &outcome);
    assert_eq!(volume(&after).recipe().to_json(), recipe(steps));
    assert_eq!(
        lines(&after, "oras-artifacts"),
        steps.iter().map(|step| at(step).to_string()).collect::<Vec<_>>()
    );
    let noted = format!("r.io/app:patched@{digest}");
    assert_eq!(after["metadata"]["annotations"]["oras.land/pinned-patch"], noted);
    let warning = format!("annotation oras.land/patch: r.io/app:patched is pinned to {digest}");
    assert_eq!(outcome.warnings(), [warning]);

    // Reinvocation, and a copy of the pod after the tag moved.
    assert_eq!(bench.admitted(&after).await, after);
    bench.registry.tag_patch("r.io/app:patched", &at(BASE), &levels()[2..]);
    let later = Bench::new();
    fill(&later.registry);
    later.registry.tag_patch("r.io/app:patched", &at(BASE), &levels()[2..]);
    assert_eq!(later.admitted(&after).await, after);
}

#[tokio::test]
async fn a_volume_names_a_patch_with_its_base_beside_it() {
    let (bench, _) = bench();
    let alone =
        inline(&json!({"oras.artifact.patch": "r.io/app:patched", "oras.artifact.patch.level": "minor"}));
    let after = bench.admitted(&alone).await;
    assert_eq!(volume(&after).recipe().to_json(), recipe(&[BASE, MINOR]));
    assert!(after["metadata"]["annotations"].get("oras.land/pinned-patch").is_none());
    assert_eq!(bench.admitted(&after).await, after);

    // The same content in another repository: the reference in the pod is mounted.
    bench.registry.set("mirror.io/app:1", Behaviour::Is(default_digest(BASE)));
    let both = json!({"oras.artifact.patch": "r.io/app:patched", "oras.artifact.reference": "mirror.io/app:1",
        "oras-csi.name": "mine"});
    let after = bench.admitted(&inline(&both)).await;
    let first = volume(&after).recipe().references().next().unwrap().to_string();
    assert_eq!(first, format!("mirror.io/app@{}", default_digest(BASE)));
    assert!(volume(&after).id().as_str().starts_with("mine-"));
    assert!(lines(&after, "in")[0].starts_with("mirror.io/app:1@sha256:"));
}

#[tokio::test]
async fn a_patch_of_something_else_is_denied() {
    let (bench, digest) = bench();
    let both = json!({"oras.artifact.patch": "r.io/app:patched", "oras.artifact.reference": "r.io/other:1"});
    let denial = bench.admit(&inline(&both)).await.unwrap_err();
    assert_eq!(denial.code().number(), 400);
    for words in [
        "volume in, attribute oras.artifact.reference: \"r.io/other:1\" has the digest".to_owned(),
        default_digest("r.io/other:1").to_string(),
        format!("the patch is for {}", at(BASE)),
        format!("the patch is r.io/app:patched@{digest}"),
    ] {
        assert!(denial.message().contains(&words), "{words}: {denial}");
    }
}

#[tokio::test]
async fn a_patch_without_the_requested_level_mounts_the_base_with_a_warning() {
    let (bench, _) = bench();
    bench.registry.tag_patch("r.io/app:crit", &at(BASE), &levels()[2..]);
    let outcome = bench.admit(&pod(&[("patch", "r.io/app:crit"), ("patch-level", "major")])).await.unwrap();
    assert_eq!(outcome.volumes()[0].1.recipe().to_json(), recipe(&[BASE]));
    assert!(
        outcome.warnings()[1].contains("has no patch up to the requested level"),
        "{:?}",
        outcome.warnings()
    );
}

#[tokio::test]
async fn a_recipe_artifact_is_treated_like_a_recipe_in_the_pod() {
    let bench = Bench::new();
    let yaml = "# what the job needs\n- add: r.io/app:1\n  path: app\n- overlay: fix.io/x\n  path: app\n";
    let digest = bench.registry.tag_recipe("r.io/recipes/job:1", yaml);
    let requesting = pod(&[("patch", "r.io/recipes/job:1")]);
    let outcome = bench.admit(&requesting).await.unwrap();
    let after = patched(&requesting, &outcome);
    let json = format!(
        "[{{\"add\":\"r.io/app@{}\",\"path\":\"app\"}},{{\"overlay\":\"fix.io/x@{}\",\"path\":\"app\"}}]",
        default_digest("r.io/app:1"),
        default_digest("fix.io/x:latest")
    );
    assert_eq!(volume(&after).recipe().to_json(), json);
    let warnings = outcome.warnings().join("\n");
    for words in [
        &format!("annotation oras.land/patch: r.io/recipes/job:1 is pinned to {digest}"),
        "annotation oras.land/patch, step 2: fix.io/x:latest is pinned to",
    ] {
        assert!(warnings.contains(words), "{words}: {warnings}");
    }
    assert_eq!(bench.admitted(&after).await, after);
    bench.admit(&requesting).await.unwrap();
    assert_eq!(bench.registry.blob_requests.load(Ordering::SeqCst), 1, "it is remembered");
    let named = inline(&json!({"oras.artifact.patch": "r.io/recipes/job:1"}));
    assert_eq!(volume(&bench.admitted(&named).await).recipe().to_json(), json);
}

#[rstest]
#[case("- add: r.io/a\n  paht: x\n", 400, "annotation oras.land/patch: cannot parse the recipe")]
#[case("", 400, "this is in the recipe artifact r.io/recipes/bad:1")]
#[case("- add: team/app\n", 400, "is ambiguous")]
#[tokio::test]
async fn a_recipe_artifact_with_a_mistake_is_denied(
    #[case] yaml: &str,
    #[case] code: u16,
    #[case] words: &str,
) {
    let bench = Bench::new();
    bench.registry.tag_recipe("r.io/recipes/bad:1", yaml);
    let denial = bench.admit(&pod(&[("patch", "r.io/recipes/bad:1")])).await.unwrap_err();
    assert_eq!((denial.code().number(), denial.message().contains(words)), (code, true), "{denial}");
}

#[tokio::test]
async fn a_recipe_artifact_with_a_base_or_a_level_is_denied() {
    let bench = Bench::new();
    bench.registry.tag_recipe("r.io/recipes/job:1", "- add: r.io/app:1\n");
    let level = pod(&[("patch", "r.io/recipes/job:1"), ("patch-level", "minor")]);
    let denial = bench.admit(&level).await.unwrap_err();
    assert!(
        denial.message().starts_with("annotation oras.land/patch-level: \"minor\" is a patch level"),
        "{denial}"
    );
    let base = inline(
        &json!({"oras.artifact.patch": "r.io/recipes/job:1", "oras.artifact.reference": "r.io/app:1"}),
    );
    let denial = bench.admit(&base).await.unwrap_err();
    assert!(
        denial
            .message()
            .contains("attribute oras.artifact.reference: \"r.io/app:1\" would be the base of a patch"),
        "{denial}"
    );
}

/// Each kind of artifact that is no patch is denied with its own message.
#[tokio::test]
async fn an_artifact_that_is_no_patch_is_denied() {
    let (bench, _) = bench();
    let registry = &bench.registry;
    let digest_of =
        |text: &str| if text == "r.io/app:patched" { fill(registry) } else { default_digest(text) };
    let patch_of = |base: &str, fix: &str, tag: &str| {
        registry.tag_patch(
            tag,
            &Reference::parse(base).unwrap().with_digest(digest_of(base)),
            &[(Level::Minor, at(fix))],
        );
    };
    registry.tag("r.io/jar:1", &manifest(&[("application/java-archive", Some("a.jar"))]));
    let jar = default_digest(BASE);
    registry.tag("r.io/index:1", &index(&[("linux/amd64", &jar)]));
    patch_of("r.io/app:patched", MINOR, "r.io/app:again");
    let mut bare: Value = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.oci.image.patch.v1+json", "layers": [],
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": jar, "size": 2}});
    registry.tag("r.io/app:nothing", &bare);
    bare["subject"] =
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": jar, "size": 1});
    registry.tag("r.io/app:bare", &bare);
    bare["annotations"] = json!({"org.opencontainers.image.patch.minor.digest": "sha256:beef"});
    registry.tag("r.io/app:malformed", &bare);
    bare["annotations"] = json!({"org.opencontainers.image.patch.minor.digest": jar});
    registry.tag("r.io/app:circle", &bare);
    bare["annotations"] = json!({"org.opencontainers.image.patch.minor.digest": Digest::sha256_of(b"gone")});
    registry.tag("r.io/app:gone", &bare);
    for (reference, code, words) in [
        (
            "r.io/jar:1",
            422,
            "which is neither a patch nor a recipe artifact: to mount it, name it as an artifact",
        ),
        ("r.io/index:1", 422, "is an image index, which is neither"),
        ("r.io/app:nothing", 422, "names no base"),
        ("r.io/app:bare", 422, "has no level"),
        ("r.io/app:malformed", 422, "patch.minor.digest: \"sha256:beef\""),
        ("r.io/app:circle", 422, "lays its base"),
        ("r.io/app:gone", 404, "annotation oras.land/patch, level minor of the patch: \"r.io/app@sha256:"),
        ("r.io/app:again", 422, "annotation oras.land/patch, base of the patch: \"r.io/app:patched@sha256:"),
        ("r.io/app:again", 422, "is a patch, which has no files of its own"),
    ] {
        let denial = bench.admit(&pod(&[("patch", reference)])).await.unwrap_err();
        assert!(denial.message().contains(words), "{reference}: {denial}");
        assert_eq!(denial.code().number(), code, "{reference}: {denial}");
    }
    let direct = bench.admit(&pod(&[("artifact", "r.io/app:patched")])).await.unwrap_err();
    assert!(direct.message().contains("apply it with oras.land/patch"), "{direct}");
    let nested =
        bench.admit(&pod(&[("recipe", "- add: r.io/app:1\n- overlay: r.io/app:patched")])).await.unwrap_err();
    assert!(
        nested.message().contains("oras.land/recipe, step 2: \"r.io/app:patched\" is a patch"),
        "{nested}"
    );
}

/// The older manifest form with `refers`, which registries no longer accept.
#[tokio::test]
async fn a_patch_in_the_earlier_form_is_mounted() {
    let (bench, _) = bench();
    let earlier = json!({"mediaType": "application/vnd.oci.artifact.manifest.v1+json",
        "artifactType": "application/vnd.oci.image.patch.v1+json",
        "refers": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": default_digest(BASE), "size": 1},
        "annotations": {"org.opencontainers.image.patch.crit.digest": default_digest(MINOR)}});
    bench.registry.tag("r.io/app:earlier", &earlier);
    let after = bench.admitted(&pod(&[("patch", "r.io/app:earlier")])).await;
    assert_eq!(volume(&after).recipe().to_json(), recipe(&[BASE, MINOR]));
}

/// The patch's name is checked before it is read, and the names in it before they are resolved.
#[tokio::test]
async fn policies_check_every_name_before_a_registry_is_contacted() {
    let asked = |bench: &Bench| bench.registry.log.lock().unwrap().clone();
    let patch = pod(&[("patch", "r.io/app:patched")]);

    let bench = Bench::under(&[json!({"registries": {"deny": ["r.io/app"]}})]);
    fill(&bench.registry);
    let denial = bench.admit(&patch).await.unwrap_err();
    assert!(
        denial.message().starts_with("annotation oras.land/patch: \"r.io/app:patched\" is refused by"),
        "{denial}"
    );
    assert_eq!((denial.code().number(), asked(&bench)), (403, vec![]));

    let bench = Bench::under(&[json!({"registries": {"deny": ["fix.io/team/critical"]}})]);
    let digest = fill(&bench.registry);
    let denial = bench.admit(&patch).await.unwrap_err();
    let start = "annotation oras.land/patch, level critical of the patch: \"fix.io/team/critical:3@sha256:";
    assert!(denial.message().starts_with(start), "{denial}");
    assert_eq!(asked(&bench), ["r.io/app:patched".to_owned(), format!("r.io/app@{digest}")]);
    let fewer = pod(&[("patch", "r.io/app:patched"), ("patch-level", "major")]);
    bench.admit(&fewer).await.unwrap();
    assert!(!asked(&bench).iter().any(|asked| asked.contains("critical")), "{:?}", asked(&bench));

    // Where digests are required, a patch can be named by digest; everything that it names has one.
    let bench = Bench::under(&[json!({"requireDigest": true})]);
    let digest = fill(&bench.registry);
    assert_eq!(bench.admit(&patch).await.unwrap_err().code().number(), 403);
    bench.admit(&pod(&[("patch", &format!("r.io/app@{digest}"))])).await.unwrap();
    let digest = bench.registry.tag_recipe("r.io/recipes/job:1", "- add: r.io/app:1\n");
    let recipe = bench.admit(&pod(&[("patch", &format!("r.io/recipes/job@{digest}"))])).await.unwrap_err();
    assert!(
        recipe.message().contains("annotation oras.land/patch, step 1: \"r.io/app:1\" is refused"),
        "{recipe}"
    );

    // Rules on contents apply to what is mounted, not to the patch.
    let bench = Bench::under(&[json!({"allowedMediaTypes": ["application/java-archive"],
        "allowedArtifactTypes": ["application/vnd.oci.empty.v1+json"]})]);
    fill(&bench.registry);
    bench.admit(&patch).await.unwrap();
    let other = bench.registry.tag("r.io/text:1", &manifest(&[("text/plain", Some("a"))]));
    let text = Reference::parse("r.io/text:1").unwrap().with_digest(other);
    bench.registry.tag_patch("r.io/app:text", &at(BASE), &[(Level::Minor, text)]);
    let denial = bench.admit(&pod(&[("patch", "r.io/app:text")])).await.unwrap_err();
    assert!(
        denial.message().contains("level minor of the patch")
            && denial.message().contains("allowedMediaTypes"),
        "{denial}"
    );

    let bench = Bench::under(&[json!({"setsOnly": true})]);
    assert_eq!(bench.admit(&patch).await.unwrap_err().code().number(), 403);
    assert_eq!(asked(&bench), Vec::<String>::new());
}

/// The API server keeps the audit annotations of the first call, and logs an error if reinvocation changes them.
#[tokio::test]
async fn reinvocation_gives_the_same_audit_annotations() {
    for requesting in
        [pod(&[("patch", "r.io/app:patched")]), inline(&json!({"oras.artifact.patch": "r.io/app:patched"}))]
    {
        let bench = Bench::under(&[
            json!({"mode": "Audit", "registries": {"deny": ["r.io", "fix.io"]}, "requireDigest": true}),
        ]);
        fill(&bench.registry);
        let first = bench.admit(&requesting).await.unwrap();
        assert!(first.audit().keys().any(|key| key.starts_with("patch-violations")), "{:?}", first.audit());
        let again = bench.admit(&patched(&requesting, &first)).await.unwrap();
        for (key, value) in again.audit() {
            assert_eq!(first.audit().get(key), Some(value), "{key}");
        }
    }
}

/// The credential for the patch may differ from those for the references in it.
#[tokio::test]
async fn a_patch_is_read_with_the_credentials_of_the_pod() {
    use base64::Engine as _;
    let password = |owner: &str| base64::engine::general_purpose::STANDARD.encode(format!("u:{owner}"));
    let secret = |owners: &[&str]| {
        let auths: serde_json::Map<String, Value> = owners
            .iter()
            .map(|owner| (format!("private.io/{owner}"), json!({"auth": password(owner)})))
            .collect();
        json!({"kind": "Secret", "apiVersion": "v1", "type": "kubernetes.io/dockerconfigjson",
            "metadata": {"name": "pull", "namespace": "team"},
            "stringData": {".dockerconfigjson": json!({"auths": auths}).to_string()}})
    };
    let requesting = pod(&[("patch", "private.io/me/app:patched"), ("pull-secret", "pull")]);
    let base = at("private.io/me/app:1");
    let fix = at("private.io/fixes/app:1");
    for (secret, is_accepted) in
        [(secret(&["me", "fixes"]), true), (secret(&["me"]), false), (secret(&["fixes"]), false)]
    {
        let bench = Bench::with_secrets(std::slice::from_ref(&secret));
        for text in ["private.io/me/app:1", "private.io/fixes/app:1"] {
            bench.registry.store(&crate::support::default_manifest(text));
        }
        bench.registry.tag_patch("private.io/me/app:patched", &base, &[(Level::Minor, fix.clone())]);
        let admitted = bench.admit(&requesting).await;
        assert_eq!(admitted.is_ok(), is_accepted, "{secret}: {admitted:?}");
        match admitted {
            Ok(outcome) => {
                let after = patched(&requesting, &outcome);
                assert_eq!(after["spec"]["volumes"][0]["csi"]["nodePublishSecretRef"]["name"], "pull");
            }
            Err(denial) => assert!(matches!(denial.code().number(), 403 | 404), "{denial}"),
        }
    }
}

/// All pods of one revision get the patch of the first one.
#[tokio::test]
async fn all_pods_of_a_revision_get_the_same_patch() {
    let registry: Arc<FakeRegistry> = Arc::default();
    fill(&registry);
    let pins = Arc::new(MemoryPins::default());
    let pem = SealKey::generate().unwrap().to_pem().unwrap().to_string();
    let of = |owner: &str| {
        let mut pod = pod(&[("patch", "r.io/app:patched")]);
        pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "app",
            "uid": owner, "controller": true}]);
        pod
    };
    let admit = async |pod: Value| {
        let bench = Bench::new();
        let policies = bench.policies.clone();
        let admission = oras_csi_webhook::admit::Admission::new(
            registry.clone(),
            Arc::new(crate::support::Administrator),
            policies,
            oras_csi_webhook::ResolverSettings::default(),
            bench.metrics.clone(),
        )
        .with_sealer(Sealer::with_key(SealKey::from_pem(&pem).unwrap()))
        .with_pins(pins.clone());
        let mut review = review(&pod);
        review["request"]["object"] = pod.clone();
        let read = Review::decode(Hook::Volumes, review.to_string().as_bytes()).unwrap();
        let answer = admission.review(&read, soon()).await;
        let answer = serde_json::to_value(&answer).unwrap();
        let patch = answer["response"]["patch"].as_str().unwrap_or_else(|| panic!("{answer}"));
        let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
        let mut after = pod;
        json_patch::patch(&mut after, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap()).unwrap();
        after
    };
    let first = admit(of("1")).await;
    assert_eq!(volume(&first).recipe().references().count(), 4);
    registry.tag_patch("r.io/app:patched", &at(BASE), &levels()[..1]);
    let second = admit(of("1")).await;
    assert_eq!(volume(&second).recipe(), volume(&first).recipe());
    let other = admit(of("2")).await;
    assert_eq!(volume(&other).recipe().references().count(), 2);
}

/// `oras.land/pinned-patch` counts only where the pod really has that volume.
#[tokio::test]
async fn a_forged_pinned_patch_annotation_is_ignored() {
    let (bench, _) = bench();
    let requesting = pod(&[("patch", "r.io/app:patched")]);
    let after = bench.admitted(&requesting).await;
    let older = bench.registry.tag_patch("r.io/app:older", &at(BASE), &levels()[..1]);
    for (place, note) in [
        (&after, format!("r.io/app:patched@{older}")),
        (&after, "nonsense".to_owned()),
        (&requesting, format!("r.io/app:patched@{older}")),
    ] {
        let mut forged = place.clone();
        forged["metadata"]["annotations"]["oras.land/pinned-patch"] = json!(note);
        let admitted = bench.admitted(&forged).await;
        assert_eq!(volume(&admitted).recipe(), volume(&after).recipe(), "{note}");
        assert_eq!(admitted["metadata"]["annotations"], after["metadata"]["annotations"], "{note}");
    }
    let mut alone = pod(&[("pinned-patch", "r.io/app:patched")]);
    alone = bench.admitted(&alone).await;
    assert_eq!(alone["metadata"]["annotations"], json!({}));
}

#[tokio::test]
async fn a_recipe_can_have_patches_in_its_steps() {
    let (bench, digest) = bench();
    let yaml = "- {add: 'r.io/jar:1', path: jar}\n- {patch: 'r.io/app:patched', path: app, level: minor}\n- remove: app/x\n";
    let wanted = pod(&[("recipe", yaml)]);
    bench.registry.store(&crate::support::default_manifest("r.io/jar:1"));
    let outcome = bench.admit(&wanted).await.unwrap();
    let after = patched(&wanted, &outcome);
    let step = |verb: &str, text: &str, path: &str| {
        format!("{{\"{verb}\":\"{}@{}\",\"path\":\"{path}\"}}", at(text).name(), default_digest(text))
    };
    let steps = [
        step("add", "r.io/jar:1", "jar"),
        step("add", BASE, "app"),
        step("overlay", MINOR, "app"),
        "{\"remove\":\"app/x\"}".to_owned(),
    ];
    assert_eq!(volume(&after).recipe().to_json(), format!("[{}]", steps.join(",")));
    assert_eq!(
        after["metadata"]["annotations"]["oras.land/pinned-patch"],
        format!("r.io/app:patched@{digest}")
    );
    let warned = outcome.warnings().join("\n");
    assert!(warned.contains("step 2: r.io/app:patched is pinned to"), "{warned}");
    assert_eq!(bench.admitted(&after).await, after);

    // A copy keeps its digests while the patch moves, and gets the new ones where its recipe differs.
    let moved = |bench: &Bench| bench.registry.tag_patch("r.io/app:patched", &at(BASE), &levels()[2..]);
    let later = Bench::new();
    fill(&later.registry);
    later.registry.store(&crate::support::default_manifest("r.io/jar:1"));
    moved(&later);
    assert_eq!(later.admitted(&after).await, after);
    let mut edited = after.clone();
    edited["metadata"]["annotations"]["oras.land/recipe"] = json!("- patch: r.io/app:patched");
    let edited = later.admitted(&edited).await;
    assert_eq!(volume(&edited).recipe().to_json(), recipe(&[BASE, CRITICAL]));
}

#[tokio::test]
async fn a_recipe_artifact_can_have_patches_but_no_deeper_nesting() {
    let (bench, _) = bench();
    bench.registry.tag_recipe("r.io/recipes:1", "- patch: r.io/app:patched\n  level: minor\n");
    let after = bench.admitted(&pod(&[("patch", "r.io/recipes:1")])).await;
    assert_eq!(volume(&after).recipe().to_json(), recipe(&[BASE, MINOR]));
    let noted = after["metadata"]["annotations"]["oras.land/pinned-patch"].as_str().unwrap();
    assert_eq!(noted.split(' ').count(), 2, "{noted}");
    assert_eq!(bench.admitted(&after).await, after);

    bench.registry.tag_recipe("r.io/recipes:2", "- {add: 'r.io/app:1', path: x}\n- remove: x/y\n");
    let after = bench.admitted(&pod(&[("recipe", "- {patch: 'r.io/recipes:2', path: sub}")])).await;
    let steps = volume(&after).recipe().to_json().to_owned();
    assert!(steps.contains("\"path\":\"sub/x\"") && steps.contains("\"remove\":\"sub/x/y\""), "{steps}");

    // A recipe artifact that names itself, directly and through another one.
    for (inner, words) in
        [("r.io/recipes:3", "has a patch step itself"), ("r.io/recipes:4", "has a patch step itself")]
    {
        bench.registry.tag_recipe("r.io/recipes:3", &format!("- patch: {inner}"));
        bench.registry.tag_recipe("r.io/recipes:4", "- patch: r.io/recipes:3");
        let denial = bench.admit(&pod(&[("patch", "r.io/recipes:3")])).await.unwrap_err();
        assert_eq!(denial.code().number(), 422, "{denial}");
        assert!(denial.message().contains(words), "{denial}");
    }
}

#[tokio::test]
async fn policies_check_patches_in_recipes_before_they_are_read() {
    let deny = json!({"registries": {"deny": ["r.io/app"]}});
    let bench = Bench::under(&[deny]);
    fill(&bench.registry);
    bench.registry.tag_recipe("ok.io/recipes:1", "- patch: r.io/app:patched\n");
    for requesting in [pod(&[("recipe", "- patch: r.io/app:patched")]), pod(&[("patch", "ok.io/recipes:1")])]
    {
        let denial = bench.admit(&requesting).await.unwrap_err();
        assert_eq!(denial.code().number(), 403, "{denial}");
        assert!(denial.message().contains("r.io/app:patched"), "{denial}");
    }
    let asked = bench.registry.log.lock().unwrap().clone();
    assert!(asked.iter().all(|reference| !reference.contains("r.io/app")), "{asked:?}");
}

/// A digest in the pod takes precedence over the digest in the annotation.
#[rstest]
#[case("patch", "")]
#[case("recipe", "- patch: ")]
#[tokio::test]
async fn a_patch_with_another_digest_is_read_again(#[case] key: &str, #[case] before: &str) {
    let bench = Bench::new();
    let first = fill(&bench.registry);
    let second = bench.registry.tag_patch("r.io/app:patched", &at(BASE), &levels()[2..]);
    let requesting = |digest: &Digest| pod(&[(key, &format!("{before}r.io/app@{digest}"))]);
    let mut again = bench.admitted(&requesting(&first)).await;
    assert_eq!(volume(&again).recipe().to_json(), recipe(&[BASE, MINOR, MAJOR, CRITICAL]));
    again["metadata"]["annotations"][format!("oras.land/{key}")] =
        json!(format!("{before}r.io/app@{second}"));
    let again = bench.admitted(&again).await;
    assert_eq!(volume(&again).recipe().to_json(), recipe(&[BASE, CRITICAL]));
}
