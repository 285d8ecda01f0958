//! A fake registry that counts requests, and the pods and policies of the tests.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use oras_csi_certs::Expiry;
use oras_csi_core::credentials::Credential;
use oras_csi_core::digest::Digest;
use oras_csi_core::display::Printable;
use oras_csi_core::manifest::{Descriptor, VerifiedManifest, media};
use oras_csi_core::patch::{Level, Patch};
use oras_csi_core::recipe::artifact;
use oras_csi_core::reference::{PinnedReference, Reference, RegistryHost};
use oras_csi_core::registry::{BlobStream, Registry, RegistryError};
use oras_csi_testkit::client;
pub use oras_csi_testkit::client::{Behaviour, not_found};
use oras_csi_webhook::admit::{Admission, Outcome};
use oras_csi_webhook::credentials::{CredentialSources, ManifestSecrets};
use oras_csi_webhook::denial::Denial;
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::policy::{
    Entry, Labels, ManifestNamespaces, Namespaces, NamespacesError, NoPolicy, Policies,
};
use oras_csi_webhook::server::{App, Health, ServerSettings};
use oras_csi_webhook::sets::{MemorySets, SetCatalog};
use oras_csi_webhook::{Registries, ResolverSettings};
use serde_json::{Value, json};
use tokio::time::Instant;

/// A registry with an artifact of one titled file for every reference, unless a test stores something else.
///
/// `private.io/NAME/…` can be read only with the password `NAME`: anonymous clients get 401, and others 404. A webhook
/// reads no blobs except recipes.
pub struct FakeRegistry(Arc<client::FakeRegistry>);

impl Default for FakeRegistry {
    fn default() -> Self {
        let registry = client::FakeRegistry::default()
            .with_default_manifest(default_manifest)
            .with_access(check_private)
            .with_only_blobs(artifact::LAYER_TYPE);
        Self(Arc::new(registry))
    }
}

impl Deref for FakeRegistry {
    type Target = client::FakeRegistry;

    fn deref(&self) -> &client::FakeRegistry {
        &self.0
    }
}

impl FakeRegistry {
    /// Stores a manifest; returns its digest.
    pub fn store(&self, manifest: &Value) -> Digest {
        self.put_manifest(manifest)
    }

    /// Stores a patch of `base` with a tag.
    pub fn tag_patch(&self, reference: &str, base: &Reference, levels: &[(Level, Reference)]) -> Digest {
        let patch = Patch::new(base.clone(), levels.iter().cloned()).unwrap();
        let base = Descriptor::new(media::OCI_MANIFEST, base.digest().unwrap().clone(), 1);
        self.tag_bytes(reference, patch.to_manifest(&base, reference).unwrap())
    }

    /// Stores the artifact of a recipe with a tag.
    pub fn tag_recipe(&self, reference: &str, yaml: &str) -> Digest {
        self.put_blob(yaml.as_bytes());
        self.tag_bytes(reference, artifact::to_manifest(yaml))
    }
}

#[async_trait]
impl Registry for FakeRegistry {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        self.0.resolve(reference).await
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError> {
        self.0.manifest(reference).await
    }

    async fn blob(
        &self,
        from: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        self.0.blob(from, blob, offset).await
    }

