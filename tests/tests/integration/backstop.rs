//! The chart's ValidatingAdmissionPolicies on a real API server, without any webhook.
//!
//! Each denied object has a twin that differs in one field and is admitted.

use std::time::Instant;

use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_tests::backstop::{Backstop, LABEL, set};
use serde_json::{Value, json};

const SHA256: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const SHA512: &str = "sha512:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
                      0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const ID: &str = "csi.oras.land/id";
const RECIPE: &str = "csi.oras.land/recipe";
const SET: &str = "csi.oras.land/set";
const TRACE: &str = "csi.oras.land/traceparent";
const SEAL: &str = "csi.oras.land/seal";

fn recipe(text: &str) -> PinnedRecipe {
    PinnedRecipe::from_json(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn seal() -> String {
    format!("v1.0123456789abcdef.{}_-", "Ab3".repeat(28))
}

/// The attributes of a canonical volume, as core makes them, and a seal of the right shape.
fn attributes(text: &str) -> Value {
    let volume = CanonicalVolume::new(None, recipe(text)).expect("it fits");
    let mut attributes = json!(volume.to_attributes());
    attributes[SEAL] = json!(seal());
    attributes
}

fn simple() -> Value {
    attributes(&format!(r#"[{{"add":"ghcr.io/acme/model@{SHA256}"}}]"#))
}

#[expect(clippy::needless_pass_by_value, reason = "json! is written where it is called")]
fn inline(name: &str, attributes: Value) -> Value {
    json!({"name": name, "csi": {"driver": "csi.oras.land", "readOnly": true, "volumeAttributes": attributes}})
}

#[expect(clippy::needless_pass_by_value, reason = "json! is written where it is called")]
fn pod(annotations: Value, volumes: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "none"}], "volumes": volumes}})
}

/// A pod that requests an artifact, before the webhook.
fn asking(reference: &str) -> Value {
    pod(json!({"oras.land/artifact": reference}), json!([]))
}

/// A pod that requests an artifact, after the webhook.
fn answered() -> Value {
    pod(json!({"oras.land/artifact": "ghcr.io/acme/model:v1"}), json!([inline("oras-artifacts", simple())]))
}

/// A pod with an inline volume, after the webhook.
fn with_inline() -> Value {
    pod(json!({}), json!([inline("model", simple())]))
}

