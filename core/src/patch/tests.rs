use bytes::Bytes;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::manifest::{ManifestError, VerifiedManifest};
use crate::recipe::WrittenRecipe;
use crate::recipe::tests::summary;

fn digest(name: &str) -> Digest {
    Digest::sha256_of(name.as_bytes())
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// A reference with the digest of its own text.
fn at(text: &str) -> Reference {
    reference(text).with_digest(digest(text))
}

fn own() -> PinnedReference {
    reference("r.io/app").pin(digest("the patch"))
}

fn base() -> Descriptor {
    Descriptor::new(media::OCI_INDEX, digest("r.io/app:1"), 7)
}

fn patch(levels: &[(Level, &str)]) -> Patch {
    Patch::new(at("r.io/app:1"), levels.iter().map(|(level, text)| (*level, at(text)))).unwrap()
}

fn all() -> Patch {
    patch(&[
        (Level::Critical, "r.io/app:crit"),
        (Level::Minor, "other.io/fix:1"),
        (Level::Major, "r.io/x/y:2"),
    ])
}

fn parsed(manifest: &Value) -> Result<Manifest, ManifestError> {
    let bytes = Bytes::from(manifest.to_string());
    let digest = Digest::sha256_of(&bytes);
    VerifiedManifest::verify(&digest, None, bytes).map(VerifiedManifest::into_manifest)
}

fn read(manifest: &Value) -> Result<Patch, PatchError> {
    match Instructions::read(&own(), &parsed(manifest).unwrap())? {
        Instructions::Patch(patch) => Ok(patch),
        Instructions::Recipe(_) => panic!("it is a patch"),
    }
}

fn manifest(patch: &Patch) -> Value {
    serde_json::from_slice(&patch.to_manifest(&base(), "r.io/app:patched").unwrap()).unwrap()
}

/// A patch of `r.io/app:1` by one level, as a user could write it by hand.
fn by_hand() -> Value {
    let empty = json!({"mediaType": media::EMPTY, "digest": digest("{}"), "size": 2});
    json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": ARTIFACT_TYPE, "config": empty,
        "layers": [empty],
        "subject": {"mediaType": media::OCI_MANIFEST, "digest": digest("r.io/app:1"), "size": 7},
        "annotations": {"org.opencontainers.image.patch.minor.digest": digest("fix")}})
}

/// The same patch as an artifact manifest of the release candidates of image-spec 1.1.
fn earlier() -> Value {
    json!({"mediaType": media::OCI_ARTIFACT, "artifactType": ARTIFACT_TYPE, "blobs": [],
        "refers": {"mediaType": media::OCI_MANIFEST, "digest": digest("r.io/app:1"), "size": 7},
        "annotations": {"org.opencontainers.image.patch.minor.digest": digest("fix")}})
}

fn with(mut manifest: Value, annotations: &[(&str, &str)]) -> Value {
    for (key, value) in annotations {
        manifest["annotations"][key] = json!(value);
    }
    manifest
}

fn minor(patch: &Patch) -> String {
    patch.levels().next().unwrap().1.to_string()
}

#[test]
fn a_written_manifest_is_read_back_and_is_deterministic() {
    let manifest = manifest(&all());
    assert_eq!(read(&manifest), Ok(all()));
    let annotations = &manifest["annotations"];
    for (key, value) in [
        ("org.opencontainers.image.ref.name", "r.io/app:patched".to_owned()),
        ("org.opencontainers.image.base.name", "r.io/app:1".to_owned()),
        ("org.opencontainers.image.base.digest", digest("r.io/app:1").to_string()),
        ("org.opencontainers.image.patch.minor.digest", digest("other.io/fix:1").to_string()),
        ("org.opencontainers.image.patch.major.digest", digest("r.io/x/y:2").to_string()),
        ("org.opencontainers.image.patch.critical.digest", digest("r.io/app:crit").to_string()),
        ("land.oras.csi.patch.minor.ref", at("other.io/fix:1").to_string()),
    ] {
        assert_eq!(annotations[key], value, "{key}");
    }
    assert_eq!((annotations.as_object().unwrap().len(), &manifest["subject"]["size"]), (9, &json!(7)));
    assert_eq!(manifest["subject"]["mediaType"], media::OCI_INDEX);
    let bytes = |levels: &[(Level, &str)]| patch(levels).to_manifest(&base(), "r.io/app").unwrap();
    let (one, two) = ((Level::Minor, "r.io/a:1"), (Level::Major, "r.io/b:1"));
    assert_eq!(bytes(&[one, two]), bytes(&[two, one]));
    assert_ne!(bytes(&[one, two]), bytes(&[one]));
}

