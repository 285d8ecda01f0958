//! What is served after each look, whatever happened to the folder or Secret before it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use http::Method;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use super::*;
use crate::bundle::parse_certificates;
use crate::issue::{Issued, LEAF_LIFE};
use crate::keep::{Folder, SecretKeeper};
use crate::testing::{FakeApi, Hands, names, now, other_names};

const DAY: Duration = Duration::from_hours(24);

fn reloader(keeper: Keeper, hands: &Hands, publication: Option<Publication>) -> Reloader {
    Reloader::new(keeper, names(), Issuance::Automatic, hands.clock(), publication.unwrap_or_default())
}

fn in_folder(path: &Path, hands: &Hands) -> Reloader {
    reloader(Keeper::Folder(Folder::new(path.to_owned())), hands, None)
}

fn served(reloader: &Reloader) -> Leaf {
    reloader.store.serving().expect("something is served").leaf.clone()
}

/// A CA and a pair of it.
fn elsewhere(names: &Names) -> (Authority, Issued) {
    let authority = Authority::generate(now()).unwrap();
    let issued = authority.issue(names, now()).unwrap();
    (authority, issued)
}

fn put_pair(folder: &Path, pair: &Issued) {
    fs::write(folder.join("tls.crt"), &pair.certificate_pem).unwrap();
    fs::write(folder.join("tls.key"), &pair.key_pem).unwrap();
}

fn leaf_of(pair: &Issued) -> Leaf {
    let (certificate, key) = (pair.certificate_pem.as_bytes(), pair.key_pem.as_bytes());
    Leaf::parse("here", certificate, key, &names(), now()).unwrap()
}

#[tokio::test]
async fn an_empty_folder_gets_a_ca_and_a_pair_that_the_next_process_takes_over() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("certs");
    let mut first = in_folder(&path, &Hands::default());
    first.look().await.unwrap();
    let mut second = in_folder(&path, &Hands::default());
    second.look().await.unwrap();
    assert_eq!(served(&first), served(&second));
    assert_eq!(first.store.wanted(), second.store.wanted());
    first.store.wanted().vouches_for(served(&first).chain(), now()).unwrap();
}

#[tokio::test]
async fn a_leaf_is_renewed_in_time_and_others_take_the_new_one() {
    let root = tempfile::tempdir().unwrap();
    let hands = Hands::default();
    let (mut one, mut two) = (in_folder(root.path(), &hands), in_folder(root.path(), &hands));
    one.look().await.unwrap();
    two.look().await.unwrap();
    let (first, bundle) = (served(&one), one.store.wanted());
    hands.advance(4 * DAY);
    one.look().await.unwrap();
    assert_eq!(served(&one), first, "not yet");
    hands.advance(DAY);
    one.look().await.unwrap();
    two.look().await.unwrap();
    assert_ne!(served(&one), first);
    assert_eq!(served(&one), served(&two));
    assert_eq!(one.store.wanted(), bundle, "the CA stays");
    let not_after = served(&one).validity().not_after();
    assert_eq!(not_after, now() + 5 * DAY + LEAF_LIFE);
}

#[tokio::test]
async fn a_leaf_that_expired_while_the_machine_slept_is_renewed() {
    let root = tempfile::tempdir().unwrap();
    let hands = Hands::default();
    let mut reloader = in_folder(root.path(), &hands);
    reloader.look().await.unwrap();
    hands.advance(30 * DAY);
    reloader.look().await.unwrap();
    assert!(served(&reloader).validity().contains(now() + 30 * DAY));
    let mut restarted = in_folder(root.path(), &hands);
    restarted.look().await.unwrap();
    assert_eq!(served(&restarted), served(&reloader));
}

