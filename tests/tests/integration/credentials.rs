//! `oras-csi pull` from registries with authentication: htpasswd, and a token service with two tenants. Credentials are
//! in the user's docker config, or come from a credential helper or a kubelet credential provider.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use oras_csi_tests::process::{run, try_run};
use oras_csi_tests::registry::files::{folder, one_file};
use oras_csi_tests::registry::pulled::{Pulled, pull, pull_with};
use oras_csi_tests::registry::tenants::{behind, push_as_admin, rules};
use oras_csi_tests::registry::token_service::TokenRequest;
use oras_csi_tests::registry::{Configuration, Distribution, Login, Oras, Rules, TokenService};
use rstest::rstest;
use serde_json::{Value, json};

const NAME: &str = "private.example:5000";
/// Passwords that must not be printed.
const PASSWORDS: [&str; 4] = ["secret of a", "secret of b", "open sesame", "guessed"];

/// A docker config on disk.
fn written(config: &Value) -> (tempfile::TempDir, PathBuf) {
    let folder = folder();
    let path = folder.path().join("config.json");
    fs::write(&path, config.to_string()).expect("writes");
    (folder, path)
}

/// `oras-csi pull` with a docker config.
fn pull_as(registry: &Distribution, repository: &str, config: &Value) -> Pulled {
    let (_folder, path) = written(config);
    let certs = registry.certs_d(&[NAME]);
    let config = path.display().to_string();
    let reference = format!("{NAME}/{repository}:v1");
    let pulled = pull(certs.path(), &[&reference, "--docker-config", &config]);
    for password in PASSWORDS {
        assert!(!pulled.words().contains(password), "{}", pulled.words());
    }
    pulled
}

/// A program in a folder of its own.
fn program(name: &str, text: &str) -> tempfile::TempDir {
    let folder = folder();
    let path = folder.path().join(name);
    fs::write(&path, text).expect("writes");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    folder
}

/// Credentials and the repositories that they can pull.
#[rstest]
#[case::the_own("a", "team-a/app", true)]
#[case::anothers("b", "team-a/app", false)]
#[case::the_other_own("b", "team-b/app", true)]
#[case::public("b", "public/app", true)]
fn a_tenant_can_pull_only_its_own_repositories(
    #[case] user: &str,
    #[case] repository: &str,
    #[case] may: bool,
    #[values(false, true)] by_post: bool,
) {
    let service = TokenService::start(rules());
    let (registry, files) = (behind(&service), one_file());
    push_as_admin(&registry, repository, files.path());
    service.forget_requests();
    let login = if by_post {
        Login::IdentityToken(service.refresh_token(user))
    } else {
        Login::password(user, &format!("secret of {user}"))
    };
    let pulled = pull_as(&registry, repository, &login.docker_config(NAME));
    if may {
        pulled.is(files.path());
    } else {
        pulled.failed(1, &[repository, "asked with"]);
    }
    let asked = service.requests();
    let (method, grant) = if by_post { ("POST", Some("refresh_token")) } else { ("GET", None) };
    assert!(
        asked.iter().any(|one| (one.method, one.grant.as_deref()) == (method, grant) && one.status == 200)
    );
    // It retries once as an anonymous client what its own credentials do not allow.
    assert!(asked.len() <= 4, "{asked:?}");
}

#[test]
fn tokens_are_requested_by_get_or_post_as_the_service_supports() {
    let service = TokenService::start(rules().without_post());
    let (registry, files) = (behind(&service), one_file());
    push_as_admin(&registry, "team-a/app", files.path());
    let login = Login::password("a", "secret of a").docker_config(NAME);
    pull_as(&registry, "team-a/app", &login).is(files.path());
}

#[test]
fn revoked_permission_ends_with_the_next_pull() {
    let service = TokenService::start(rules());
    let (registry, files) = (behind(&service), one_file());
    push_as_admin(&registry, "team-a/app", files.path());
    let login = Login::password("a", "secret of a").docker_config(NAME);
    pull_as(&registry, "team-a/app", &login).is(files.path());
    service.change(|rules| rules.without_tenant("a"));
    pull_as(&registry, "team-a/app", &login).failed(1, &["team-a/app"]);
}

#[test]
fn a_wrong_password_does_not_hide_public_artifacts() {
    let service = TokenService::start(rules());
    let (registry, files) = (behind(&service), one_file());
    push_as_admin(&registry, "public/app", files.path());
    push_as_admin(&registry, "team-a/app", files.path());
    let wrong = Login::password("a", "guessed").docker_config(NAME);
    pull_as(&registry, "public/app", &wrong).is(files.path());
    pull_as(&registry, "team-a/app", &wrong).failed(1, &["team-a/app", "asked with"]);
}

