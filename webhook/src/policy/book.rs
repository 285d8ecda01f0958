//! The policies in force, and those of one namespace.

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

/// What becomes of a pod in a namespace that no policy selects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoPolicy {
    /// It may mount anything.
    #[default]
    Allow,
    /// It may mount nothing.
    Deny,
}

/// The labels of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Labels {
    /// These.
    Known(BTreeMap<String, String>),
    /// Nobody here knows: every policy applies.
    Unknown,
}

/// Why labels cannot be told.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NamespacesError(pub String);

/// Knows the labels of namespaces.
#[async_trait]
pub trait Namespaces: Send + Sync + 'static {
    /// The labels of a namespace.
    async fn labels(&self, namespace: &str) -> Result<Labels, NamespacesError>;
}

/// The labels of namespaces that manifests have; of others nothing is known.
#[derive(Clone, Debug, Default)]
pub struct StatedNamespaces(BTreeMap<String, BTreeMap<String, String>>);

/// Why the labels of a namespace cannot be taken from a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatedError {
    /// `metadata.labels` of another type.
    #[error("Namespace {name}: metadata.labels is {found} where an object belongs")]
    Labels {
        /// Its name.
        name: Shown,
        /// What stands there.
        found: &'static str,
    },
    /// A label that is no string.
    #[error("Namespace {name}: label {key} is {found} where a string belongs: write it in quotes")]
    Label {
        /// Its name.
        name: Shown,
        /// The label's key.
        key: Shown,
        /// What stands there.
        found: &'static str,
    },
    /// Two manifests of one namespace: which policies hold would hang on which of them counts.
    #[error(
        "Namespace {0} is stated twice, with different labels: leave one of them out, or write the same in both"
    )]
    Differs(Shown),
}

impl StatedNamespaces {
    /// Takes a manifest in, if it is a `Namespace`. What is said of one namespace is said once: whoever writes a
    /// stream of manifests cannot take a namespace out of the policies that an administrator's files have for it.
    pub fn take(&mut self, manifest: &Value) -> Result<bool, StatedError> {
        let is_namespace = manifest["apiVersion"] == "v1" && manifest["kind"] == "Namespace";
        let Some(name) = manifest["metadata"]["name"].as_str().filter(|_| is_namespace) else {
            return Ok(false);
        };
        let mut labels = BTreeMap::new();
        match &manifest["metadata"]["labels"] {
            Value::Null => {}
            Value::Object(written) => {
                for (key, value) in written {
                    // Go reads null as an empty string.
                    let value = if value.is_null() { Some("") } else { value.as_str() };
                    let value = value.ok_or_else(|| StatedError::Label {
                        name: name.into(),
                        key: key.as_str().into(),
                        found: what(&written[key]),
                    })?;
                    labels.insert(key.clone(), value.to_owned());
                }
            }
            other => return Err(StatedError::Labels { name: name.into(), found: what(other) }),
        }
        // The API server writes this one itself.
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        self.state(name.to_owned(), labels)?;
        Ok(true)
    }

    /// Takes all that `other` has.
    pub fn extend(&mut self, other: Self) -> Result<(), StatedError> {
        other.0.into_iter().try_for_each(|(name, labels)| self.state(name, labels))
    }

