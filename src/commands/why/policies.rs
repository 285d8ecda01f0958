//! The decisions of the policies of a cluster about the artifacts of a pod. No registry is contacted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use oras_csi_core::policy::{Mode, Rule};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_webhook::credentials::CredentialSources;
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::policy::{Entry, Labels, Namespaces, NamespacesError, NoPolicy, Policies};
use serde_json::Value;
use tokio::time::Instant;

use super::facts::{Decision, PolicyView};
use crate::admission::admission;
use crate::cluster::format::shown;
use crate::registry_client::interactive_client;

/// How long the evaluation may take. It does no I/O.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The labels of one namespace. Without them, all policies are evaluated.
struct OneNamespace(Option<BTreeMap<String, String>>);

#[async_trait]
impl Namespaces for OneNamespace {
    async fn labels(&self, _: &str) -> Result<Labels, NamespacesError> {
        Ok(self.0.clone().map_or(Labels::Unknown, Labels::Known))
    }
}

/// Evaluates the policies that select a namespace for references.
pub(super) async fn evaluate(
    objects: &[Value],
    namespace: &str,
    labels: Option<BTreeMap<String, String>>,
    references: &[Reference],
) -> Vec<PolicyView> {
    let mut views = Vec::new();
    for object in objects {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        match Entry::from_manifest(object) {
            Ok(entry) => {
                let policies = Policies::new(Vec::new(), NoPolicy::Allow, OneNamespace(labels.clone()));
                policies.set_files(vec![entry]);
                views.extend(decide(Arc::new(policies), namespace, references).await);
            }
            Err(error) => views.push(PolicyView {
                name,
                mode: Mode::Enforce.as_str().to_owned(),
                decision: Decision::Unreadable(shown(&error.to_string())),
            }),
        }
    }
    views.sort_by(|one, other| one.name.cmp(&other.name));
    views
}

/// Returns the decision of one policy, or `None` if it does not select the namespace.
async fn decide(policies: Arc<Policies>, namespace: &str, references: &[Reference]) -> Option<PolicyView> {
    let hosts = HostsConfig::default();
    let metrics = Arc::new(Metrics::new());
    let admission =
        admission(interactive_client(&hosts), &hosts, policies, CredentialSources::default(), &metrics);
    let deadline = Instant::now() + TIMEOUT;
    let mut view: Option<PolicyView> = None;
    for reference in references {
        let evaluations =
            admission.preview().evaluate_reference(reference, namespace, deadline).await.ok()?;
        for evaluation in evaluations {
            let decision = if evaluation.is_broken() {
                let rule = evaluation.rule().map(Rule::as_str).unwrap_or_default();
                let component = evaluation.component().unwrap_or_default();
                Decision::Broken { reference: reference.to_string(), rule: format!("{rule} ({component})") }
            } else {
                Decision::Passes
            };
            match &mut view {
                Some(view) if view.decision == Decision::Passes => view.decision = decision,
                Some(_) => {}
                None => {
                    let name = evaluation.author().name().to_owned();
                    view = Some(PolicyView { name, mode: evaluation.mode().as_str().to_owned(), decision });
                }
            }
        }
    }
    view
}
