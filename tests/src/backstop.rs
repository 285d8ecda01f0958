//! The chart's ValidatingAdmissionPolicies, for one namespace of the API server.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::core::{Request, Status};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::cluster::{client, eventually};
use crate::webhook::chart;

const PATIENCE: Duration = Duration::from_secs(30);
/// The label that selects the PersistentVolumes of a test.
pub const LABEL: &str = "tests.oras.land/backstop";

/// The chart's policies, bound to one namespace and to the PersistentVolumes with its label.
#[derive(Clone)]
pub struct Backstop {
    client: Client,
    name: String,
}

impl Backstop {
    /// Creates the namespace, and binds the policies to it; waits until they are in force.
    pub async fn install(name: &str) -> Self {
        let client = client().await;
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        let params = PostParams::default();
        Api::all(client.clone()).create(&params, &namespace).await.expect("a namespace");
        let this = Self { client, name: name.to_owned() };
        let renamed = |original: &Value| json!(format!("{name}-{}", original.as_str().expect("a name")));
        for mut object in chart() {
            object["metadata"]["name"] = renamed(&object["metadata"]["name"]);
            if object["kind"] == "ValidatingAdmissionPolicy" {
                let policy = serde_json::from_value(object).expect("a policy");
                this.policies().create(&params, &policy).await.expect("accepted");
            } else if object["kind"] == "ValidatingAdmissionPolicyBinding" {
                object["spec"]["policyName"] = renamed(&object["spec"]["policyName"]);
                let of_pods = !object["spec"]["policyName"].as_str().unwrap().ends_with("persistentvolumes");
                object["spec"]["matchResources"] = if of_pods {
                    json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}})
                } else {
                    json!({"objectSelector": {"matchLabels": {LABEL: name}}})
                };
                let binding = serde_json::from_value(object).expect("a binding");
                this.bindings().create(&params, &binding).await.expect("accepted");
            }
        }
        // The API server compiles them a moment after they were created.
        for probe in probes(name) {
            eventually("the policies are in force", PATIENCE, async || match this.create(&probe).await {
                Err(status) if status.code == 403 => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
        }
        this
    }

    fn policies(&self) -> Api<ValidatingAdmissionPolicy> {
        Api::all(self.client.clone())
    }

    fn bindings(&self) -> Api<ValidatingAdmissionPolicyBinding> {
        Api::all(self.client.clone())
    }

    /// Tries to create a pod or a PersistentVolume, as it is written: typed clients leave `null` out.
    pub async fn create(&self, object: &Value) -> Result<Value, Box<Status>> {
        let url = match object["kind"].as_str() {
            Some("Pod") => format!("/api/v1/namespaces/{}/pods", self.name),
            _ => "/api/v1/persistentvolumes".to_owned(),
        };
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let request = Request::new(url).create(&params, object.to_string().into_bytes()).expect("a request");
        match self.client.request::<Value>(request).await {
            Ok(created) => Ok(created),
            Err(kube::Error::Api(status)) => Err(status),
            Err(error) => panic!("no answer: {error}"),
        }
    }

    /// Fails unless the object is admitted.
    pub async fn admits(&self, what: &str, object: &Value) {
        if let Err(status) = self.create(object).await {
            panic!("{what}: is refused with {} {}", status.code, status.message);
        }
    }

    /// Fails unless our policies deny the object with a message that contains `words`.
    pub async fn denies(&self, what: &str, object: &Value, words: &str) -> String {
        let Err(status) = self.create(object).await else { panic!("{what}: gets in") };
        let message = status.message;
        assert_eq!(status.code, 403, "{what}: {message}");
        let ours = format!("ValidatingAdmissionPolicy '{}-oras-csi-", self.name);
        assert!(message.contains(&ours) && message.contains(words), "{what}: wanted {words:?}: {message}");
        assert!(!message.contains("expression"), "{what}: an error, not an answer: {message}");
        message
    }

    /// Fails unless `twin` is admitted and is denied with one field changed, or removed by null.
    pub async fn tell_apart(&self, what: &str, twin: &Value, path: &[&str], bad: Value, words: &str) {
        self.admits(&format!("the twin of {what}"), twin).await;
        let mut object = twin.clone();
        set(&mut object, path, bad);
        assert_ne!(object, *twin, "{what}");
        let message = self.denies(what, &object, words).await;
        assert!(
            message.contains("kubectl get mutatingwebhookconfiguration oras-csi")
                || words.contains("spec.claimRef"),
            "{what}: {message}"
        );
    }

    /// Deletes the policies.
    pub async fn uninstall(self) {
        for suffix in ["annotations", "volumes", "persistentvolumes"] {
            let name = format!("{}-oras-csi-{suffix}", self.name);
            self.bindings().delete(&name, &DeleteParams::default()).await.expect("it was made");
            self.policies().delete(&name, &DeleteParams::default()).await.expect("it was made");
        }
    }
}

/// Returns an object that each of the policies denies.
fn probes(name: &str) -> [Value; 3] {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "app", "image": "none"}]}});
    let csi = json!({"driver": "csi.oras.land", "readOnly": true});
    let (mut asks, mut has) = (pod.clone(), pod);
    asks["metadata"]["annotations"] = json!({"oras.land/artifact": "r.io/a"});
    has["spec"]["volumes"] = json!([{"name": "v", "csi": csi}]);
    let mut csi = csi;
    csi["volumeHandle"] = json!("v");
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": format!("{name}-pv"), "labels": {LABEL: name}},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "csi": csi}});
    [asks, has, volume]
}

/// Sets a field; null removes it.
pub fn set(object: &mut Value, path: &[&str], value: Value) {
    let [way @ .., last] = path else { panic!("an empty path") };
    let mut at = object;
    for step in way {
        at = match step.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[*step],
        };
    }
    match last.parse::<usize>() {
        Ok(index) => at[index] = value,
        Err(_) if value.is_null() => _ = at.as_object_mut().expect("an object").remove(*last),
        Err(_) => at[*last] = value,
    }
}
