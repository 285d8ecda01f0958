//! Patches and recipes as artifacts in real registries, checked with the real `oras`: one registry that lists referrers
//! (go-containerregistry's), and one where clients keep that list under a tag (the distribution project's).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use oras_csi_core::digest::Digest;
use oras_csi_testkit::scripted::{Content, Script, Scripted, Security};
use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::{run, try_run};
use oras_csi_tests::registry::{
    Configuration, Distribution, Login, Made, Make, Oras, push, write_hosts_toml,
};
use rstest::rstest;
use serde_json::{Value, json};

const KIND: &str = "application/vnd.oci.image.patch.v1+json";
const NAME: &str = "kind-registry:5000";

/// A registry with a base and overlays.
struct Bench {
    registry: Made,
    certs: tempfile::TempDir,
    files: tempfile::TempDir,
    base: String,
    minor: String,
    critical: String,
}

impl Bench {
    fn start(make: Make) -> Self {
        let registry = make.start();
        let certs = registry.certs_d(NAME);
        let files = tempfile::tempdir().expect("a folder");
        let host = registry.host();
        let put = |reference: &str, text: &str| {
            std::fs::write(files.path().join("notes.txt"), text).expect("writes");
            push(&format!("{host}/{reference}"), files.path(), &["notes.txt"])
        };
        let base = put("app:1", "base");
        let minor = put("fixes/app:minor", "minor");
        let critical = put("app:critical", "critical");
        Self { registry, certs, files, base, minor, critical }
    }

    fn push(&self, reference: &str, text: &str) -> String {
        std::fs::write(self.files.path().join("notes.txt"), text).expect("writes");
        push(&format!("{}/{reference}", self.registry.host()), self.files.path(), &["notes.txt"])
    }

    fn command(&self, words: &[&str]) -> Command {
        command(self.certs.path(), words)
    }

    /// What a command writes.
    fn says(&self, words: &[&str]) -> String {
        run(&mut self.command(words)).trim_end().to_owned()
    }

    /// Runs a command that must fail; returns its message.
    fn fails(&self, words: &[&str]) -> (i32, String) {
        failure(&try_run(&mut self.command(words)))
    }

    /// What the real `oras` finds attached to the base: digests by artifact type.
    fn discover(&self) -> Vec<Value> {
        let words = ["discover", "--format", "json", &format!("{}/app:1", self.registry.host())];
        let found: Value = serde_json::from_str(&run(&mut Oras::plain_http().command(&words))).expect("JSON");
        let key = if found["referrers"].is_array() { "referrers" } else { "manifests" };
        found[key].as_array().cloned().unwrap_or_default()
    }

    fn listed(&self) -> Vec<Value> {
        let words = ["patch", "--list", "-o", "json", &format!("{NAME}/app:1")];
        serde_json::from_str::<Vec<Value>>(&self.says(&words)).expect("JSON")
    }

    /// Renders a pod with these annotations.
    fn render(&self, annotations: &Value, more: &[&str]) -> Output {
        try_run(&mut self.rendering(annotations, more))
    }

    fn rendering(&self, annotations: &Value, more: &[&str]) -> Command {
        let file = self.certs.path().join("pod.json");
        std::fs::write(&file, pod(annotations).to_string()).expect("writes");
        let mut render = self.command(&["render", "-o", "json", "-f"]);
        render.arg(file).args(more);
        render
    }

    fn recipe(&self, annotations: &Value) -> String {
        recipe_of(&self.render(annotations, &[]))
    }
}

fn command(certs: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(oras_csi());
    command.args(words).env("ORAS_CSI_CERTS_DIR", certs).env("DOCKER_CONFIG", "/nonexistent");
    command
}

fn pod(annotations: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app", "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "none"}]}})
}

