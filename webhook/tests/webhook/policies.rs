//! Policies: denials, warnings and audit annotations, and that they are checked before any registry is contacted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{
    Behaviour, Bench, Namespaced, default_digest, entries, index, inline, manifest, not_found, patched, pod,
};
use oras_csi_webhook::ResolverSettings;
use oras_csi_webhook::policy::{LabelsFrom, ManifestNamespaces, NoPolicy, Policies};
use rstest::rstest;
use serde_json::{Value, json};

fn one(reference: &str) -> Value {
    pod(&[("artifact", reference)])
}

#[tokio::test]
async fn a_forbidden_registry_is_never_contacted() {
    let policy = json!({"registries": {"deny": ["evil.example", "ghcr.io/evil/**"]}});
    let bench = Bench::under(&[policy]);
    bench.admit(&one("ghcr.io/acme/model:v1")).await.unwrap();
    let asked = bench.registry.calls();
    assert_eq!(asked, 2, "what is allowed is asked for, so the recording works");
    let digest = default_digest("evil.example/a:1");
    let canonical =
        Bench::new().admitted(&inline(&json!({"oras.artifact.reference": "evil.example/a:1"}))).await;
    for refused in [
        one("evil.example/a:1"),
        one("EVIL.example:443/a:1"),
        one(&format!("evil.example/a@{digest}")),
        one("ghcr.io/evil/x"),
        pod(&[("artifact", "ghcr.io/acme/other:v1"), ("artifact.z", "evil.example/a:1")]),
        pod(&[("recipe", "- add: ghcr.io/acme/other:v1\n- overlay: evil.example/a:1")]),
        inline(
            &json!({"oras-csi.actions": "- add: ghcr.io/acme/other:v1\n- add: evil.example/a:1\n  path: b"}),
        ),
        inline(&json!({"oras.artifact.reference": "evil.example/a:1", "oras.options.pullalways": "true"})),
        canonical,
    ] {
        let denial = bench.admit(&refused).await.unwrap_err();
        assert_eq!(denial.code().number(), 403, "{denial}");
        assert!(
            denial.message().contains("is refused by ArtifactPolicy p0, rule registries.deny ("),
            "{denial}"
        );
    }
    assert_eq!(bench.registry.calls(), asked);
}

#[tokio::test]
async fn a_denial_names_the_place_the_policy_the_rule_the_part_and_what_to_write() {
    let policy = json!({"registries": {"allow": ["ghcr.io/acme/**"]}, "deniedTags": ["latest"]});
    let bench = Bench::under(&[policy]);
    let message = async |pod: Value| bench.admit(&pod).await.unwrap_err().message().to_owned();
    assert_eq!(
        message(one("ghcr.io/acme/model")).await,
        "annotation oras.land/artifact: \"ghcr.io/acme/model:latest\" is refused by ArtifactPolicy p0, rule deniedTags \
         (tag latest matches latest): write another tag, or a digest without a tag"
    );
    assert_eq!(
        message(pod(&[("recipe", "- add: ghcr.io/acme/model:v1\n- add: ghcr.io/evil/x:v1\n  path: x")]))
            .await,
        "annotation oras.land/recipe, step 2: \"ghcr.io/evil/x:v1\" is refused by ArtifactPolicy p0, rule \
         registries.allow (repository ghcr.io/evil/x matches none of its patterns): use one of: ghcr.io/acme/**"
    );
    assert_eq!(
        message(inline(&json!({"oras.artifact.reference": "r.io/a"}))).await,
        "volume in, attribute oras.artifact.reference: \"r.io/a:latest\" is refused by ArtifactPolicy p0, rule \
         registries.allow (registry r.io matches none of its patterns): use one of: ghcr.io/acme/**"
    );
}

