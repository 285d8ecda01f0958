use super::*;
use crate::digest::Digest;
use crate::recipe::{Layer, Step};
use crate::reference::Reference;

fn recipe(steps: usize) -> PinnedRecipe {
    let step = |number: usize| {
        let reference = format!("kind-registry:5000/java-app{number}");
        let pinned = Reference::parse(&reference).expect("valid").pin(Digest::sha256_of(b""));
        Step::Add(Layer::new(pinned).at(format!("p{number}").parse().expect("a path")))
    };
    PinnedRecipe::new((0..steps).map(step).collect()).expect("a recipe")
}

fn parse(attributes: &BTreeMap<&'static str, String>) -> Result<CanonicalVolume, VolumeError> {
    CanonicalVolume::from_attributes(attributes.iter().map(|(key, value)| (*key, value.as_str())))
}

fn volume() -> CanonicalVolume {
    CanonicalVolume::new(Some("mine"), recipe(2)).expect("fits")
}

#[test]
fn parses_its_own_attributes_and_ignores_those_of_kubelet() {
    let mut attributes = volume().to_attributes();
    assert_eq!(parse(&attributes), Ok(volume()));
    attributes.insert("csi.storage.k8s.io/pod.namespace", "default".to_owned());
    assert_eq!(parse(&attributes), Ok(volume()));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    attributes.insert(canonical::TRACE_PARENT, trace.to_owned());
    assert_eq!(parse(&attributes), Ok(volume()), "the trace is not a part of the content");
    let texts = attributes.iter().map(|(key, value)| (*key, value.as_str()));
    assert_eq!(trace_parent(texts).map(|parent| parent.to_string()), Some(trace.to_owned()));
}

#[test]
fn rejects_attributes_that_are_not_canonical() {
    let mut earlier = BTreeMap::from([("oras.artifact.reference", "ghcr.io/a/b:v1".to_owned())]);
    assert!(matches!(parse(&earlier), Err(VolumeError::Unknown { .. })));
    earlier.clear();
    assert!(matches!(parse(&earlier), Err(VolumeError::Missing(_))));

    let broken: [(&'static str, &str); 9] = [
        (canonical::ID, "../../etc"),
        (canonical::ID, "mine-00000000000000000000000000000000"),
        (canonical::RECIPE, "[]"),
        (canonical::RECIPE, r#"[{"add":"ghcr.io/a/b:v1"}]"#),
        (canonical::SET, "../x"),
        (canonical::SEAL, "v2.a.b"),
        (canonical::SEAL, "v1.a."),
        (canonical::TRACE_PARENT, "00-0-0-0"),
        ("csi.oras.land/unknown", "x"),
    ];
    for (key, value) in broken {
        let mut attributes = volume().to_attributes();
        attributes.insert(key, value.to_owned());
        assert!(parse(&attributes).is_err(), "{key}={value}");
    }
}

#[test]
fn limits_the_length_of_the_attributes() {
    let fits = (1..100).take_while(|steps| CanonicalVolume::new(None, recipe(*steps)).is_ok()).count();
    assert!((20..40).contains(&fits), "{fits} steps fit");
    assert!(matches!(CanonicalVolume::new(None, recipe(fits + 1)), Err(VolumeError::TooLong { .. })));
}

fn recipe_of(repository: &str) -> PinnedRecipe {
    let pinned = Reference::parse(repository).unwrap().pin(Digest::sha256_of(b""));
    PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).unwrap()
}

fn volume_of(repository: &str) -> CanonicalVolume {
    CanonicalVolume::new(None, recipe_of(repository)).unwrap()
}

fn public_keys(keys: &[&SealKey]) -> PublicKeys {
    keys.iter().map(|key| key.public().clone()).collect()
}

#[test]
fn signing_is_deterministic_and_the_key_survives_pem() {
    let key = SealKey::generate().unwrap();
    let from_pem = SealKey::from_pem(&key.to_pem().unwrap()).unwrap();
    let sealed = volume_of("r.example/a").sign(&key, Holder::pod("team"));
    assert_eq!(sealed.clone().sign(&from_pem, Holder::pod("team")), sealed);
    let text = sealed.seal().unwrap().to_string();
    assert_eq!(text.len(), Seal::LENGTH);
    assert_eq!(text.parse().as_ref(), Ok(sealed.seal().unwrap()));
    assert_eq!(sealed.to_attributes()[canonical::SEAL], text);
}

#[test]
fn the_seal_signs_set_id_and_recipe() {
    let volume = volume_of("r.example/a").with_set("s").unwrap();
    let digest = Digest::sha256_of(b"");
    let recipe = format!(r#"[{{"add":"r.example/a@{digest}"}}]"#);
    assert_eq!(
        volume.sealed_content(),
        SealedContent { set: "s", id: volume.id().as_str(), recipe: recipe.as_str() }
    );
}

/// Each case differs in one value from the one that passes.
#[test]
fn a_seal_is_valid_for_one_volume_one_holder_one_set_and_one_key() {
    let (key, other) = (SealKey::generate().unwrap(), SealKey::generate().unwrap());
    let holder = Holder::claim("team", "pv-1");
    let of_set = || volume_of("r.example/a").with_set("models").unwrap();
    let sealed = of_set().sign(&key, holder);
    let seal = sealed.seal().cloned();
    assert_eq!(sealed.verify_seal(&public_keys(&[&key]), holder), Ok(()));
    assert_eq!(sealed.verify_seal(&public_keys(&[&other, &key]), holder), Ok(()));

    for holder in [
        Holder::claim("teams", "pv-1"),
        Holder::claim("team", "pv-2"),
        Holder::pod("team"),
        Holder::claim("", "pv-1"),
    ] {
        assert!(
            matches!(sealed.verify_seal(&public_keys(&[&key]), holder), Err(SealError::Invalid { .. })),
            "{holder}"
        );
    }
    let renamed = CanonicalVolume::new(Some("other"), recipe_of("r.example/a")).unwrap();
    for volume in [
        volume_of("r.example/b").with_set("models").unwrap(),
        volume_of("r.example/a"),
        volume_of("r.example/a").with_set("model").unwrap(),
        renamed.with_set("models").unwrap(),
    ] {
        let forged = CanonicalVolume { seal: seal.clone(), ..volume };
        assert!(
            matches!(forged.verify_seal(&public_keys(&[&key]), holder), Err(SealError::Invalid { .. })),
            "{forged:?}"
        );
    }
    let unknown = sealed.verify_seal(&public_keys(&[&other]), holder);
    assert!(matches!(unknown, Err(SealError::UnknownKey { .. })));
    assert!(matches!(sealed.verify_seal(&public_keys(&[]), holder), Err(SealError::UnknownKey { .. })));
    assert_eq!(of_set().verify_seal(&public_keys(&[&key]), holder), Err(SealError::Missing));
}
