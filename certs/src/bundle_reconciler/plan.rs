//! The changes that a webhook configuration needs. No I/O.

use std::time::SystemTime;

use json_patch::{AddOperation, PatchOperation, TestOperation};
use jsonptr::PointerBuf;
use k8s_openapi::ByteString;
use serde_json::Value;

use super::webhook_configuration::{WebhookConfiguration, WebhookEntry};
use crate::ca_bundle::{CaBundle, validity_of};

/// The annotations with which the injector of cert-manager manages the `caBundle`.
const INJECTORS: [&str; 3] = [
    "cert-manager.io/inject-ca-from",
    "cert-manager.io/inject-ca-from-secret",
    "cert-manager.io/inject-apiserver-ca",
];

/// What to do with CAs in a `caBundle` that this process does not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForeignCas {
    /// Keep those that are valid: another replica may use them.
    Keep,
    /// Remove them.
    Remove,
}

/// What to write.
#[derive(Debug)]
pub(super) enum Plan {
    /// Write nothing.
    Nothing {
        /// Whether there are CAs that this process does not use, which are removed later.
        has_foreign_cas: bool,
    },
    /// Write this patch.
    Patch {
        /// Tests of `resourceVersion` and of names, and the new bundles.
        patch: json_patch::Patch,
        /// The webhooks that change.
        webhooks: Vec<String>,
    },
}

/// Returns the annotation with which cert-manager manages the `caBundle` of the configuration, if there is one.
pub(super) fn injector(configuration: &impl WebhookConfiguration) -> Option<&'static str> {
    let annotations = configuration.metadata().annotations.as_ref()?;
    INJECTORS.into_iter().find(|annotation| annotations.contains_key(*annotation))
}

/// Plans the changes after which each webhook trusts all CAs in `desired`. Valid foreign CAs stay or go, as `foreign` says;
/// expired ones are removed.
pub(super) fn plan(
    configuration: &impl WebhookConfiguration,
    desired: &CaBundle,
    foreign: ForeignCas,
    now: SystemTime,
) -> Plan {
    if desired.is_empty() || injector(configuration).is_some() {
        return Plan::Nothing { has_foreign_cas: false };
    }
    let mut operations = Vec::new();
    let mut webhooks = Vec::new();
    let remove = foreign == ForeignCas::Remove;
    let mut has_foreign_cas = false;
    for (index, WebhookEntry { name, bundle: live }) in configuration.entries().enumerate() {
        let is_foreign = |certificate: &&_| !desired.contains(certificate);
        let has_foreign = live.iter().any(|certificate| is_foreign(&certificate));
        has_foreign_cas |= has_foreign;
        if live.contains_all(desired) && !(remove && has_foreign) {
            continue;
        }
        let mut next = desired.clone();
        if !remove {
            let is_valid =
                |certificate: &&_| validity_of(certificate).is_ok_and(|validity| validity.contains(now));
            next.extend(live.iter().filter(is_foreign).filter(is_valid).cloned());
        }
        let index = index.to_string();
        operations.push(test(["webhooks", &index, "name"], name.into()));
        operations.push(PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(["webhooks", &index, "clientConfig", "caBundle"]),
            value: serde_json::to_value(ByteString(next.pem().into_bytes())).unwrap_or_default(),
        }));
        webhooks.push(name.to_owned());
    }
    if operations.is_empty() {
        return Plan::Nothing { has_foreign_cas };
    }
    if let Some(version) = &configuration.metadata().resource_version {
        operations.insert(0, test(["metadata", "resourceVersion"], version.as_str().into()));
    }
    Plan::Patch { patch: json_patch::Patch(operations), webhooks }
}

fn test<const N: usize>(path: [&str; N], value: Value) -> PatchOperation {
    PatchOperation::Test(TestOperation { path: PointerBuf::from_tokens(path), value })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
