//! `oras-csi explain REF`.

use std::sync::Arc;

use oras_csi_core::recipe::{Layer, Recipe, Step};
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::volume_id::VolumeId;
use oras_csi_webhook::credentials::CredentialSources;
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::policy::Loaded;
use serde_json::{Value, json};

use super::arguments::Arguments;
use super::report::{describe_rule, is_denial, lines, policy_keys, reference_keys};
use crate::admission::admission;
use crate::exit_status::{ExitStatus, Failure};
use crate::options::output::OutputFormat;
use crate::parsing::parse_reference;
use crate::registry_client::{interactive_client, resolve_digest, with_credentials};
use crate::standard_output::write_stdout;

/// Explains one reference. A denial is reported after the output.
pub(super) async fn explain_reference(
    text: &str,
    hosts: &HostsConfig,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let reference = parse_reference(text, hosts)?;
    let policies = arguments.policies.policies(Loaded::default())?;
    let own = arguments.registries.user_credentials()?;
    let credentials = CredentialSources { administrator: own.clone(), ..CredentialSources::default() };
    let registry = with_credentials(interactive_client(hosts), own);
    let admission =
        admission(interactive_client(hosts), hosts, policies, credentials, &Arc::new(Metrics::new()));
    let namespace = arguments.admission.namespace();
    let deadline = arguments.admission.deadline();
    let mut opinions = admission.preview().evaluate_reference(&reference, namespace, deadline).await?;
    // As in the webhook, a denied reference causes no registry request.
    let use_network = !arguments.offline && !opinions.iter().any(is_denial);
    let digest = match reference.digest() {
        Some(digest) => Some(digest.clone()),
        None if use_network => Some(resolve_digest(registry.as_ref(), &reference).await?),
        None => None,
    };
    if let Some(digest) = digest.as_ref().filter(|_| use_network) {
        let pinned = reference.pin(digest.clone());
        for later in admission.preview().evaluate_contents(&reference, &pinned, namespace, deadline).await? {
            match opinions.iter_mut().find(|opinion| opinion.author() == later.author()) {
                Some(opinion) if !opinion.is_broken() && later.is_broken() => *opinion = later,
                _ => {}
            }
        }
    }
    let denial = opinions.iter().find(|opinion| is_denial(opinion));
    let mut keys = reference_keys(&reference, digest.as_ref());
    if let Some(source) = registry.accepted_source(reference.registry(), reference.repository()) {
        keys.insert("credentials".into(), json!(source.to_string()));
    }
    if let Some(digest) = digest {
        let recipe =
            Recipe::new(vec![Step::Add(Layer::new(reference.clone()))]).map_err(Failure::bad_input)?;
        let recipe = recipe.pin(|_| Ok::<_, Failure>(digest.clone()))?;
        keys.insert("recipe".into(), json!(recipe.to_json()));
        keys.insert("id".into(), json!(VolumeId::new(None, &recipe).as_str()));
    }
    keys.extend(policy_keys(&opinions, use_network));
    write_stdout(&match arguments.output {
        OutputFormat::Json => format!("{}\n", Value::Object(keys)),
        OutputFormat::Text => lines(&keys, ""),
    })?;
    match denial {
        None => Ok(()),
        Some(denial) => Err(Failure::new(
            ExitStatus::Denied,
            format!("{reference} is denied by {}, rule {}", denial.author(), describe_rule(denial)),
        )),
    }
}