#[tokio::test]
async fn a_pair_that_somebody_puts_there_is_served_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let hands = Hands::default();
    let mut reloader = in_folder(root.path(), &hands);
    reloader.look().await.unwrap();
    let (_, theirs) = elsewhere(&names());
    put_pair(root.path(), &theirs);
    reloader.look().await.unwrap();
    assert_eq!(served(&reloader), leaf_of(&theirs));
    hands.advance(6 * DAY);
    reloader.look().await.unwrap();
    assert_eq!(served(&reloader), leaf_of(&theirs), "not ours to renew");
    assert_eq!(fs::read_to_string(root.path().join("tls.key")).unwrap(), theirs.key_pem);
}

#[tokio::test]
async fn what_cannot_be_served_leaves_the_last_good_one() {
    let root = tempfile::tempdir().unwrap();
    let mut reloader = in_folder(root.path(), &Hands::default());
    reloader.look().await.unwrap();
    let good = served(&reloader);
    let (_, theirs) = elsewhere(&names());
    let (_, misnamed) = elsewhere(&other_names());
    let (_, other) = elsewhere(&names());
    let mixed = Issued { certificate_pem: theirs.certificate_pem.clone(), key_pem: other.key_pem };
    let garbage = Issued { certificate_pem: "garbage".into(), key_pem: "garbage".into() };
    for (bad, words) in [(garbage, "tls.crt"), (mixed, "not the key of tls.crt"), (misnamed, "is not for")] {
        put_pair(root.path(), &bad);
        let error = reloader.look().await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        reloader.report(&error);
        assert_eq!(served(&reloader), good);
        assert_eq!(reloader.store.problem(), Some(error.to_string()));
    }
    put_pair(root.path(), &theirs);
    reloader.look().await.unwrap();
    assert_eq!(served(&reloader), leaf_of(&theirs));
    assert_eq!(reloader.store.problem(), None);
}

/// A folder as kubelet makes it: entries are links through `..data`, which is swapped by rename.
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
async fn a_mounted_secret_is_followed_through_kubelets_swaps() {
    let root = tempfile::tempdir().unwrap();
    let mut reloader = in_folder(root.path(), &Hands::default());
    for generation in ["..1", "..2", "..3"] {
        let (authority, pair) = elsewhere(&names());
        let entries = [
            ("ca.crt", authority.certificate_pem()),
            ("tls.crt", &pair.certificate_pem),
            ("tls.key", &pair.key_pem),
        ];
        publish_as_kubelet(root.path(), generation, &entries);
        reloader.look().await.unwrap();
        assert_eq!(served(&reloader), leaf_of(&pair));
        assert_eq!(reloader.store.wanted(), Bundle::from(authority.certificate().clone()));
    }
    assert!(!root.path().join("ca.key").exists(), "nothing is written");
}

#[tokio::test]
async fn a_chain_is_served_whole_and_trusted_through_its_root() {
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
    put_pair(root.path(), &Issued { certificate_pem: chain, key_pem: leaf_key.serialize_pem() });
    fs::write(root.path().join("ca.crt"), &root_pem).unwrap();

    let mut reloader = in_folder(root.path(), &Hands::default());
    reloader.look().await.unwrap();
    assert_eq!(served(&reloader).chain().len(), 2);
    reloader.store.wanted().vouches_for(served(&reloader).chain(), now()).unwrap();
    let leaf = served(&reloader);
    reloader.store.wanted().vouches_for(&leaf.chain()[..1], now()).unwrap_err();
}

fn in_secret(hands: &Hands, publication: Option<Publication>) -> (FakeApi, Reloader) {
    let (api, client) = FakeApi::serve(None);
    let keeper = Keeper::Secret(Box::new(SecretKeeper::new(client, "oras", "hook-ca")));
    (api, reloader(keeper, hands, publication))
}