fn failure(output: &Output) -> (i32, String) {
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{words}{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{words}");
    (output.status.code().expect("it ended by itself"), words)
}

fn recipe_of(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pod: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let recipe = &pod["spec"]["volumes"][0]["csi"]["volumeAttributes"]["csi.oras.land/recipe"];
    recipe.as_str().expect("a recipe").to_owned()
}

fn digest_in(reference: &str) -> String {
    reference.split_once('@').expect("with a digest").1.to_owned()
}

#[rstest]
#[case(Make::Distribution, true, KIND)]
#[case(Make::GoContainerRegistry, false, "application/vnd.oci.empty.v1+json")]
#[case(Make::Ociserver, false, KIND)]
fn a_patch_is_attached_to_its_base_and_found_again(
    #[case] make: Make,
    #[case] has_tag: bool,
    #[case] listed_as: &str,
) {
    let bench = Bench::start(make);
    let base = format!("{NAME}/app:1");
    assert_eq!((bench.listed(), bench.discover()), (vec![], vec![]));
    // A tag, and a digest alone, which is one of the base's repository.
    let minor = format!("{NAME}/fixes/app:minor");
    let words = ["patch", &base, "--minor", &minor, "--crit", &bench.critical];
    let first = bench.says(&words);
    assert!(first.starts_with(&format!("{NAME}/app@sha256:")), "{first}");

    let found = bench.discover();
    let one = |digest: &str, kind: &str| {
        found.iter().any(|entry| entry["digest"] == digest && entry["artifactType"] == kind)
    };
    assert!(one(&digest_in(&first), listed_as), "{found:?}");
    let listed = bench.listed();
    let level = |name: &str, digest: &str| format!("{name}@{digest}");
    assert_eq!(
        listed,
        [json!({"reference": first, "base": level(&base, &bench.base), "levels": {
            "minor": level(&minor, &bench.minor), "critical": level(&format!("{NAME}/app"), &bench.critical)}})]
    );
    let lines = bench.says(&["patch", "--list", &base]);
    assert!(lines.starts_with(&first) && lines.contains(&format!("\n  minor     {minor}@")), "{lines}");

    // The same again changes nothing; another one stands beside it; what is no patch is not listed.
    assert_eq!(bench.says(&words), first);
    let second = bench.says(&["patch", &base, "--major", &minor, "--push", &format!("{NAME}/app:patched")]);
    assert!(second.starts_with(&format!("{NAME}/app:patched@sha256:")), "{second}");
    // Before `oras attach`, which writes the tag where a registry does not say that it has read the subject.
    let tag = format!("{}/app:{}", bench.registry.host(), bench.base.replacen(':', "-", 1));
    let fetched = try_run(&mut Oras::plain_http().command(&["manifest", "fetch", &tag]));
    assert_eq!(fetched.status.success(), has_tag, "{}", String::from_utf8_lossy(&fetched.stderr));
    let signature = ["attach", "--artifact-type", "a/signature", "--annotation", "a=b"];
    run(Oras::plain_http().command(&signature).arg(format!("{}/app:1", bench.registry.host())));
    let digests = |entries: &[Value], key: &str| {
        entries
            .iter()
            .map(|entry| {
                entry[key]
                    .as_str()
                    .unwrap()
                    .rsplit_once('@')
                    .map_or_else(|| entry[key].as_str().unwrap().to_owned(), |(_, digest)| digest.to_owned())
            })
            .collect::<BTreeSet<_>>()
    };
    let patches = BTreeSet::from([digest_in(&first), digest_in(&second)]);
    assert_eq!(digests(&bench.listed(), "reference"), patches);
    let discovered = bench.discover();
    assert_eq!(discovered.len(), 3, "{discovered:?}");
    assert!(digests(&discovered, "digest").is_superset(&patches), "{discovered:?}");
}

/// Every client writes the list of the referrers tag, and no registry supports a conditional write.
#[test]
fn concurrent_patches_are_all_listed() {
    let bench = Bench::start(Make::Distribution);
    let fixes: Vec<String> =
        (0..4).map(|number| bench.push(&format!("app:fix{number}"), &format!("{number}"))).collect();
    let started: Vec<_> = fixes
        .iter()
        .map(|fix| {
            let mut patch = bench.command(&["patch", &format!("{NAME}/app:1"), "--minor", fix]);
            patch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
        })
        .collect();
    let mut pushed = BTreeSet::new();
    for patch in started {
        let output = patch.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        pushed.insert(String::from_utf8(output.stdout).expect("text").trim().to_owned());
    }
    let listed: BTreeSet<String> =
        bench.listed().iter().map(|patch| patch["reference"].as_str().unwrap().to_owned()).collect();
    assert_eq!((listed, pushed.len()), (pushed, 4));
}

/// The patch is in the registry, so its digest must not be lost.
#[test]
fn a_patch_that_cannot_be_listed_is_printed() {
    let bench = Bench::start(Make::Distribution);
    let (host, base) = (bench.registry.host(), &bench.base);
    let manifest =
        run(&mut Oras::plain_http().command(&["manifest", "fetch", &format!("{host}/app@{base}")]));
    let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": base, "size": manifest.len()});
    let full = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": vec![entry; 4_096]});
    let file = bench.files.path().join("index.json");
    std::fs::write(&file, full.to_string()).expect("writes");
    let tag = format!("{host}/app:{}", base.replace(':', "-"));
    run(Oras::plain_http().command(&["manifest", "push", &tag]).arg(&file));

    let minor = format!("{NAME}/fixes/app:minor");
    let output = try_run(&mut bench.command(&["patch", &format!("{NAME}/app:1"), "--minor", &minor]));
    let (status, words) = failure(&output);
    assert!(status == 1 && words.contains("already has more than 4096 manifests"), "{status}: {words}");
    let pushed = String::from_utf8(output.stdout).expect("text");
    assert!(pushed.starts_with(&format!("{NAME}/app@sha256:")), "{pushed}");
    let found = bench.recipe(&json!({"oras.land/patch": pushed.trim()}));
    assert!(found.contains(&bench.minor), "{found}");
}

#[test]
fn a_dry_run_writes_the_manifest_and_nothing_else() {
    let bench = Bench::start(Make::Distribution);
    let words = ["patch", &format!("{NAME}/app:1"), "--minor", &format!("{NAME}/fixes/app:minor")];
    let manifest = bench.says(&[words.as_slice(), &["--dry-run"]].concat());
    assert_eq!(bench.listed(), Vec::<Value>::new());
    let read: Value = serde_json::from_str(&manifest).expect("JSON");
    assert_eq!((&read["artifactType"], &read["subject"]["digest"]), (&json!(KIND), &json!(bench.base)));
    let annotations = &read["annotations"];
    assert_eq!(annotations["org.opencontainers.image.ref.name"], format!("{NAME}/app"));
    assert_eq!(annotations["org.opencontainers.image.base.name"], format!("{NAME}/app:1"));
    assert_eq!(annotations["org.opencontainers.image.base.digest"], bench.base);
    assert_eq!(annotations["org.opencontainers.image.patch.minor.digest"], bench.minor);
    let reference = format!("{NAME}/fixes/app:minor@{}", bench.minor);
    assert_eq!(annotations["land.oras.csi.patch.minor.ref"], reference);
    // The pushed manifest equals it byte by byte.
    assert_eq!(bench.says(&words), format!("{NAME}/app@{}", Digest::sha256_of(manifest.as_bytes())));
}

#[rstest]
#[case(Make::Distribution)]
#[case(Make::GoContainerRegistry)]
fn a_pod_that_names_a_patch_is_rendered_with_its_steps(#[case] make: Make) {
    let bench = Bench::start(make);
    let tag = format!("{NAME}/patches/app:1");
    let minor = format!("{NAME}/fixes/app:minor");
    let mut patch = bench.command(&["patch", &format!("{NAME}/app:1"), "--minor", &minor, "--push", &tag]);
    let output = try_run(patch.arg("--critical").arg(format!("{NAME}/app:critical")));
    let pushed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(pushed.starts_with(&format!("{tag}@sha256:")), "{pushed}");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("the referrers of kind-registry:5000/app do not list this patch"), "{words}");
    let (base, fix, last) = (&bench.base, &bench.minor, &bench.critical);
    let up_to_minor = format!(r#"[{{"add":"{NAME}/app@{base}"}},{{"overlay":"{NAME}/fixes/app@{fix}"}}"#);
    let all = format!(r#"{up_to_minor},{{"overlay":"{NAME}/app@{last}"}}]"#);
    assert_eq!(bench.recipe(&json!({"oras.land/patch": tag})), all);
    let minor = json!({"oras.land/patch": tag, "oras.land/patch-level": "minor"});
    assert_eq!(bench.recipe(&minor), format!("{up_to_minor}]"));
    let shown = bench.says(&["recipe", "show", &tag]);
    let step = |verb: &str, name: &str, digest: &str, part: &str| {
        format!("- {verb}: {NAME}/{name}@{digest} # {part}")
    };
    let steps = [
        step("add", "app:1", base, "base"),
        step("overlay", "fixes/app:minor", fix, "level minor"),
        step("overlay", "app:critical", last, "level critical"),
    ];
    assert_eq!(shown, steps.join("\n"));
}

#[test]
fn explain_shows_the_steps_of_a_patch() {
    let bench = Bench::start(Make::Distribution);
    let tag = format!("{NAME}/app:patched");
    let minor = format!("{NAME}/fixes/app:minor");
    let pushed = bench.says(&["patch", &format!("{NAME}/app:1"), "--minor", &minor, "--push", &tag]);
    let file = bench.certs.path().join("pod.json");
    std::fs::write(&file, pod(&json!({"oras.land/patch": tag})).to_string()).expect("writes");
    let file = file.display().to_string();
    let explained: Value =
        serde_json::from_str(&bench.says(&["explain", "-o", "json", "-f", &file])).expect("JSON");
    let volume = &explained["volumes"][0];
    assert_eq!(volume["patches"][0]["at"], "annotation oras.land/patch");
    assert_eq!(volume["patches"][0]["digest"], digest_in(&pushed));
    let places: Vec<&str> =
        volume["references"].as_array().unwrap().iter().map(|one| one["at"].as_str().unwrap()).collect();
    assert_eq!(
        places,
        [
            "annotation oras.land/patch, base of the patch",
            "annotation oras.land/patch, level minor of the patch"
        ]
    );
    assert_eq!(volume["references"][1]["digest"], bench.minor);
    let offline: Value =
        serde_json::from_str(&bench.says(&["explain", "--offline", "-o", "json", "-f", &file]))
            .expect("JSON");
    assert_eq!(
        (&offline["volumes"][0]["references"], offline["volumes"][0].get("recipe")),
        (&json!([]), None)
    );
    let lines = bench.says(&["explain", "-f", &file]);
    assert!(lines.contains("at          annotation oras.land/patch\n"), "{lines}");
    let denied = bench.fails(&["explain", "-f", &file, "--allow-registry", &format!("{NAME}/app")]);
    let words =
        "annotation oras.land/patch, level minor of the patch: \"kind-registry:5000/fixes/app:minor@sha256:";
    assert!(denied.0 == 3 && denied.1.contains(words), "{denied:?}");
}

#[test]
fn reports_what_cannot_be_patched() {
    let bench = Bench::start(Make::Distribution);
    let base = format!("{NAME}/app:1");
    let minor = format!("{NAME}/fixes/app:minor");
    let patch = bench.says(&["patch", &base, "--minor", &minor, "--push", &format!("{NAME}/app:patched")]);
    let patched = format!("{NAME}/app:patched");
    let gone = format!("sha256:{}", "0".repeat(64));
    let of_base = format!("{NAME}/app@{}", bench.base);
    for (words, status, told) in [
        (vec!["patch", &base], 2, "--minor REF, --major REF or --critical REF".to_owned()),
        (vec!["patch", "team/app", "--minor", &minor], 2, "is ambiguous".to_owned()),
        (vec!["patch", &base, "--minor", "a b"], 2, "--minor: \"a b\" has spaces".to_owned()),
        (vec!["patch", &base, "--minor", &gone], 1, format!("level minor {NAME}/app@{gone}")),
        (
            vec!["patch", &format!("{NAME}/app:none"), "--minor", &minor],
            1,
            "base kind-registry:5000/app:none".to_owned(),
        ),
        (
            vec!["patch", &base, "--minor", &patched],
            2,
            format!("level minor {patched}: is a patch or a recipe artifact itself"),
        ),
        (
            vec!["patch", &patched, "--minor", &minor],
            2,
            format!("base {patched}: is a patch or a recipe artifact itself"),
        ),
        (vec!["patch", &base, "--minor", &of_base], 2, "overlays its base".to_owned()),
        (
            vec!["patch", &base, "--minor", &minor, "--push", &patch],
            2,
            "the digest is known only after the push".to_owned(),
        ),
        (vec!["patch", &base, "--list", "--minor", &minor], 2, "cannot be used with".to_owned()),
        (vec!["recipe", "show", &base], 2, "is an artifact of type".to_owned()),
    ] {
        let (code, error) = bench.fails(&words);
        assert_eq!((code, error.contains(&told)), (status, true), "{words:?}: {error}");
    }
    let output = bench.render(&json!({"oras.land/patch": base}), &[]);
    let (code, words) = failure(&output);
    assert!(code == 2 && words.contains("which is neither a patch nor a recipe artifact"), "{code}: {words}");
    let output = bench.render(&json!({"oras.land/artifact": patched}), &[]);
    let (code, words) = failure(&output);
    assert!(code == 2 && words.contains("apply it with oras.land/patch"), "{code}: {words}");
    // A mistake in what is named beside it.
    let volume = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app"}, "spec": {
        "containers": [{"name": "app", "volumeMounts": [{"name": "in", "mountPath": "/data"}]}],
        "volumes": [{"name": "in", "csi": {"driver": "csi.oras.land", "volumeAttributes": {
            "oras.artifact.patch": patched, "oras.artifact.reference": format!("{NAME}/app:critical")}}}]}});
    let file = bench.certs.path().join("volume.json");
    std::fs::write(&file, volume.to_string()).expect("writes");
    let (code, words) = bench.fails(&["render", "-f", &file.display().to_string()]);
    let told = format!("has the digest {}, but the patch is for {base}@{}", bench.critical, bench.base);
    assert!(code == 2 && words.contains(&told), "{code}: {words}");
}

