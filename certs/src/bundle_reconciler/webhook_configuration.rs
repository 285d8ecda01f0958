//! What the two kinds of webhook configurations have in common.

use std::fmt::Debug;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::serde::de::DeserializeOwned;
use k8s_openapi::{ByteString, ClusterResourceScope, Metadata};

use crate::ca_bundle::CaBundle;

/// A MutatingWebhookConfiguration or a ValidatingWebhookConfiguration.
pub(crate) trait WebhookConfiguration:
    Metadata<Scope = ClusterResourceScope, Ty = ObjectMeta>
    + DeserializeOwned
    + Clone
    + Debug
    + Send
    + Sync
    + 'static
{
    /// Whether readiness waits for a configuration of this kind. If it does, every failure is logged; otherwise a failure is
    /// logged once until it changes.
    const READINESS_WAITS: bool;

    /// Returns the webhooks, in their order.
    fn entries(&self) -> impl Iterator<Item = WebhookEntry<'_>>;
}

/// A webhook of a configuration.
pub(crate) struct WebhookEntry<'a> {
    /// The name.
    pub(super) name: &'a str,
    /// The certificates in its `caBundle`.
    pub(super) bundle: CaBundle,
}

impl<'a> WebhookEntry<'a> {
    fn of(name: &'a str, client: &WebhookClientConfig) -> Self {
        Self { name, bundle: bundle_of(client.ca_bundle.as_ref()) }
    }
}

impl WebhookConfiguration for MutatingWebhookConfiguration {
    const READINESS_WAITS: bool = true;

    fn entries(&self) -> impl Iterator<Item = WebhookEntry<'_>> {
        self.webhooks.iter().flatten().map(|webhook| WebhookEntry::of(&webhook.name, &webhook.client_config))
    }
}

impl WebhookConfiguration for ValidatingWebhookConfiguration {
    const READINESS_WAITS: bool = false;

    fn entries(&self) -> impl Iterator<Item = WebhookEntry<'_>> {
        self.webhooks.iter().flatten().map(|webhook| WebhookEntry::of(&webhook.name, &webhook.client_config))
    }
}

/// Parses the certificates in a `caBundle`.
pub(super) fn bundle_of(bytes: Option<&ByteString>) -> CaBundle {
    bytes.map(|bytes| CaBundle::parse_leniently(&bytes.0)).unwrap_or_default()
}