#[tokio::test]
async fn all_policies_must_pass_and_deny_rules_are_reported_first() {
    let bench = Bench::under(&[
        json!({"registries": {"allow": ["ghcr.io"]}}),
        json!({"registries": {"allow": ["ghcr.io/acme/**", "r.io"]}}),
        json!({"registries": {"deny": ["r.io"]}}),
    ]);
    bench.admit(&one("ghcr.io/acme/x:1")).await.unwrap();
    let denial = bench.admit(&one("ghcr.io/other/x:1")).await.unwrap_err();
    assert!(denial.message().contains("ArtifactPolicy p1, rule registries.allow"), "{denial}");
    let denial = bench.admit(&one("r.io/x:1")).await.unwrap_err();
    assert!(denial.message().contains("ArtifactPolicy p2, rule registries.deny"), "{denial}");
    assert!(denial.message().contains("(and 1 more)"), "{denial}");
}

#[tokio::test]
async fn a_policy_applies_to_the_namespaces_that_it_selects() {
    let only = |selector: Value| json!({"namespaceSelector": selector, "registries": {"allow": ["ghcr.io"]}});
    for (selector, here, there) in [
        (json!({"matchLabels": {"team": "red"}}), true, false),
        (json!({"matchLabels": {"kubernetes.io/metadata.name": "red"}}), true, false),
        (
            json!({"matchExpressions": [{"key": "team", "operator": "In", "values": ["red", "x"]}]}),
            true,
            false,
        ),
        (
            json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["blue"]}]}),
            true,
            false,
        ),
        (json!({"matchExpressions": [{"key": "none", "operator": "Exists"}]}), false, false),
        (json!({"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}), true, true),
        (json!({}), true, true),
        (Value::Null, true, true),
    ] {
        let bench = Bench::under(&[only(selector.clone())]);
        assert_eq!(bench.admit_in("red", &one("r.io/a:1")).await.is_err(), here, "{selector}");
        assert_eq!(bench.admit_in("blue", &one("r.io/a:1")).await.is_err(), there, "{selector}");
    }
    let bench = Bench::under(&[only(json!({"matchLabels": {"team": "red"}}))]);
    let denial = bench.admit_in("unreadable", &one("r.io/a:1")).await.unwrap_err();
    assert_eq!(denial.code().number(), 503, "{denial}");
    assert!(denial.message().contains("namespace unreadable: has labels that cannot be read"), "{denial}");
    assert!(bench.admit_in("unreadable", &pod(&[])).await.is_ok(), "a pod without a request");
}

#[tokio::test]
async fn every_policy_applies_where_labels_are_unknown() {
    let policies = Policies::new(Vec::new(), NoPolicy::Allow, ManifestNamespaces::default());
    let spec =
        json!({"namespaceSelector": {"matchLabels": {"team": "red"}}, "registries": {"allow": ["ghcr.io"]}});
    policies.set_files(entries(&[spec]));
    let bench = Bench::governed(Arc::new(policies), ResolverSettings::default());
    assert!(bench.admit_in("blue", &one("r.io/a:1")).await.is_err());
}

#[tokio::test]
async fn a_namespace_without_a_policy_can_be_denied() {
    let policies = Policies::new(Vec::new(), NoPolicy::Deny, Namespaced);
    policies.set_files(entries(&[json!({"namespaceSelector": {"matchLabels": {"team": "red"}}})]));
    let bench = Bench::governed(Arc::new(policies), ResolverSettings::default());
    bench.admit_in("red", &one("r.io/a:1")).await.unwrap();
    let denial = bench.admit_in("blue", &one("r.io/a:1")).await.unwrap_err();
    assert_eq!(denial.code().number(), 403);
    assert!(denial.message().contains("namespace blue: is selected by no ArtifactPolicy"), "{denial}");
    bench.admit_in("blue", &pod(&[])).await.unwrap();
}

#[tokio::test]
async fn warn_and_audit_modes_do_not_deny() {
    let rules = json!({"registries": {"deny": ["r.io"]}});
    let mode = |mode: &str| {
        let mut spec = rules.clone();
        spec["mode"] = json!(mode);
        spec
    };
    let bench = Bench::under(&[mode("Warn"), mode("Audit")]);
    let outcome = bench.admit(&one("r.io/a:1")).await.unwrap();
    let warning = outcome.warnings().iter().find(|warning| warning.contains("p0")).unwrap();
    assert_eq!(
        warning,
        "annotation oras.land/artifact: \"r.io/a:1\" breaks ArtifactPolicy p0, rule registries.deny (registry r.io \
         matches r.io): use another registry or repository"
    );
    assert!(!outcome.warnings().iter().any(|warning| warning.contains("p1")));
    assert_eq!(
        outcome.audit()["violations"],
        r#"[{"policy":"p1","rule":"registries.deny","artifact":"r.io/a","component":"registry r.io matches r.io"}]"#
    );
    assert!(bench.admit(&one("ghcr.io/a:1")).await.unwrap().audit().is_empty());
}

/// The API server keeps the first value of an audit annotation, and logs an error about another one.
#[tokio::test]
async fn reinvocation_gives_the_same_audit_annotations() {
    let bench = Bench::under(&[
        json!({"mode": "Audit", "registries": {"deny": ["r.io"]}, "maxSize": 0}),
        json!({"mode": "Audit", "deniedTags": ["latest"]}),
        json!({"mode": "Audit", "requireDigest": true}),
        json!({"mode": "Audit", "maxSize": 0}),
    ]);
    let mut both = inline(&json!({"oras.artifact.reference": "r.io/b"}));
    both["metadata"]["annotations"] = one("r.io/a")["metadata"]["annotations"].clone();
    for first in [one("r.io/a"), inline(&json!({"oras.artifact.reference": "r.io/a"})), both] {
        let outcome = bench.admit(&first).await.unwrap();
        assert!(outcome.audit().len() >= 2, "{:?}", outcome.audit());
        let second = bench.admit(&patched(&first, &outcome)).await.unwrap();
        assert!(second.patch().0.is_empty());
        assert!(second.audit().contains_key("violations"));
        for (key, value) in second.audit() {
            assert_eq!(outcome.audit().get(key), Some(value), "{key}");
        }
    }
}

#[rstest]
#[case(json!({"maxSize": "2k"}), None)]
#[case(json!({"maxSize": 1999}), Some("rule maxSize (its layers have 2000 bytes, more than 1999)"))]
#[case(json!({"allowedMediaTypes": ["a/b", "a/c"]}), None)]
#[case(json!({"allowedMediaTypes": ["a/b"]}), Some("rule allowedMediaTypes (a layer's media type a/c matches none of its types)"))]
#[case(json!({"allowedArtifactTypes": ["application/vnd.acme.model"]}), None)]
#[case(json!({"allowedArtifactTypes": ["application/vnd.acme"]}), Some("rule allowedArtifactTypes (artifact type application/vnd.acme.model matches none"))]
#[tokio::test]
async fn types_and_sizes_are_checked(#[case] spec: Value, #[case] words: Option<&str>) {
    let mut artifact = manifest(&[("a/b", Some("f")), ("a/c", Some("g"))]);
    artifact["artifactType"] = json!("application/vnd.acme.model");
    artifact["layers"][0]["size"] = json!(1_000);
    artifact["layers"][1]["size"] = json!(1_000);
    let bench = Bench::under(&[spec]);
    let digest = bench.registry.tag("r.io/a:1", &artifact);
    let canonical = {
        let open = Bench::new();
        open.registry.tag("r.io/a:1", &artifact);
        open.admitted(&one("r.io/a:1")).await
    };
    // By tag, by digest, in a recipe, and in a canonical volume that came with the request.
    for pod in [
        one("r.io/a:1"),
        one(&format!("r.io/a@{digest}")),
        pod(&[("recipe", "- add: r.io/a:1\n  path: x")]),
        inline(&json!({"oras.artifact.reference": "r.io/a:1"})),
        canonical,
    ] {
        let found = bench.admit(&pod).await.map_err(|denial| denial.message().to_owned());
        match words {
            None => assert!(found.is_ok(), "{found:?}"),
            Some(words) => assert!(found.as_ref().is_err_and(|found| found.contains(words)), "{found:?}"),
        }
    }
    // Layers that the media types exclude violate no rule.
    let chosen = pod(&[("artifact", "r.io/a:1"), ("media-types", "a/b")]);
    let refused = bench.admit(&chosen).await.is_err();
    assert_eq!(refused, words.is_some_and(|words| words.contains("allowedArtifactTypes")));
}

#[tokio::test]
async fn every_manifest_that_a_node_may_choose_is_checked() {
    let bench = Bench::under(&[json!({"maxSize": 10})]);
    let sized = |size: u64| {
        let mut manifest = manifest(&[("a/b", Some("f"))]);
        manifest["layers"][0]["size"] = json!(size);
        bench.registry.store(&manifest)
    };
    let (small, large, lost) = (sized(1), sized(1_000), default_digest("r.io/never:1"));
    bench.registry.tag("r.io/a:1", &index(&[("linux/amd64", &small), ("linux/arm64", &large)]));
    let denial = bench.admit(&one("r.io/a:1")).await.unwrap_err();
    assert!(denial.message().contains("rule maxSize"), "{denial}");
    bench.admit(&pod(&[("artifact", "r.io/a:1"), ("platform", "linux/amd64")])).await.unwrap();
    bench.admit(&pod(&[("artifact", "r.io/a:1"), ("platform", "linux/arm64")])).await.unwrap_err();

    bench.registry.tag("r.io/b:1", &index(&[("linux/amd64", &small), ("windows/amd64", &large)]));
    bench.admit(&one("r.io/b:1")).await.unwrap();
    bench.registry.tag("r.io/c:1", &index(&[("linux/amd64", &small), ("Linux/riscv64", &large)]));
    bench.admit(&one("r.io/c:1")).await.unwrap_err();

    // A manifest that cannot be read may contain anything.
    bench.registry.tag("r.io/d:1", &index(&[("linux/amd64", &small), ("linux/arm64", &lost)]));
    assert_eq!(bench.admit(&one("r.io/d:1")).await.unwrap_err().code().number(), 404);
    let many: Vec<(String, _)> = (0..100).map(|number| (format!("linux/a{number}"), &small)).collect();
    let many: Vec<(&str, _)> = many.iter().map(|(platform, digest)| (platform.as_str(), *digest)).collect();
    bench.registry.tag("r.io/e:1", &index(&many));
    let denial = bench.admit(&one("r.io/e:1")).await.unwrap_err();
    assert!(denial.message().contains("index of 100 manifests"), "{denial}");
}

#[tokio::test]
async fn sets_only_denies_everything_else() {
    let bench = Bench::under(&[json!({"setsOnly": true})]);
    let canonical = Bench::new().admitted(&one("r.io/a:1")).await;
    for refused in [
        one("r.io/a:1"),
        pod(&[("recipe", "- add: r.io/a:1")]),
        inline(&json!({"oras.artifact.reference": "r.io/a:1"})),
        inline(&json!({"oras-csi.name": "mine", "oras-csi.actions": "- add: r.io/a:1"})),
        canonical,
    ] {
        let denial = bench.admit(&refused).await.unwrap_err();
        assert!(denial.message().contains("rule setsOnly"), "{denial}");
    }
    assert_eq!(bench.registry.calls(), 0);
}

#[tokio::test]
async fn policies_can_change_during_requests() {
    let bench = Arc::new(Bench::under(&[json!({"registries": {"deny": ["evil.example"]}})]));
    bench.registry.set("evil.example/a:1", Behaviour::Fails(not_found("evil.example/a:1")));
    let stop = Arc::new(AtomicBool::new(false));
    let swap = std::thread::spawn({
        let (bench, stop) = (Arc::clone(&bench), Arc::clone(&stop));
        move || {
            let mut swaps = 0;
            while !stop.load(Ordering::SeqCst) {
                // Both policies forbid it, for different reasons, and one of them is always in force.
                for spec in [
                    json!({"registries": {"deny": ["evil.example"]}}),
                    json!({"registries": {"allow": ["r.io", "ghcr.io"]}}),
                ] {
                    bench.policies.set_files(entries(&[spec]));
                    swaps += 1;
                }
            }
            swaps
        }
    });
    for _ in 0..2_000 {
        bench.admit(&one("r.io/a:1")).await.unwrap();
        let denial = bench.admit(&one("evil.example/a:1")).await.unwrap_err();
        assert_eq!(denial.code().number(), 403, "{denial}");
    }
    stop.store(true, Ordering::SeqCst);
    let swaps = swap.join().unwrap();
    assert!(swaps > 10, "{swaps} swaps");
}

#[tokio::test]
async fn verdicts_are_counted_with_a_bounded_set_of_labels() {
    let bench = Bench::under(&[
        json!({"mode": "Warn", "deniedTags": ["latest"]}),
        json!({"mode": "Audit", "requireDigest": true}),
        json!({"registries": {"deny": ["evil.example"]}}),
    ]);
    bench.admit(&one("r.io/a")).await.unwrap();
    bench.admit(&one("evil.example/a:1")).await.unwrap_err();
    let text = bench.metrics.encode();
    for line in [
        r#"oras_csi_webhook_policy_verdicts_total{policy="p0",verdict="warned",rule="deniedTags"} 1"#,
        r#"oras_csi_webhook_policy_verdicts_total{policy="p1",verdict="audited",rule="requireDigest"} 2"#,
        r#"oras_csi_webhook_policy_verdicts_total{policy="p2",verdict="denied",rule="registries.deny"} 1"#,
        r#"oras_csi_webhook_policy_verdicts_total{policy="p0",verdict="passed",rule=""} 1"#,
        r#"oras_csi_webhook_policy_verdicts_total{policy="p2",verdict="passed",rule=""} 1"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("evil.example"));
}

#[tokio::test]
async fn files_are_reloaded_and_an_invalid_file_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    let write = |spec: &str| {
        let text = format!(
            "# ours\n---\napiVersion: oras.land/v1alpha1\nkind: ArtifactPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
        );
        std::fs::write(&file, text).unwrap();
    };
    write("{registries: {deny: [evil.example]}}");
    std::fs::write(folder.path().join("notes.txt"), "no policy").unwrap();
    let paths = [folder.path().to_owned()];
    assert_eq!(oras_csi_webhook::policy::load(&paths).unwrap().policies.len(), 1);
    for (broken, words) in [
        ("{registries: {deny: ['https://evil.example']}}", "spec.registries.deny[0]: "),
        ("{registries: {deny: []}}", "spec.registries.deny: is an empty list"),
        ("{registries: {dney: [evil.example]}}", "spec.registries.dney: is not a field"),
        ("{deniedtags: [latest]}", "spec.deniedtags: is not a field"),
        ("{mode: enforce}", "unknown variant"),
        ("{maxSize: 1e30}", "spec.maxSize: \"1e+30\" is not a number of bytes"),
        ("{maxSize: true}", "neither a number nor a string"),
        ("{namespaceSelector: {matchLabel: {a: b}}}", "spec.namespaceSelector.matchLabel: is not a field"),
        ("{namespaceSelector: {matchExpressions: [{key: a, operator: In, values: []}]}}", "has no values"),
        (
            "{namespaceSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
            "does not take",
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}",
            "operator other than",
        ),
        ("[]", "spec: is a list, and must be an object"),
        ("[null, Audit, {deny: [ghcr.io]}]", "spec: is a list, and must be an object"),
        ("{registries: []}", "spec.registries: is a list, and must be an object"),
        ("{registries: [[ghcr.io]]}", "spec.registries: is a list, and must be an object"),
        ("{registries: ghcr.io}", "spec.registries: is a string, and must be an object"),
        ("{namespaceSelector: []}", "spec.namespaceSelector: is a list, and must be an object"),
        (
            "{namespaceSelector: {matchLabels: [a]}}",
            "spec.namespaceSelector.matchLabels: is a list, and must be an object",
        ),
        (
            "{namespaceSelector: {matchExpressions: [[a, Exists]]}}",
            "spec.namespaceSelector.matchExpressions[0]: is a list, and must be an object",
        ),
        ("[", "not a stream of YAML documents"),
    ] {
        write(broken);
        let error = oras_csi_webhook::policy::load(&paths).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("policy.yaml"), "{broken}: {error}");
    }
    write("{mode: Warn, mode: Audit}");
    let error = oras_csi_webhook::policy::load(&paths).unwrap_err().to_string();
    assert!(error.contains("duplicate") && error.contains("mode"), "{error}");
    assert!(!error.contains("Options") && !error.contains('\n'), "{error}");
    write("{}\n---\nmetadata: {name: q}\n");
    let error = oras_csi_webhook::policy::load(&paths).unwrap_err().to_string();
    assert!(error.contains("document 2 has no kind: "), "{error}");
    write("{}\n---\nkind: ArtifactPolicy\n");
    let error = oras_csi_webhook::policy::load(&paths).unwrap_err().to_string();
    assert!(error.contains("document 2 has no apiVersion: "), "{error}");
    write("{}\n---\napiVersion: v1\nkind: ConfigMap\n");
    let error = oras_csi_webhook::policy::load(&paths).unwrap_err().to_string();
    assert!(error.contains("document 2 is ConfigMap of v1"), "{error}");
    write("{}\n---\napiVersion: oras.land/v1alpha1\nkind: ArtifactPolicy\nmetadata: {name: p}\nspec: {}\n");
    let error = oras_csi_webhook::policy::load(&paths).unwrap_err().to_string();
    assert!(error.contains("a second ArtifactPolicy p"), "{error}");
    write("{}\nregistries: {allow: [ghcr.io]}");
    let error = oras_csi_webhook::policy::load(&paths).unwrap_err().to_string();
    assert!(error.contains("\"registries\" is not a field of an object: write rules in spec"), "{error}");
    let text = "kind: List\napiVersion: v1\nitems:\n- apiVersion: oras.land/v1alpha1\n  kind: ArtifactPolicy\n  metadata: {name: p}\n";
    std::fs::write(&file, text).unwrap();
    let error = oras_csi_webhook::policy::load(&paths).unwrap_err().to_string();
    assert!(error.contains("ArtifactPolicy p: spec: is missing"), "{error}");
    std::fs::write(&file, "# nothing yet\n").unwrap();
    let error = oras_csi_webhook::policy::load(&paths).unwrap_err().to_string();
    assert!(error.contains("there is no ArtifactPolicy"), "{error}");
    let error = oras_csi_webhook::policy::load(&[folder.path().join("none")]).unwrap_err().to_string();
    assert!(error.contains("cannot read"), "{error}");
}

