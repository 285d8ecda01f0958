//! Keys in a cluster: a Secret with `seal.key`, and a ConfigMap of the same name with `KEYID.pem` for each key whose
//! seals are valid.
//!
//! The API server decides which replica creates the key: only one can create the Secret, and filling an empty Secret needs
//! the version that was read. Both objects are read every few seconds, so that every replica follows a change.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::Api;
use oras_csi_core::seal::{PublicKey, PublicKeys, SealKey};
use oras_csi_kube_support::call::call;
use oras_csi_kube_support::metadata;
use oras_csi_kube_support::repeated_failure::RepeatedFailure;
use oras_csi_kube_support::verb::Verb;
use oras_csi_kube_support::writes::{create_if_absent, merge_if_unchanged, replace_if_unchanged};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::{SealKeyError, SealKeys, Sealer, display_name};
use crate::FIELD_MANAGER;

const PRIVATE_KEY: &str = "seal.key";
/// How often the keys are read.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// How soon the keys are read again after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How long one request to the API server can take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a new key waits until it signs: kubelets read a ConfigMap about once a minute.
const DISTRIBUTION_TIME: Duration = Duration::from_mins(3);
/// How often a write is tried while other writers are first.
const MAX_CONFLICTS: usize = 5;

/// Makes a sealer that follows the Secret and the ConfigMap `namespace`/`name` until `shutdown`, and creates what is
/// missing.
pub fn follow_secret(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    shutdown: &CancellationToken,
    tasks: &TaskTracker,
) -> Sealer {
    let sealer = Sealer::without_keys_yet();
    let follower = KeyFollower {
        secrets: Api::namespaced(client.clone(), namespace),
        maps: Api::namespaced(client.clone(), namespace),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        rotation: Rotation::default(),
    };
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(follower.run(sealer.clone())));
    sealer
}

struct KeyFollower {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    namespace: String,
    name: String,
    rotation: Rotation,
}

/// Decides which private key signs while a new key replaces an old one.
#[derive(Default)]
struct Rotation {
    /// The key that signs, in PEM.
    signing: Option<Zeroizing<String>>,
    /// Until when the old key signs, during a rotation.
    until: Option<Instant>,
}

impl Rotation {
    /// Returns the key that signs: the key in the Secret, or the old key until every node knows the new one. An old key
    /// whose public half was removed does not sign any more.
    fn choose(
        &mut self,
        stored: Zeroizing<String>,
        key: SealKey,
        public: &PublicKeys,
        now: Instant,
    ) -> SealKey {
        let old = self.signing.as_ref().filter(|signing| **signing != stored);
        let old = old.and_then(|signing| SealKey::from_pem(signing).ok());
        let old = old.filter(|old| public.ids().any(|id| id == old.public().id()));
        if let Some(old) = old
            && now < *self.until.get_or_insert(now + DISTRIBUTION_TIME)
        {
            return old;
        }
        if self.signing.as_ref() != Some(&stored) {
            tracing::info!(key = %key.public().id(), "volumes are sealed with this key from now on");
        }
        self.until = None;
        self.signing = Some(stored);
        key
    }
}

