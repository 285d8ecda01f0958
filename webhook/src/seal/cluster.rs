//! Keys in a cluster: a Secret with `seal.key`, and a ConfigMap of the same name with `KEYID.pem` for each key whose
//! seals count.
//!
//! The API server decides who is first: creating is refused to all but one, and filling an empty Secret needs the
//! version that was read. Both are read every few seconds, so that every replica follows a change by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use oras_csi_core::seal::{PublicKey, PublicKeys, SealKey};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::{Ring, SealKeyError, Sealer, place};
use crate::FIELD_MANAGER;

const PRIVATE: &str = "seal.key";
/// How often the keys are read, and how soon again after a failure.
const EVERY: Duration = Duration::from_secs(10);
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How long the API server may take for one answer.
const LONGEST_CALL: Duration = Duration::from_secs(10);
/// How long a new key waits for kubelets, which look at a ConfigMap every minute or so.
const SETTLE: Duration = Duration::from_mins(3);
/// How often somebody else may come first before it is an error.
const MOST_CONFLICTS: usize = 5;

/// A sealer that follows the Secret and the ConfigMap `namespace`/`name`, making what is missing, until `shutdown`.
pub fn keep(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    shutdown: &CancellationToken,
    tasks: &TaskTracker,
) -> Sealer {
    let sealer = Sealer::waiting();
    let keeper = Keeper {
        secrets: Api::namespaced(client.clone(), namespace),
        maps: Api::namespaced(client.clone(), namespace),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        signing: Signing::default(),
    };
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(keeper.run(sealer.clone())));
    sealer
}

struct Keeper {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    namespace: String,
    name: String,
    signing: Signing,
}

/// Which private key signs.
#[derive(Default)]
struct Signing {
    /// The one of the moment, in PEM.
    current: Option<Zeroizing<String>>,
    /// Until when that is another than the kept one.
    settling: Option<Instant>,
}

impl Signing {
    /// The kept key, unless the one before it has to do until every node knows the new one.
    fn choose(
        &mut self,
        kept: Zeroizing<String>,
        key: SealKey,
        public: &PublicKeys,
        now: Instant,
    ) -> SealKey {
        let before = self.current.as_ref().filter(|current| **current != kept);
        let before = before.and_then(|current| SealKey::from_pem(current).ok());
        let before = before.filter(|before| public.ids().any(|id| id == before.public().id()));
        if let Some(before) = before
            && now < *self.settling.get_or_insert(now + SETTLE)
        {
            return before;
        }
        if self.current.as_ref() != Some(&kept) {
            tracing::info!(key = %key.public().id(), "volumes are sealed with this key from now on");
        }
        self.settling = None;
        self.current = Some(kept);
        key
    }
}

