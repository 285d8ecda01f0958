//! Which certificate is served after each refresh, for changes of the folder or Secret.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use http::Method;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use super::*;
use crate::authority::{IssuedLeaf, LEAF_LIFE};
use crate::ca_bundle::parse_certificates;
use crate::ca_storage::{CaFolder, CaSecret};
use crate::testing::{FakeApi, ManualClock, names, now, other_names};

const DAY: Duration = Duration::from_hours(24);

fn reloader(storage: CaStorage, clock: &ManualClock, publication: Option<Publication>) -> Reloader {
    Reloader::new(storage, names(), Issuance::Automatic, clock.clock(), publication.unwrap_or_default())
}

fn in_folder(path: &Path, clock: &ManualClock) -> Reloader {
    reloader(CaStorage::Folder(CaFolder::new(path.to_owned())), clock, None)
}

fn served(reloader: &Reloader) -> Leaf {
    reloader.store.serving().expect("something is served").leaf.clone()
}

/// Returns another CA and a leaf of it.
fn another_ca(names: &Names) -> (Authority, IssuedLeaf) {
    let authority = Authority::generate(now()).unwrap();
    let issued = authority.issue(names, now()).unwrap();
    (authority, issued)
}

fn put_pair(folder: &Path, pair: &IssuedLeaf) {
    fs::write(folder.join("tls.crt"), &pair.certificate_pem).unwrap();
    fs::write(folder.join("tls.key"), &pair.key_pem).unwrap();
}

fn leaf_of(pair: &IssuedLeaf) -> Leaf {
    let (certificate, key) = (pair.certificate_pem.as_bytes(), pair.key_pem.as_bytes());
    Leaf::parse("here", certificate, key, &names(), now()).unwrap()
}

#[tokio::test]
async fn an_empty_folder_gets_a_ca_and_a_pair_that_the_next_process_uses() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("certs");
    let mut first = in_folder(&path, &ManualClock::default());
    first.refresh().await.unwrap();
    let mut second = in_folder(&path, &ManualClock::default());
    second.refresh().await.unwrap();
    assert_eq!(served(&first), served(&second));
    assert_eq!(first.store.ca_bundle(), second.store.ca_bundle());
    first.store.ca_bundle().verify_chain(served(&first).chain(), now()).unwrap();
}

#[tokio::test]
async fn a_leaf_is_renewed_in_time_and_other_processes_use_the_new_one() {
    let root = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let (mut one, mut two) = (in_folder(root.path(), &clock), in_folder(root.path(), &clock));
    one.refresh().await.unwrap();
    two.refresh().await.unwrap();
    let (first, bundle) = (served(&one), one.store.ca_bundle());
    clock.advance(3 * DAY);
    one.refresh().await.unwrap();
    assert_eq!(served(&one), first, "not yet");
    clock.advance(2 * DAY);
    one.refresh().await.unwrap();
    two.refresh().await.unwrap();
    assert_ne!(served(&one), first);
    assert_eq!(served(&one), served(&two));
    assert_eq!(one.store.ca_bundle(), bundle, "the CA stays");
    let not_after = served(&one).validity().not_after();
    assert_eq!(not_after, now() + 5 * DAY + LEAF_LIFE);
}

#[tokio::test]
async fn a_leaf_that_expired_during_a_suspension_is_renewed() {
    let root = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let mut reloader = in_folder(root.path(), &clock);
    reloader.refresh().await.unwrap();
    clock.advance(30 * DAY);
    reloader.refresh().await.unwrap();
    assert!(served(&reloader).validity().contains(now() + 30 * DAY));
    let mut restarted = in_folder(root.path(), &clock);
    restarted.refresh().await.unwrap();
    assert_eq!(served(&restarted), served(&reloader));
}

/// A clock jumps when it is set by hand, and when a machine without a battery asks for the time after its start. The API
/// server has the same clock.
#[rstest::rstest]
#[case::secret_ahead(true, true)]
#[case::secret_back(true, false)]
#[case::folder_ahead(false, true)]
#[case::folder_back(false, false)]
#[tokio::test]
async fn every_served_certificate_is_trusted_before_and_after_the_clock_jumps_by_a_day(
    #[case] is_secret: bool,
    #[case] ahead: bool,
) {
    let root = tempfile::tempdir().unwrap();
    let (_api, client) = FakeApi::serve(None);
    let storage = || {
        if is_secret {
            CaStorage::Secret(Box::new(CaSecret::new(client.clone(), "oras", "hook-ca")))
        } else {
            CaStorage::Folder(CaFolder::new(root.path().to_owned()))
        }
    };
    let clock = ManualClock::default();
    let is_trusted = |reloader: &Reloader| {
        reloader.store.ca_bundle().verify_chain(served(reloader).chain(), clock.time()).unwrap();
    };
    let mut running = reloader(storage(), &clock, None);
    running.refresh().await.unwrap();
    for jumps in [ahead, !ahead] {
        if jumps {
            clock.advance(DAY);
        } else {
            clock.set_back(DAY);
        }
        // The API server calls before this process reads its clock again.
        is_trusted(&running);
        running.refresh().await.unwrap();
        is_trusted(&running);
        let mut started = reloader(storage(), &clock, None);
        started.refresh().await.unwrap();
        is_trusted(&started);
        // A replica that started at the other time still serves.
        running = started;
    }
}

