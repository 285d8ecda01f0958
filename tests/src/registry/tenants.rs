//! Two tenants of one registry, with different permissions.

use std::path::Path;

use super::{Configuration, Distribution, Login, Oras, Rules, TokenService};

/// `a` with "secret of a" can pull `team-a`, `b` with "secret of b" can pull `team-b`, and all can pull `public`.
pub fn rules() -> Rules {
    let rules = Rules::default().with_tenant("admin", "of all", &[""]).with_public("public");
    rules.with_tenant("a", "secret of a", &["team-a"]).with_tenant("b", "secret of b", &["team-b"])
}

/// Starts a registry that requires tokens of this service.
pub fn behind(service: &TokenService) -> Distribution {
    Distribution::start_with(Configuration::default().with_tokens(service))
}

/// Pushes `app.jar` of a folder to `repository:v1` as the administrator; returns the digest.
pub fn push_as_admin(registry: &Distribution, repository: &str, files: &Path) -> String {
    let oras = Oras::plain_http().with_login(&registry.host(), &Login::password("admin", "of all"));
    oras.push(&format!("{}/{repository}:v1", registry.host()), files, &["app.jar"])
}
