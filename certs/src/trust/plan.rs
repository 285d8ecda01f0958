//! What has to be written into a webhook configuration. Pure.

use std::time::SystemTime;

use json_patch::{AddOperation, PatchOperation, TestOperation};
use jsonptr::PointerBuf;
use k8s_openapi::ByteString;
use serde_json::Value;

use super::configuration::{Configuration, Entry};
use crate::bundle::{Bundle, validity_of};

/// Annotations by which cert-manager's injector takes charge of the `caBundle`.
const INJECTORS: [&str; 3] = [
    "cert-manager.io/inject-ca-from",
    "cert-manager.io/inject-ca-from-secret",
    "cert-manager.io/inject-apiserver-ca",
];

/// What to do.
#[derive(Debug)]
pub(super) enum Plan {
    /// Write nothing.
    Nothing {
        /// Whether there are CAs that are not ours, to be removed later.
        others: bool,
    },
    /// Write this.
    Patch {
        /// Tests of `resourceVersion` and names, and the bundles.
        patch: json_patch::Patch,
        /// The webhooks that change.
        webhooks: Vec<String>,
    },
}

/// The annotation by which somebody else takes charge of the configuration's `caBundle`, if any does.
pub(super) fn injector(configuration: &impl Configuration) -> Option<&'static str> {
    let annotations = configuration.metadata().annotations.as_ref()?;
    INJECTORS.into_iter().find(|annotation| annotations.contains_key(*annotation))
}

/// What has to be written so that each webhook trusts all of `wanted`, and nothing else if `prune`.
///
/// CAs that are not wanted, and good at `now`, are kept unless `prune`.
pub(super) fn plan(
    configuration: &impl Configuration,
    wanted: &Bundle,
    prune: bool,
    now: SystemTime,
) -> Plan {
    if wanted.is_empty() || injector(configuration).is_some() {
        return Plan::Nothing { others: false };
    }
    let mut operations = Vec::new();
    let mut webhooks = Vec::new();
    let mut others = false;
    for (index, Entry { name, bundle: live }) in configuration.entries().enumerate() {
        let foreign = |certificate: &&_| !wanted.contains(certificate);
        let has_others = live.iter().any(|certificate| foreign(&certificate));
        others |= has_others;
        if live.contains_all(wanted) && !(prune && has_others) {
            continue;
        }
        let mut next = wanted.clone();
        if !prune {
            let good =
                |certificate: &&_| validity_of(certificate).is_ok_and(|validity| validity.contains(now));
            next.extend(live.iter().filter(foreign).filter(good).cloned());
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
        return Plan::Nothing { others };
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
