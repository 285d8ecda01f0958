use std::path::Path;

use rstest::rstest;
use tempfile::TempDir;

use super::{SECRET, basic, program, registry, runs};
use crate::credentials::{Administrator, AdministratorSettings, Credential, Problem, ProviderFiles};

fn user(name: &str) -> Credential {
    basic(name, "p")
}

/// An administrator with `config.json` (if it exists), the helpers `host` and `store`, and one provider.
fn administrator(folder: &Path) -> Administrator {
    for name in ["host", "store"] {
        let answer = format!(r#"{{"Username":"{name}","Secret":"p"}}"#);
        program(
            folder,
            &format!("docker-credential-{name}"),
            &format!("echo x >> {}/runs; echo '{answer}'", folder.display()),
        );
    }
    program(folder, "docker-credential-broken", &format!("echo {SECRET}; exit 1"));
    let answer = r#"{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",
        "cacheKeyType":"Registry","auth":{"ghcr.io":{"username":"provider","password":"p"}}}"#;
    program(folder, "provider", &format!("echo '{answer}'"));
    let config = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: provider\n  \
        matchImages: [ghcr.io]\n  defaultCacheDuration: 1h\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n";
    std::fs::write(folder.join("providers.yaml"), config).unwrap();
    let providers = ProviderFiles { config: folder.join("providers.yaml"), folder: folder.to_owned() };
    Administrator::new(AdministratorSettings {
        docker_config: Some(folder.join("config.json")),
        helper_folder: Some(folder.to_owned()),
        providers: Some(providers),
    })
    .unwrap()
}

fn auths(name: &str) -> String {
    format!(r#""auths":{{"ghcr.io":{{"username":"{name}","password":"p"}}}}"#)
}

#[rstest]
#[case::all(r#"{AUTHS,"credHelpers":{"ghcr.io":"host"},"credsStore":"store"}"#, &["host", "file", "provider"], 0)]
#[case::store(r#"{AUTHS,"credHelpers":{"quay.io":"host"},"credsStore":"store"}"#, &["file", "store", "provider"], 0)]
#[case::no_helper(r#"{AUTHS,"credHelpers":{"ghcr.io":""},"credsStore":"store"}"#, &["file", "provider"], 0)]
#[case::file("{AUTHS}", &["file", "provider"], 0)]
#[case::other_host(r#"{"auths":{"quay.io":{"auth":"YTpi"}}}"#, &["provider"], 0)]
#[case::broken_helper(r#"{AUTHS,"credHelpers":{"ghcr.io":"broken"},"credsStore":"store"}"#, &["file", "provider"], 1)]
#[case::missing_store(r#"{AUTHS,"credsStore":"nowhere"}"#, &["file", "provider"], 1)]
#[tokio::test]
async fn credentials_are_returned_in_order(
    #[case] config: &str,
    #[case] expected: &[&str],
    #[case] problems: usize,
) {
    let folder = TempDir::new().unwrap();
    let administrator = administrator(folder.path());
    std::fs::write(folder.path().join("config.json"), config.replace("AUTHS", &auths("file"))).unwrap();
    let found = administrator.lookup(&registry("ghcr.io"), "acme/model").await;
    assert_eq!(found.credentials, expected.iter().map(|name| user(name)).collect::<Vec<_>>());
    assert_eq!(found.problems.len(), problems, "{:?}", found.problems);
    for problem in &found.problems {
        assert!(problem.to_string().contains("credential helper"), "{problem}");
        assert!(!format!("{problem}{problem:?}{administrator:?}").contains(SECRET), "{problem:?}");
    }
    let again = administrator.credentials_for(&registry("ghcr.io"), "acme/model").await;
    assert_eq!(again, found.credentials);
    assert!(runs(folder.path()) <= 1);
}

#[tokio::test]
async fn a_credential_from_two_sources_is_returned_once() {
    let folder = TempDir::new().unwrap();
    let administrator = administrator(folder.path());
    let config = format!("{{{},\"credsStore\":\"store\"}}", auths("provider"));
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let found = administrator.credentials_for(&registry("ghcr.io"), "acme/model").await;
    assert_eq!(found, [user("provider"), user("store")]);
}

#[tokio::test]
async fn a_changed_file_is_used_and_a_broken_one_keeps_the_last_valid_content() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config.json");
    let settings = AdministratorSettings { docker_config: Some(file.clone()), ..Default::default() };
    let administrator = Administrator::new(settings).unwrap();
    let lookup = || async { administrator.lookup(&registry("ghcr.io"), "acme/model").await };

    let found = lookup().await;
    assert_eq!((found.credentials, found.problems), (vec![], vec![]), "a missing file is not a problem");

    std::fs::write(&file, format!("{{{}}}", auths("one"))).unwrap();
    assert_eq!(lookup().await.credentials, [user("one")]);

    // The same file with the same length, shortly after.
    std::fs::write(&file, format!("{{{}}}", auths("two"))).unwrap();
    assert_eq!(lookup().await.credentials, [user("two")]);

    std::fs::write(&file, format!("{{\"auths\":\"{SECRET}\"}}")).unwrap();
    for _ in 0..2 {
        let found = lookup().await;
        assert_eq!(found.credentials, [user("two")]);
        assert!(matches!(&found.problems[..], [Problem::File(_)]), "{:?}", found.problems);
        let words = found.problems[0].to_string();
        assert!(words.contains("config.json cannot be used") && !words.contains(SECRET), "{words}");
    }

    // A replaced symlink, as kubelet does it.
    std::fs::write(folder.path().join("new.json"), format!("{{{}}}", auths("three"))).unwrap();
    std::os::unix::fs::symlink("new.json", folder.path().join("link")).unwrap();
    std::fs::rename(folder.path().join("link"), &file).unwrap();
    let found = lookup().await;
    assert_eq!((found.credentials, found.problems), (vec![user("three")], vec![]));

    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let found = lookup().await;
    assert_eq!(found.credentials, [user("three")]);
    assert!(found.problems[0].to_string().contains("cannot be read: not a file"), "{}", found.problems[0]);

    std::fs::remove_dir(&file).unwrap();
    let found = lookup().await;
    assert_eq!(
        (found.credentials, found.problems),
        (vec![], vec![]),
        "a deleted file revokes its credentials"
    );
}

#[tokio::test]
async fn without_settings_nothing_is_found() {
    let administrator = Administrator::new(AdministratorSettings::default()).unwrap();
    let found = administrator.lookup(&registry("ghcr.io"), "acme/model").await;
    assert!(found.credentials.is_empty() && found.problems.is_empty());
}