#[tokio::test]
async fn an_external_pair_is_served_and_not_changed() {
    let root = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let mut reloader = in_folder(root.path(), &clock);
    reloader.refresh().await.unwrap();
    let (_, theirs) = another_ca(&names());
    put_pair(root.path(), &theirs);
    reloader.refresh().await.unwrap();
    assert_eq!(served(&reloader), leaf_of(&theirs));
    clock.advance(6 * DAY);
    reloader.refresh().await.unwrap();
    assert_eq!(served(&reloader), leaf_of(&theirs), "it is not renewed");
    assert_eq!(fs::read_to_string(root.path().join("tls.key")).unwrap(), theirs.key_pem);
}

#[tokio::test]
async fn an_unusable_pair_leaves_the_last_valid_one_in_use() {
    let root = tempfile::tempdir().unwrap();
    let mut reloader = in_folder(root.path(), &ManualClock::default());
    reloader.refresh().await.unwrap();
    let good = served(&reloader);
    let (_, theirs) = another_ca(&names());
    let (_, misnamed) = another_ca(&other_names());
    let (_, other) = another_ca(&names());
    let mixed = IssuedLeaf { certificate_pem: theirs.certificate_pem.clone(), key_pem: other.key_pem };
    let garbage = IssuedLeaf { certificate_pem: "garbage".into(), key_pem: "garbage".into() };
    for (bad, part) in
        [(garbage, "tls.crt"), (mixed, "not the key of tls.crt"), (misnamed, "does not cover the name")]
    {
        put_pair(root.path(), &bad);
        let error = reloader.refresh().await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        reloader.record_failure(&error);
        assert_eq!(served(&reloader), good);
        assert_eq!(reloader.store.problem(), Some(error.to_string()));
    }
    put_pair(root.path(), &theirs);
    reloader.refresh().await.unwrap();
    assert_eq!(served(&reloader), leaf_of(&theirs));
    assert_eq!(reloader.store.problem(), None);
}

/// Writes a folder as kubelet does: entries are links through `..data`, which is replaced by a rename.
fn publish_as_kubelet(folder: &Path, generation: &str, entries: &[(&str, &str)]) {
    let data = folder.join(generation);
    fs::create_dir(&data).unwrap();
    for (name, text) in entries {
        fs::write(data.join(name), text).unwrap();
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
    let before = fs::read_link(folder.join("..data")).ok();
    symlink(generation, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    if let Some(before) = before {
        fs::remove_dir_all(folder.join(before)).unwrap();
    }
}

#[tokio::test]
async fn a_mounted_secret_is_reloaded_after_each_swap_by_kubelet() {
    let root = tempfile::tempdir().unwrap();
    let mut reloader = in_folder(root.path(), &ManualClock::default());
    for generation in ["..1", "..2", "..3"] {
        let (authority, pair) = another_ca(&names());
        let entries = [
            ("ca.crt", authority.certificate_pem()),
            ("tls.crt", &pair.certificate_pem),
            ("tls.key", &pair.key_pem),
        ];
        publish_as_kubelet(root.path(), generation, &entries);
        reloader.refresh().await.unwrap();
        assert_eq!(served(&reloader), leaf_of(&pair));
        assert_eq!(reloader.store.ca_bundle(), CaBundle::from(authority.certificate().clone()));
    }
    assert!(!root.path().join("ca.key").exists(), "nothing is written");
}

#[tokio::test]
async fn a_chain_is_served_as_a_whole_and_trusted_through_its_root() {
    let root = tempfile::tempdir().unwrap();
    let key = || KeyPair::generate().unwrap();
    let ca = |subject: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, subject);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
    };
    let (root_params, root_key) = (ca("root"), key());
    let root_pem = root_params.self_signed(&root_key).unwrap().pem();
    let root_issuer = Issuer::new(root_params, root_key);
    let (middle_params, middle_key) = (ca("middle"), key());
    let middle_pem = middle_params.signed_by(&middle_key, &root_issuer).unwrap().pem();
    let middle = Issuer::new(middle_params, middle_key);
    let leaf_key = key();
    let mut leaf =
        CertificateParams::new(vec!["*.oras.svc".to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned()])
            .unwrap();
    leaf.not_after = (now() + DAY).into();
    let chain = leaf.signed_by(&leaf_key, &middle).unwrap().pem() + &middle_pem;
    put_pair(root.path(), &IssuedLeaf { certificate_pem: chain, key_pem: leaf_key.serialize_pem() });
    fs::write(root.path().join("ca.crt"), &root_pem).unwrap();

    let mut reloader = in_folder(root.path(), &ManualClock::default());
    reloader.refresh().await.unwrap();
    assert_eq!(served(&reloader).chain().len(), 2);
    reloader.store.ca_bundle().verify_chain(served(&reloader).chain(), now()).unwrap();
    let leaf = served(&reloader);
    reloader.store.ca_bundle().verify_chain(&leaf.chain()[..1], now()).unwrap_err();
}