/// By htpasswd, from a helper: for one registry (`credHelpers`), and for all (`credsStore`).
#[rstest]
#[case::for_one(json!({"credHelpers": {NAME: "test"}}))]
#[case::for_all(json!({"credsStore": "test"}))]
fn uses_a_credential_helper(#[case] config: Value) {
    let registry =
        Distribution::start_with(Configuration::default().with_htpasswd(&[("reader", "open sesame")]));
    let files = one_file();
    let login = Login::password("reader", "open sesame");
    let oras = Oras::plain_http().with_login(&registry.host(), &login);
    oras.push(&format!("{}/java-app:v1", registry.host()), files.path(), &["app.jar"]);
    let helper = program(
        "docker-credential-test",
        "#!/bin/sh\nread -r server\ntest \"$1 $server\" = 'get private.example:5000' || exit 1\n\
         echo '{\"ServerURL\": \"x\", \"Username\": \"reader\", \"Secret\": \"open sesame\"}'\n",
    );
    let (_folder, path) = written(&config);
    let certs = registry.certs_d(&[NAME]);
    let (config, helpers) = (path.display().to_string(), helper.path().display().to_string());
    let arguments = ["private.example:5000/java-app:v1", "--docker-config", &config];
    pull(certs.path(), &[&arguments[..], &["--credential-helper-dir", &helpers]].concat()).is(files.path());
    // From PATH, as docker finds them.
    let search = format!("{helpers}:/usr/bin:/bin");
    pull_with(certs.path(), &arguments, &[("PATH", &search)]).is(files.path());
    pull(certs.path(), &arguments).failed(1, &["private.example:5000/java-app:v1"]);
}