    fn state(&mut self, name: String, labels: BTreeMap<String, String>) -> Result<(), StatedError> {
        match self.0.get(&name) {
            Some(stated) if *stated != labels => Err(StatedError::Differs(Shown::new(&name))),
            _ => {
                self.0.insert(name, labels);
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Namespaces for StatedNamespaces {
    async fn labels(&self, namespace: &str) -> Result<Labels, NamespacesError> {
        Ok(self.0.get(namespace).map_or(Labels::Unknown, |labels| Labels::Known(labels.clone())))
    }
}

/// The policies in force. Swapped as a whole: a request that has begun goes on with what it began with.
pub struct Policies {
    option: Option<Arc<Policy>>,
    no_policy: NoPolicy,
    namespaces: ArcSwap<Box<dyn Namespaces>>,
    files: ArcSwap<Vec<Arc<Entry>>>,
    /// `None` until the cluster's objects have been read once.
    objects: ArcSwap<Option<Vec<Arc<Entry>>>>,
}

/// The policies of one namespace, as they were when its request came.
#[derive(Clone, Debug)]
pub struct Rulebook {
    policies: Vec<Arc<Entry>>,
    option: Option<Arc<Policy>>,
}

impl Policies {
    /// With a list of registries that are allowed everywhere (`--allow-registry`; empty: all), and nothing
    /// else.
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

    /// From now on nobody is admitted until [`Self::set_objects`] was called.
    pub(super) fn await_objects(&self) {
        self.objects.store(Arc::new(None));
    }

    /// Whether the cluster's policies have been read, where they are to be.
    pub fn is_synced(&self) -> bool {
        self.objects.load().is_some()
    }

    /// How many policies there are, and how many of them have a last generation that cannot be read.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let (files, objects) = (self.files.load(), self.objects.load());
        let all = || files.iter().chain(objects.iter().flatten());
        (all().count(), all().filter(|entry| entry.is_stale()).count())
    }

    /// Replaces the policies of files.
    pub fn set_files(&self, entries: Vec<Entry>) {
        self.files.store(Arc::new(entries.into_iter().map(Arc::new).collect()));
    }

    /// Replaces who knows the labels of namespaces.
    pub fn set_namespaces(&self, namespaces: impl Namespaces) {
        self.namespaces.store(Arc::new(Box::new(namespaces)));
    }

    /// Replaces the policies of the cluster.
    pub(super) fn set_objects(&self, entries: Vec<Arc<Entry>>) {
        self.objects.store(Arc::new(Some(entries)));
    }

    /// The policies that select a namespace.
    pub(crate) async fn rulebook(&self, namespace: &str, deadline: Instant) -> Result<Rulebook, Denial> {
        let at = At::Namespace(namespace);
        let objects = self.objects.load_full();
        let Some(objects) = objects.as_ref() else {
            let rule = "has policies that the webhook has not read yet";
            return Err(Denial::new(Code::Unavailable, at, None, rule, "try again in a moment"));
        };
        let files = self.files.load_full();
        let all = || files.iter().chain(objects);
        let labels = if all().all(|entry| entry.selects_all()) {
            Labels::Unknown
        } else {
            let namespaces = self.namespaces.load_full();
            let labels = tokio::time::timeout_at(deadline, namespaces.labels(namespace)).await;
            let labels = labels.unwrap_or_else(|_| Err(NamespacesError("no answer in time".to_owned())));
            labels.map_err(|error| {
                let rule = format!("has labels that cannot be read, so nobody knows its policies ({error})");
                Denial::new(Code::Unavailable, at, None, rule, "try again later")
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
                "is selected by no ArtifactPolicy, without which nothing is allowed (--no-policy deny)";
            let instead = "ask the administrator for a policy that selects it";
            return Err(Denial::new(Code::Forbidden, at, None, rule, instead));
        }
        let book = Rulebook { policies, option: self.option.clone() };
        book.refuse_broken(at)?;
        Ok(book)
    }
}

impl Policies {
    /// What holds for the administrator's own objects, which are in no namespace: the option alone.
    pub(crate) fn rulebook_of_cluster(&self) -> Rulebook {
        Rulebook { policies: Vec::new(), option: self.option.clone() }
    }
}

impl Rulebook {
    fn refuse_broken(&self, at: At<'_>) -> Result<(), Denial> {
        for entry in &self.policies {
            if let Content::Broken(problem) = entry.content() {
                let name = Shown::new(entry.name());
                let rule = format!("is selected by ArtifactPolicy {name}, which cannot be read ({problem})");
                let instead = "nothing is allowed there until the administrator mends it";
                return Err(Denial::new(Code::Forbidden, at, None, rule, instead));
            }
        }
        Ok(())
    }

    /// The policies, `--allow-registry` first.
    pub(crate) fn policies(&self) -> impl Iterator<Item = &Policy> {
        let objects = self.policies.iter().filter_map(|entry| match entry.content() {
            Content::Policy(policy) => Some(policy),
            Content::Broken(_) => None,
        });
        self.option.as_deref().into_iter().chain(objects)
    }

    /// Whether any policy looks at what a registry has.
    pub(crate) fn looks_at_contents(&self) -> bool {
        self.policies().any(Policy::looks_at_contents)
    }

    /// Whether one of those denies.
    pub(crate) fn enforces_contents(&self) -> bool {
        self.policies().any(|policy| policy.looks_at_contents() && policy.mode() == Mode::Enforce)
    }
}