#[rstest]
#[case(None, &["add r.io/app:1", "overlay other.io/fix:1", "overlay r.io/x/y:2", "overlay r.io/app:crit"])]
#[case(Some(Level::Critical), &["add r.io/app:1", "overlay other.io/fix:1", "overlay r.io/x/y:2", "overlay r.io/app:crit"])]
#[case(Some(Level::Major), &["add r.io/app:1", "overlay other.io/fix:1", "overlay r.io/x/y:2"])]
#[case(Some(Level::Minor), &["add r.io/app:1", "overlay other.io/fix:1"])]
fn levels_are_overlaid_in_order_up_to_the_requested_one(
    #[case] up_to: Option<Level>,
    #[case] steps: &[&str],
) {
    let step = |step: &Step<Reference>| {
        let verb = if matches!(step, Step::Overlay(_)) { "overlay" } else { "add" };
        let reference = step.layer().unwrap().reference();
        assert!(reference.digest().is_some());
        format!("{verb} {}:{}", reference.name(), reference.tag().unwrap())
    };
    assert_eq!(all().recipe(up_to).unwrap().steps().iter().map(step).collect::<Vec<_>>(), steps);
}

#[test]
fn a_missing_level_is_skipped_and_lower_levels_apply() {
    let critical = patch(&[(Level::Critical, "r.io/app:crit")]);
    assert_eq!(critical.recipe(Some(Level::Major)).unwrap().steps().len(), 1);
    assert_eq!(critical.recipe(None).unwrap().steps().len(), 2);
    let minor = patch(&[(Level::Minor, "r.io/app:minor")]);
    assert_eq!(minor.recipe(Some(Level::Major)).unwrap().steps().len(), 2);
}

#[test]
fn a_level_without_a_reference_is_in_the_repository_of_the_base() {
    assert_eq!(minor(&read(&by_hand()).unwrap()), format!("r.io/app@{}", digest("fix")));
    let elsewhere = with(by_hand(), &[("org.opencontainers.image.base.name", "lib.io/base:3")]);
    let patch = read(&elsewhere).unwrap();
    assert_eq!(minor(&patch), format!("lib.io/base@{}", digest("fix")));
    assert_eq!(patch.base().to_string(), format!("lib.io/base:3@{}", digest("r.io/app:1")));
    let named = with(elsewhere, &[("land.oras.csi.patch.minor.ref", "fix.io/a/b:9")]);
    assert_eq!(minor(&read(&named).unwrap()), format!("fix.io/a/b:9@{}", digest("fix")));
}

#[test]
fn the_base_comes_from_the_subject_or_from_the_annotation() {
    let base = digest("r.io/app:1").to_string();
    let mut alone = with(by_hand(), &[("org.opencontainers.image.base.digest", &base)]);
    assert_eq!(read(&alone), read(&by_hand()));
    alone.as_object_mut().unwrap().remove("subject");
    assert_eq!(read(&alone), read(&by_hand()));
}

#[test]
fn crit_is_a_spelling_of_critical() {
    let text = digest("c").to_string();
    let crit = with(by_hand(), &[("org.opencontainers.image.patch.crit.digest", &text)]);
    assert_eq!(read(&crit).unwrap().levels().last().unwrap().0, Level::Critical);
    let both = with(crit.clone(), &[("org.opencontainers.image.patch.critical.digest", &text)]);
    assert_eq!(read(&both), read(&crit));
    let other = digest("d").to_string();
    let differ = with(crit, &[("org.opencontainers.image.patch.critical.digest", &other)]);
    let error = read(&differ).unwrap_err().to_string();
    assert!(error.starts_with("has two different values for its level critical"), "{error}");
}

