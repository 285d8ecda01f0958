//! The policies in force, and the policies that apply to one namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use oras_csi_core::display::Shown;
use oras_csi_core::pattern::RegistryPattern;
use oras_csi_core::policy::{Author, Mode, Policy, Rules};
use serde_json::Value;
use tokio::time::Instant;

use super::entry::{Content, Entry};
use crate::denial::{At, Code, Denial};
use crate::manifest::what;

/// Whether pods are admitted in a namespace that no policy selects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoPolicy {
    /// Every artifact is allowed.
    #[default]
    Allow,
    /// No artifact is allowed.
    Deny,
}

/// The labels of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Labels {
    /// These labels.
    Known(BTreeMap<String, String>),
    /// The labels are not known, so every policy applies.
    Unknown,
}

/// Why the labels of a namespace are not known.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NamespacesError(pub String);

/// Looks up the labels of namespaces.
#[async_trait]
pub trait Namespaces: Send + Sync + 'static {
    /// Returns the labels of a namespace.
    async fn labels(&self, namespace: &str) -> Result<Labels, NamespacesError>;
}

/// The labels of the namespaces in a stream of manifests. The labels of other namespaces are unknown.
#[derive(Clone, Debug, Default)]
pub struct ManifestNamespaces(BTreeMap<String, BTreeMap<String, String>>);

/// Why the labels of a namespace cannot be read from a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestNamespaceError {
    /// `metadata.labels` has another type.
    #[error("Namespace {name}: metadata.labels is {found}, and must be an object")]
    Labels {
        /// The name of the namespace.
        name: Shown,
        /// The type that was found.
        found: &'static str,
    },
    /// A label is not a string.
    #[error("Namespace {name}: label {key} is {found}, and must be a string: write it in quotes")]
    Label {
        /// The name of the namespace.
        name: Shown,
        /// The key of the label.
        key: Shown,
        /// The type that was found.
        found: &'static str,
    },
    /// Two manifests of one namespace have different labels, so it is not clear which policies apply.
    #[error(
        "Namespace {0} occurs twice, with different labels: remove one of the two, or write the same labels in both"
    )]
    Differs(Shown),
}

impl ManifestNamespaces {
    /// Adds a manifest if it is a `Namespace`, and reports whether it is.
    ///
    /// The labels of a namespace can be set only once: otherwise the author of a stream of manifests could remove a
    /// namespace from the policies that select it in the administrator's files.
    pub fn take(&mut self, manifest: &Value) -> Result<bool, ManifestNamespaceError> {
        let is_namespace = manifest["apiVersion"] == "v1" && manifest["kind"] == "Namespace";
        let Some(name) = manifest["metadata"]["name"].as_str().filter(|_| is_namespace) else {
            return Ok(false);
        };
        let mut labels = BTreeMap::new();
        match &manifest["metadata"]["labels"] {
            Value::Null => {}
            Value::Object(written) => {
                for (key, value) in written {
                    // Go decodes null as an empty string.
                    let value = if value.is_null() { Some("") } else { value.as_str() };
                    let value = value.ok_or_else(|| ManifestNamespaceError::Label {
                        name: name.into(),
                        key: key.as_str().into(),
                        found: what(&written[key]),
                    })?;
                    labels.insert(key.clone(), value.to_owned());
                }
            }
            other => return Err(ManifestNamespaceError::Labels { name: name.into(), found: what(other) }),
        }
        // The API server sets this label itself.
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        self.insert(name.to_owned(), labels)?;
        Ok(true)
    }

    /// Adds all namespaces of `other`.
    pub fn extend(&mut self, other: Self) -> Result<(), ManifestNamespaceError> {
        other.0.into_iter().try_for_each(|(name, labels)| self.insert(name, labels))
    }

