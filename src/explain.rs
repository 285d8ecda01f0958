//! `oras-csi explain`.

use clap::{Args, ValueEnum};
use oras_csi_core::digest::Digest;
use oras_csi_core::id::VolumeId;
use oras_csi_core::recipe::{Layer, Recipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::Registry as _;
use oras_csi_core::registry::hosts::HostsConfig;
use serde_json::{Map, Value, json};

use crate::failure::{Failure, Status};
use crate::registries::{RegistryOptions, RuleOptions, client};

/// Says how a reference is read: host, repository, tag and digest, the recipe and id of a volume of it, and
/// whether it is allowed.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The reference, as in an annotation.
    #[arg(value_name = "REF")]
    reference: String,
    /// How to write.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Ask no registry: a tag stays without its digest.
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    registries: RegistryOptions,
    #[command(flatten)]
    rules: RuleOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Lines for people.
    Text,
    /// One JSON object.
    Json,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let hosts = arguments.registries.hosts()?;
    let reference = Reference::parse_knowing(&arguments.reference, &|host| hosts.names(host));
    let reference = reference.map_err(Failure::bad_input)?;
    let allowed = arguments.rules.patterns().is_empty() || arguments.rules.allowing(&reference).is_some();
    let digest = match reference.digest() {
        Some(digest) => Some(digest.clone()),
        None if allowed && !arguments.offline => Some(resolve(&hosts, &reference).await?),
        None => None,
    };
    let explained = explain(&reference, digest.as_ref(), &arguments.rules)?;
    match arguments.output {
        Format::Json => println!("{}", Value::Object(explained)),
        Format::Text => print_lines(&explained),
    }
    if allowed {
        return Ok(());
    }
    let patterns = arguments.rules.patterns().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(Failure::new(
        Status::Denied,
        format!("{reference} is in a registry that is not allowed (--allow-registry {patterns})"),
    ))
}

async fn resolve(hosts: &HostsConfig, reference: &Reference) -> Result<Digest, Failure> {
    Ok(client(hosts).resolve(reference).await?.digest().clone())
}

fn explain(
    reference: &Reference,
    digest: Option<&Digest>,
    rules: &RuleOptions,
) -> Result<Map<String, Value>, Failure> {
    let mut explained = Map::new();
    explained.insert("reference".into(), json!(reference));
    explained.insert("host".into(), json!(reference.registry()));
    explained.insert("repository".into(), json!(reference.repository()));
    if let Some(tag) = reference.tag() {
        explained.insert("tag".into(), json!(tag));
    }
    if let Some(digest) = digest {
        explained.insert("digest".into(), json!(digest));
        let recipe =
            Recipe::new(vec![Step::Add(Layer::new(reference.clone()))]).map_err(Failure::bad_input)?;
        let recipe = recipe.pin(|_| Ok::<_, Failure>(digest.clone()))?;
        explained.insert("recipe".into(), json!(recipe.to_json()));
        explained.insert("id".into(), json!(VolumeId::new(None, &recipe).as_str()));
    }
    let verdict = if rules.patterns().is_empty() {
        json!({"allowed": true, "rule": "every registry is allowed"})
    } else if let Some(pattern) = rules.allowing(reference) {
        json!({"allowed": true, "rule": format!("--allow-registry {pattern}")})
    } else {
        json!({"allowed": false, "rule": "no --allow-registry matches"})
    };
    explained.insert("policy".into(), verdict);
    Ok(explained)
}

fn print_lines(explained: &Map<String, Value>) {
    for (key, value) in explained {
        match value {
            Value::String(text) => println!("{key:<11} {text}"),
            Value::Object(verdict) => {
                let allowed = verdict.get("allowed") == Some(&Value::Bool(true));
                let rule = verdict.get("rule").and_then(Value::as_str).unwrap_or_default();
                println!("{key:<11} {} ({rule})", if allowed { "allowed" } else { "denied" });
            }
            other => println!("{key:<11} {other}"),
        }
    }
    if !explained.contains_key("digest") {
        println!("{:<11} not looked up", "digest");
    }
}