fn volume(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut csi = json!({"driver": "csi.oras.land", "readOnly": true, "volumeHandle": "model", "volumeAttributes": simple()});
    change(&mut csi);
    json!({"apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": format!("{name}-pv"), "labels": {LABEL: name}},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "csi": csi,
            "claimRef": {"namespace": "team-a", "name": "model"}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn denies_a_pod_that_requests_an_artifact_and_has_no_volume() {
    let backstop = Backstop::install("backstop-asks").await;
    let missing = "requests an artifact, but the pod has no volume oras-artifacts of csi.oras.land";
    let asks = json!("ghcr.io/acme/model:v1");
    let annotations = &["metadata", "annotations"];
    let inject = |key: &str, word: &str| json!({"oras.land/artifact": asks, key: word});
    for (what, good, bad) in [
        ("an artifact", json!({"oras.land/pinned": "{}"}), json!({"oras.land/artifact": asks})),
        (
            "an artifact with a name",
            json!({"example.com/artifact.a": "r.io/a"}),
            json!({"oras.land/artifact.a": "r.io/a"}),
        ),
        ("no value", json!({"oras.lan/artifact": ""}), json!({"oras.land/artifact": ""})),
        ("a recipe", json!({"x.oras.land/recipe": "[]"}), json!({"oras.land/recipe": "[]"})),
        ("a set", json!({"oras.landing/artifact-set": "s"}), json!({"oras.land/artifact-set": "s"})),
        ("a modifier alone", json!({"oras.land": "/a"}), json!({"oras.land/mount-path": "/a"})),
        ("an unknown one", json!({"oras-land/artefact": "a"}), json!({"oras.land/artefact": "a"})),
        ("capitals", json!({"ORASXLAND/artifact": asks}), json!({"ORAS.LAND/artifact": asks})),
        ("some capitals", json!({"Oras.Lands/Recipe": "[]"}), json!({"Oras.Land/Recipe": "[]"})),
        ("capitals behind", json!({"oras.land.io/ARTIFACT": asks}), json!({"oras.land/ARTIFACT": asks})),
        ("our own in capitals", json!({"oras.land/pinned": "{}"}), json!({"oras.land/Pinned": "{}"})),
        (
            "one among others",
            json!({"a": "", "b.c/d": "", "oras.land/pinned": "", "oras.land/inject": "true"}),
            json!({"a": "", "b.c/d": "", "oras.land/pinned": "", "oras.land/inject": "true", "oras.land/patch": "r.io/a"}),
        ),
        (
            "a word that is not false",
            inject("oras.land/inject", "false"),
            inject("oras.land/inject", "False"),
        ),
        ("true", inject("oras.land/inject", "false"), inject("oras.land/inject", "true")),
        ("an empty word", inject("oras.land/inject", "false"), inject("oras.land/inject", "")),
        ("false and a newline", inject("oras.land/inject", "false"), inject("oras.land/inject", "false\n")),
        ("a key in capitals", inject("oras.land/inject", "false"), inject("ORAS.LAND/inject", "false")),
    ] {
        let twin = pod(good, json!([]));
        backstop.tell_apart(what, &twin, annotations, bad, missing).await;
    }
    let message = backstop
        .denies("the words", &asking("r.io/a"), "annotation oras.land/artifact requests an artifact")
        .await;
    eprintln!("{message}");
    for words in ["kubectl get mutatingwebhookconfiguration oras-csi", "oras.land/inject: \"false\""] {
        assert!(message.contains(words), "{words}: {message}");
    }

    let first = &["spec", "volumes", "0"];
    let csi = &["spec", "volumes", "0", "csi"];
    let claim = json!({"volumeClaimTemplate": {"spec": {"accessModes": ["ReadOnlyMany"],
        "resources": {"requests": {"storage": "1Gi"}}}}});
    for (what, path, bad) in [
        ("another name", &[first.as_slice(), &["name"]].concat(), json!("oras-artifact")),
        ("an empty folder", &first.to_vec(), json!({"name": "oras-artifacts", "emptyDir": {}})),
        (
            "a generic ephemeral volume",
            &first.to_vec(),
            json!({"name": "oras-artifacts", "ephemeral": claim}),
        ),
        ("another driver", &[csi.as_slice(), &["driver"]].concat(), json!("csi.oras.land.example.com")),
        ("a driver in capitals", &[csi.as_slice(), &["driver"]].concat(), json!("CSI.oras.land")),
    ] {
        backstop.tell_apart(what, &answered(), path, bad, missing).await;
    }
    let volumes = &["spec", "volumes"];
    backstop.tell_apart("no list", &answered(), volumes, Value::Null, missing).await;
    backstop.tell_apart("an empty list", &answered(), volumes, json!([]), missing).await;
    let other = json!([inline("model", simple())]);
    backstop.tell_apart("a canonical volume of another name", &answered(), volumes, other, missing).await;

    // Other properties of a pod make no difference.
    let null = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "p-", "annotations": null},
        "spec": {"containers": [{"name": "app", "image": "none", "volumeMounts": null}], "volumes": null}});
    backstop.tell_apart("nulls", &null, annotations, json!({"oras.land/artifact": asks}), missing).await;
    let mut windows = pod(json!({}), json!([]));
    set(&mut windows, &["spec", "os"], json!({"name": "windows"}));
    backstop
        .tell_apart("a Windows pod", &windows, annotations, json!({"oras.land/artifact": asks}), missing)
        .await;
    let mut init = pod(json!({}), json!([]));
    set(&mut init, &["spec", "initContainers"], json!([{"name": "init", "image": "none"}]));
    let only_init = json!({"oras.land/artifact": asks, "oras.land/containers": "init"});
    backstop.tell_apart("init containers alone", &init, annotations, only_init, missing).await;
    backstop.uninstall().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_pods_are_not_checked() {
    let backstop = Backstop::install("backstop-others").await;
    let plain = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "app", "image": "none"}]}});
    backstop.admits("a pod with nothing", &plain).await;
    let other =
        json!({"name": "v", "csi": {"driver": "other.example.com", "volumeAttributes": {ID: "x", "a": "b"}}});
    backstop.admits("another driver's volume", &pod(json!({}), json!([other]))).await;
    let other = json!({"name": "v", "csi": {"driver": "other.example.com"}});
    backstop.admits("another driver's volume with nothing", &pod(json!({}), json!([other]))).await;
    backstop
        .admits("a free name", &pod(json!({}), json!([{"name": "oras-artifacts", "emptyDir": {}}])))
        .await;
    let words =
        json!({"text": "oras.land/artifact", "example.com/oras.land": "x", "oras.land/inject": "maybe"});
    backstop.admits("words", &pod(words, json!([]))).await;
    let claim = json!({"volumeClaimTemplate": {"metadata": {"annotations": {"oras.land/artifact": "r.io/a"}},
        "spec": {"accessModes": ["ReadOnlyMany"], "storageClassName": "csi.oras.land", "resources": {"requests": {"storage": "1Gi"}}}}});
    backstop
        .admits("a generic ephemeral volume", &pod(json!({}), json!([{"name": "v", "ephemeral": claim}])))
        .await;

    // The mirror pod that kubelet creates for a static pod, and the same pod without the annotation.
    let is_mirror = "kubernetes.io/config.mirror";
    let annotations = &["metadata", "annotations"];
    let mut mirror = pod(json!({"oras.land/artifact": "r.io/a", is_mirror: "x"}), json!([]));
    set(&mut mirror, &["spec", "nodeName"], json!("node1"));
    let bad = json!({"oras.land/artifact": "r.io/a", "kubernetes.io/config.mirrors": "x"});
    backstop.tell_apart("no mirror pod", &mirror, annotations, bad, "requests an artifact").await;
    set(&mut mirror, annotations, json!({is_mirror: "x"}));
    let volume = inline("v", json!({"oras.artifact.reference": "r.io/a"}));
    set(&mut mirror, &["spec", "volumes"], json!([volume]));
    let bad = json!({"kubernetes.io/Config.mirror": "x"});
    let words = "must have the attributes";
    backstop.tell_apart("a mirror pod in capitals", &mirror, annotations, bad, words).await;

    // The largest pods that an API server accepts do not exceed the cost budgets of the policies.
    let many =
        (0..50_000).map(|number| (format!("{number:x}"), json!(""))).collect::<serde_json::Map<_, _>>();
    backstop.admits("many annotations", &pod(Value::Object(many), json!([]))).await;
    let many =
        (0..20_000).map(|number| json!({"name": format!("v{number:x}"), "emptyDir": {}})).collect::<Vec<_>>();
    backstop.admits("many volumes", &pod(json!({}), json!(many))).await;
    backstop.uninstall().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn denies_a_volume_that_is_not_canonical() {
    let backstop = Backstop::install("backstop-volumes").await;
    let twin = with_inline();
    let csi = ["spec", "volumes", "0", "csi"];
    let field = |key: &'static str| [csi.as_slice(), &[key]].concat();
    let attribute = |key: &'static str| [csi.as_slice(), &["volumeAttributes", key]].concat();
    let keys = "must have the attributes csi.oras.land/id, csi.oras.land/recipe and csi.oras.land/seal";
    let hash = "0123456789abcdef0123456789abcdef";
    let (id, set_of, seal_of) = ("has no id of a canonical volume", "has no name of a set", "has no seal");
    for (what, path, bad, words) in [
        ("no attributes", field("volumeAttributes"), Value::Null, keys),
        ("empty attributes", field("volumeAttributes"), json!({}), keys),
        (
            "the earlier driver's",
            field("volumeAttributes"),
            json!({"oras.artifact.reference": "ghcr.io/a/b:v1"}),
            keys,
        ),
        ("no id", attribute(ID), Value::Null, keys),
        ("no recipe", attribute(RECIPE), Value::Null, keys),
        ("no seal", attribute(SEAL), Value::Null, keys),
        ("one more of ours", attribute("csi.oras.land/more"), json!("x"), keys),
        ("one in capitals", attribute("CSI.oras.land/set"), json!("x"), keys),
        ("an option of the earlier driver", attribute("oras.options.plainhttp"), json!("true"), keys),
        ("kubelet's pod name", attribute("csi.storage.k8s.io/pod.name"), json!("x"), keys),
        ("kubelet's namespace", attribute("csi.storage.k8s.io/pod.namespace"), json!("kube-system"), keys),
        ("kubelet's tokens", attribute("csi.storage.k8s.io/serviceAccount.tokens"), json!("{}"), keys),
        ("an empty key", attribute(""), json!("x"), keys),
        ("writable", field("readOnly"), json!(false), "must have readOnly: true"),
        ("nothing on writing", field("readOnly"), Value::Null, "must have readOnly: true"),
        ("an empty id", attribute(ID), json!(""), id),
        ("a path for an id", attribute(ID), json!(format!("../../etc-{hash}")), id),
        ("an id without a hash", attribute(ID), json!("model"), id),
        ("an id without a slug", attribute(ID), json!(format!("-{hash}")), id),
        ("a short hash", attribute(ID), json!(format!("model-{}", &hash[1..])), id),
        ("a hash in capitals", attribute(ID), json!(format!("model-{}", hash.to_uppercase())), id),
        ("a slug in capitals", attribute(ID), json!(format!("Model-{hash}")), id),
        ("a dot in an id", attribute(ID), json!(format!("a.b-{hash}")), id),
        ("a long id", attribute(ID), json!(format!("{}-{hash}", "a".repeat(31))), id),
        ("a long hash", attribute(ID), json!(format!("model-{hash}0x-")), id),
        ("an id and a newline", attribute(ID), json!(format!("model-{hash}\n")), id),
        ("a line and an id", attribute(ID), json!(format!("x\nmodel-{hash}")), id),
        ("an id in another script", attribute(ID), json!(format!("mödel-{hash}")), id),
        ("an empty seal", attribute(SEAL), json!(""), seal_of),
        ("another version", attribute(SEAL), json!(seal().replace("v1.", "v2.")), seal_of),
        ("two parts", attribute(SEAL), json!(seal().replace("v1.", "")), seal_of),
        ("a key id in capitals", attribute(SEAL), json!(seal().replace("abcdef", "ABCDEF")), seal_of),
        ("a short key id", attribute(SEAL), json!(seal().replace("abcdef", "abcde")), seal_of),
        ("a short signature", attribute(SEAL), json!(seal().replace("_-", "_")), seal_of),
        ("a padded signature", attribute(SEAL), json!(seal() + "=="), seal_of),
        ("the other base64", attribute(SEAL), json!(seal().replace("_-", "/+")), seal_of),
        ("a seal and a newline", attribute(SEAL), json!(seal() + "\n"), seal_of),
        ("two seals", attribute(SEAL), json!(format!("{0}\n{0}", seal())), seal_of),
        ("a set that climbs", attribute(SET), json!("../x"), set_of),
        ("an empty set", attribute(SET), json!(""), set_of),
        ("a set in capitals", attribute(SET), json!("Models"), set_of),
        ("a set with a dot", attribute(SET), json!("models."), set_of),
        ("two dots", attribute(SET), json!("a..b"), set_of),
        ("a long set", attribute(SET), json!(vec!["a".repeat(63); 4].join(".")), set_of),
        ("a set and a newline", attribute(SET), json!("models\n"), set_of),
    ] {
        backstop.tell_apart(what, &twin, &path, bad, words).await;
    }
    let mut with_set = with_inline();
    for name in ["models", "a-b.c0.d", "0"] {
        set(&mut with_set, &attribute(SET), json!(name));
        backstop.admits("a set", &with_set).await;
    }
    let also = attribute("oras.options.plainhttp");
    backstop.tell_apart("one more beside a set", &with_set, &also, json!("true"), keys).await;
    // As many attributes as a canonical volume of a set, but another.
    let mut keys_of_set = with_set.clone();
    set(&mut keys_of_set, &attribute(SET), Value::Null);
    set(&mut keys_of_set, &attribute("oras.options.insecure"), json!("true"));
    backstop.denies("another key in place of the set", &keys_of_set, keys).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for mut with_trace in [with_inline(), with_set.clone()] {
        set(&mut with_trace, &attribute(TRACE), json!(trace));
        backstop.admits("a trace", &with_trace).await;
        for (what, bad) in [
            ("an empty trace", String::new()),
            ("another version of a trace", trace.replacen("00", "01", 1)),
            ("a trace in capitals", trace.to_uppercase()),
            ("a trace and a newline", format!("{trace}\n")),
            ("a longer trace", format!("{trace}0")),
        ] {
            backstop.tell_apart(what, &with_trace, &attribute(TRACE), json!(bad), "has no traceparent").await;
        }
        backstop.tell_apart("one more beside a trace", &with_trace, &also, json!("true"), keys).await;
    }
    let mut with_secret = with_inline();
    set(&mut with_secret, &field("nodePublishSecretRef"), json!({"name": "pull"}));
    backstop.admits("a pull secret", &with_secret).await;
    // The policy for annotations does not affect volumes.
    let mut ignored = with_inline();
    set(&mut ignored, &["metadata", "annotations"], json!({"oras.land/inject": "false"}));
    backstop.tell_apart("a volume beside inject: false", &ignored, &attribute(SEAL), Value::Null, keys).await;
    backstop.tell_apart("the volume of annotations", &answered(), &attribute(SEAL), Value::Null, keys).await;

    let several = pod(
        json!({}),
        json!([{"name": "tmp", "emptyDir": {}}, inline("one", simple()),
            {"name": "other", "csi": {"driver": "other.example.com"}}, inline("two", simple())]),
    );
    let second = ["spec", "volumes", "3", "csi", "volumeAttributes", ID];
    backstop.tell_apart("the second of two", &several, &second, json!("x"), "volume two has no id").await;
    let both = ["spec", "volumes", "1", "csi", "readOnly"];
    let mut worse = several.clone();
    set(&mut worse, &["spec", "volumes", "3", "csi", "readOnly"], json!(false));
    set(&mut worse, &both, json!(false));
    backstop.denies("both", &worse, "volume one, two must have readOnly: true").await;
    backstop.uninstall().await;
}