fn in_secret(clock: &ManualClock, publication: Option<Publication>) -> (FakeApi, Reloader) {
    let (api, client) = FakeApi::serve(None);
    let storage = CaStorage::Secret(Box::new(CaSecret::new(client, "oras", "hook-ca")));
    (api, reloader(storage, clock, publication))
}

#[tokio::test]
async fn with_a_secret_each_replica_renews_a_leaf_of_its_own() {
    let clock = ManualClock::default();
    let (api, client) = FakeApi::serve(None);
    let storage = || CaStorage::Secret(Box::new(CaSecret::new(client.clone(), "oras", "hook-ca")));
    let (mut one, mut two) = (reloader(storage(), &clock, None), reloader(storage(), &clock, None));
    one.refresh().await.unwrap();
    two.refresh().await.unwrap();
    assert_eq!(one.store.ca_bundle(), two.store.ca_bundle());
    let (first, other) = (served(&one), served(&two));
    assert_ne!(first, other);
    one.refresh().await.unwrap();
    assert_eq!(served(&one), first, "it stays until it is due");
    clock.advance(5 * DAY);
    one.refresh().await.unwrap();
    assert_ne!(served(&one), first);
    let data = api.object().unwrap()["data"].clone();
    assert_eq!(data.as_object().unwrap().keys().collect::<Vec<_>>(), ["ca.crt", "ca.key"]);
}

#[tokio::test]
async fn a_deleted_secret_is_created_again_with_the_same_ca() {
    let (api, mut reloader) = in_secret(&ManualClock::default(), None);
    reloader.refresh().await.unwrap();
    let (leaf, data) = (served(&reloader), api.object().unwrap()["data"].clone());
    api.edit(|object| *object = None);
    reloader.refresh().await.unwrap();
    assert_eq!(api.object().unwrap()["data"], data);
    assert_eq!(served(&reloader), leaf);
}

#[tokio::test]
async fn a_leaf_is_renewed_while_the_api_server_is_unreachable() {
    let clock = ManualClock::default();
    let (api, mut reloader) = in_secret(&clock, None);
    reloader.refresh().await.unwrap();
    let first = served(&reloader);
    clock.advance(6 * DAY);
    api.refuse(Method::GET, 503);
    reloader.refresh().await.unwrap_err();
    assert_ne!(served(&reloader), first);
    reloader.store.ca_bundle().verify_chain(served(&reloader).chain(), now() + 6 * DAY).unwrap();
}

#[tokio::test]
async fn a_deleted_external_secret_is_not_replaced() {
    let (_, pair) = another_ca(&names());
    let entry = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
    let data = json!({"tls.crt": entry(&pair.certificate_pem), "tls.key": entry(&pair.key_pem)});
    let (api, mut reloader) = in_secret(&ManualClock::default(), None);
    api.edit(|object| *object = Some(json!({"metadata": {"name": "hook-ca"}, "data": data})));
    reloader.refresh().await.unwrap();
    api.edit(|object| *object = None);
    assert!(matches!(reloader.refresh().await, Err(Error::NoCertificateYet { .. })));
    assert_eq!(served(&reloader), leaf_of(&pair));
    assert_eq!(api.object(), None);
}

/// Returns an observed configuration with one webhook and this bundle.
fn observed(bundle: &CaBundle) -> ObservedConfiguration {
    let webhook = json!({
        "name": "pods.oras.land", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"caBundle": ByteString(bundle.pem().into_bytes())},
    });
    let object = json!({"metadata": {}, "webhooks": [webhook]});
    let object: MutatingWebhookConfiguration = serde_json::from_value(object).unwrap();
    ObservedConfiguration::found("oras", &object, true)
}