#[tokio::test]
async fn with_a_secret_each_replica_has_a_leaf_of_its_own_and_renews_it() {
    let hands = Hands::default();
    let (api, client) = FakeApi::serve(None);
    let keeper = || Keeper::Secret(Box::new(SecretKeeper::new(client.clone(), "oras", "hook-ca")));
    let (mut one, mut two) = (reloader(keeper(), &hands, None), reloader(keeper(), &hands, None));
    one.look().await.unwrap();
    two.look().await.unwrap();
    assert_eq!(one.store.wanted(), two.store.wanted());
    let (first, other) = (served(&one), served(&two));
    assert_ne!(first, other);
    one.look().await.unwrap();
    assert_eq!(served(&one), first, "it stays until it is due");
    hands.advance(5 * DAY);
    one.look().await.unwrap();
    assert_ne!(served(&one), first);
    let data = api.object().unwrap()["data"].clone();
    assert_eq!(data.as_object().unwrap().keys().collect::<Vec<_>>(), ["ca.crt", "ca.key"]);
}

#[tokio::test]
async fn a_secret_that_somebody_deletes_comes_back_with_the_same_ca() {
    let (api, mut reloader) = in_secret(&Hands::default(), None);
    reloader.look().await.unwrap();
    let (leaf, data) = (served(&reloader), api.object().unwrap()["data"].clone());
    api.edit(|object| *object = None);
    reloader.look().await.unwrap();
    assert_eq!(api.object().unwrap()["data"], data);
    assert_eq!(served(&reloader), leaf);
}

#[tokio::test]
async fn a_leaf_is_renewed_while_the_api_server_is_away() {
    let hands = Hands::default();
    let (api, mut reloader) = in_secret(&hands, None);
    reloader.look().await.unwrap();
    let first = served(&reloader);
    hands.advance(6 * DAY);
    api.refuse(Method::GET, 503);
    reloader.look().await.unwrap_err();
    assert_ne!(served(&reloader), first);
    reloader.store.wanted().vouches_for(served(&reloader).chain(), now() + 6 * DAY).unwrap();
}

#[tokio::test]
async fn somebody_elses_secret_that_is_deleted_is_not_replaced_by_ours() {
    let (_, pair) = elsewhere(&names());
    let entry = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
    let data = json!({"tls.crt": entry(&pair.certificate_pem), "tls.key": entry(&pair.key_pem)});
    let (api, mut reloader) = in_secret(&Hands::default(), None);
    api.edit(|object| *object = Some(json!({"metadata": {"name": "hook-ca"}, "data": data})));
    reloader.look().await.unwrap();
    api.edit(|object| *object = None);
    assert!(matches!(reloader.look().await, Err(Error::Absent { .. })));
    assert_eq!(served(&reloader), leaf_of(&pair));
    assert_eq!(api.object(), None);
}

/// A live configuration with one webhook and this bundle.
fn live(bundle: &Bundle) -> Live {
    let webhook = json!({
        "name": "pods.oras.land", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"caBundle": ByteString(bundle.pem().into_bytes())},
    });
    let object = json!({"metadata": {}, "webhooks": [webhook]});
    let object: MutatingWebhookConfiguration = serde_json::from_value(object).unwrap();
    Live::found("oras", &object, true)
}

#[tokio::test]
async fn a_leaf_of_a_new_ca_waits_until_the_live_configuration_trusts_it() {
    let (wanted, published) = watch::channel(Bundle::default());
    let (live_sender, live_receiver) = watch::channel(Live::unknown::<MutatingWebhookConfiguration>("oras"));
    let publication = Publication { wanted, live: Some(live_receiver) };
    let (api, mut reloader) = in_secret(&Hands::default(), Some(publication));
    reloader.look().await.unwrap();
    let old = served(&reloader);
    let old_bundle = published.borrow().clone();
    live_sender.send(live(&old_bundle)).unwrap();

    let new = Authority::generate(now()).unwrap();
    api.edit(|object| {
        let data = &mut object.as_mut().unwrap()["data"];
        data["ca-previous.crt"] = data["ca.crt"].clone();
        data["ca.crt"] = json!(ByteString(new.certificate_pem().into()));
        data["ca.key"] = json!(ByteString(new.key_pem().into()));
    });
    for _ in 0..3 {
        reloader.look().await.unwrap();
        assert_eq!(served(&reloader), old, "nobody trusts the new one yet");
    }
    let both = published.borrow().clone();
    assert!(both.contains(new.certificate()) && both.contains_all(&old_bundle));
    assert!(reloader.store.problem().unwrap().contains("kept back"));

    live_sender.send(live(&both)).unwrap();
    reloader.look().await.unwrap();
    assert_eq!(served(&reloader), old, "other API servers may not have read it yet");
    reloader.look().await.unwrap();
    assert!(served(&reloader).is_from(new.certificate()));
    assert_eq!(reloader.store.problem(), None);
}