/// `kubectl` reads 0150 as octal, and so does a stream of manifests.
#[tokio::test]
async fn numbers_in_a_file_are_read_as_kubectl_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    let text =
        "apiVersion: oras.land/v1alpha1\nkind: ArtifactPolicy\nmetadata: {name: p}\nspec: {maxSize: 0150}\n";
    std::fs::write(&file, text).unwrap();
    let bench = Bench::new();
    bench.policies.set_files(oras_csi_webhook::policy::load(&[file]).unwrap().policies);
    for (size, wanted) in [(104, true), (105, false)] {
        let mut manifest = manifest(&[("a/b", Some("file"))]);
        manifest["layers"][0]["size"] = json!(size);
        let name = format!("r.io/a:{size}");
        bench.registry.tag(&name, &manifest);
        assert_eq!(bench.admit(&one(&name)).await.is_ok(), wanted, "{size}");
    }
}

#[test]
fn a_namespace_cannot_be_stated_twice_with_different_labels() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("namespaces.yaml");
    let load = |labels: &[&str]| {
        let namespace = |labels: &&str| {
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: team, labels: {labels}}}\n")
        };
        std::fs::write(&file, labels.iter().map(namespace).collect::<Vec<_>>().join("---\n")).unwrap();
        oras_csi_webhook::policy::load(std::slice::from_ref(&file)).map_err(|error| error.to_string())
    };
    assert!(load(&["{tier: a}", "{tier: a}"]).is_ok());
    for (labels, words) in [
        (&["{tier: a}", "{tier: b}"][..], "document 2: Namespace team occurs twice, with different labels"),
        (&["{tier: a}", "{}"], "with different labels"),
        (&["{tier: 7}"], "document 1: Namespace team: label tier is a number, and must be a string"),
        (&["{tier: {a: b}}"], "label tier is an object, and must be a string"),
        (&["[tier]"], "Namespace team: metadata.labels is a list, and must be an object"),
    ] {
        let error = load(labels).unwrap_err();
        assert!(error.contains(words) && error.contains("namespaces.yaml"), "{labels:?}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn files_that_change_are_in_force_within_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    let write = |denied: &str| {
        let text = format!(
            "apiVersion: oras.land/v1alpha1\nkind: ArtifactPolicy\nmetadata: {{name: p}}\nspec: {{registries: {{deny: [{denied}]}}}}\n"
        );
        std::fs::write(&file, text).unwrap();
    };
    write("evil.example");
    let policies = Arc::new(Policies::new(Vec::new(), NoPolicy::Allow, Namespaced));
    policies.set_files(oras_csi_webhook::policy::load(std::slice::from_ref(&file)).unwrap().policies);
    let bench = Bench::governed(Arc::clone(&policies), ResolverSettings::default());
    let stop = tokio_util::sync::CancellationToken::new();
    let labels = LabelsFrom::Files;
    tokio::spawn(oras_csi_webhook::policy::reload_files(vec![file.clone()], policies, labels, stop.clone()));
    let is_denied = async |reference: &str| bench.admit(&one(reference)).await.is_err();
    assert!(is_denied("evil.example/a:1").await && !is_denied("r.io/a:1").await);
    write("]");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(is_denied("evil.example/a:1").await, "the last good one stays");
    write("r.io");
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if is_denied("r.io/a:1").await {
            break;
        }
    }
    assert!(!is_denied("evil.example/a:1").await && is_denied("r.io/a:1").await);
    // Labels of namespaces are reloaded too.
    let policy = "apiVersion: oras.land/v1alpha1\nkind: ArtifactPolicy\nmetadata: {name: p}\nspec: {requireDigest: true, namespaceSelector: {matchLabels: {pinned: 'yes'}}}\n";
    for (pinned, wanted) in [("no", false), ("yes", true)] {
        let namespace = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: team, labels: {{pinned: '{pinned}'}}}}\n"
        );
        std::fs::write(&file, format!("{policy}---\n{namespace}")).unwrap();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if is_denied("r.io/a:1").await == wanted {
                break;
            }
        }
        assert_eq!(is_denied("r.io/a:1").await, wanted, "{pinned}");
    }
    stop.cancel();
}

