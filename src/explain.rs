//! `oras-csi explain`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;
use oras_csi_core::policy::{Mode, Rule};
use oras_csi_core::recipe::{Layer, Recipe, Step};
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_core::volume_id::VolumeId;
use oras_csi_webhook::admit::{Admission, Asked, AskedVolume};
use oras_csi_webhook::credentials::CredentialSources;
use oras_csi_webhook::denial::Denial;
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::policy::{Evaluation, Loaded};
use serde_json::{Map, Value, json};

use crate::asking::Asking;
use crate::documents::{AskedAs, describe, read_manifests, write_out};
use crate::failure::{Failure, Status};
use crate::policies::{PolicyOptions, stated, stated_secrets};
use crate::registries::{RegistryOptions, access, admission, client, digest_of};
use crate::sets::StatedSets;

/// Says how a reference, or each one that the pods of manifests ask for, is read: host, repository, tag and
/// digest, the recipe and id of its volume, and what policies say of it.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The reference, as in an annotation.
    #[arg(value_name = "REF", required_unless_present = "files", conflicts_with = "files")]
    reference: Option<String>,
    /// Manifests of pods and workloads; - is standard input.
    #[arg(short, long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How to write.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Ask no registry: a tag stays without its digest, and of a policy with rules about contents it is said that
    /// nobody asked for them.
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    asked: AskedAs,
    #[command(flatten)]
    registries: RegistryOptions,
    #[command(flatten)]
    policies: PolicyOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Lines for people.
    Text,
    /// One JSON object; with --filename, one a pod or workload, each on its line.
    Json,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let hosts = arguments.registries.hosts()?;
    match &arguments.reference {
        Some(reference) => explain_reference(reference, &hosts, &arguments).await,
        None => explain_files(&hosts, &arguments).await,
    }
}

async fn explain_reference(text: &str, hosts: &HostsConfig, arguments: &Arguments) -> Result<(), Failure> {
    let reference = Reference::parse_knowing(text, &|host| hosts.names(host)).map_err(Failure::bad_input)?;
    let policies = arguments.policies.policies(Loaded::default())?;
    let own = arguments.registries.own_credentials()?;
    let credentials = CredentialSources { administrator: own.clone(), ..CredentialSources::default() };
    let registry = access(client(hosts), own);
    let admission = admission(client(hosts), hosts, policies, credentials, &Arc::new(Metrics::new()));
    let namespace = arguments.asked.namespace();
    let deadline = arguments.asked.deadline();
    let mut opinions = admission.opinions(&reference, namespace, deadline).await?;
    let may_ask = !arguments.offline && !opinions.iter().any(is_refused);
    let digest = match reference.digest() {
        Some(digest) => Some(digest.clone()),
        None if may_ask => Some(digest_of(registry.as_ref(), &reference).await?),
        None => None,
    };
    if let Some(digest) = digest.as_ref().filter(|_| may_ask) {
        let pinned = reference.pin(digest.clone());
        for later in admission.evaluate_contents(&reference, &pinned, namespace, deadline).await? {
            match opinions.iter_mut().find(|opinion| opinion.author() == later.author()) {
                Some(opinion) if !opinion.is_broken() && later.is_broken() => *opinion = later,
                _ => {}
            }
        }
    }
    let refusal = opinions.iter().find(|opinion| is_refused(opinion));
    let mut explained = parts(&reference, digest.as_ref());
    if let Some(source) = registry.let_in(reference.registry(), reference.repository()) {
        explained.insert("credentials".into(), json!(source.to_string()));
    }
    if let Some(digest) = digest {
        let recipe =
            Recipe::new(vec![Step::Add(Layer::new(reference.clone()))]).map_err(Failure::bad_input)?;
        let recipe = recipe.pin(|_| Ok::<_, Failure>(digest.clone()))?;
        explained.insert("recipe".into(), json!(recipe.to_json()));
        explained.insert("id".into(), json!(VolumeId::new(None, &recipe).as_str()));
    }
    explained.extend(verdicts(&opinions, may_ask));
    write_out(&match arguments.output {
        Format::Json => format!("{}\n", Value::Object(explained)),
        Format::Text => lines(&explained, ""),
    })?;
    match refusal {
        None => Ok(()),
        Some(refusal) => Err(Failure::new(
            Status::Denied,
            format!("{reference} is refused by {}, rule {}", refusal.author(), deciding(refusal)),
        )),
    }
}

