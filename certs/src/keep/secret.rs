//! A Secret that keeps a CA.
//!
//! No lease is needed: creation is decided by the API server (`AlreadyExists` to all but one), and so is
//! filling a Secret that a chart made empty (its `resourceVersion` must be the one that was read).

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::core::response::reason;

use crate::contents::{CA_CRT, CA_KEY, CA_PREVIOUS_CRT, Contents, TLS_CRT, TLS_KEY};
use crate::error::Error;
use crate::issue::Authority;

/// Who writes, for the API server's record.
const FIELD_MANAGER: &str = "oras-csi-certs";

/// A Secret that keeps a CA.
#[derive(Clone)]
pub(crate) struct SecretKeeper {
    api: Api<Secret>,
    namespace: String,
    name: String,
}

impl SecretKeeper {
    /// The Secret `namespace`/`name`, which need not exist.
    pub(crate) fn new(client: kube::Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The Secret as people know it.
    pub(crate) fn place(&self) -> String {
        format!("Secret {}/{}", self.namespace, self.name)
    }

    /// Reads all entries; an empty one counts as none.
    pub(crate) async fn read(&self) -> Result<Contents, Error> {
        Ok(contents(self.get().await?.and_then(|secret| secret.data).unwrap_or_default()))
    }

    /// Keeps `proposed`, unless there is a CA already or another process comes first. Other entries,
    /// labels and annotations of a Secret that exists are left as they are.
    pub(crate) async fn establish(&self, proposed: &Authority, now: SystemTime) -> Result<(), Error> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match self.get().await? {
            None => {
                let secret = self.fresh(proposed);
                self.api.create(&params, &secret).await.map(drop).or_else(|error| {
                    let hint =
                        "grant create on secrets in this namespace, or make an empty Secret of this name";
                    allow(error, reason::ALREADY_EXISTS).map_err(|error| self.failed("create", hint, error))
                })
            }
            Some(mut secret) => {
                let data = secret.data.get_or_insert_default();
                let found = contents(data.clone());
                if found.ca_crt.is_some() || found.tls_crt.is_some() || found.tls_key.is_some() {
                    return Ok(());
                }
                let finished;
                let kept = if let Some(key) = &found.ca_key {
                    finished = Authority::finish(&self.place(), key, now)?;
                    &finished
                } else {
                    data.insert(CA_KEY.to_owned(), ByteString(proposed.key_pem().into()));
                    proposed
                };
                data.insert(CA_CRT.to_owned(), ByteString(kept.certificate_pem().into()));
                self.api.replace(&self.name, &params, &secret).await.map(drop).or_else(|error| {
                    let hint = "grant update on this Secret, and do not make it immutable";
                    allow(error, reason::CONFLICT).map_err(|error| self.failed("update", hint, error))
                })
            }
        }
    }

    async fn get(&self) -> Result<Option<Secret>, Error> {
        self.api.get_opt(&self.name).await.map_err(|error| {
            self.failed("get", "grant get on this Secret, and see that the API server can be reached", error)
        })
    }

    fn fresh(&self, authority: &Authority) -> Secret {
        let labels = BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "oras-csi".to_owned())]);
        Secret {
            metadata: ObjectMeta {
                namespace: Some(self.namespace.clone()),
                name: Some(self.name.clone()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(BTreeMap::from([
                (CA_CRT.to_owned(), ByteString(authority.certificate_pem().into())),
                (CA_KEY.to_owned(), ByteString(authority.key_pem().into())),
            ])),
            ..Secret::default()
        }
    }

    fn failed(&self, action: &'static str, hint: &'static str, error: kube::Error) -> Error {
        Error::Api { action, place: self.place(), hint, source: Box::new(error) }
    }
}

impl std::fmt::Debug for SecretKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretKeeper").field("place", &self.place()).finish_non_exhaustive()
    }
}

/// Turns the refusal that means "somebody else was first" into success.
fn allow(error: kube::Error, expected: &str) -> Result<(), kube::Error> {
    match error {
        kube::Error::Api(status) if status.reason == expected => Ok(()),
        error => Err(error),
    }
}

fn contents(mut data: BTreeMap<String, ByteString>) -> Contents {
    let mut take = |entry: &str| data.remove(entry).map(|bytes| bytes.0).filter(|bytes| !bytes.is_empty());
    Contents {
        ca_crt: take(CA_CRT),
        ca_key: take(CA_KEY),
        ca_previous: take(CA_PREVIOUS_CRT),
        tls_crt: take(TLS_CRT),
        tls_key: take(TLS_KEY),
    }
}

#[cfg(test)]
#[path = "secret_tests.rs"]
mod tests;