/// The driver follows an index in an index, so policies look at its manifests as well.
#[rstest]
#[tokio::test]
async fn an_index_in_an_index_does_not_bypass_policies(
    #[values(false, true)] canonical: bool,
    #[values(false, true)] is_large: bool,
) {
    let bench = Bench::under(&[json!({"maxSize": "1Ki"})]);
    let sized = |name: &str, size: u64| {
        let mut manifest = manifest(&[("a/b", Some(name))]);
        manifest["layers"][0]["size"] = json!(size);
        bench.registry.store(&manifest)
    };
    let (small, other) = (sized("small", 1), sized("other", if is_large { 1 << 20 } else { 1 }));
    let inner = bench.registry.store(&index(&[("linux/amd64", &small), ("linux/arm64", &other)]));
    let outer = index(&[("linux/amd64", &inner)]);
    let digest = bench.registry.tag("r.io/a:1", &outer);
    let pod = if canonical {
        let recipe = format!("[{{\"add\":\"r.io/a@{digest}\"}}]");
        let mut pod = Bench::new().admitted(&inline(&json!({"oras.artifact.reference": "r.io/a:1"}))).await;
        let attributes = &mut pod["spec"]["volumes"][0]["csi"]["volumeAttributes"];
        attributes["csi.oras.land/recipe"] = json!(recipe);
        attributes["csi.oras.land/id"] =
            json!(format!("a-{}", &oras_csi_core::digest::Digest::sha256_of(recipe.as_bytes()).hex()[..32]));
        pod
    } else {
        one("r.io/a:1")
    };
    match bench.admit(&pod).await {
        Ok(_) => assert!(!is_large),
        Err(denial) => assert!(is_large && denial.message().contains("rule maxSize"), "{denial}"),
    }
}