#[test]
fn the_artifact_manifest_form_is_accepted_for_patches_only() {
    assert_eq!(read(&earlier()), read(&by_hand()));
    let mut subject = earlier();
    subject["subject"] = subject.as_object_mut().unwrap().remove("refers").unwrap();
    subject["schemaVersion"] = json!(2);
    assert_eq!(read(&subject), read(&by_hand()));

    let broken = |change: &dyn Fn(&mut Value)| {
        let mut manifest = earlier();
        change(&mut manifest);
        parsed(&manifest).unwrap_err().to_string()
    };
    for (change, words) in [
        (
            &(|manifest: &mut Value| manifest["artifactType"] = json!("a/b")) as &dyn Fn(&mut Value),
            "is not supported",
        ),
        (&|manifest| _ = manifest.as_object_mut().unwrap().remove("artifactType"), "is not supported"),
        (&|manifest| manifest["blobs"] = json!([{"digest": "x"}]), "blobs is not empty"),
        (&|manifest| manifest["blobs"] = json!("x"), "blobs is not empty"),
        (&|manifest| manifest["layers"] = json!([]), "more than one kind"),
        (&|manifest| manifest["manifests"] = json!([]), "more than one kind"),
        (&|manifest| manifest["schemaVersion"] = json!(1), "schemaVersion"),
        (&|manifest| manifest["Refers"] = json!(null), "is spelled in another case"),
        (
            &|manifest| {
                manifest["subject"] = manifest["refers"].clone();
                manifest["subject"]["size"] = json!(8);
            },
            "differ",
        ),
    ] {
        let error = broken(change);
        assert!(error.contains(words), "{error}");
    }
}

#[rstest]
#[case(&[("org.opencontainers.image.patch.minor.digest", "")], "has no level")]
#[case(&[("org.opencontainers.image.patch.minor.digest", "sha256:abc")], "org.opencontainers.image.patch.minor.digest: \"sha256:abc\"")]
#[case(&[("org.opencontainers.image.patch.minor.digest", "v1")], "patch.minor.digest: \"v1\"")]
#[case(&[("land.oras.csi.patch.major.ref", "r.io/a:1")], "names its level major by the annotation land.oras.csi.patch.major.ref, but the annotation org.opencontainers.image.patch.major.digest with the digest is missing")]
#[case(&[("land.oras.csi.patch.crit.ref", "r.io/a:1")], "names its level critical")]
#[case(&[("land.oras.csi.patch.minor.ref", "a b")], "land.oras.csi.patch.minor.ref: \"a b\" has spaces")]
#[case(&[("land.oras.csi.patch.minor.ref", "team/app")], "is ambiguous: write docker.io/team/app")]
#[case(&[("org.opencontainers.image.base.name", "https://x")], "base.name: \"https://x\" begins with a scheme")]
#[case(&[("org.opencontainers.image.base.digest", "nonsense")], "base.digest: \"nonsense\"")]
fn an_invalid_annotation_is_named_in_the_error(#[case] annotations: &[(&str, &str)], #[case] words: &str) {
    let error = read(&with(by_hand(), annotations)).unwrap_err().to_string();
    assert!(error.contains(words), "{error}");
}

#[test]
fn rejects_contradictory_and_incomplete_patches() {
    let key = "org.opencontainers.image.base.digest";
    let error = read(&with(by_hand(), &[(key, &digest("x").to_string())])).unwrap_err();
    assert!(matches!(error, PatchError::TwoBases { .. }) && error.to_string().starts_with("names two bases"));
    let elsewhere = format!("r.io/a@{}", digest("x"));
    let error = read(&with(by_hand(), &[("land.oras.csi.patch.minor.ref", &elsewhere)])).unwrap_err();
    assert!(matches!(error, PatchError::Differs { part: Part::Level(Level::Minor), .. }), "{error}");
    let mut none = by_hand();
    none.as_object_mut().unwrap().remove("subject");
    assert_eq!(read(&none), Err(PatchError::NoBase));
    assert_eq!(Patch::new(at("r.io/a:1"), []), Err(PatchError::NoLevels));
    let error = Patch::new(at("r.io/a:1"), [(Level::Minor, reference("r.io/b:1"))]).unwrap_err();
    assert!(error.to_string().contains("level minor \"r.io/b:1\" has no digest"), "{error}");
    assert!(all().to_manifest(&Descriptor::new("a/b", digest("x"), 1), "r.io/a").is_err());
}

