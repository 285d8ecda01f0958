//! `oras-csi explain -f FILE`.

use std::fmt::Write as _;
use std::sync::Arc;

use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;
use oras_csi_core::reference::PinnedReference;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_webhook::admit::{Admission, ReferencePreview, VolumePreview};
use oras_csi_webhook::credentials::CredentialSources;
use oras_csi_webhook::denial::Denial;
use oras_csi_webhook::metrics::Metrics;
use serde_json::{Map, json};

use super::arguments::Arguments;
use super::report::{Keys, lines, policy_keys, reference_keys};
use crate::admission::admission;
use crate::admission_object::AdmissionObject;
use crate::exit_status::Failure;
use crate::manifest_policies::{policies_in_manifests, secrets_in_manifests};
use crate::manifest_sets::ManifestSets;
use crate::options::output::OutputFormat;
use crate::registry_client::interactive_client;
use crate::standard_output::write_stdout;
use crate::unrendered;
use crate::yaml_documents::{describe, read_manifests};

/// Explains every pod, workload and `PersistentVolume` of the files, also after a denied one. The first denial decides
/// the exit status.
pub(super) async fn explain_files(hosts: &HostsConfig, arguments: &Arguments) -> Result<(), Failure> {
    let mut objects = read_manifests(&arguments.files)?.objects;
    let policies = arguments.policies.policies(policies_in_manifests(&objects)?)?;
    let credentials = CredentialSources {
        secrets: Box::new(secrets_in_manifests(&objects, arguments.admission.namespace())),
        administrator: arguments.registries.user_credentials()?,
    };
    let admission =
        admission(interactive_client(hosts), hosts, policies, credentials, &Arc::new(Metrics::new()));
    let sets = ManifestSets::read(&objects, &arguments.admission)?;
    let admission = admission.with_sets(sets.book(&objects, &arguments.admission));
    if !arguments.offline {
        sets.resolve(&admission, &arguments.admission).await;
    }
    let mut first = None;
    for object in &mut objects {
        let (name, namespace) = (describe(object), arguments.admission.namespace_of(object));
        for warning in unrendered::warnings(object) {
            eprintln!("Warning: {name}: {warning}");
        }
        let Some(found) = AdmissionObject::find(object)? else { continue };
        let explained = explain_object(&admission, &found, &namespace, arguments).await;
        let shown = match arguments.output {
            OutputFormat::Json => explained.to_json(&name, &namespace),
            OutputFormat::Text => explained.to_lines(&name, &namespace),
        };
        write_stdout(&shown)?;
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

/// The requests of one pod or `PersistentVolume`, as far as admission got.
#[derive(Default)]
struct Explained {
    requested: Vec<VolumePreview>,
    /// The canonical volumes that are known, in the order of `requested`.
    volumes: Vec<Option<CanonicalVolume>>,
    warnings: Vec<String>,
    denial: Option<Denial>,
    /// Whether tags were resolved and rules about content checked.
    used_network: bool,
}

async fn explain_object(
    admission: &Admission,
    object: &AdmissionObject<'_>,
    namespace: &str,
    arguments: &Arguments,
) -> Explained {
    let requested = match object.requested_volumes(admission, namespace, arguments.admission.deadline()).await
    {
        Ok(requested) => requested,
        Err(denial) => return Explained { denial: Some(denial), ..Explained::default() },
    };
    let denial = requested.iter().flat_map(VolumePreview::names).find_map(|name| name.denial().cloned());
    let volumes = requested.iter().map(|volume| volume.pinned().cloned()).collect();
    let explained = Explained { requested, volumes, denial, ..Explained::default() };
    if arguments.offline || explained.denial.is_some() {
        return explained;
    }
    let explained = Explained { used_network: true, ..explained };
    let deadline = arguments.admission.deadline();
    match object.admit(admission, namespace, deadline).await {
        Ok(outcome) => Explained {
            // Now with the references inside patches, which admission has read.
            requested: match admission.preview().admitted(&outcome, namespace, deadline).await {
                Ok(requested) => requested,
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
    /// Returns the keys of each volume, of its patches and of its references.
    fn volumes(&self) -> Vec<(Keys, Vec<Keys>, Vec<Keys>)> {
        let explain_volume = |(requested, volume): (&VolumePreview, &Option<CanonicalVolume>)| {
            let mut keys = Map::from_iter([("volume".to_owned(), json!(requested.name()))]);
            if let Some(volume) = volume {
                keys.insert("id".into(), json!(volume.id().as_str()));
                keys.insert("recipe".into(), json!(volume.recipe().to_json()));
            }
            let explain_name = |name: &ReferencePreview, digest: Option<&Digest>| {
                let mut keys = reference_keys(name.reference(), digest);
                keys.insert("at".into(), json!(name.place()));
                keys.extend(policy_keys(name.evaluations(), self.used_network));
                keys
            };
            let patches = requested.patches().iter().map(|name| explain_name(name, name.digest())).collect();
            let mut digests = volume.iter().flat_map(|volume| volume.recipe().references());
            let references = requested.references().iter().map(|name| {
                let digest = digests.next().map(PinnedReference::digest);
                explain_name(name, digest.or(name.digest()))
            });
            let references = references.collect();
            (keys, patches, references)
        };
        self.requested.iter().zip(&self.volumes).map(explain_volume).collect()
    }

    /// Returns the explanation as one line of JSON.
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

    /// Returns the explanation as text.
    fn to_lines(&self, name: &str, namespace: &str) -> String {
        let mut text = format!("{name} in namespace {}\n", Shown::new(namespace));
        for (keys, patches, references) in self.volumes() {
            text.push_str(&lines(&keys, "  "));
            for reference in patches.into_iter().chain(references) {
                text.push_str(&lines(&reference, "    "));
            }
        }
        if self.requested.is_empty() && self.denial.is_none() {
            text.push_str("  requests no artifacts\n");
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use oras_csi_webhook::policy::Loaded;
    use serde_json::{Value, from_str};

    use super::*;
    use crate::yaml_documents::parse;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    const DIGEST: &str = "sha256:4fe6f3e48881647c22bea5c5ca02872b6f5d9ff75931a692e00c50f59de3f429";

    /// Explains the one object of a manifest. Its registries are unreachable.
    async fn explain(manifest: &str, options: &[&str]) -> Result<(Value, String, Option<Denial>), Failure> {
        let words = ["explain", "-f", "-"].iter().chain(options);
        let Command { arguments } = Command::try_parse_from(words).map_err(Failure::bad_input)?;
        let hosts = HostsConfig::load(None).map_err(Failure::bad_input)?;
        let policies = arguments.policies.policies(Loaded::default())?;
        let none = CredentialSources::default();
        let admission =
            admission(interactive_client(&hosts), &hosts, policies, none, &Arc::new(Metrics::new()));
        let mut object = parse(manifest)?.remove(0);
        let name = describe(&object);
        let found = AdmissionObject::find(&mut object)?.ok_or_else(|| Failure::bad_input("no pod"))?;
        let explained = explain_object(&admission, &found, "team", &arguments).await;
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
    async fn shows_what_a_workload_requests_and_where() -> Result<(), Failure> {
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
        assert!(lines.contains("digest      not resolved\n"), "{lines}");
        Ok(())
    }

    #[tokio::test]
    async fn a_policy_about_content_passes_only_so_far_when_offline() -> Result<(), Box<dyn std::error::Error>>
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
    async fn a_pinned_reference_has_its_recipe_and_id_offline() -> Result<(), Failure> {
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
    async fn a_denial_is_that_of_the_webhook_without_a_registry_request() -> Result<(), Failure> {
        let options = ["--allow-registry", "other.example/**"];
        let (json, lines, denial) = explain(&manifest("ghcr.io/a/b:v1"), &options).await?;
        let policies = |index: usize| &json["volumes"][0]["references"][index]["policies"];
        let decision = |passes: bool, component: &str| {
            json!([{"policy": "--allow-registry", "mode": "Enforce", "passes": passes, "rule": "registries.allow",
                "component": component}])
        };
        assert_eq!(policies(0), &decision(false, "registry ghcr.io matches none of its patterns"));
        assert_eq!(policies(1), &decision(true, "other.example/**"));
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