impl Keeper {
    async fn run(mut self, sealer: Sealer) {
        let mut trouble = String::new();
        loop {
            let wait = match self.round().await {
                Ok(ring) => {
                    tracing::debug!(key = %ring.signing.public().id(), "the seal's keys were read");
                    sealer.set(ring);
                    trouble.clear();
                    EVERY
                }
                Err(error) => {
                    let words = error.to_string();
                    if words != trouble {
                        tracing::warn!(error = words, "the seal's keys; the last good ones stay");
                        trouble = words;
                    }
                    AFTER_FAILURE
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// The keys as they are from now on.
    async fn round(&mut self) -> Result<Ring, SealKeyError> {
        let kept = self.private().await?;
        let at = || place("Secret", &self.namespace, &self.name);
        let key = SealKey::from_pem(&kept).map_err(|source| SealKeyError::Key { place: at(), source })?;
        let public = self.public(key.public()).await?;
        let signing = self.signing.choose(kept, key, &public, Instant::now());
        Ok(Ring { signing, public })
    }

    /// The private key that the Secret keeps, made where there is none.
    async fn private(&self) -> Result<Zeroizing<String>, SealKeyError> {
        let at = || place("Secret", &self.namespace, &self.name);
        for _ in 0..MOST_CONFLICTS {
            let found = call("get", at(), self.secrets.get_opt(&self.name)).await?;
            let (mut secret, is_new) = match found {
                None => (self.fresh(), true),
                Some(secret) => (secret, false),
            };
            let data = secret.data.get_or_insert_default();
            if let Some(text) = data.get(PRIVATE).filter(|text| !text.0.is_empty()) {
                return Ok(Zeroizing::new(String::from_utf8_lossy(&text.0).into_owned()));
            }
            let failed = |source| SealKeyError::Key { place: at(), source };
            let pem = SealKey::generate().and_then(|key| key.to_pem()).map_err(failed)?;
            data.insert(PRIVATE.to_owned(), ByteString(pem.as_bytes().to_vec()));
            let params =
                PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
            let written = if is_new {
                call("create", at(), self.secrets.create(&params, &secret)).await
            } else {
                call("update", at(), self.secrets.replace(&self.name, &params, &secret)).await
            };
            match written {
                Ok(_) => {
                    tracing::info!(secret = at(), "a key for seals was made");
                    return Ok(pem);
                }
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(SealKeyError::Contended(at()))
    }

    fn fresh(&self) -> Secret {
        Secret { metadata: self.metadata(), type_: Some("Opaque".to_owned()), ..Secret::default() }
    }

    fn metadata(&self) -> ObjectMeta {
        let labels = BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "oras-csi".to_owned())]);
        ObjectMeta { name: Some(self.name.clone()), labels: Some(labels), ..ObjectMeta::default() }
    }

    /// The public keys that the ConfigMap has, `own` among them.
    async fn public(&self, own: &PublicKey) -> Result<PublicKeys, SealKeyError> {
        let at = || place("ConfigMap", &self.namespace, &self.name);
        let entry = format!("{}.pem", own.id());
        for _ in 0..MOST_CONFLICTS {
            let found = call("get", at(), self.maps.get_opt(&self.name)).await?;
            let Some(found) = found else {
                let data = BTreeMap::from([(entry.clone(), own.to_pem())]);
                let map = ConfigMap { metadata: self.metadata(), data: Some(data), ..ConfigMap::default() };
                let params =
                    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                match call("create", at(), self.maps.create(&params, &map)).await {
                    Err(error) if !is_conflict(&error) => return Err(error),
                    _ => continue,
                }
            };
            let mut keys = Vec::new();
            for (name, text) in found.data.unwrap_or_default() {
                match PublicKey::from_pem(&text) {
                    Ok(key) => keys.push(key),
                    Err(error) => {
                        tracing::warn!(map = at(), entry = name, %error, "an entry is no public key");
                    }
                }
            }
            if keys.contains(own) {
                return Ok(keys.into_iter().collect());
            }
            // Only its own entry: what others add at the same time stays.
            let patch = Patch::Merge(json!({"data": {&entry: own.to_pem()}}));
            let params =
                PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            call("patch", at(), self.maps.patch(&self.name, &params, &patch)).await?;
            tracing::info!(map = at(), key = %own.id(), "a public key was added");
        }
        Err(SealKeyError::Contended(at()))
    }
}

async fn call<T>(
    action: &'static str,
    place: String,
    asking: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, SealKeyError> {
    match tokio::time::timeout(LONGEST_CALL, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(SealKeyError::Api { action, place, source: Box::new(source) }),
        Err(_) => Err(SealKeyError::Late { action, place }),
    }
}

/// Somebody else was first.
fn is_conflict(error: &SealKeyError) -> bool {
    matches!(error, SealKeyError::Api { source, .. } if matches!(&**source, kube::Error::Api(status) if status.code == 409))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[&SealKey]) -> PublicKeys {
        keys.iter().map(|key| key.public().clone()).collect()
    }

    fn again(key: &SealKey) -> (Zeroizing<String>, SealKey) {
        let pem = key.to_pem().unwrap();
        let key = SealKey::from_pem(&pem).unwrap();
        (pem, key)
    }

    #[test]
    fn a_new_key_signs_once_every_node_knows_it_and_at_once_where_the_old_one_is_dropped() {
        let (old, new) = (SealKey::generate().unwrap(), SealKey::generate().unwrap());
        let begun = Instant::now();
        let both = keys(&[&old, &new]);
        let signs = |signing: &mut Signing, kept: &SealKey, public: &PublicKeys, at: Instant| {
            let (pem, key) = again(kept);
            signing.choose(pem, key, public, at).public().id().clone()
        };
        let mut signing = Signing::default();
        assert_eq!(signs(&mut signing, &old, &both, begun), *old.public().id());
        assert_eq!(signs(&mut signing, &new, &both, begun), *old.public().id());
        let nearly = begun + SETTLE - Duration::from_secs(1);
        assert_eq!(signs(&mut signing, &new, &both, nearly), *old.public().id());
        assert_eq!(signs(&mut signing, &new, &both, begun + SETTLE), *new.public().id());
        assert_eq!(signs(&mut signing, &new, &both, begun), *new.public().id(), "and stays");

        let mut leaked = Signing::default();
        assert_eq!(signs(&mut leaked, &old, &both, begun), *old.public().id());
        assert_eq!(signs(&mut leaked, &new, &keys(&[&new]), begun), *new.public().id());
    }
}