    fn with_credential(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry> {
        self.0.clone().with_credential(credential)
    }
}

fn check_private(
    credential: &Credential,
    host: &RegistryHost,
    repository: &str,
) -> Result<(), RegistryError> {
    if host.to_string() != "private.io" {
        return Ok(());
    }
    let owner = repository.split('/').next().unwrap();
    match credential {
        Credential::Basic { password, .. } if password.expose() == owner => Ok(()),
        Credential::Anonymous => {
            Err(RegistryError::Refused { at: "GET".into(), status: 401, words: Printable::default() })
        }
        _ => Err(not_found(repository)),
    }
}

/// Returns the default manifest of a reference: one file with the reference as its title.
pub fn default_manifest(reference: &str) -> Value {
    manifest(&[("application/java-archive", Some(reference))])
}

/// Returns the default digest of a tag.
pub fn default_digest(reference: &str) -> Digest {
    let reference = Reference::parse(reference).unwrap().to_string();
    Digest::sha256_of(default_manifest(&reference).to_string().as_bytes())
}

/// Returns an image manifest of layers with a media type and an optional title.
pub fn manifest(layers: &[(&str, Option<&str>)]) -> Value {
    let digest = format!("sha256:{}", "5".repeat(64));
    let layers: Vec<Value> = layers
        .iter()
        .map(|(media_type, title)| {
            let annotations =
                title.map_or_else(|| json!({}), |title| json!({"org.opencontainers.image.title": title}));
            json!({"mediaType": media_type, "digest": digest, "size": 1, "annotations": annotations})
        })
        .collect();
    json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
        "config": {"mediaType": media::EMPTY, "digest": digest, "size": 2}, "layers": layers})
}

/// Returns an index of manifests with their platforms, as `(os/arch, digest)`.
pub fn index(entries: &[(&str, &Digest)]) -> Value {
    let entries: Vec<Value> = entries
        .iter()
        .map(|(platform, digest)| {
            let (os, architecture) = platform.split_once('/').unwrap();
            json!({"mediaType": media::OCI_MANIFEST, "digest": digest.to_string(), "size": 1,
                "platform": {"os": os, "architecture": architecture}})
        })
        .collect();
    json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries})
}

/// Configures the host `kind`, plain HTTP for `plain.example`, and plain HTTP and insecure TLS for the examples' registry.
pub struct Administrator;

impl Registries for Administrator {
    fn names(&self, segment: &str) -> bool {
        segment == "kind"
    }

    fn allows_plain_http(&self, host: &RegistryHost) -> bool {
        ["plain.example", "kind-registry:5000"].contains(&host.to_string().as_str())
    }

    fn allows_insecure(&self, host: &RegistryHost) -> bool {
        host.to_string() == "kind-registry:5000"
    }
}

pub struct Bench {
    pub registry: Arc<FakeRegistry>,
    pub admission: Arc<Admission>,
    pub metrics: Arc<Metrics>,
    pub policies: Arc<Policies>,
}

/// Returns policies p0, p1 and so on with these specs.
pub fn entries(specs: &[Value]) -> Vec<Entry> {
    let entry = |(number, spec): (usize, &Value)| {
        Entry::from_manifest(&json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPolicy",
            "metadata": {"name": format!("p{number}")}, "spec": spec}))
        .unwrap()
    };
    specs.iter().enumerate().map(entry).collect()
}

/// Gives every namespace the label `team` with its own name, and the label that the API server adds.
pub struct Namespaced;

#[async_trait]
impl Namespaces for Namespaced {
    async fn labels(&self, namespace: &str) -> Result<Labels, NamespacesError> {
        if namespace == "unreadable" {
            return Err(NamespacesError("the API server is unavailable".to_owned()));
        }
        let label = |key: &str| (key.to_owned(), namespace.to_owned());
        Ok(Labels::Known(BTreeMap::from([label("team"), label("kubernetes.io/metadata.name")])))
    }
}

/// Settings for thousands of requests at once: on a loaded machine the fake registry's answers can take seconds, which must
/// not count as an unresponsive registry.
pub fn patient() -> ResolverSettings {
    ResolverSettings { unresponsive_after: Duration::from_mins(1), ..ResolverSettings::default() }
}

impl Bench {
    pub fn new() -> Self {
        Self::with(&[], ResolverSettings::default())
    }

    pub fn with(allowed: &[&str], settings: ResolverSettings) -> Self {
        let allowed = allowed.iter().map(|pattern| pattern.parse().unwrap()).collect();
        let policies = Arc::new(Policies::new(allowed, NoPolicy::Allow, Namespaced));
        Self::governed(policies, settings)
    }