#[tokio::test]
async fn unreadable_contents_are_denied_only_in_enforce_mode() {
    let gone = default_digest("gone.io/a:1");
    let index = index(&[("linux/amd64", &default_digest("r.io/a:1")), ("linux/arm64", &gone)]);
    for (mode, admitted) in [("Enforce", false), ("Warn", true), ("Audit", true)] {
        let bench = Bench::under(&[json!({"mode": mode, "maxSize": "1Gi"})]);
        let here = bench.registry.store(&manifest(&[("a/b", Some("f"))]));
        bench.registry.set("r.io/none:1", Behaviour::Fails(not_found("r.io/none:1")));
        let mut index = index.clone();
        index["manifests"][0]["digest"] = json!(here.to_string());
        index["manifests"][1]["digest"] = json!(format!("sha256:{}", "7".repeat(64)));
        bench.registry.tag("r.io/a:1", &index);
        match bench.admit(&one("r.io/a:1")).await {
            Ok(outcome) => {
                assert!(admitted, "{mode}");
                let warned =
                    outcome.warnings().iter().any(|words| words.contains("could not be checked against"));
                assert_eq!(warned, mode == "Warn", "{:?}", outcome.warnings());
                assert_eq!(outcome.audit().contains_key("not-looked-at"), mode == "Audit");
            }
            Err(denial) => assert!(!admitted && denial.code().number() == 404, "{mode}: {denial}"),
        }
    }
}