/// Explains every object that may ask, also behind one that is denied; the first denial is the command's.
async fn explain_files(hosts: &HostsConfig, arguments: &Arguments) -> Result<(), Failure> {
    let mut objects = read_manifests(&arguments.files)?.objects;
    let policies = arguments.policies.policies(stated(&objects)?)?;
    let credentials = CredentialSources {
        secrets: Box::new(stated_secrets(&objects, arguments.asked.namespace())),
        administrator: arguments.registries.own_credentials()?,
    };
    let admission = admission(client(hosts), hosts, policies, credentials, &Arc::new(Metrics::new()));
    let sets = StatedSets::read(&objects, &arguments.asked)?;
    let admission = admission.with_sets(sets.book(&objects, &arguments.asked));
    if !arguments.offline {
        sets.resolve(&admission, &arguments.asked).await;
    }
    let mut first = None;
    for object in &mut objects {
        let (name, namespace) = (describe(object), arguments.asked.namespace_of(object));
        let Some(asking) = Asking::of(object)? else { continue };
        let explained = explain_one(&admission, &asking, &namespace, arguments).await;
        let shown = match arguments.output {
            Format::Json => explained.to_json(&name, &namespace),
            Format::Text => explained.to_lines(&name, &namespace),
        };
        write_out(&shown)?;
        if let Some(denial) = explained.denial {
            let failure = Failure::from(denial).at(format_args!("{name} is denied"));
            match first {
                None => first = Some(failure),
                Some(_) => eprintln!("oras-csi: {failure}"),
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// What is shown of one thing, in order.
type Keys = Map<String, Value>;

/// What one pod or `PersistentVolume` asks for, as far as it came.
#[derive(Default)]
struct Explained {
    asked: Vec<AskedVolume>,
    /// The canonical volumes, in the order of `asked`, where they are known.
    volumes: Vec<Option<CanonicalVolume>>,
    warnings: Vec<String>,
    denial: Option<Denial>,
    /// Whether registries were asked.
    has_asked: bool,
}

async fn explain_one(
    admission: &Admission,
    asking: &Asking<'_>,
    namespace: &str,
    arguments: &Arguments,
) -> Explained {
    let asked = match asking.asks(admission, namespace, arguments.asked.deadline()).await {
        Ok(asked) => asked,
        Err(denial) => return Explained { denial: Some(denial), ..Explained::default() },
    };
    let refused = asked.iter().flat_map(AskedVolume::names).find_map(|asked| asked.denial().cloned());
    let volumes = asked.iter().map(|volume| volume.pinned().cloned()).collect();
    let explained = Explained { asked, volumes, denial: refused, ..Explained::default() };
    if arguments.offline || explained.denial.is_some() {
        return explained;
    }
    let explained = Explained { has_asked: true, ..explained };
    let deadline = arguments.asked.deadline();
    match asking.admit(admission, namespace, deadline).await {
        Ok(outcome) => Explained {
            // What a patch says is known now.
            asked: match admission.asked_in_all(&outcome, namespace, deadline).await {
                Ok(asked) => asked,
                Err(denial) => return Explained { denial: Some(denial), ..explained },
            },
            volumes: outcome.volumes().iter().map(|(_, volume)| Some(volume.clone())).collect(),
            warnings: outcome.warnings().to_vec(),
            ..explained
        },
        Err(denial) => Explained { denial: Some(denial), ..explained },
    }
}

impl Explained {
    /// Each volume with its keys, those of the patches that say what is in it, and those of its references.
    fn volumes(&self) -> Vec<(Keys, Vec<Keys>, Vec<Keys>)> {
        let explain = |(asked, volume): (&AskedVolume, &Option<CanonicalVolume>)| {
            let mut keys = Map::from_iter([("volume".to_owned(), json!(asked.name()))]);
            if let Some(volume) = volume {
                keys.insert("id".into(), json!(volume.id().as_str()));
                keys.insert("recipe".into(), json!(volume.recipe().to_json()));
            }
            let explain = |asked: &Asked, digest: Option<&Digest>| {
                let mut keys = parts(asked.reference(), digest);
                keys.insert("at".into(), json!(asked.place()));
                keys.extend(verdicts(asked.opinions(), self.has_asked));
                keys
            };
            let patches = asked.patches().iter().map(|asked| explain(asked, asked.digest())).collect();
            let mut digests = volume.iter().flat_map(|volume| volume.recipe().references());
            let references = asked.references().iter().map(|asked| {
                let digest = digests.next().map(PinnedReference::digest);
                explain(asked, digest.or(asked.digest()))
            });
            let references = references.collect();
            (keys, patches, references)
        };
        self.asked.iter().zip(&self.volumes).map(explain).collect()
    }

    fn to_json(&self, name: &str, namespace: &str) -> String {
        let volumes = self.volumes().into_iter().map(|(mut keys, patches, references)| {
            if !patches.is_empty() {
                keys.insert("patches".into(), json!(patches));
            }
            keys.insert("references".into(), json!(references));
            keys
        });
        let mut explained =
            json!({"object": name, "namespace": namespace, "volumes": volumes.collect::<Vec<_>>()});
        if !self.warnings.is_empty() {
            explained["warnings"] = json!(self.warnings);
        }
        if let Some(denial) = &self.denial {
            explained["denial"] = json!({"code": denial.code().number(), "message": denial.message()});
        }
        format!("{explained}\n")
    }

    fn to_lines(&self, name: &str, namespace: &str) -> String {
        let mut text = format!("{name} in namespace {}\n", Shown::new(namespace));
        for (keys, patches, references) in self.volumes() {
            text.push_str(&lines(&keys, "  "));
            for reference in patches.into_iter().chain(references) {
                text.push_str(&lines(&reference, "    "));
            }
        }
        if self.asked.is_empty() && self.denial.is_none() {
            text.push_str("  asks for nothing\n");
        }
        for warning in &self.warnings {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "  {:<11} {warning}", "warning");
        }
        if let Some(denial) = &self.denial {
            let _ = writeln!(text, "  {:<11} {} {denial}", "denied", denial.code().number());
        }
        text
    }
}

/// How a reference is read.
fn parts(reference: &Reference, digest: Option<&Digest>) -> Map<String, Value> {
    let mut parts = Map::new();
    parts.insert("reference".into(), json!(reference));
    parts.insert("host".into(), json!(reference.registry()));
    parts.insert("repository".into(), json!(reference.repository()));
    if let Some(tag) = reference.tag() {
        parts.insert("tag".into(), json!(tag));
    }
    if let Some(digest) = digest {
        parts.insert("digest".into(), json!(digest));
    }
    parts
}

/// Whether its name is allowed, and what each policy says of it; one that has rules about contents has said nothing of
/// them where no registry was asked.
fn verdicts(opinions: &[Evaluation], has_asked: bool) -> Keys {
    let policies = opinions.iter().map(|opinion| {
        let mut policy = json!({
            "policy": opinion.author().name(),
            "mode": opinion.mode().as_str(),
            "passes": !opinion.is_broken(),
        });
        if let Some(rule) = opinion.rule() {
            policy["rule"] = json!(rule.as_str());
        }
        if let Some(component) = opinion.component() {
            policy["component"] = json!(component);
        }
        if opinion.looks_at_contents() && !has_asked {
            policy["contents"] = json!("not asked");
        }
        policy
    });
    let policies = policies.collect::<Vec<_>>();
    Keys::from_iter([
        ("allowed".to_owned(), json!(!opinions.iter().any(is_refused))),
        ("policies".to_owned(), json!(policies)),
    ])
}

fn is_refused(opinion: &Evaluation) -> bool {
    opinion.is_broken() && opinion.mode() == Mode::Enforce
}

/// `registries.deny (registry ghcr.io matches ghcr.io)`.
fn deciding(opinion: &Evaluation) -> String {
    let rule = opinion.rule().map(Rule::as_str).unwrap_or_default();
    match opinion.component() {
        Some(component) => format!("{rule} ({component})"),
        None => rule.to_owned(),
    }
}

fn lines(explained: &Map<String, Value>, indent: &str) -> String {
    let mut text = String::new();
    for (key, value) in explained {
        let values = match value {
            Value::String(text) => vec![text.clone()],
            Value::Bool(flag) => vec![if *flag { "yes" } else { "no" }.to_owned()],
            Value::Array(policies) if policies.is_empty() => vec!["none: everything is allowed".to_owned()],
            Value::Array(policies) => policies.iter().map(policy_line).collect(),
            other => vec![other.to_string()],
        };
        for value in values {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "{indent}{key:<11} {value}");
        }
    }
    if explained.contains_key("reference") && !explained.contains_key("digest") {
        let _ = writeln!(text, "{indent}{:<11} not looked up", "digest");
    }
    text
}

/// `team-a (Enforce): broken, registries.deny (registry ghcr.io matches ghcr.io)`.
fn policy_line(policy: &Value) -> String {
    let text = |key: &str| policy.get(key).and_then(Value::as_str).map(|text| Shown::new(text).to_string());
    let (name, mode) = (text("policy").unwrap_or_default(), text("mode").unwrap_or_default());
    let word = match (policy.get("passes"), policy.get("contents")) {
        (Some(Value::Bool(true)), None) => "passes",
        (Some(Value::Bool(true)), Some(_)) => "passes so far",
        _ => "broken",
    };
    match (text("rule"), text("component")) {
        (Some(rule), Some(component)) => format!("{name} ({mode}): {word}, {rule} ({component})"),
        _ => format!("{name} ({mode}): {word}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::from_str;

    use super::*;
    use crate::documents::parse;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    const DIGEST: &str = "sha256:4fe6f3e48881647c22bea5c5ca02872b6f5d9ff75931a692e00c50f59de3f429";

    /// The one object of a manifest, explained without network; the registry is one that nobody reaches.
    async fn explain(manifest: &str, options: &[&str]) -> Result<(Value, String, Option<Denial>), Failure> {
        let words = ["explain", "-f", "-"].iter().chain(options);
        let Command { arguments } = Command::try_parse_from(words).map_err(Failure::bad_input)?;
        let hosts = HostsConfig::load(None).map_err(Failure::bad_input)?;
        let policies = arguments.policies.policies(Loaded::default())?;
        let none = CredentialSources::default();
        let admission = admission(client(&hosts), &hosts, policies, none, &Arc::new(Metrics::new()));
        let mut object = parse(manifest)?.remove(0);
        let name = describe(&object);
        let asking = Asking::of(&mut object)?.ok_or_else(|| Failure::bad_input("no pod"))?;
        let explained = explain_one(&admission, &asking, "team", &arguments).await;
        let json = explained.to_json(&name, "team");
        let lines = explained.to_lines(&name, "team");
        Ok((from_str(&json).map_err(Failure::failed)?, lines, explained.denial))
    }

    fn manifest(reference: &str) -> String {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\nspec: {{template: {{\n  metadata: {{annotations: \
             {{oras.land/artifact: '{reference}', oras.land/artifact.m: 'other.example/m@{DIGEST}'}}}},\n  \
             spec: {{containers: [{{name: c}}]}}}}}}\n"
        )
    }

    #[tokio::test]
    async fn says_what_a_workload_asks_for_and_where() -> Result<(), Failure> {
        let (json, lines, denial) = explain(&manifest("GHCR.io/a/b:v1"), &["--offline"]).await?;
        assert_eq!(
            (denial, &json["object"], &json["namespace"]),
            (None, &json!("Deployment/d"), &json!("team"))
        );
        let volume = &json["volumes"][0];
        assert_eq!((&volume["volume"], volume.get("id")), (&json!("oras-artifacts"), None));
        assert_eq!(
            volume["references"][0],
            json!({"at": "annotation oras.land/artifact", "reference": "ghcr.io/a/b:v1", "host": "ghcr.io",
                "repository": "a/b", "tag": "v1", "allowed": true, "policies": []})
        );
        assert_eq!(volume["references"][1]["digest"], DIGEST);
        assert!(lines.contains("at          annotation oras.land/artifact.m\n"), "{lines}");
        assert!(lines.contains("digest      not looked up\n"), "{lines}");
        Ok(())
    }

    #[tokio::test]
    async fn a_policy_on_contents_has_not_passed_while_nobody_asked() -> Result<(), Box<dyn std::error::Error>>
    {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("policies.yaml");
        let policy = |name: &str, spec: &str| {
            format!(
                "apiVersion: oras.land/v1alpha1\nkind: ArtifactPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
            )
        };
        let text =
            [policy("names", "{deniedTags: [latest]}"), policy("small", "{maxSize: 1Ki}")].join("---\n");
        std::fs::write(&file, text)?;
        let options = ["--offline", "--policy", &file.to_string_lossy()];
        let (json, lines, denial) = explain(&manifest("ghcr.io/a/b:v1"), &options).await?;
        assert_eq!(denial, None);
        assert_eq!(
            json["volumes"][0]["references"][0]["policies"],
            json!([{"policy": "names", "mode": "Enforce", "passes": true},
                {"policy": "small", "mode": "Enforce", "passes": true, "contents": "not asked"}])
        );
        assert!(lines.contains("policies    names (Enforce): passes\n"), "{lines}");
        assert!(lines.contains("policies    small (Enforce): passes so far\n"), "{lines}");
        Ok(())
    }

    #[tokio::test]
    async fn what_is_pinned_has_its_recipe_and_id_offline() -> Result<(), Failure> {
        let (json, _, _) = explain(&manifest(&format!("ghcr.io/a/b@{DIGEST}")), &["--offline"]).await?;
        let volume = &json["volumes"][0];
        let recipe = format!(
            "[{{\"add\":\"ghcr.io/a/b@{DIGEST}\"}},{{\"add\":\"other.example/m@{DIGEST}\",\"path\":\"m\"}}]"
        );
        assert_eq!(volume["recipe"], recipe);
        assert!(volume["id"].as_str().is_some_and(|id| id.starts_with("b-")), "{volume}");
        Ok(())
    }

    #[tokio::test]
    async fn a_denial_is_the_webhooks_and_nobody_is_asked() -> Result<(), Failure> {
        let options = ["--allow-registry", "other.example/**"];
        let (json, lines, denial) = explain(&manifest("ghcr.io/a/b:v1"), &options).await?;
        let policies = |index: usize| &json["volumes"][0]["references"][index]["policies"];
        let says = |passes: bool, component: &str| {
            json!([{"policy": "--allow-registry", "mode": "Enforce", "passes": passes, "rule": "registries.allow",
                "component": component}])
        };
        assert_eq!(policies(0), &says(false, "registry ghcr.io matches none of its patterns"));
        assert_eq!(policies(1), &says(true, "other.example/**"));
        let line = "policies    --allow-registry (Enforce): passes, registries.allow (other.example/**)\n";
        assert!(lines.contains(line) && lines.contains("allowed     no\n"), "{lines}");
        assert_eq!(json["denial"]["code"], 403);
        assert!(lines.contains("denied      403 annotation oras.land/artifact: "), "{lines}");
        let failure = denial.map(Failure::from);
        assert_eq!(failure.map(|failure| failure.exit_code()), Some(std::process::ExitCode::from(3)));

        let (json, _, denial) = explain(&manifest("team/app"), &["--offline"]).await?;
        assert_eq!((&json["volumes"], &json["denial"]["code"]), (&json!([]), &json!(400)));
        assert_eq!(denial.map(Failure::from).map(|failure| failure.exit_code()), Some(2.into()));
        Ok(())
    }
}