    fn insert(
        &mut self,
        name: String,
        labels: BTreeMap<String, String>,
    ) -> Result<(), ManifestNamespaceError> {
        match self.0.get(&name) {
            Some(known) if *known != labels => Err(ManifestNamespaceError::Differs(Shown::new(&name))),
            _ => {
                self.0.insert(name, labels);
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Namespaces for ManifestNamespaces {
    async fn labels(&self, namespace: &str) -> Result<Labels, NamespacesError> {
        Ok(self.0.get(namespace).map_or(Labels::Unknown, |labels| Labels::Known(labels.clone())))
    }
}

/// The policies in force. They are replaced as a whole: a request continues with the policies that it began with.
pub struct Policies {
    option: Option<Arc<Policy>>,
    no_policy: NoPolicy,
    namespaces: ArcSwap<Box<dyn Namespaces>>,
    files: ArcSwap<Vec<Arc<Entry>>>,
    /// `None` until the objects of the cluster have been read once.
    objects: ArcSwap<Option<Vec<Arc<Entry>>>>,
}

/// The policies that apply to one namespace, as they were when its request arrived.
#[derive(Clone, Debug)]
pub struct ApplicablePolicies {
    policies: Vec<Arc<Entry>>,
    option: Option<Arc<Policy>>,
}

impl Policies {
    /// Makes a state with the registries that are allowed in all namespaces (`--allow-registry`; an empty list allows
    /// all) and no policy.
    pub fn new(allowed: Vec<RegistryPattern>, no_policy: NoPolicy, namespaces: impl Namespaces) -> Self {
        let rules = |allow| Rules { allow: Some(allow), ..Rules::default() };
        let author = Author::Option("--allow-registry");
        let policy = |allow| Arc::new(Policy::new(author, Mode::Enforce, rules(allow)));
        Self {
            option: Some(allowed).filter(|allowed| !allowed.is_empty()).map(policy),
            no_policy,
            namespaces: ArcSwap::from_pointee(Box::new(namespaces)),
            files: ArcSwap::from_pointee(Vec::new()),
            objects: ArcSwap::from_pointee(Some(Vec::new())),
        }
    }

    /// Makes every request wait until [`Self::set_objects`] is called.
    pub(super) fn await_objects(&self) {
        self.objects.store(Arc::new(None));
    }

    /// Reports whether the policies of the cluster have been read, or are not used.
    pub fn is_synced(&self) -> bool {
        self.objects.load().is_some()
    }

    /// Returns the number of policies, and the number of those whose last generation cannot be read.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let (files, objects) = (self.files.load(), self.objects.load());
        let all = || files.iter().chain(objects.iter().flatten());
        (all().count(), all().filter(|entry| entry.is_stale()).count())
    }

    /// Replaces the policies of files.
    pub fn set_files(&self, entries: Vec<Entry>) {
        self.files.store(Arc::new(entries.into_iter().map(Arc::new).collect()));
    }

    /// Replaces the source of the labels of namespaces.
    pub fn set_namespaces(&self, namespaces: impl Namespaces) {
        self.namespaces.store(Arc::new(Box::new(namespaces)));
    }

    /// Replaces the policies of the cluster.
    pub(super) fn set_objects(&self, entries: Vec<Arc<Entry>>) {
        self.objects.store(Arc::new(Some(entries)));
    }

    /// Returns the policies that select a namespace.
    pub(crate) async fn applicable_to(
        &self,
        namespace: &str,
        deadline: Instant,
    ) -> Result<ApplicablePolicies, Denial> {
        let at = At::Namespace(namespace);
        let objects = self.objects.load_full();
        let Some(objects) = objects.as_ref() else {
            let rule = "has policies that the webhook has not read yet";
            return Err(Denial::new(Code::Unavailable, at, None, rule, "retry in a few seconds"));
        };
        let files = self.files.load_full();
        let all = || files.iter().chain(objects);
        let labels = if all().all(|entry| entry.selects_all()) {
            Labels::Unknown
        } else {
            let namespaces = self.namespaces.load_full();
            let labels = tokio::time::timeout_at(deadline, namespaces.labels(namespace)).await;
            let labels = labels
                .unwrap_or_else(|_| Err(NamespacesError("the API server did not answer in time".to_owned())));
            labels.map_err(|error| {
                let rule = format!(
                    "has labels that cannot be read, so the policies that apply are not known ({error})"
                );
                Denial::new(Code::Unavailable, at, None, rule, "retry later")
            })?
        };
        let mut policies: Vec<Arc<Entry>> = all()
            .filter(|entry| match &labels {
                Labels::Known(labels) => entry.selects(labels),
                Labels::Unknown => true,
            })
            .cloned()
            .collect();
        policies.sort_by(|one, other| one.name().cmp(other.name()));
        if policies.is_empty() && self.no_policy == NoPolicy::Deny {
            let rule =
                "is selected by no ArtifactPolicy, and without one no artifact is allowed (--no-policy deny)";
            let instead = "ask the administrator for an ArtifactPolicy that selects the namespace";
            return Err(Denial::new(Code::Forbidden, at, None, rule, instead));
        }
        let applicable = ApplicablePolicies { policies, option: self.option.clone() };
        applicable.refuse_broken(at)?;
        Ok(applicable)
    }

    /// Returns the policies for cluster-scoped objects of the administrator: only `--allow-registry` applies.
    pub(crate) fn applicable_to_cluster_objects(&self) -> ApplicablePolicies {
        ApplicablePolicies { policies: Vec::new(), option: self.option.clone() }
    }
}

impl ApplicablePolicies {
    fn refuse_broken(&self, at: At<'_>) -> Result<(), Denial> {
        for entry in &self.policies {
            if let Content::Broken(problem) = entry.content() {
                let name = Shown::new(entry.name());
                let rule = format!("is selected by ArtifactPolicy {name}, which cannot be read ({problem})");
                let instead = "no artifact is allowed there until the administrator corrects the policy";
                return Err(Denial::new(Code::Forbidden, at, None, rule, instead));
            }
        }
        Ok(())
    }

    /// Returns the policies, `--allow-registry` first.
    pub(crate) fn policies(&self) -> impl Iterator<Item = &Policy> {
        let objects = self.policies.iter().filter_map(|entry| match entry.content() {
            Content::Policy(policy) => Some(policy),
            Content::Broken(_) => None,
        });
        self.option.as_deref().into_iter().chain(objects)
    }

    /// Reports whether any policy has rules about the contents of artifacts.
    pub(crate) fn looks_at_contents(&self) -> bool {
        self.policies().any(Policy::looks_at_contents)
    }

    /// Reports whether a policy in mode Enforce has rules about the contents of artifacts.
    pub(crate) fn enforces_contents(&self) -> bool {
        self.policies().any(|policy| policy.looks_at_contents() && policy.mode() == Mode::Enforce)
    }
}