impl KeyFollower {
    async fn run(mut self, sealer: Sealer) {
        let mut last = RepeatedFailure::default();
        loop {
            let wait = match self.read().await {
                Ok(keys) => {
                    tracing::debug!(key = %keys.signing.public().id(), "read the keys of the seal");
                    sealer.set(keys);
                    last.clear();
                    POLL_INTERVAL
                }
                Err(error) => {
                    let error = error.to_string();
                    if last.is_new(&error) {
                        tracing::warn!(
                            error,
                            "cannot read the keys of the seal; the keys that were read last stay in use"
                        );
                    }
                    RETRY_DELAY
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Reads the keys, and creates what is missing.
    async fn read(&mut self) -> Result<SealKeys, SealKeyError> {
        for _ in 0..MAX_CONFLICTS {
            let stored = self.private_key().await?;
            let failed = |source| SealKeyError::Key { place: self.secret_name(), source };
            let key = SealKey::from_pem(&stored).map_err(failed)?;
            if let Some(public) = self.public_keys(&stored, key.public()).await? {
                let signing = self.rotation.choose(stored, key, &public, Instant::now());
                return Ok(SealKeys { signing, public });
            }
        }
        Err(SealKeyError::Contended(self.map_name()))
    }

    /// Reads the private key in the Secret, or creates one.
    async fn private_key(&self) -> Result<Zeroizing<String>, SealKeyError> {
        for _ in 0..MAX_CONFLICTS {
            let found = self.request(Verb::Get, self.secret_name(), self.secrets.get_opt(&self.name)).await?;
            let is_new = found.is_none();
            let mut secret = found.unwrap_or_else(|| Secret {
                metadata: metadata::managed(&self.name),
                type_: Some("Opaque".to_owned()),
                ..Secret::default()
            });
            let data = secret.data.get_or_insert_default();
            if let Some(text) = data.get(PRIVATE_KEY).and_then(text_of) {
                return Ok(text);
            }
            let failed = |source| SealKeyError::Key { place: self.secret_name(), source };
            let pem = SealKey::generate().and_then(|key| key.to_pem()).map_err(failed)?;
            data.insert(PRIVATE_KEY.to_owned(), ByteString(pem.as_bytes().to_vec()));
            let written = if is_new {
                let create = create_if_absent(&self.secrets, &secret, FIELD_MANAGER);
                self.request(Verb::Create, self.secret_name(), create).await?
            } else {
                let replace = replace_if_unchanged(&self.secrets, &self.name, &secret, FIELD_MANAGER);
                self.request(Verb::Update, self.secret_name(), replace).await?
            };
            if written.is_some() {
                tracing::info!(secret = self.secret_name(), "created a key for seals");
                return Ok(pem);
            }
        }
        Err(SealKeyError::Contended(self.secret_name()))
    }

    /// Reads the public keys in the ConfigMap. If `own` is missing, adds it and returns `None`, as if another client had
    /// written: then the Secret and the ConfigMap are read again.
    ///
    /// An administrator revokes a key by deleting the Secret and then its entry in the ConfigMap. A replica that read the
    /// Secret before that must not put the entry back. So the Secret is read again after a ConfigMap without the entry: if
    /// the entry was removed, the Secret is gone by then. Later changes of the ConfigMap are found by its version.
    async fn public_keys(&self, stored: &str, own: &PublicKey) -> Result<Option<PublicKeys>, SealKeyError> {
        let found = self.request(Verb::Get, self.map_name(), self.maps.get_opt(&self.name)).await?;
        let keys = self.parse_keys(found.as_ref());
        if keys.contains(own) {
            return Ok(Some(keys.into_iter().collect()));
        }
        let secret = self.request(Verb::Get, self.secret_name(), self.secrets.get_opt(&self.name)).await?;
        let now = secret.and_then(|secret| text_of(secret.data.as_ref()?.get(PRIVATE_KEY)?));
        if now.is_none_or(|now| *now != stored) {
            return Ok(None);
        }
        let entry = format!("{}.pem", own.id());
        let written = if let Some(found) = found {
            // Only its own entry, so that entries that others add stay.
            let changes = json!({"data": {&entry: own.to_pem()}});
            let version = found.metadata.resource_version.as_deref();
            let merge = merge_if_unchanged(&self.maps, &self.name, version, changes, FIELD_MANAGER);
            self.request(Verb::Patch, self.map_name(), merge).await?
        } else {
            let data = BTreeMap::from([(entry, own.to_pem())]);
            let metadata = metadata::managed(&self.name);
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            let create = create_if_absent(&self.maps, &map, FIELD_MANAGER);
            self.request(Verb::Create, self.map_name(), create).await?
        };
        if written.is_some() {
            tracing::info!(map = self.map_name(), key = %own.id(), "added a public key");
        }
        Ok(None)
    }

    fn parse_keys(&self, map: Option<&ConfigMap>) -> Vec<PublicKey> {
        let mut keys = Vec::new();
        for (name, text) in map.and_then(|map| map.data.as_ref()).into_iter().flatten() {
            match PublicKey::from_pem(text) {
                Ok(key) => keys.push(key),
                Err(error) => {
                    tracing::warn!(map = self.map_name(), entry = name, %error, "skipped an entry that is not a public key");
                }
            }
        }
        keys
    }

    fn secret_name(&self) -> String {
        display_name("Secret", &self.namespace, &self.name)
    }

    fn map_name(&self) -> String {
        display_name("ConfigMap", &self.namespace, &self.name)
    }

    async fn request<T>(
        &self,
        verb: Verb,
        place: String,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, SealKeyError> {
        let answer = call(REQUEST_TIMEOUT, request).await;
        answer.map_err(|source| SealKeyError::Api { verb, place, source })
    }
}

/// Returns the text of an entry that is not empty.
fn text_of(entry: &ByteString) -> Option<Zeroizing<String>> {
    let text = || Zeroizing::new(String::from_utf8_lossy(&entry.0).into_owned());
    (!entry.0.is_empty()).then(text)
}

#[cfg(test)]
mod tests {
    use oras_csi_testkit::api_server::{ApiServer, Objects};
    use serde_json::Value;

    use super::*;

    const SECRET: &str = "/api/v1/namespaces/system/secrets/seal";
    const MAP: &str = "/api/v1/namespaces/system/configmaps/seal";

    fn follower(server: &ApiServer) -> KeyFollower {
        let client = server.client();
        KeyFollower {
            secrets: Api::namespaced(client.clone(), "system"),
            maps: Api::namespaced(client, "system"),
            namespace: "system".to_owned(),
            name: "seal".to_owned(),
            rotation: Rotation::default(),
        }
    }

    /// Stores a private key, and its public half as the only one.
    fn store(objects: &mut Objects, key: &SealKey) {
        store_private(objects, key);
        let metadata = json!({"name": "seal", "namespace": "system"});
        let data = json!({format!("{}.pem", key.public().id()): key.public().to_pem()});
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
        objects.insert(MAP.to_owned(), map);
    }

    fn store_private(objects: &mut Objects, key: &SealKey) {
        let metadata = json!({"name": "seal", "namespace": "system"});
        let data = json!({PRIVATE_KEY: ByteString(key.to_pem().unwrap().as_bytes().to_vec())});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data});
        objects.insert(SECRET.to_owned(), secret);
    }

    fn entries(server: &ApiServer) -> Vec<String> {
        let map = server.get(MAP).unwrap_or_default();
        let mut entries: Vec<_> =
            map["data"].as_object().into_iter().flat_map(serde_json::Map::keys).cloned().collect();
        entries.sort();
        entries
    }

    fn entry(key: &SealKey) -> String {
        format!("{}.pem", key.public().id())
    }

    #[tokio::test]
    async fn the_first_replica_creates_the_key_and_the_others_use_it() {
        let server = ApiServer::new();
        let keys = follower(&server).read().await.unwrap();
        assert_eq!(entries(&server), [entry(&keys.signing)]);
        let others = follower(&server).read().await.unwrap();
        assert_eq!(others.signing.public(), keys.signing.public());
        assert_eq!(entries(&server).len(), 1);
    }

    /// An administrator revokes a key, and another replica creates the next one, after this replica has read the Secret.
    #[tokio::test]
    async fn a_revoked_key_does_not_return_from_a_secret_that_was_read_before() {
        let (old, new) = (SealKey::generate().unwrap(), SealKey::generate().unwrap());
        let (revoked, next) = (entry(&old), entry(&new));
        let id = new.public().clone();
        let server = ApiServer::new();
        server.edit(|objects| store(objects, &old));
        server.answer_before(SECRET, move |objects| store(objects, &new));
        let keys = follower(&server).read().await.unwrap();
        assert_eq!(entries(&server), [next], "{revoked} is back");
        assert_eq!(*keys.signing.public(), id);
        assert_eq!(keys.public.ids().collect::<Vec<_>>(), [id.id()]);
    }

    /// The same, after this replica has read both objects and is about to add its entry for the first time.
    #[rstest::rstest]
    #[case::patched(true)]
    #[case::created(false)]
    #[tokio::test]
    async fn a_revoked_key_does_not_return_by_a_late_write(#[case] has_map: bool) {
        let (old, new) = (SealKey::generate().unwrap(), SealKey::generate().unwrap());
        let next = entry(&new);
        let server = ApiServer::new();
        server.edit(|objects| store_private(objects, &old));
        if has_map {
            let metadata = json!({"name": "seal", "namespace": "system"});
            server.put(MAP, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}));
        }
        server.meanwhile_at(SECRET, http::Method::GET, |_| {});
        server.answer_before(SECRET, move |objects| store(objects, &new));
        follower(&server).read().await.unwrap();
        assert_eq!(entries(&server), [next]);
    }

    #[tokio::test]
    async fn entries_of_other_keys_stay() {
        let (old, new) = (SealKey::generate().unwrap(), SealKey::generate().unwrap());
        let mut expected = vec![entry(&old), entry(&new)];
        expected.sort();
        let server = ApiServer::new();
        server.edit(|objects| store(objects, &old));
        server.edit(|objects| store_private(objects, &new));
        let keys = follower(&server).read().await.unwrap();
        assert_eq!(entries(&server), expected);
        assert_eq!(*keys.signing.public(), *new.public());
        let bodies = server.bodies();
        let patch: &Value = bodies.last().unwrap();
        assert_eq!(patch["data"].as_object().unwrap().len(), 1, "only its own entry: {patch}");
    }

    fn keys(keys: &[&SealKey]) -> PublicKeys {
        keys.iter().map(|key| key.public().clone()).collect()
    }

    fn parsed(key: &SealKey) -> (Zeroizing<String>, SealKey) {
        let pem = key.to_pem().unwrap();
        let key = SealKey::from_pem(&pem).unwrap();
        (pem, key)
    }

    #[test]
    fn a_new_key_signs_when_every_node_knows_it_or_at_once_if_the_old_key_is_removed() {
        let (old, new) = (SealKey::generate().unwrap(), SealKey::generate().unwrap());
        let start = Instant::now();
        let both = keys(&[&old, &new]);
        let signs = |rotation: &mut Rotation, stored: &SealKey, public: &PublicKeys, at: Instant| {
            let (pem, key) = parsed(stored);
            rotation.choose(pem, key, public, at).public().id().clone()
        };
        let mut rotation = Rotation::default();
        assert_eq!(signs(&mut rotation, &old, &both, start), *old.public().id());
        assert_eq!(signs(&mut rotation, &new, &both, start), *old.public().id());
        let shortly_before = start + DISTRIBUTION_TIME - Duration::from_secs(1);
        assert_eq!(signs(&mut rotation, &new, &both, shortly_before), *old.public().id());
        assert_eq!(signs(&mut rotation, &new, &both, start + DISTRIBUTION_TIME), *new.public().id());
        assert_eq!(signs(&mut rotation, &new, &both, start), *new.public().id(), "the new key keeps signing");

        let mut leaked = Rotation::default();
        assert_eq!(signs(&mut leaked, &old, &both, start), *old.public().id());
        assert_eq!(signs(&mut leaked, &new, &keys(&[&new]), start), *new.public().id());
    }
}