#[rstest]
#[case(Make::Distribution)]
#[case(Make::GoContainerRegistry)]
fn a_recipe_artifact_can_be_pushed_and_pulled(#[case] make: Make) {
    let bench = Bench::start(make);
    let folder = tempfile::tempdir().expect("a folder");
    let yaml = format!(
        "# for the job\n- add: {NAME}/app:1\n  path: app\n- overlay: {NAME}/fixes/app:minor\n  path: app\n"
    );
    let file = folder.path().join("mine.yaml");
    std::fs::write(&file, &yaml).expect("writes");
    let (file, tag) = (file.display().to_string(), format!("{NAME}/recipes/job:1"));
    let pushed = bench.says(&["recipe", "push", "-f", &file, &tag]);
    assert!(pushed.starts_with(&format!("{tag}@sha256:")), "{pushed}");
    assert_eq!(bench.says(&["recipe", "show", &tag]), yaml.trim_end());
    let json = format!(
        r#"[{{"add":"{NAME}/app@{}","path":"app"}},{{"overlay":"{NAME}/fixes/app@{}","path":"app"}}]"#,
        bench.base, bench.minor
    );
    assert_eq!(bench.says(&["recipe", "pin", "-f", &file]), json);
    assert_eq!(bench.recipe(&json!({"oras.land/patch": tag})), json);

    // `oras` gives the file back, and makes the same by hand.
    let reference = format!("{}/recipes/job", bench.registry.host());
    run(&mut Oras::plain_http().pull(&format!("{reference}:1"), folder.path()));
    assert_eq!(std::fs::read_to_string(folder.path().join("recipe.yaml")).expect("reads"), yaml);
    let words = ["push", "--artifact-type", "application/vnd.oras.csi.recipe.v1", &format!("{reference}:2")];
    let mut by_hand = Oras::plain_http().command(&words);
    run(by_hand.arg("recipe.yaml:application/vnd.oras.csi.recipe.v1+yaml").current_dir(folder.path()));
    assert_eq!(bench.recipe(&json!({"oras.land/patch": format!("{NAME}/recipes/job:2")})), json);

    std::fs::write(folder.path().join("bad.yaml"), "- ad: r.io/a\n").expect("writes");
    let bad = folder.path().join("bad.yaml").display().to_string();
    let (code, words) = bench.fails(&["recipe", "push", "-f", &bad, &tag]);
    assert!(code == 2 && words.contains("bad.yaml: cannot parse the recipe"), "{words}");
}