#[test]
fn rejects_patches_that_refer_to_themselves() {
    let itself = own().digest().to_string();
    let key = "org.opencontainers.image.patch.major.digest";
    let error = read(&with(by_hand(), &[(key, &itself)])).unwrap_err();
    assert_eq!(error, PatchError::Circle { part: Part::Level(Level::Major) });
    assert!(error.to_string().contains("refers to itself: its level major is the patch itself"), "{error}");
    let mut circle = by_hand();
    circle["subject"]["digest"] = json!(itself);
    assert_eq!(read(&circle), Err(PatchError::Circle { part: Part::Base }));
    let base = digest("r.io/app:1").to_string();
    let error = read(&with(by_hand(), &[(key, &base)])).unwrap_err();
    assert!(matches!(error, PatchError::BaseAgain { level: Level::Major, .. }), "{error}");
}

#[test]
fn rejects_a_base_with_another_digest() {
    assert_eq!(all().check_base(&digest("r.io/app:1")), Ok(()));
    let error = all().check_base(&digest("other")).unwrap_err().to_string();
    assert!(error.contains(&digest("other").to_string()) && error.contains("r.io/app:1@sha256:"), "{error}");
}

#[test]
fn rejects_artifacts_that_are_neither_patches_nor_recipe_artifacts() {
    let read = |manifest: &Value| Instructions::read(&own(), &parsed(manifest).unwrap());
    let mut other = by_hand();
    other["artifactType"] = json!("application/vnd.acme.model");
    let error = read(&other).unwrap_err().to_string();
    assert!(error.contains("type \"application/vnd.acme.model\", which is neither a patch"), "{error}");
    let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": []});
    assert_eq!(read(&index), Err(PatchError::Index));
}

#[test]
fn a_recipe_artifact_has_exactly_one_layer_of_the_recipe_type() {
    let read = |manifest: &Value| Instructions::read(&own(), &parsed(manifest).unwrap());
    let yaml = "- add: r.io/a:1\n";
    let manifest: Value = serde_json::from_slice(&artifact::to_manifest(yaml)).unwrap();
    let layer = Descriptor::new(artifact::LAYER_TYPE, digest(yaml), yaml.len() as u64);
    assert_eq!(read(&manifest), Ok(Instructions::Recipe(layer)));
    let error_after = |change: &dyn Fn(&mut Value)| {
        let mut manifest = manifest.clone();
        change(&mut manifest);
        read(&manifest).unwrap_err().to_string()
    };
    let two = error_after(&|manifest| {
        let layer = manifest["layers"][0].clone();
        manifest["layers"].as_array_mut().unwrap().push(layer);
    });
    assert!(two.contains("with 2 layers"), "{two}");
    let text = error_after(&|manifest| manifest["layers"][0]["mediaType"] = json!("text/yaml"));
    assert!(text.contains("media type \"text/yaml\""), "{text}");
    let long = error_after(&|manifest| manifest["layers"][0]["size"] = json!(65_537));
    assert!(long.contains("65537 bytes: the maximum is 65536"), "{long}");
    assert!(artifact::text(vec![0xff]).is_err());
}

fn references() -> impl Strategy<Value = Reference> {
    (
        "[a-z]{1,8}",
        "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}",
        proptest::option::of("[A-Za-z0-9_][A-Za-z0-9._-]{0,9}"),
        any::<u64>(),
    )
        .prop_map(|(host, repository, tag, seed)| {
            let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
            let digest = digest(&seed.to_string());
            reference(&format!("{host}.io/{repository}{tag}@{digest}"))
        })
}

