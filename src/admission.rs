//! Builds the admission pipeline that `webhook`, `render` and `explain` share.

use std::sync::Arc;

use oras_csi_core::registry::Registry;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_webhook::ResolverSettings;
use oras_csi_webhook::admit::Admission;
use oras_csi_webhook::credentials::CredentialSources;
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::policy::Policies;

/// Builds the admission pipeline. `render` and `explain` use the same one as the webhook, so their results are equal.
pub(crate) fn admission(
    registry: Arc<dyn Registry>,
    hosts: &HostsConfig,
    policies: Arc<Policies>,
    credentials: CredentialSources,
    metrics: &Arc<Metrics>,
) -> Admission {
    let registries = Arc::new(hosts.clone());
    Admission::new(registry, registries, policies, ResolverSettings::default(), Arc::clone(metrics))
        .with_credentials(credentials)
}