/// A lock file has all that `render` needs, including the text of a recipe.
#[test]
fn with_a_lock_file_no_registry_is_contacted() {
    let mut registry = Distribution::start();
    let certs = registry.certs_d(&[NAME]);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("notes.txt"), "base").expect("writes");
    registry.push("app:1", folder.path(), &["notes.txt"]);
    std::fs::write(folder.path().join("notes.txt"), "fix").expect("writes");
    registry.push("app:fix", folder.path(), &["notes.txt"]);
    let recipe = folder.path().join("recipe.yaml");
    std::fs::write(&recipe, format!("- add: {NAME}/app:1\n- overlay: {NAME}/app:fix\n")).expect("writes");
    let recipe = recipe.display().to_string();
    let (job, patch) = (format!("{NAME}/recipes/job:1"), format!("{NAME}/app:patched"));
    run(&mut command(certs.path(), &["recipe", "push", "-f", &recipe, &job]));
    let (base, fix) = (format!("{NAME}/app:1"), format!("{NAME}/app:fix"));
    run(&mut command(certs.path(), &["patch", &base, "--minor", &fix, "--push", &patch]));
    let lock: PathBuf = folder.path().join("lock.json");
    let render = |name: &str| {
        let file = folder.path().join("pod.json");
        std::fs::write(&file, pod(&json!({"oras.land/patch": name})).to_string()).expect("writes");
        let mut render = command(certs.path(), &["render", "-o", "json", "-f"]);
        recipe_of(&try_run(render.arg(file).arg("--lock").arg(&lock)))
    };
    let before = (render(&job), render(&patch));
    assert_eq!(before.0, before.1);
    registry.stop();
    assert_eq!((render(&job), render(&patch)), before);
    let text = std::fs::read_to_string(&lock).expect("reads");
    std::fs::write(&lock, text.replace("- overlay", "- xverlay")).expect("writes");
    let file = folder.path().join("pod.json").display().to_string();
    let lock = lock.display().to_string();
    let forged = try_run(&mut command(certs.path(), &["render", "-f", &file, "--lock", &lock]));
    let (code, words) = failure(&forged);
    assert!(code == 2 && words.contains("it has another digest"), "{words}");
}