#[tokio::test]
async fn a_renewal_under_a_trusted_ca_does_not_wait() {
    let (wanted, published) = watch::channel(Bundle::default());
    let (live_sender, live_receiver) = watch::channel(Live::unknown::<MutatingWebhookConfiguration>("oras"));
    let hands = Hands::default();
    let (_, mut reloader) = in_secret(&hands, Some(Publication { wanted, live: Some(live_receiver) }));
    reloader.look().await.unwrap();
    live_sender.send(live(&published.borrow())).unwrap();
    let first = served(&reloader);
    hands.advance(5 * DAY);
    reloader.look().await.unwrap();
    assert_ne!(served(&reloader), first);
}

#[tokio::test]
async fn where_the_bundle_is_published_a_pair_that_it_does_not_trust_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (wanted, _published) = watch::channel(Bundle::default());
    let (_live, live_receiver) = watch::channel(Live::unknown::<MutatingWebhookConfiguration>("oras"));
    let keeper = Keeper::Folder(Folder::new(root.path().to_owned()));
    let mut reloader =
        reloader(keeper, &Hands::default(), Some(Publication { wanted, live: Some(live_receiver) }));
    reloader.look().await.unwrap();
    let ours = served(&reloader);
    let (authority, theirs) = elsewhere(&names());
    put_pair(root.path(), &theirs);
    assert!(matches!(reloader.look().await, Err(Error::NotTrusted { .. })));
    assert_eq!(served(&reloader), ours);
    fs::write(root.path().join("ca.crt"), authority.certificate_pem()).unwrap();
    reloader.look().await.unwrap();
    assert_eq!(served(&reloader), leaf_of(&theirs));
    let chain = parse_certificates(theirs.certificate_pem.as_bytes()).unwrap();
    reloader.store.wanted().vouches_for(&chain, now()).unwrap();
}

#[tokio::test]
async fn our_leaf_is_renewed_while_what_somebody_put_in_its_place_cannot_be_served() {
    let root = tempfile::tempdir().unwrap();
    let hands = Hands::default();
    let mut reloader = in_folder(root.path(), &hands);
    reloader.look().await.unwrap();
    fs::remove_file(root.path().join("ca.key")).unwrap();
    let garbage = Issued { certificate_pem: "garbage".into(), key_pem: "garbage".into() };
    put_pair(root.path(), &garbage);
    hands.advance(30 * DAY);
    reloader.look().await.unwrap_err();
    assert!(served(&reloader).validity().contains(now() + 30 * DAY));
    assert_eq!(fs::read_to_string(root.path().join("tls.crt")).unwrap(), "garbage");
}

#[tokio::test]
async fn two_processes_with_other_names_do_not_take_turns_in_overwriting() {
    let root = tempfile::tempdir().unwrap();
    let hands = Hands::default();
    let mut one = in_folder(root.path(), &hands);
    let keeper = Keeper::Folder(Folder::new(root.path().to_owned()));
    let mut two =
        Reloader::new(keeper, other_names(), Issuance::Automatic, hands.clock(), Publication::default());
    one.look().await.unwrap();
    two.look().await.unwrap();
    let (first, second) = (served(&one), served(&two));
    for _ in 0..3 {
        one.look().await.unwrap();
        two.look().await.unwrap();
    }
    assert_eq!((served(&one), served(&two)), (first, second));
}
