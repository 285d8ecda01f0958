//! What the two kinds of webhook configuration have in common.

use std::fmt::Debug;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::serde::de::DeserializeOwned;
use k8s_openapi::{ByteString, ClusterResourceScope, Metadata};

use crate::bundle::Bundle;

/// A configuration of webhooks, of either kind.
pub(crate) trait Configuration:
    Metadata<Scope = ClusterResourceScope, Ty = ObjectMeta>
    + DeserializeOwned
    + Clone
    + Debug
    + Send
    + Sync
    + 'static
{
    /// Whether readiness waits for one of this kind: then each failure is logged, else one that lasts only once.
    const AWAITED: bool;

    /// Its webhooks, in their order.
    fn entries(&self) -> impl Iterator<Item = Entry<'_>>;
}

/// A webhook of a configuration.
pub(crate) struct Entry<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// What is in its `caBundle`.
    pub(super) bundle: Bundle,
}

impl<'a> Entry<'a> {
    fn of(name: &'a str, client: &WebhookClientConfig) -> Self {
        Self { name, bundle: bundle_of(client.ca_bundle.as_ref()) }
    }
}

impl Configuration for MutatingWebhookConfiguration {
    const AWAITED: bool = true;

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.webhooks.iter().flatten().map(|webhook| Entry::of(&webhook.name, &webhook.client_config))
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    const AWAITED: bool = false;

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.webhooks.iter().flatten().map(|webhook| Entry::of(&webhook.name, &webhook.client_config))
    }
}

/// The certificates in a `caBundle`.
pub(super) fn bundle_of(bytes: Option<&ByteString>) -> Bundle {
    bytes.map(|bytes| Bundle::parse_leniently(&bytes.0)).unwrap_or_default()
}