#[test]
fn uses_a_kubelet_credential_provider() {
    let registry =
        Distribution::start_with(Configuration::default().with_htpasswd(&[("reader", "open sesame")]));
    let files = one_file();
    let login = Login::password("reader", "open sesame");
    let oras = Oras::plain_http().with_login(&registry.host(), &login);
    oras.push(&format!("{}/java-app:v1", registry.host()), files.path(), &["app.jar"]);
    let provider = program(
        "acme-provider",
        "#!/bin/sh\nread -r request\n\
         case \"$request\" in *CredentialProviderRequest*private.example:5000/java-app*) ;; *) exit 1;; esac\n\
         echo '{\"kind\": \"CredentialProviderResponse\", \"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\",\
         \"cacheKeyType\": \"Registry\", \"auth\": {\"private.example:5000\":\
         {\"username\": \"reader\", \"password\": \"open sesame\"}}}'\n",
    );
    let config = json!({"kind": "CredentialProviderConfig", "apiVersion": "kubelet.config.k8s.io/v1",
        "providers": [{"name": "acme-provider", "matchImages": ["*.example:5000"], "defaultCacheDuration": "1m",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1"}]});
    let (_folder, path) = written(&config);
    let certs = registry.certs_d(&[NAME]);
    let (config, programs) = (path.display().to_string(), provider.path().display().to_string());
    let arguments = ["private.example:5000/java-app:v1", "--credential-provider-config", &config];
    pull(certs.path(), &[&arguments[..], &["--credential-provider-bin-dir", &programs]].concat())
        .is(files.path());
    pull(certs.path(), &["private.example:5000/java-app:v1"]).failed(1, &["asked with no credentials"]);
}

#[rstest]
#[case("reader", "open sesame", true)]
#[case("writer", "open barley", true)]
#[case("reader", "open barley", false)]
#[case("nobody", "open sesame", false)]
fn accepts_only_the_password_of_the_user(#[case] user: &str, #[case] password: &str, #[case] may: bool) {
    let users = [("reader", "open sesame"), ("writer", "open barley")];
    let registry = Distribution::start_with(Configuration::default().with_htpasswd(&users));
    let files = one_file();
    let oras = Oras::plain_http().with_login(&registry.host(), &Login::password("writer", "open barley"));
    oras.push(&format!("{}/java-app:v1", registry.host()), files.path(), &["app.jar"]);
    let pulled = pull_as(&registry, "java-app", &Login::password(user, password).docker_config(NAME));
    if may { pulled.is(files.path()) } else { pulled.failed(1, &["private.example:5000/java-app"]) }
}

#[test]
fn anonymous_clients_get_a_token_for_public_repositories() {
    let service = TokenService::start(rules());
    let (registry, files) = (behind(&service), one_file());
    push_as_admin(&registry, "public/app", files.path());
    push_as_admin(&registry, "team-a/app", files.path());
    let certs = registry.certs_d(&[NAME]);
    service.forget_requests();
    pull(certs.path(), &[&format!("{NAME}/public/app:v1")]).is(files.path());
    let expected = TokenRequest {
        method: "GET",
        authorization: false,
        grant: None,
        user: None,
        scopes: vec!["repository:public/app:pull".to_owned()],
        status: 200,
    };
    assert_eq!(service.requests(), [expected], "one token is enough");
    pull(certs.path(), &[&format!("{NAME}/team-a/app:v1")]).failed(1, &["team-a/app"]);
}

// The registry and the token service themselves, with other clients: they must work as real ones do.

#[rstest]
#[case::the_own("a", "team-a/app", true)]
#[case::anothers("b", "team-a/app", false)]
#[case::the_other_own("b", "team-b/app", true)]
#[case::public("b", "public/app", true)]
fn a_token_covers_only_the_repositories_of_its_tenant(
    #[case] user: &str,
    #[case] repository: &str,
    #[case] may: bool,
    #[values(false, true)] by_post: bool,
) {
    let service = TokenService::start(rules());
    let (registry, files, out) = (behind(&service), one_file(), folder());
    push_as_admin(&registry, repository, files.path());
    service.forget_requests();
    let login = if by_post {
        Login::IdentityToken(service.refresh_token(user))
    } else {
        Login::password(user, &format!("secret of {user}"))
    };
    let oras = Oras::plain_http().with_login(&registry.host(), &login);
    let output = try_run(&mut oras.pull(&format!("{}/{repository}:v1", registry.host()), out.path()));
    assert_eq!(output.status.success(), may, "{}", String::from_utf8_lossy(&output.stderr));
    let asked = service.requests();
    let (method, grant) = if by_post { ("POST", Some("refresh_token")) } else { ("GET", None) };
    assert!(!asked.is_empty());
    for request in asked {
        assert_eq!((request.method, request.grant.as_deref()), (method, grant));
        assert_eq!((request.authorization, request.status), (!by_post, 200));
    }
}

#[test]
fn access_ends_when_the_token_expires() {
    let service = TokenService::start(rules());
    let (registry, files, out) = (behind(&service), one_file(), folder());
    push_as_admin(&registry, "team-a/app", files.path());
    let oras = Oras::plain_http().with_login(&registry.host(), &Login::password("a", "secret of a"));
    let reference = format!("{}/team-a/app:v1", registry.host());
    run(&mut oras.pull(&reference, out.path()));
    service.change(|rules| rules.without_tenant("a"));
    assert!(!try_run(&mut oras.pull(&reference, out.path())).status.success());
}

/// Sends a form to the service; returns the status and the body of the answer.
fn post(service: &TokenService, form: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(service.host()).expect("it listens");
    let head = "POST /token HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                Content-Type: application/x-www-form-urlencoded";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{form}", form.len()).expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("reads");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn a_password_grants_a_refresh_token() {
    let service = TokenService::start(rules());
    let form = "grant_type=password&username=a&password=secret+of+a&access_type=offline&client_id=x\
                &service=registry.test&scope=repository:team-a/app:pull";
    let (status, answer) = post(&service, form);
    assert_eq!((status, answer["expires_in"].as_u64()), (200, Some(300)), "{answer}");
    assert!(answer["access_token"].is_string(), "{answer}");
    let refresh =
        format!("grant_type=refresh_token&refresh_token={}", answer["refresh_token"].as_str().unwrap());
    assert_eq!(post(&service, &refresh).0, 200);
    assert_eq!(post(&service, "grant_type=refresh_token&refresh_token=guessed").0, 401);
    assert_eq!(post(&service, &form.replace("secret", "guess")).0, 401);
    service.change(Rules::without_post);
    assert_eq!(post(&service, form).0, 404);
    let noted = service.requests();
    let statuses: Vec<u16> = noted.iter().map(|request| request.status).collect();
    assert_eq!(statuses, [200, 200, 401, 401, 404]);
    assert_eq!((noted[0].user.as_deref(), noted[0].grant.as_deref()), (Some("a"), Some("password")));
}

#[test]
fn a_wrong_password_does_not_fall_back_to_an_anonymous_token() {
    let service = TokenService::start(rules());
    let (registry, files, out) = (behind(&service), one_file(), folder());
    push_as_admin(&registry, "public/app", files.path());
    let oras = Oras::plain_http().with_login(&registry.host(), &Login::password("a", "guessed"));
    let reference = format!("{}/public/app:v1", registry.host());
    assert!(!try_run(&mut oras.pull(&reference, out.path())).status.success());
    assert!(service.requests().last().is_some_and(|last| last.status == 401));
    run(&mut Oras::plain_http().pull(&reference, out.path()));
}

#[rstest]
#[case("reader", "open sesame", true)]
#[case("writer", "open barley", true)]
#[case("reader", "open barley", false)]
#[case("nobody", "open sesame", false)]
fn htpasswd_accepts_both_users(#[case] user: &str, #[case] password: &str, #[case] may: bool) {
    let users = [("reader", "open sesame"), ("writer", "open barley")];
    let registry = Distribution::start_with(Configuration::default().with_htpasswd(&users));
    let (files, out) = (one_file(), folder());
    let oras = |user: &str, password: &str| {
        Oras::plain_http().with_login(&registry.host(), &Login::password(user, password))
    };
    let reference = format!("{}/java-app:v1", registry.host());
    oras("writer", "open barley").push(&reference, files.path(), &["app.jar"]);
    let output = try_run(&mut oras(user, password).pull(&reference, out.path()));
    assert_eq!(output.status.success(), may, "{}", String::from_utf8_lossy(&output.stderr));
}