    /// Uses policies as they are written in files.
    pub fn under(specs: &[Value]) -> Self {
        let policies = Policies::new(Vec::new(), NoPolicy::Allow, Namespaced);
        policies.set_files(entries(specs));
        Self::governed(Arc::new(policies), ResolverSettings::default())
    }

    pub fn governed(policies: Arc<Policies>, settings: ResolverSettings) -> Self {
        let registry = Arc::new(FakeRegistry::default());
        let metrics = Arc::new(Metrics::default());
        let admission = Arc::new(Admission::new(
            registry.clone(),
            Arc::new(Administrator),
            policies.clone(),
            settings,
            metrics.clone(),
        ));
        Self { registry, admission, metrics, policies }
    }

    /// Uses these Secrets and service accounts.
    pub fn with_secrets(manifests: &[Value]) -> Self {
        let mut secrets = ManifestSecrets::default();
        for manifest in manifests {
            secrets.take(manifest, "team");
        }
        Self::with_credentials(CredentialSources { secrets: Box::new(secrets), administrator: None })
    }

    pub fn with_credentials(credentials: CredentialSources) -> Self {
        let bench = Self::with(&[], patient());
        let admission = Arc::into_inner(bench.admission).unwrap().with_credentials(credentials);
        Self { admission: Arc::new(admission), ..bench }
    }

    /// Uses these sets and Namespaces.
    pub fn with_sets(self, manifests: &[Value]) -> (Self, Arc<MemorySets>) {
        let mut namespaces = ManifestNamespaces::default();
        for manifest in manifests {
            namespaces.take(manifest).unwrap();
        }
        let sets = Arc::new(MemorySets::new(namespaces));
        for manifest in manifests {
            sets.take(manifest, "team").unwrap();
        }
        let admission = Arc::into_inner(self.admission).unwrap().with_sets(SetCatalog::new(sets.clone()));
        (Self { admission: Arc::new(admission), ..self }, sets)
    }

    pub async fn admit(&self, pod: &Value) -> Result<Outcome, Denial> {
        self.admit_in("team", pod).await
    }

    pub async fn admit_in(&self, namespace: &str, pod: &Value) -> Result<Outcome, Denial> {
        self.admission.admit_pod(pod, namespace, soon()).await
    }

    /// Returns the pod after its admission.
    pub async fn admitted(&self, pod: &Value) -> Value {
        let outcome = self.admit(pod).await.unwrap();
        patched(pod, &outcome)
    }

    pub fn app(self, health: impl Health, settings: ServerSettings) -> Arc<App> {
        let admission = Arc::into_inner(self.admission).expect("the only reference");
        App::new(admission, health, self.metrics, settings)
    }
}

pub fn patched(pod: &Value, outcome: &Outcome) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, outcome.patch()).unwrap();
    pod
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Always ready, or never.
pub struct FixedHealth(pub bool);

impl Health for FixedHealth {
    fn report(&self) -> (bool, String) {
        (self.0, if self.0 { "certificate: ok".to_owned() } else { "certificate: not ready".to_owned() })
    }

    fn certificate_expiry(&self) -> Expiry {
        Expiry { leaf: Some(1_234), authority: None }
    }
}

/// Returns a pod with annotations below `oras.land/` and one container.
pub fn pod(annotations: &[(&str, &str)]) -> Value {
    let annotations: BTreeMap<String, &str> =
        annotations.iter().map(|(key, value)| (format!("oras.land/{key}"), *value)).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "app-", "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "busybox"}]}})
}

/// Returns a pod with one inline volume of this driver, mounted in its container.
pub fn inline(attributes: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app"},
        "spec": {"containers": [{"name": "app", "volumeMounts": [{"name": "in", "mountPath": "/data"}]}],
            "volumes": [{"name": "in", "csi": {"driver": "csi.oras.land", "volumeAttributes": attributes}}]}})
}

/// Returns a review of the creation of a pod.
pub fn review(pod: &Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "team", "operation": "CREATE", "userInfo": {"username": "u"},
        "object": pod, "oldObject": null, "dryRun": false, "options": null}})
}