/// The docker config has the credentials for the push, as for `oras`.
#[test]
fn pushes_with_the_credentials_of_the_docker_config() {
    let registry = Distribution::start_with(Configuration::default().with_htpasswd(&[("me", "secret")]));
    let certs = tempfile::tempdir().expect("a folder");
    write_hosts_toml(certs.path(), NAME, &registry.url());
    let host = registry.host();
    let login = Login::password("me", "secret");
    let oras = Oras::plain_http().with_login(&host, &login);
    let files = tempfile::tempdir().expect("a folder");
    let put = |reference: &str, text: &str| {
        std::fs::write(files.path().join("notes.txt"), text).expect("writes");
        oras.push(&format!("{host}/{reference}"), files.path(), &["notes.txt"])
    };
    let (_, fix) = (put("app:1", "base"), put("app:fix", "fix"));
    let config = files.path().join("config.json");
    std::fs::write(&config, login.docker_config(NAME).to_string()).expect("writes");
    let base = format!("{NAME}/app:1");
    let words = ["patch", &base, "--minor", &fix];
    let (code, told) = failure(&try_run(&mut command(certs.path(), &words)));
    assert!(code == 1 && told.contains("401") && !told.contains("secret"), "{told}");
    let pushed = run(command(certs.path(), &words).arg("--docker-config").arg(&config));
    let discover = ["discover", "--format", "json", &format!("{host}/app:1")];
    let found = run(&mut oras.command(&discover));
    assert!(found.contains(&digest_in(pushed.trim())), "{found}");
}