/// Recipes that core accepts and refuses: the API server decides in the same way, except for rules that
/// only core can check. `$A` is an `add` of a pinned artifact, `@D` and `@E` are digests, `@U` and `@F` are not.
fn written(text: &str) -> String {
    let text = text.replace("$A", r#""add":"r.io/a@D""#);
    let text = text.replace("@D", &format!("@{SHA256}")).replace("@E", &format!("@{SHA512}"));
    text.replace("@U", &format!("@{}", SHA256.replace("abcdef", "ABCDEF")))
        .replace("@F", &format!("@{}", SHA256.replace("256", "512")))
}

const CANONICAL: [&str; 14] = [
    r#"[{"add":"ghcr.io/acme/model@D"}]"#,
    r#"[{"add":"ghcr.io/acme/model@E"}]"#,
    r#"[{"overlay":"ghcr.io/acme/model@D"}]"#,
    r#"[{"add":"kind:5000/java-app@D","path":"model"},{"overlay":"localhost/x@D"},{"remove":"model/*.pt"}]"#,
    r#"[{"add":"[2001:db8::1]:5000/a/b@D"},{"add":"[2001:db8::1]/a@E","path":"b"}]"#,
    r#"[{"add":"10.0.0.7:5000/a@D"},{"add":"docker.io/library/ubuntu@D","path":"u"}]"#,
    r#"[{"add":"r.io/a_b/c__d/e---f.g0@D"}]"#,
    r#"[{$A,"path":"a/b.c/_d-e/..f/g../..."}]"#,
    r#"[{$A,"path":"A","include":["*.x","config/**"],"exclude":["b"],"mediaTypes":["a/b","text/x-y+z.1"],"as":"b/c.gguf"}]"#,
    r#"[{$A,"exclude":["[!a]*","{a,b}/**","ü/é"],"platform":"linux/arm/v7"},{"remove":"**/x"}]"#,
    r#"[{$A,"include":["a\"b","a\\\"b","c\\\\d"],"exclude":["\",\"path\":\"..\""],"platform":"linux/amd64"}]"#,
    r#"[{$A},{"remove":","},{"remove":":"},{"remove":"],"},{"remove":"path\":"},{"remove":"\"add\":\"r.io/a"}]"#,
    r#"[{$A,"include":["add","path","r.io/a:v1@sha256:00","x y"]},{"remove":"语言/*"}]"#,
    r#"[{$A},{"remove":"{x\"},{\"add\":\"r.io_a}"},{"remove":"x\\\\"}]"#,
];

/// The message of a denial, and pairs of a canonical recipe and one that is not.
type Pairs = (&'static str, &'static [(&'static str, &'static str)]);
const PAIRS: [Pairs; 6] = [
    (
        "no canonical JSON of a pinned recipe",
        &[
            ("[{$A}]", ""),
            ("[{$A}]", "[]"),
            ("[{$A}]", "[{}]"),
            ("[{$A}]", "{$A}"),
            ("[{$A}]", "[{$A},]"),
            ("[{$A}]", "[{$A}"),
            ("[{$A}]", "[{$A,"),
            ("[{$A}]", "[{$A},{"),
            ("[{$A}]", "[{$A}][{$A}]"),
            (r#"[{$A,"path":"a"}]"#, r#"[{$A}]"path":"a"}]"#),
            ("[{$A}]", "- add: r.io/a@D\n"),
            ("[{$A}]", r#"[{"add": "r.io/a@D"}]"#),
            ("[{$A}]", "[{\"add\":\"r.io/a@D\n\"}]"),
            ("[{$A}]", r#"[{"add":"r.io/a@D\n"}]"#),
            ("[{$A}]", "[{$A}]\n"),
            ("[{$A}]", "\n[{$A}]"),
            ("[{$A},{$A}]", "[{$A},\n{$A}]"),
            ("[{$A}]", "[{\"add\":\"r.io/a\"}]\n[{$A}]\n[{\"add\":\"r.io/a\"}]"),
            ("[{$A}]", "[{$A}]\u{2028}"),
            ("[{$A}]", "\u{feff}[{$A}]"),
            ("[{$A}]", r#"[{$A},{"remove":"}]"#),
            ("[{$A}]", r#"[{$A,"path":null}]"#),
            (r#"[{$A,"path":"1"}]"#, r#"[{$A,"path":1}]"#),
            (r#"[{$A,"path":"a"}]"#, r#"[{$A,"path":"\u0061"}]"#),
            (r#"[{$A,"path":"a/b"}]"#, r#"[{$A,"path":"a\/b"}]"#),
            (r#"[{$A},{"remove":"a"}]"#, r#"[{$A},{"remove":"a\u0001"}]"#),
            (r#"[{$A},{"remove":"a"}]"#, "[{$A},{\"remove\":\"a\u{85}\"}]"),
            (r#"[{$A},{"remove":"a\\\\"}]"#, r#"[{$A},{"remove":"a\\\"}]"#),
            (r#"[{$A,"include":["a"]}]"#, r#"[{$A,"include":[]}]"#),
            (r#"[{$A,"include":["a"]}]"#, r#"[{$A,"include":[""]}]"#),
            (r#"[{$A,"include":["a"]}]"#, r#"[{$A,"include":[["a"]]}]"#),
            (r#"[{$A,"include":["a","b"]}]"#, r#"[{$A,"include":["a" ,"b"]}]"#),
        ],
    ),
    (
        "with unknown keys or with keys in another order",
        &[
            (r#"[{$A},{"remove":"a"}]"#, r#"[{"remove":"a"},{$A}]"#),
            (r"[{$A}]", r#"[{"remove":"a"}]"#),
            (r"[{$A}]", r#"[{"Add":"r.io/a@D"}]"#),
            (r"[{$A}]", r#"[{"add":["r.io/a@D"]}]"#),
            (r"[{$A},{$A}]", r#"[{$A,"overlay":"r.io/b@D"}]"#),
            (r#"[{$A,"path":"a"}]"#, r#"[{$A,"paths":"a"}]"#),
            (r#"[{$A,"path":"a"}]"#, r#"[{$A,"path":"a","path_1":"b"}]"#),
            (r#"[{$A,"path":"a"}]"#, r#"[{$A,"path":"a","path":"b"}]"#),
            (r#"[{$A,"path":"a"}]"#, r#"[{"path":"a",$A}]"#),
            (r#"[{$A,"path":"a"}]"#, r#"[{$A,"path":["a"]}]"#),
            (r#"[{$A,"as":"a"}]"#, r#"[{$A,"as":["a"]}]"#),
            (r#"[{$A,"as":"a"}]"#, r#"[{"as":"a",$A}]"#),
            (r#"[{$A},{"remove":"a"}]"#, r#"[{$A},{"remove":"a","as":"b"}]"#),
            (r#"[{$A},{"remove":"a"}]"#, r#"[{$A},{"remove":"a","path":"b"}]"#),
            (r#"[{$A},{"remove":"a"}]"#, r#"[{$A},{"remove":["a"]}]"#),
            (r#"[{$A,"include":["a"]}]"#, r#"[{$A,"include":"a"}]"#),
            (r#"[{$A,"exclude":["a"]}]"#, r#"[{$A,"exclude":"a"}]"#),
            (r#"[{$A,"mediaTypes":["a/b"]}]"#, r#"[{$A,"mediaTypes":"a/b"}]"#),
            (r#"[{$A,"include":["a"],"exclude":["b"]}]"#, r#"[{$A,"exclude":["b"],"include":["a"]}]"#),
            (r#"[{$A,"platform":"linux/amd64"}]"#, r#"[{$A,"platform":["linux/amd64"]}]"#),
        ],
    ),
    (
        "that does not end in @sha256: and 64 hexadecimal characters",
        &[
            ("[{$A}]", r#"[{"add":"r.io/a:v1"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/a"}]"#),
            (r#"[{$A},{"overlay":"r.io/b@D"}]"#, r#"[{$A},{"overlay":"r.io/b"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/a@sha256:0123456789abcdef"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/a@U"}]"#),
            (r#"[{"add":"r.io/a@E"}]"#, r#"[{"add":"r.io/a@F"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/a@D0"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/a@D@D"}]"#),
            ("[{$A}]", r#"[{"add":"me@r.io/a@D"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/a@D:v1"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/a@D\\"}]"#),
            (
                r#"[{$A},{"remove":"{x\"},{\"add\":\"r.io_a}"}]"#,
                r#"[{$A},{"remove":"{x"},{"add":"r.io/a}"}]"#,
            ),
        ],
    ),
    (
        "that is not HOST/REPOSITORY@DIGEST in canonical form, without a tag",
        &[
            ("[{$A}]", r#"[{"add":"r.io/a:v1@D"}]"#),
            (r#"[{"add":"r:5000/a@D"}]"#, r#"[{"add":"r:5000/a:v1@D"}]"#),
            (r#"[{"add":"team:443/a@D"}]"#, r#"[{"add":"team/a@D"}]"#),
            (r#"[{"add":"r.io/a_b@D"}]"#, r#"[{"add":"r.io/a\"b@D"}]"#),
            ("[{$A}]", r#"[{"add":"a@D"}]"#),
            ("[{$A}]", r#"[{"add":"@D"}]"#),
            ("[{$A}]", r#"[{"add":"oras://r.io/a@D"}]"#),
            ("[{$A}]", r#"[{"add":"R.io/a@D"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/A@D"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/../a@D"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/ä@D"}]"#),
            ("[{$A}]", r#"[{"add":" r.io/a@D"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/a b@D"}]"#),
            ("[{$A}]", r#"[{"add":"r.io/a___b@D"}]"#),
        ],
    ),
    (
        "a path in csi.oras.land/recipe that is not relative and normal",
        &[
            (r#"[{$A,"path":"a"}]"#, r#"[{$A,"path":".."}]"#),
            (r#"[{$A,"path":"a"}]"#, r#"[{$A,"path":"."}]"#),
            (r#"[{$A,"path":"a"}]"#, r#"[{$A,"path":"./a"}]"#),
            (r#"[{$A,"path":"a"}]"#, r#"[{$A,"path":"/a"}]"#),
            (r#"[{$A,"path":"a"}]"#, r#"[{$A,"path":"a/"}]"#),
            (r#"[{$A,"path":"a"}]"#, r#"[{$A,"path":"/"}]"#),
            (r#"[{$A,"path":"a/b"}]"#, r#"[{$A,"path":"a/../b"}]"#),
            (r#"[{$A,"path":"a/b"}]"#, r#"[{$A,"path":"a/.."}]"#),
            (r#"[{$A,"path":"a/b"}]"#, r#"[{$A,"path":"a//b"}]"#),
            (r#"[{$A,"path":"a_b"}]"#, r#"[{$A,"path":"a b"}]"#),
            (r#"[{$A,"as":"a"}]"#, r#"[{$A,"as":".."}]"#),
            (r#"[{$A,"as":"a"}]"#, r#"[{$A,"as":"/a"}]"#),
            (r#"[{$A,"as":"a_b"}]"#, r#"[{$A,"as":"a:b"}]"#),
            (r#"[{$A,"path":"a_b"}]"#, r#"[{$A,"path":"a:b"}]"#),
            (r#"[{$A,"path":"a_b"}]"#, r#"[{$A,"path":"a\\..\\b"}]"#),
            (r#"[{$A,"path":"a_b"}]"#, r#"[{$A,"path":"a\"b"}]"#),
            (r#"[{$A,"path":"a_b"}]"#, r#"[{$A,"path":"a,b=c"}]"#),
            (r#"[{$A,"path":"e"}]"#, r#"[{$A,"path":"é"}]"#),
            (r#"[{$A,"path":"a"}]"#, "[{$A,\"path\":\"\u{430}\"}]"),
            (r#"[{$A},{$A,"path":"a"}]"#, r#"[{$A},{$A,"path":"a/.."}]"#),
            (r#"[{$A},{"remove":"a/*"}]"#, r#"[{$A},{"remove":"a/../*"}]"#),
            (r#"[{$A,"include":["a","etc/*"]}]"#, r#"[{$A,"include":["/etc/*","a"]}]"#),
            (r#"[{$A,"exclude":["a"]}]"#, r#"[{$A,"exclude":["."]}]"#),
        ],
    ),
    (
        "an invalid media type or platform in csi.oras.land/recipe",
        &[
            (r#"[{$A,"mediaTypes":["a/b"]}]"#, r#"[{$A,"mediaTypes":["a"]}]"#),
            (r#"[{$A,"mediaTypes":["a/b"]}]"#, r#"[{$A,"mediaTypes":["*/*"]}]"#),
            (r#"[{$A,"mediaTypes":["a/b","c/d"]}]"#, r#"[{$A,"mediaTypes":["a/b","c/d/e"]}]"#),
            (r#"[{$A,"mediaTypes":["a/b","c/d"]}]"#, r#"[{$A,"mediaTypes":["a/b","]"]}]"#),
            (r#"[{$A,"mediaTypes":["a/b"]}]"#, r#"[{$A,"mediaTypes":["a/b\"c"]}]"#),
            (r#"[{$A,"platform":"linux/amd64"}]"#, r#"[{$A,"platform":"linux"}]"#),
            (r#"[{$A,"platform":"linux/amd64"}]"#, r#"[{$A,"platform":"Linux/amd64"}]"#),
            (r#"[{$A,"platform":"linux/amd64"}]"#, r#"[{$A,"platform":"*/*"}]"#),
            (r#"[{$A,"platform":"linux/arm/v7"}]"#, r#"[{$A,"platform":"linux/arm/v7/x"}]"#),
        ],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn accepts_exactly_the_recipes_that_core_parses() {
    let backstop = Backstop::install("backstop-recipes").await;
    let path = ["spec", "volumes", "0", "csi", "volumeAttributes", RECIPE];
    let with = |text: &str| pod(json!({}), json!([inline("model", attributes(text))]));
    for text in CANONICAL.map(written) {
        backstop.admits(&text, &with(&text)).await;
    }
    for (words, pairs) in PAIRS {
        for (twin, bad) in pairs {
            let (twin, bad) = (written(twin), written(bad));
            assert!(PinnedRecipe::from_json(&bad).is_err(), "core reads {bad}");
            backstop.tell_apart(&bad, &with(&twin), &path, json!(bad), words).await;
        }
    }
    // CEL cannot check these: an unsorted list, a repository of docker.io, the hash in the id.
    for text in [r#"[{$A,"include":["b","a"]}]"#, r#"[{"add":"docker.io/a@D"}]"#].map(written) {
        assert!(PinnedRecipe::from_json(&text).is_err(), "core reads {text}");
        let mut object = with_inline();
        set(&mut object, &path, json!(text));
        backstop.admits(&text, &object).await;
    }
    backstop.uninstall().await;
}

/// A recipe of that many bytes, or a few less: steps as people have them, then globs.
fn recipe_of(bytes: usize) -> String {
    let step = |number: usize| {
        format!(r#"{{"add":"registry.example.com/team/model-{number}@{SHA256}","path":"models/m{number}"}}"#)
    };
    let (mut steps, mut length) = (Vec::new(), "[]".len());
    for step in (0..).map(step) {
        if length + step.len() + 1 > bytes {
            break;
        }
        length += step.len() + 1;
        steps.push(step);
    }
    let rest = (bytes + 1).saturating_sub(length + r#"{"remove":""},"#.len());
    if (1..=512).contains(&rest) {
        steps.push(format!(r#"{{"remove":"{}"}}"#, "x".repeat(rest)));
    }
    format!("[{}]", steps.join(","))
}

#[tokio::test(flavor = "multi_thread")]
async fn admits_a_pod_with_a_hundred_volumes_of_the_largest_size() {
    let backstop = Backstop::install("backstop-many").await;
    // The maximum size, which core accepts.
    let empty = attributes(&recipe_of(200));
    let bytes = |attributes: &Value| -> usize {
        let pairs = attributes.as_object().expect("a map").iter().filter(|(key, _)| *key != TRACE);
        pairs.map(|(key, value)| key.len() + value.as_str().expect("text").len()).sum()
    };
    let beside = bytes(&empty) - empty[RECIPE].as_str().unwrap().len();
    let largest = recipe_of(CanonicalVolume::MAX_BYTES - beside);
    let mut attributes = attributes(&largest);
    let room = CanonicalVolume::MAX_BYTES - bytes(&attributes);
    eprintln!("the largest attributes have {} bytes", bytes(&attributes));
    assert!(room < 20, "{room}");
    // The trace does not count for the size, but its rule costs.
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    attributes[TRACE] = json!(trace);

    let volumes = |count: usize, attributes: &Value| {
        let name =
            |number: usize| if number == 0 { "oras-artifacts".to_owned() } else { format!("v{number}") };
        let list = (0..count).map(|number| inline(&name(number), attributes.clone())).collect::<Vec<_>>();
        pod(json!({"oras.land/artifact": "r.io/a"}), json!(list))
    };
    for count in [1, 100, 130] {
        let started = Instant::now();
        backstop.admits(&format!("{count} of the largest"), &volumes(count, &attributes)).await;
        eprintln!("{count} of the largest: {:?}", started.elapsed());
    }
    let mut small = simple();
    small[TRACE] = json!(trace);
    let started = Instant::now();
    backstop.admits("256 of one step", &volumes(256, &small)).await;
    eprintln!("256 of one step: {:?}", started.elapsed());
    let mut one_bad = volumes(100, &attributes);
    set(&mut one_bad, &["spec", "volumes", "99", "csi", "volumeAttributes", SEAL], json!("x"));
    backstop.denies("the last of a hundred", &one_bad, "volume v99 has no seal").await;
    for (what, pod) in [("too many", volumes(257, &small)), ("too large", volumes(140, &attributes))] {
        let status = backstop.create(&pod).await.expect_err("refused");
        assert_eq!(status.code, 413, "{what}: {}", status.message);
        assert!(
            status.message.contains("more than 256 volumes of csi.oras.land"),
            "{what}: {}",
            status.message
        );
    }

    // The limit counts bytes, also for characters of two bytes.
    for filler in ["x", "é"] {
        let width = filler.len();
        let count = 100;
        let base = recipe_of(CanonicalVolume::MAX_BYTES - beside - 450);
        let longer_by = |extra: usize| {
            let glob = format!("{}{}", filler.repeat(count), "y".repeat(extra));
            format!(r#"{},{{"remove":"{glob}"}}]"#, base.trim_end_matches(']'))
        };
        attributes[RECIPE] = json!(longer_by(0));
        let extra = CanonicalVolume::MAX_BYTES - bytes(&attributes);
        assert!(extra + count * width <= 512, "{extra}");
        attributes[RECIPE] = json!(recipe(&longer_by(extra)).to_json());
        assert_eq!(bytes(&attributes), CanonicalVolume::MAX_BYTES);
        let twin = volumes(1, &attributes);
        let path = ["spec", "volumes", "0", "csi", "volumeAttributes", RECIPE];
        let words = "has more than 3072 bytes of attributes";
        backstop.tell_apart("one byte more", &twin, &path, json!(longer_by(extra + 1)), words).await;
    }
    backstop.uninstall().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_rules_apply_to_persistent_volumes() {
    let name = "backstop-pv";
    let backstop = Backstop::install(name).await;
    let twin = volume(name, |_| ());
    let csi = ["spec", "csi"];
    let field = |key: &'static str| [csi.as_slice(), &[key]].concat();
    let attribute = |key: &'static str| [csi.as_slice(), &["volumeAttributes", key]].concat();
    let claim = "must name the namespace of its claim";
    let keys = "must have the attributes";
    for (what, path, bad, words) in [
        ("no claim", vec!["spec", "claimRef"], Value::Null, claim),
        ("an empty claim", vec!["spec", "claimRef"], json!({}), claim),
        ("a claim of no namespace", vec!["spec", "claimRef", "namespace"], Value::Null, claim),
        ("a claim of an empty namespace", vec!["spec", "claimRef", "namespace"], json!(""), claim),
        ("writable", field("readOnly"), json!(false), "must have readOnly: true"),
        ("nothing on writing", field("readOnly"), Value::Null, "must have readOnly: true"),
        ("no attributes", field("volumeAttributes"), Value::Null, keys),
        (
            "the earlier driver's",
            field("volumeAttributes"),
            json!({"oras.artifact.reference": "r.io/a:v1"}),
            keys,
        ),
        ("no seal", attribute(SEAL), Value::Null, keys),
        ("kubelet's namespace", attribute("csi.storage.k8s.io/pod.namespace"), json!("team-b"), keys),
        ("another id", attribute(ID), json!("model"), "volume backstop-pv-pv has no id"),
        ("another seal", attribute(SEAL), json!("v1.a.b"), "has no seal"),
        ("a tag", attribute(RECIPE), json!(r#"[{"add":"r.io/a:v1"}]"#), "does not end in @sha256:"),
        (
            "a way up",
            attribute(RECIPE),
            json!(format!(r#"[{{"add":"r.io/a@{SHA256}","path":".."}}]"#)),
            "a path in",
        ),
    ] {
        backstop.tell_apart(what, &twin, &path, bad, words).await;
    }
    let with_secret =
        volume(name, |csi| csi["nodePublishSecretRef"] = json!({"namespace": "team-a", "name": "pull"}));
    let path = ["spec", "csi", "nodePublishSecretRef", "namespace"];
    let words = "must be in the namespace of its spec.claimRef";
    backstop.tell_apart("another team's secret", &with_secret, &path, json!("team-b"), words).await;
    let path = ["spec", "claimRef", "namespace"];
    backstop.tell_apart("another team's claim", &with_secret, &path, json!("team-b"), words).await;
    // Not a mirror pod.
    let mut mirror = volume(name, |_| ());
    set(&mut mirror, &["metadata", "annotations"], json!({"kubernetes.io/config.mirror": "x"}));
    backstop.tell_apart("a mirror's annotation", &mirror, &attribute(SEAL), Value::Null, keys).await;

    let other = volume(name, |csi| {
        *csi = json!({"driver": "other.example.com", "volumeHandle": "h", "volumeAttributes": {ID: "x"}});
    });
    backstop.tell_apart("our driver", &other, &field("driver"), json!("csi.oras.land"), keys).await;
    let mut elsewhere = volume(name, |_| ());
    set(&mut elsewhere, &["spec", "csi"], Value::Null);
    set(&mut elsewhere, &["spec", "claimRef"], Value::Null);
    set(&mut elsewhere, &["spec", "hostPath"], json!({"path": "/tmp/x"}));
    set(&mut elsewhere, &["metadata", "annotations"], json!({"oras.land/artifact": "r.io/a"}));
    backstop.admits("a PersistentVolume of the node", &elsewhere).await;
    backstop.uninstall().await;
}