proptest! {
    #[test]
    fn every_patch_is_read_back_from_its_manifest(
        base in references(),
        levels in proptest::collection::btree_map(prop_oneof![Just(Level::Minor), Just(Level::Major), Just(Level::Critical)], references(), 1..4),
        size in 0_u64..1_000_000,
    ) {
        let digest = base.digest().unwrap().clone();
        prop_assume!(levels.values().all(|level| level.digest() != Some(&digest)));
        let patch = Patch::new(base, levels).unwrap();
        let bytes = patch.to_manifest(&Descriptor::new(media::OCI_MANIFEST, digest, size), "r.io/a").unwrap();
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        prop_assert_eq!(&read(&manifest), &Ok(patch.clone()));
        let recipe = patch.recipe(None).unwrap();
        prop_assert_eq!(recipe.steps().len(), patch.levels().count() + 1);
        // Every step has its digest, so pinning needs no registry.
        prop_assert!(recipe.pin(|reference| reference.digest().cloned().ok_or(())).is_ok());
    }

    #[test]
    fn hostile_annotations_never_panic_and_errors_can_be_printed(
        annotations in proptest::collection::btree_map(
            "(org\\.opencontainers\\.image\\.(base\\.(name|digest)|patch\\.(minor|crit|critical)\\.digest)|land\\.oras\\.csi\\.patch\\.(minor|crit)\\.ref)",
            "(sha256:[0-9a-f]{64}|\\PC{0,12}|.*)", 0..6),
    ) {
        let mut manifest = by_hand();
        manifest["annotations"] = json!(annotations);
        if let Err(error) = read(&manifest) {
            prop_assert!(!error.to_string().contains(char::is_control));
        }
    }
}

#[test]
fn two_spellings_of_a_level_agree_when_one_has_no_reference() {
    let key = |level: &str, what: &str| match what {
        "digest" => format!("org.opencontainers.image.patch.{level}.digest"),
        _ => format!("land.oras.csi.patch.{level}.ref"),
    };
    let fix = digest("r.io/fix");
    let other = |level: &str| (key(level, "ref"), format!("other.io/fix:1@{fix}"));
    for placed in ["crit", "critical"] {
        let mut text = manifest(&patch(&[(Level::Minor, "r.io/x/y:2")]));
        for level in ["crit", "critical"] {
            text["annotations"][key(level, "digest")] = json!(fix);
        }
        let (name, place) = other(placed);
        text["annotations"][name] = json!(place);
        let read = read(&text).unwrap();
        let critical = read.levels().find(|(level, _)| *level == Level::Critical).unwrap().1.to_string();
        assert_eq!(critical, place, "{placed}");
    }
}

fn written(yaml: &str) -> WrittenRecipe {
    WrittenRecipe::from_yaml(yaml, &|_| false).unwrap()
}

fn patch_of_base() -> Patch {
    let named = |name: &str| reference(&format!("r.io/{name}")).with_digest(digest(name));
    Patch::new(named("base"), [(Level::Minor, named("minor")), (Level::Critical, named("critical"))]).unwrap()
}

#[rstest]
#[case::all("- patch: r.io/p", &["add base ''", "overlay minor ''", "overlay critical ''"], &[1, 1, 1])]
#[case::a_level("- {patch: r.io/p, level: major}", &["add base ''", "overlay minor ''"], &[1, 1])]
#[case::a_path_and_a_filter("- {patch: r.io/p, path: a/b, include: [x], level: minor}",
    &["add base 'a/b' [x]", "overlay minor 'a/b' [x]"], &[1, 1])]
#[case::among_others("- add: r.io/first\n- {patch: r.io/p, path: p, level: minor}\n- remove: x\n- overlay: r.io/last",
    &["add first ''", "add base 'p'", "overlay minor 'p'", "remove x", "overlay last ''"], &[1, 2, 2, 4])]
fn a_patch_in_a_recipe_is_expanded_to_its_base_and_its_levels(
    #[case] yaml: &str,
    #[case] steps: &[&str],
    #[case] numbers: &[usize],
) {
    let written = written(yaml);
    assert_eq!(written.plain(), None);
    let (recipe, from) =
        written.expand(|_, step| Ok::<_, RecipeError>(patch_of_base().steps_for(step))).unwrap();
    assert_eq!(recipe.steps().iter().map(summary).collect::<Vec<_>>(), steps);
    assert_eq!(from, numbers);
}

#[test]
fn rejects_patches_that_expand_to_the_same_step_twice() {
    let twice = written("- patch: r.io/p\n- add: r.io/x\n- {add: r.io/x}");
    let error = twice.expand(|_, step| Ok::<_, RecipeError>(patch_of_base().steps_for(step))).unwrap_err();
    assert!(matches!(error, RecipeError::Twice { .. }), "{error}");
}
