//! A Secret with the CA.
//!
//! No lease is needed, because the API server decides which process is first: only one can create the Secret
//! (`AlreadyExists` for all others), and filling a Secret that a chart created empty needs the `resourceVersion` that was
//! read.

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta};
use oras_csi_kube_support::metadata;
use oras_csi_kube_support::verb::Verb;
use oras_csi_kube_support::writes::{create_if_absent, replace_if_unchanged};

use crate::FIELD_MANAGER;
use crate::authority::Authority;
use crate::entries::{CA_CRT, CA_KEY, CA_PREVIOUS_CRT, Entries, TLS_CRT, TLS_KEY};
use crate::error::Error;

/// A Secret that holds the CA.
#[derive(Clone)]
pub(crate) struct CaSecret {
    api: Api<Secret>,
    namespace: String,
    name: String,
}

impl CaSecret {
    /// The Secret `namespace`/`name`, which may not exist yet.
    pub(crate) fn new(client: kube::Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Returns the Secret as messages name it.
    pub(crate) fn place(&self) -> String {
        format!("Secret {}/{}", self.namespace, self.name)
    }

    /// Reads all entries. An empty entry counts as missing.
    pub(crate) async fn read(&self) -> Result<Entries, Error> {
        Ok(entries(self.get().await?.and_then(|secret| secret.data).unwrap_or_default()))
    }

    /// Stores `proposed`, unless there is a CA already or another process is first. Other entries, labels and annotations of
    /// an existing Secret stay as they are.
    pub(crate) async fn store_ca(&self, proposed: &Authority, now: SystemTime) -> Result<(), Error> {
        match self.get().await? {
            None => {
                let created = create_if_absent(&self.api, &self.new_secret(proposed), FIELD_MANAGER).await;
                let hint =
                    "grant create on secrets in this namespace, or create an empty Secret of this name";
                created.map(drop).map_err(|error| self.failed(Verb::Create, hint, error))
            }
            Some(mut secret) => {
                let data = secret.data.get_or_insert_default();
                let found = entries(data.clone());
                if found.ca_crt.is_some() || found.tls_crt.is_some() || found.tls_key.is_some() {
                    return Ok(());
                }
                let completed;
                let authority = if let Some(key) = &found.ca_key {
                    completed = Authority::for_existing_key(&self.place(), key, now)?;
                    &completed
                } else {
                    data.insert(CA_KEY.to_owned(), ByteString(proposed.key_pem().into()));
                    proposed
                };
                data.insert(CA_CRT.to_owned(), ByteString(authority.certificate_pem().into()));
                let replaced = replace_if_unchanged(&self.api, &self.name, &secret, FIELD_MANAGER).await;
                let hint = "grant update on this Secret, and do not make it immutable";
                replaced.map(drop).map_err(|error| self.failed(Verb::Update, hint, error))
            }
        }
    }

    async fn get(&self) -> Result<Option<Secret>, Error> {
        self.api.get_opt(&self.name).await.map_err(|error| {
            let hint = "grant get on this Secret";
            self.failed(Verb::Get, hint, error)
        })
    }

    fn new_secret(&self, authority: &Authority) -> Secret {
        Secret {
            metadata: ObjectMeta { namespace: Some(self.namespace.clone()), ..metadata::managed(&self.name) },
            type_: Some("Opaque".to_owned()),
            data: Some(BTreeMap::from([
                (CA_CRT.to_owned(), ByteString(authority.certificate_pem().into())),
                (CA_KEY.to_owned(), ByteString(authority.key_pem().into())),
            ])),
            ..Secret::default()
        }
    }

    fn failed(&self, verb: Verb, hint: &'static str, error: kube::Error) -> Error {
        Error::Api { verb, place: self.place(), hint, source: Box::new(error) }
    }
}

impl std::fmt::Debug for CaSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaSecret").field("place", &self.place()).finish_non_exhaustive()
    }
}

fn entries(mut data: BTreeMap<String, ByteString>) -> Entries {
    let mut take = |entry: &str| data.remove(entry).map(|bytes| bytes.0).filter(|bytes| !bytes.is_empty());
    Entries {
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