#[tokio::test]
async fn warnings_are_not_repeated_and_audit_notes_are_limited() {
    let bench = Bench::under(&[
        json!({"mode": "Warn", "requireDigest": true}),
        json!({"mode": "Warn", "deniedTags": ["1"]}),
        json!({"mode": "Audit", "registries": {"deny": ["r.io"]}}),
    ]);
    let twice = pod(&[("recipe", "- add: r.io/a:1\n  path: a\n- add: r.io/a:1\n  path: b\n")]);
    let warnings = bench.admit(&twice).await.unwrap().warnings().to_vec();
    let mut seen = std::collections::BTreeSet::new();
    assert!(warnings.iter().all(|warning| seen.insert(warning)), "{warnings:#?}");

    let names: Vec<String> = (0..40).map(|number| format!("artifact.n{number:02}")).collect();
    let references: Vec<String> = (0..40).map(|number| format!("r.io/n{number:02}:1")).collect();
    let many: Vec<(&str, &str)> =
        names.iter().zip(&references).map(|(name, reference)| (name.as_str(), reference.as_str())).collect();
    // A recipe has at most some 20 steps of this kind, so the test uses several volumes.
    let mut asking = pod(&[]);
    asking["spec"]["volumes"] = many
        .iter()
        .map(|(_, reference)| {
            let name = reference.trim_start_matches("r.io/").trim_end_matches(":1");
            json!({"name": name, "csi": {"driver": "csi.oras.land",
                "volumeAttributes": {"oras.artifact.reference": reference}}})
        })
        .collect();
    let outcome = bench.admit(&asking).await.unwrap();
    let notes: Vec<Value> = serde_json::from_str(&outcome.audit()["violations"]).unwrap();
    assert_eq!((notes.len(), &notes[32]), (33, &json!({"more": 8})));
}

#[tokio::test]
async fn pinned_artifacts_count_for_the_maximum() {
    let bench = Bench::new();
    let mut asking = pod(&[]);
    asking["spec"]["volumes"] = (0..129)
        .map(|number| {
            let recipe = format!("[{{\"add\":\"r.io/n{number}@sha256:{}\"}}]", "5".repeat(64));
            let id = &oras_csi_core::digest::Digest::sha256_of(recipe.as_bytes()).hex()[..32].to_owned();
            json!({"name": format!("v{number}"), "csi": {"driver": "csi.oras.land", "volumeAttributes": {
                "csi.oras.land/recipe": recipe, "csi.oras.land/id": format!("n{number}-{id}")}}})
        })
        .collect();
    let denial = bench.admit(&asking).await.unwrap_err();
    assert!(denial.message().contains("129 different artifacts"), "{denial}");
}