#[tokio::test]
async fn a_leaf_of_a_new_ca_waits_until_the_configuration_trusts_it() {
    let (desired, published) = watch::channel(CaBundle::default());
    let (observed_sender, observed_receiver) =
        watch::channel(ObservedConfiguration::unknown::<MutatingWebhookConfiguration>("oras"));
    let publication = Publication { desired, observed: Some(observed_receiver) };
    let (api, mut reloader) = in_secret(&ManualClock::default(), Some(publication));
    reloader.refresh().await.unwrap();
    let old = served(&reloader);
    let old_bundle = published.borrow().clone();
    observed_sender.send(observed(&old_bundle)).unwrap();

    let new = Authority::generate(now()).unwrap();
    api.edit(|object| {
        let data = &mut object.as_mut().unwrap()["data"];
        data["ca-previous.crt"] = data["ca.crt"].clone();
        data["ca.crt"] = json!(ByteString(new.certificate_pem().into()));
        data["ca.key"] = json!(ByteString(new.key_pem().into()));
    });
    for _ in 0..3 {
        reloader.refresh().await.unwrap();
        assert_eq!(served(&reloader), old, "the configuration does not trust the new CA yet");
    }
    let both = published.borrow().clone();
    assert!(both.contains(new.certificate()) && both.contains_all(&old_bundle));
    assert!(reloader.store.problem().unwrap().contains("is not served until"));

    observed_sender.send(observed(&both)).unwrap();
    reloader.refresh().await.unwrap();
    assert_eq!(served(&reloader), old, "other API servers may not have read it yet");
    reloader.refresh().await.unwrap();
    assert!(served(&reloader).is_from(new.certificate()));
    assert_eq!(reloader.store.problem(), None);
}

#[tokio::test]
async fn a_renewal_under_a_trusted_ca_does_not_wait() {
    let (desired, published) = watch::channel(CaBundle::default());
    let (observed_sender, observed_receiver) =
        watch::channel(ObservedConfiguration::unknown::<MutatingWebhookConfiguration>("oras"));
    let clock = ManualClock::default();
    let (_, mut reloader) =
        in_secret(&clock, Some(Publication { desired, observed: Some(observed_receiver) }));
    reloader.refresh().await.unwrap();
    observed_sender.send(observed(&published.borrow())).unwrap();
    let first = served(&reloader);
    clock.advance(5 * DAY);
    reloader.refresh().await.unwrap();
    assert_ne!(served(&reloader), first);
}

#[tokio::test]
async fn with_a_published_bundle_a_pair_that_it_does_not_trust_is_rejected() {
    let root = tempfile::tempdir().unwrap();
    let (desired, _published) = watch::channel(CaBundle::default());
    let (_observed, observed_receiver) =
        watch::channel(ObservedConfiguration::unknown::<MutatingWebhookConfiguration>("oras"));
    let storage = CaStorage::Folder(CaFolder::new(root.path().to_owned()));
    let mut reloader = reloader(
        storage,
        &ManualClock::default(),
        Some(Publication { desired, observed: Some(observed_receiver) }),
    );
    reloader.refresh().await.unwrap();
    let ours = served(&reloader);
    let (authority, theirs) = another_ca(&names());
    put_pair(root.path(), &theirs);
    assert!(matches!(reloader.refresh().await, Err(Error::NotTrusted { .. })));
    assert_eq!(served(&reloader), ours);
    fs::write(root.path().join("ca.crt"), authority.certificate_pem()).unwrap();
    reloader.refresh().await.unwrap();
    assert_eq!(served(&reloader), leaf_of(&theirs));
    let chain = parse_certificates(theirs.certificate_pem.as_bytes()).unwrap();
    reloader.store.ca_bundle().verify_chain(&chain, now()).unwrap();
}

#[tokio::test]
async fn the_leaf_is_renewed_while_the_pair_in_its_place_cannot_be_served() {
    let root = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let mut reloader = in_folder(root.path(), &clock);
    reloader.refresh().await.unwrap();
    fs::remove_file(root.path().join("ca.key")).unwrap();
    let garbage = IssuedLeaf { certificate_pem: "garbage".into(), key_pem: "garbage".into() };
    put_pair(root.path(), &garbage);
    clock.advance(30 * DAY);
    reloader.refresh().await.unwrap_err();
    assert!(served(&reloader).validity().contains(now() + 30 * DAY));
    assert_eq!(fs::read_to_string(root.path().join("tls.crt")).unwrap(), "garbage");
}

#[tokio::test]
async fn two_processes_with_different_names_do_not_overwrite_each_others_pair() {
    let root = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let mut one = in_folder(root.path(), &clock);
    let storage = CaStorage::Folder(CaFolder::new(root.path().to_owned()));
    let mut two =
        Reloader::new(storage, other_names(), Issuance::Automatic, clock.clock(), Publication::default());
    one.refresh().await.unwrap();
    two.refresh().await.unwrap();
    let (first, second) = (served(&one), served(&two));
    for _ in 0..3 {
        one.refresh().await.unwrap();
        two.refresh().await.unwrap();
    }
    assert_eq!((served(&one), served(&two)), (first, second));
}