/// The earlier form of patches, which registries no longer accept.
#[test]
fn parses_the_earlier_form_of_a_patch() {
    let layer = b"notes".to_vec();
    let digest = |bytes: &[u8]| Digest::sha256_of(bytes).to_string();
    let image = |title: &str| {
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2},
            "layers": [{"mediaType": "text/plain", "digest": digest(&layer), "size": layer.len(),
                "annotations": {"org.opencontainers.image.title": title}}]})
        .to_string()
        .into_bytes()
    };
    let (base, fix) = (image("a.txt"), image("b.txt"));
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let earlier = "application/vnd.oci.artifact.manifest.v1+json";
    let patch = json!({"mediaType": earlier, "artifactType": KIND, "blobs": [],
        "refers": {"mediaType": kind, "digest": digest(&base), "size": base.len()},
        "annotations": {"org.opencontainers.image.base.digest": digest(&base),
            "org.opencontainers.image.patch.minor.digest": digest(&fix)}})
    .to_string()
    .into_bytes();
    let list =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        {"mediaType": earlier, "digest": digest(&patch), "size": patch.len(), "artifactType": KIND}]})
        .to_string()
        .into_bytes();
    let content = Content::default()
        .with_manifest("1", &digest(&base), kind, base.clone())
        .with_manifest("fix", &digest(&fix), kind, fix.clone())
        .with_manifest("patched", &digest(&patch), earlier, patch.clone())
        .with_manifest(
            &digest(&base).replacen(':', "-", 1),
            &digest(&list),
            "application/vnd.oci.image.index.v1+json",
            list,
        );
    let server = Scripted::start("127.0.0.1", Security::Plain, Arc::new(content), Script::default());
    let certs = tempfile::tempdir().expect("a folder");
    write_hosts_toml(certs.path(), NAME, &format!("http://{}", server.host()));
    let file = certs.path().join("pod.json");
    std::fs::write(&file, pod(&json!({"oras.land/patch": format!("{NAME}/app:patched")})).to_string())
        .expect("writes");
    let rendered = try_run(command(certs.path(), &["render", "-o", "json", "-f"]).arg(&file));
    let wanted =
        format!(r#"[{{"add":"{NAME}/app@{}"}},{{"overlay":"{NAME}/app@{}"}}]"#, digest(&base), digest(&fix));
    assert_eq!(recipe_of(&rendered), wanted);
    let listed = run(&mut command(certs.path(), &["patch", "--list", &format!("{NAME}/app:1")]));
    assert_eq!(listed, format!("{NAME}/app@{}\n  minor     {NAME}/app@{}\n", digest(&patch), digest(&fix)));
}
